"""Out-of-sample soft labels of the labeled split: each fold of it is labeled by a model that was trained without it.

    labeled split, as the reviews of one version left it --sql/folds.sql--> K folds
    for each: training without it --> predict it --> held_out, one commit
    STORE/folds/RUN/run.json       recipe, folds, seed, the images of the run, and the version of the reviews
    STORE/folds/RUN/NUMBER/        checkpoints and weights of the fold that is being worked on

A fold whose labels are in `held_out` is done. A run that was stopped goes on with the fold that it was at, from the
newest checkpoint of its training. The models are no teachers: they are not registered, and their weights go when their
fold is labeled.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from safetensors.torch import load_file

from curator import progress
from curator.errors import InputError
from curator.generations import held_out, softlabels
from curator.loading.rows import Fold, labeled_rows
from curator.lock import alone
from curator.names import check_name
from curator.networks import network, recipes
from curator.networks.inference import predict
from curator.networks.recipes import Recipe
from curator.ranks import device_of
from curator.runs import training
from curator.storage import additions
from curator.storage.store import Store, Versions

MOST_FOLDS = 100
_BATCH = 64


class Folded(NamedTuple):
    """What a run of folds did."""

    run: str
    folds: int
    trained: int  # folds of this call; the others were done
    images: int  # that have an out-of-sample soft label now
    top1: float | None  # share of them whose top class is the given label; None where there are none
    unknown: int  # images that are the only picture of their class, so that their model has never seen it
    failed: int
    problems: list[str]


def run(
    store: Store,
    recipe: str,
    folds: int = 5,
    name: str | None = None,
    seed: int = 0,
    changes: list[str] | None = None,
    threads: int | None = None,
    pack: str | None = "auto",
    device: str = "auto",
    checkpoint_seconds: float = training.CHECKPOINT_SECONDS,
) -> Folded:
    """Trains a model for each fold without it and labels the fold; goes on where an earlier call was stopped.

    Args:
        store: The store.
        recipe: Name of a shipped recipe, or path of a `.toml` file.
        folds: K, 2 to 100.
        name: Name of the run; RECIPE-K by default.
        seed: Of the folds. The recipe has the seed of weights and noise.
        changes: KEY=VALUE changes of the recipe.
        threads: Threads that read and decode.
        pack: As in `training.train`. Labeling reads the originals, as it does elsewhere.
        device: Where to compute.
        checkpoint_seconds: Training that a kill can lose at most, in seconds.

    Raises:
        InputError: Recipe, name or number cannot be used, or the run of this name has other ones.
        StoreError: The run is going on in another process.
        KeyboardInterrupt: Ctrl-C or SIGTERM; the same call goes on.
    """
    if not 2 <= folds <= MOST_FOLDS:
        raise InputError(f"the labeled split cannot be cut into {folds} folds", f"--folds 5, or 2 to {MOST_FOLDS}")
    recipe_name, plan = recipes.load(recipe, changes)
    name = name or f"{recipe_name}-{folds}"
    check_name("run", name)
    folder = store.path / "folds" / name
    with alone(folder, f"training the folds of '{name}'"):
        parts = [Fold(name, number, folds, seed) for number in range(folds)]
        store.place.anew(f"folds/{name}")
        file = folder / "run.json"
        if not file.exists() and store.rows("select 1 from held_out where run = $run limit 1", run=name):
            raise InputError(f"the labels of the run of folds '{name}' were not made here", "give another --name")
        kept = json.loads(file.read_text("utf-8")) if file.exists() else None
        versions = {"reviews": store.versions()["reviews"]} if kept is None else kept.get("versions", {})
        single = _check(store, file, kept, plan, parts, versions)
        done = {row["fold"] for row in store.rows("select distinct fold from held_out where run = $run", run=name)}
        left = [part for part in parts if part.number not in done]
        for number in done:  # of a run that was killed between a commit and the end of its fold
            shutil.rmtree(folder / str(number), ignore_errors=True)
        problems: list[str] = []
        for part in left:
            progress.say(f"fold {part.number + 1} of {folds}")
            weights = folder / str(part.number) / "weights.safetensors"
            if not weights.exists():
                training.train(
                    store, recipe, name=f"{name}-{part.number}", changes=changes, resume=True, threads=threads,
                    checkpoint_seconds=checkpoint_seconds, pack=pack, device=device, fold=part,
                    versions=versions,
                )  # fmt: skip
            problems += _label(store, part, plan, weights, threads, device, versions)
            shutil.rmtree(weights.parent)
            store.place.mirror(folder)
    images = store.rows("select count(*) as n from held_out where run = $run", run=name)[0]["n"]
    top1 = held_out.top1(store, name)
    return Folded(name, folds, len(left), images, top1, single, len(problems), problems[:20])


def _check(
    store: Store, file: Path, kept: dict[str, Any] | None, plan: Recipe, parts: list[Fold], versions: Versions
) -> int:
    """Notes what the run is, or compares it with what was noted.

    Args:
        store: The store.
        file: Where it is noted.
        kept: What was noted, None at the beginning of a run.
        plan: The recipe.
        parts: All folds.
        versions: Table versions that the labeled split is read at.

    Returns:
        The images that are the only picture of their class: such a class lies in one fold whole.

    Raises:
        InputError: A fold would be empty, or the run of this name is another one.
    """
    with closing(store.connect(versions)) as con:
        rows = labeled_rows(con, parts[0])
    labels, folds = rows["label"].to_numpy(), rows["fold"].to_numpy()
    for part in parts:
        if part.number not in folds:
            raise InputError(
                f"fold {part.number + 1} of {part.of} would be empty: there are {rows.num_rows} labeled images",
                "take fewer --folds, or curator add-images FOLDER --split labeled",
            )
    digest = hashlib.sha256()
    for column in ("image_id", "label", "fold"):
        digest.update(rows[column].to_numpy().astype(np.int64).tobytes())
    in_folds = np.zeros((labels.max() + 1, parts[0].of), np.int64)
    np.add.at(in_folds, (labels, folds), 1)
    single = int(in_folds[np.count_nonzero(in_folds, axis=1) == 1].sum())
    about = {
        "recipe": json.loads(plan.model_dump_json()),
        "folds": parts[0].of,
        "seed": parts[0].seed,
        "labeled images": digest.hexdigest(),
    }
    if kept is None:
        unfinished = file.with_suffix(".unfinished")
        unfinished.write_text(json.dumps(about | {"versions": versions}, indent=1) + "\n", "utf-8")
        unfinished.rename(file)
        store.place.share([file])
        return single
    differ = [what for what, value in about.items() if kept.get(what) != value]
    if differ:
        raise InputError(
            f"the run of folds '{parts[0].run}' was begun with another {' and another '.join(differ)}",
            "give the same options as before, or another --name",
        )
    return single


def _label(
    store: Store, fold: Fold, plan: Recipe, weights: Path, threads: int | None, device: str, versions: Versions
) -> list[str]:
    """Labels a fold with the model that was trained without it, and commits the labels.

    Returns:
        The images that cannot be read, with the reasons.
    """
    body = network.build(plan, len(store.classes()))
    body.load_state_dict(load_file(weights))
    body.eval().to(device_of(device))
    with closing(store.connect(versions)) as con:
        rows = labeled_rows(con, fold)
    rows = rows.filter(pc.equal(rows["fold"], fold.number))
    found, problems = [], []
    with (
        progress.progress(f"labeling fold {fold.number + 1}", rows.num_rows) as advance,
        closing(predict(body, plan, store.root, _batches(rows), threads)) as answers,
    ):
        for answer in answers:
            uris = answer.rows["uri"]
            problems += [f"{uris[i].as_py()}: {reason}" for i, reason in answer.failed.items()]
            if len(answer.good):
                ids = answer.rows["image_id"].to_numpy()[answer.good]
                summary = softlabels.summarize(answer.probs, store.settings.kept_classes)
                found.append(held_out.table(summary, ids, fold.run, fold.number))
            advance(answer.rows.num_rows)
    if not found:
        raise InputError(
            f"no image of fold {fold.number + 1} can be read", "check that the files are where the store expects them"
        )
    additions.append(store, "held_out", pa.concat_tables(found))
    return problems


def _batches(rows: pa.Table) -> Iterator[pa.Table]:
    for start in range(0, rows.num_rows, _BATCH):
        yield rows.slice(start, _BATCH)
