"""Evolution: the steps of a plan, generation after generation, each skipped where it was done before.

    plan -> train, label, calibrate -> build-manifest -> train (and its control), label, calibrate -> ... -> figures
              |
              |              (calibrate where the selection is calibrated)
              +-> done: the store has it, made in the same way;  to do: it has not, or not yet all of it;
                  else an error that says what differs, before anything runs

Nothing of its own is kept: what was done is read from the store's tables, and each step goes on by itself where it was
stopped, so a plan that was stopped or killed anywhere goes on when it is run again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from curator import progress, queries, ranks
from curator.curation import account, building, manifests
from curator.curation.parameters import Parameters
from curator.errors import InputError
from curator.generations.labels import check_generation
from curator.loading.rows import holdout_rows
from curator.networks import checkpoints, recipes
from curator.quality import calibration
from curator.rounds import plans
from curator.rounds.plans import Generation, Training
from curator.runs import training
from curator.schema import SPLITS
from curator.storage.store import Store
from curator.teachers import labeling


class Step(NamedTuple):
    """One step of a plan.

    Attributes:
        step: "train", "label", "calibrate" or "build-manifest".
        name: Of the model or manifest.
        generation: The generation that it belongs to: a manifest to the model that is trained on it.
        done: Whether it was done before.
    """

    step: str
    name: str
    generation: int
    done: bool


class Evolution(NamedTuple):
    """What came of a plan.

    Attributes:
        plan: Its short name.
        steps: Its steps, as they were found.
        generations: The figures of each model, see `evolve`.
        controls: Those of the models that were trained for comparison.
    """

    plan: str
    steps: list[Step]
    generations: list[dict[str, Any]]
    controls: list[dict[str, Any]]


class _Task(NamedTuple):
    """A step with what differs from the one that was done before (None: it was not), and how to do it."""

    step: str
    name: str
    generation: int
    differences: list[str] | None
    run: Callable[[], object]


def evolve(
    store: Store,
    plan: str,
    dry_run: bool = False,
    threads: int | None = None,
    device: str = "auto",
    checkpoint_seconds: float = training.CHECKPOINT_SECONDS,
    part_seconds: float = labeling.PART_SECONDS,
    tensorboard: Path | None = None,
) -> Evolution:
    """Runs what is left to do of a plan.

    Args:
        store: The store.
        plan: Name of a shipped plan, or path of a `.toml` file.
        dry_run: Whether to find out what there is to do, and write nothing.
        threads: Threads that read and decode.
        device: Where to compute; "auto" is a GPU where there is one.
        checkpoint_seconds: Work of a training that a kill can lose at most, in seconds.
        part_seconds: The same of labeling.
        tensorboard: Folder for TensorBoard's event files of the trainings, see `training.train`.

    Returns:
        The steps, and for each generation: model, recipe, changes, parents, manifest with its rows and unique_images,
        top1 on the holdout with its 95 % interval, ece, steps, the precision of the pseudo labels that it was trained
        on, as the holdout estimates it, with its interval and the number of images that it stands on, its control, and
        the seconds that this call spent on it. What is not known is None.

    Raises:
        InputError: The plan has mistakes, or a step was done before in another way.
        CuratorError: A step failed.
    """
    name, generations = plans.load(store, plan)
    tasks = [*_tasks(store, generations, threads, device, checkpoint_seconds, part_seconds, tensorboard)]
    _expect_alike(name, tasks)
    seconds = dict.fromkeys((each.number for each in generations), 0.0)
    with ranks.join(device) if not dry_run else nullcontext():  # once for all steps: ranks cannot part and meet again
        for number, task in enumerate(tasks if not dry_run else (), start=1):
            done = task.differences is not None
            progress.say(f"step {number} of {len(tasks)}: {task.step} {task.name}" + ", done before" * done)
            if not done:
                began = time.perf_counter()
                task.run()
                seconds[task.generation] += time.perf_counter() - began
    steps = [Step(task.step, task.name, task.generation, task.differences is not None) for task in tasks]
    return Evolution(name, steps, *_figures(store, generations, seconds))


def _tasks(
    store: Store,
    generations: list[Generation],
    threads: int | None,
    device: str,
    checkpoint_seconds: float,
    part_seconds: float,
    tensorboard: Path | None,
) -> Iterator[_Task]:
    """The steps in their order."""

    def train(wanted: Training) -> Callable[[], object]:
        return lambda: training.train(
            store,
            wanted.source,
            wanted.manifest,
            wanted.model,
            wanted.init,
            wanted.changes,
            resume=bool(checkpoints.steps(store.place.bring(f"models/{wanted.model}"))),
            threads=threads,
            checkpoint_seconds=checkpoint_seconds,
            device=device,
            tensorboard=tensorboard,
        )

    def label(model: str) -> Callable[[], object]:
        return lambda: _told(labeling.label(store, model, threads=threads, part_seconds=part_seconds, device=device))

    def build(manifest: str, options: dict[str, Any]) -> Callable[[], object]:
        return lambda: _warned(building.build(store, manifest, options))

    there = {row["model"]: row for row in store.rows("select * from models")}
    controls: set[str] = set()
    for this, following in zip(generations, [*generations[1:], None], strict=True):
        if this.training is not None:
            if this.training.manifest is not None:
                manifest, teacher = this.training.manifest, this.training.parents[0]
                differ = _built(store, manifest, this.options, teacher)
                yield _Task("build-manifest", manifest, this.number, differ, build(manifest, this.options))
            differ = _trained(there.get(this.model), this.training)
            yield _Task("train", this.model, this.number, differ, train(this.training))
        if this.control is not None and this.control.model not in controls:
            controls.add(this.control.model)
            differ = _trained(there.get(this.control.model), this.control)
            yield _Task("train", this.control.model, this.number, differ, train(this.control))
        if following is not None and following.training is not None:
            manifest = str(following.training.manifest)
            used = _built(store, manifest, following.options, this.model) is not None
            yield _Task("label", this.model, this.number, _labeled(store, this, used), label(this.model))
            if following.options.get("calibrated"):
                model = this.model
                fit = partial(calibration.calibrate, store, model)
                yield _Task("calibrate", model, this.number, _calibrated(store, this, used), fit)


def _trained(row: Mapping[str, Any] | None, wanted: Training) -> list[str] | None:
    """What a registered model differs in from the one wanted."""
    if row is None:
        return None
    if row["recipe"] is None:
        return ["it was named by an import and has no weights"]
    had, want = (_flat(r.model_dump()) for r in (recipes.from_json(row["recipe"]), wanted.recipe))
    had |= {"manifest": row["manifest"], "parents": row["parents"]}
    want |= {"manifest": wanted.manifest, "parents": [*wanted.parents]}
    figures = json.loads(row["metrics"] or "{}")
    if "init" in figures:
        had["init"], want["init"] = figures["init"], wanted.init
    return [f"{key} {had.get(key)} -> {want.get(key)}" for key in had | want if had.get(key) != want.get(key)]


def _flat(data: dict[str, Any], above: str = "") -> dict[str, Any]:
    """Nested tables as one, with dotted keys."""
    found: dict[str, Any] = {}
    for key, value in data.items():
        found |= _flat(value, f"{above}{key}.") if isinstance(value, dict) else {f"{above}{key}": value}
    return found


def _built(store: Store, name: str, options: dict[str, Any], teacher: str) -> list[str] | None:
    """What a published manifest differs in from the one wanted; whether the store has grown since is not asked."""
    if not store.rows("select 1 from manifests where name = $name", name=name):
        return None
    there = manifests.find(store, name)
    wanted = {key: value for key, value in options.items() if key != "calibrated"}
    fitted = there.lineage["parameters"].get("calibration")
    if options.get("calibrated") and fitted is not None:  # whatever the temperature was then
        wanted["calibration"] = fitted
    differ = manifests.differences(there, Parameters(**wanted))
    differ += ["calibrated False -> True"] * bool(options.get("calibrated") and fitted is None)
    had = there.lineage["model"]["model"]
    return differ + [f"teacher {had} -> {teacher}"] * (had != teacher)


def _calibrated(store: Store, this: Generation, used: bool) -> list[str] | None:
    """A temperature stands where one was fitted, and once a manifest was built with it."""
    fitted = store.rows(queries.text("calibration"), generation=this.number, model=this.model)
    return [] if used or fitted else None


def _labeled(store: Store, this: Generation, used: bool) -> list[str] | None:
    """What stands against a generation's labels; once a manifest was built from them, they are all that it takes."""
    with closing(store.connect()) as con:
        try:
            if not check_generation(con, this.number, this.model):
                return None
        except InputError as error:
            return [error.what]
        if used:
            return []
        outside = queries.rows(con, "select weights is null as o from models where model = $m", m=this.model)[0]["o"]
        if outside:
            query = "select 1 from labels where generation = $g and split = 'unlabeled' limit 1"
            mine = queries.rows(con, query, g=this.number)
            return [] if mine else ["it has neither weights nor labels of unlabeled images"]
        con.execute("create temp table staged (image_id bigint)")
        query = f"select 1 from ({queries.text('unlabeled_by')}) limit 1"
        return None if queries.rows(con, query, generation=this.number, splits=[*SPLITS]) else []


def _expect_alike(plan: str, tasks: list[_Task]) -> None:
    """Makes sure that what is there already is what the plan wants.

    Raises:
        InputError: Something is not; all of it is named.
    """
    differ = [task for task in tasks if task.differences]
    if differ:
        raise InputError(
            f"the plan '{plan}' differs from what the store has in {len(differ)} step{'s' * (len(differ) > 1)} "
            "(there -> in the plan):"
            + "".join(f"\n    {task.step} {task.name}: {', '.join(task.differences or ())}" for task in differ),
            "put the plan back as it was; or give what is new other names ('name', 'manifest', 'control'); or, as a "
            "generation has one teacher, run it in another store",
        )


def _told(done: labeling.Labeled) -> None:
    if done.failed:
        progress.say(f"{done.failed} images could not be read and have no label")


def _warned(built: manifests.Manifest) -> None:
    for warning in account.warnings(built):
        progress.say(warning)


def _figures(
    store: Store, generations: list[Generation], seconds: dict[int, float]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The figures of the generations, and of the controls."""
    holdout = int(store.rows(f"select count(*) as n from ({holdout_rows()})")[0]["n"])
    models = {row["model"]: json.loads(row["metrics"] or "{}") for row in store.rows("select * from models")}
    built = {row["name"] for row in store.rows("select name from manifests")}
    found, controls = [], {}
    for this in generations:
        trained = this.training
        manifest = trained and trained.manifest
        found.append(
            {"generation": this.number, "model": this.model}
            | {"recipe": trained and _short(trained), "changes": trained and trained.changes}
            | {"parents": [*trained.parents] if trained else [], "manifest": manifest}
            | _precision(None if manifest is None or manifest not in built else manifests.find(store, manifest))
            | _accuracy(models.get(this.model, {}), holdout)
            | {"control": this.control and this.control.model, "seconds": round(seconds[this.number], 1)}
        )
        if this.control is not None:
            figures = _accuracy(models.get(this.control.model, {}), holdout)
            controls[this.control.model] = {"model": this.control.model, "recipe": _short(this.control)} | figures
    return found, [*controls.values()]


def _short(trained: Training) -> str:
    return Path(trained.source).stem if trained.source.endswith(".toml") else trained.source


def _accuracy(figures: Mapping[str, Any], holdout: int) -> dict[str, Any]:
    top1 = figures.get("top1")
    low, high = (None, None) if top1 is None else account.wilson(round(top1 * holdout), holdout)
    return {"top1": top1, "top1_low": low, "top1_high": high, "ece": figures.get("ece"), "steps": figures.get("steps")}


def _precision(manifest: manifests.Manifest | None) -> dict[str, Any]:
    right, seen = (0, 0) if manifest is None else account.precision(manifest)
    low, high = account.wilson(right, seen) if seen else (None, None)
    return {
        "rows": manifest and manifest.rows,
        "unique_images": manifest and manifest.unique_images,
        "precision": right / seen if seen else None,
        "precision_low": low,
        "precision_high": high,
        "precision_images": seen or None,
    }
