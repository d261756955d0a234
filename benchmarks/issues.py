"""Planted label noise: what `quality folds` and `quality issues` find of it, beside cleanlab, and what mending brings.

    2,000 digits, a tenth of the labels changed --5 folds--> out-of-sample labels --> suspects --> precision, recall
                                                                                  --> cleanlab -->
    stores with the changed, the true, the mended labels --the same steps--> accuracy on 1,000 others

    python benchmarks/issues.py [--packages DIR] [--steps N] [--seeds N] [--write]

The digits are those of `curator demo`. cleanlab is installed into a temporary folder unless --packages names one.
--write keeps the tables in benchmarks/results/issues.md.
"""

from __future__ import annotations

import argparse
import datetime as dt
import os
import subprocess
import sys
import tempfile
import time
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from curator import draws
from curator.curation.account import wilson
from curator.pictures.images import add_images
from curator.quality import issues
from curator.rounds import demo
from curator.runs import folds, training
from curator.storage.store import Store

RESULT = Path(__file__).parent / "results" / "issues.md"
PACKAGES = ("cleanlab==2.9.0", "termcolor", "tqdm")
RECIPE, FOLDS, SHARE = "tiny-teacher", 5, 0.1
LABELED, HOLDOUT = 200, 100  # images of each class
CLASSES = [str(digit) for digit in range(demo.CLASSES)]
# What people take for each other: each class of a pair is given as the other one.
PAIRS = {0: 6, 6: 0, 1: 7, 7: 1, 2: 3, 3: 2, 4: 9, 9: 4, 5: 8, 8: 5}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--packages", type=Path)
    options.add_argument("--steps", type=int, default=600)
    options.add_argument("--seeds", type=int, default=2)
    options.add_argument("--write", action="store_true")
    chosen = options.parse_args()
    changes = [f"schedule.steps={chosen.steps}"]
    with tempfile.TemporaryDirectory(prefix="curator-bench-") as temporary:
        folder = Path(temporary)
        sys.path.append(str(chosen.packages or installed(folder / "packages")))
        truth = pictures(folder)
        drawn = draw(truth, HOLDOUT + LABELED)
        holdout, labeled = np.sort(drawn[:, :HOLDOUT].ravel()), np.sort(drawn[:, HOLDOUT:].ravel())
        found, agreed, worth, several = [], [], [], []
        for kind in ("any", "pairs"):
            given = changed(truth, labeled, kind)
            store = made(folder / kind, labeled, given, holdout, truth)
            began = time.perf_counter()
            done = folds.run(store, RECIPE, FOLDS, "run", changes=changes)
            seconds = time.perf_counter() - began
            print(f"{kind}: {done.images} images in {seconds:.0f} s, top-1 {done.top1:.1%}", file=sys.stderr)
            rows, both, suspects, between = compared(store, kind, given, truth)
            found, agreed, several = found + rows, agreed + both, [*several, between]
            worth += mended(folder, kind, given, truth, labeled, holdout, suspects, changes, chosen.seeds)
        text = report(found, agreed, worth, several, len(labeled), chosen.steps, chosen.seeds)
    print(text)
    if chosen.write:
        RESULT.write_text(text)


def installed(folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "install", "-qq", "--no-deps", "--target", str(folder), *PACKAGES]
    subprocess.run(command, check=True)
    return folder


def pictures(folder: Path) -> np.ndarray:
    """Writes the digits; their true classes [N]."""
    images, labels = demo._digits()
    (folder / "digits").mkdir()
    for number, image in enumerate(images):
        cv2.imwrite(str(folder / uri(number)), image)
    return labels


def uri(number: int) -> str:
    return f"digits/{number:04d}.png"


def draw(truth: np.ndarray, count: int) -> np.ndarray:
    """So many images [classes, count] of each class, in a drawn order."""
    found = []
    for digit in range(len(CLASSES)):
        members = np.flatnonzero(truth == digit)
        found.append(members[draws.shuffle(draws.key(0, "issues", digit), np.arange(count), len(members))])
    return np.stack(found)


def changed(truth: np.ndarray, labeled: np.ndarray, kind: str) -> np.ndarray:
    """The labels [N] with a tenth of the labeled ones changed: to any other class, or to the other one of a pair."""
    rng, given = np.random.default_rng(0), truth.copy()
    wrong = rng.choice(labeled, round(SHARE * len(labeled)), replace=False)
    other = (truth[wrong] + rng.integers(1, len(CLASSES), len(wrong))) % len(CLASSES)
    given[wrong] = other if kind == "any" else [PAIRS[digit] for digit in truth[wrong]]
    return given


def made(place: Path, labeled: np.ndarray, given: np.ndarray, holdout: np.ndarray, truth: np.ndarray) -> Store:
    """A store of the pictures with these labels."""
    store = Store.create(place, CLASSES)
    for split, numbers, labels in (("labeled", labeled, given), ("holdout", holdout, truth)):
        file = place.with_suffix(f".{split}.parquet")
        pq.write_table(pa.table({"uri": [uri(n) for n in numbers], "label": labels[numbers].astype(np.int32)}), file)
        add_images(store, str(file), split)
    return store


def compared(
    store: Store, kind: str, given: np.ndarray, truth: np.ndarray
) -> tuple[list[Any], list[Any], list[Any], int]:
    """Rows of the first and second table, the suspects of the default method, and the ambiguous images."""
    from cleanlab.filter import find_label_issues

    rows = store.rows(
        "select h.*, i.uri from held_out as h join images as i on i.image_id = h.image_id order by h.image_id"
    )
    numbers = np.array([int(row["uri"][7:11]) for row in rows])
    probs = np.zeros((len(rows), len(CLASSES)))
    for place, row in enumerate(rows):
        probs[place, row["top_classes"]] = row["top_probs"]
    planted = set(np.flatnonzero(given != truth).tolist())
    table, agreed, kept = [], [], []
    for by, theirs in (("noise-rate", "prune_by_noise_rate"), ("joint", "confident_learning")):
        began = time.perf_counter()
        all_of_it = issues.find(store, by=by, limit=len(rows), cells=len(CLASSES) ** 2)
        seconds = time.perf_counter() - began
        ours = {int(row["uri"][7:11]) for row in all_of_it.rows}
        began = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            mask = find_label_issues(given[numbers], probs, filter_by=theirs)
            other_seconds = time.perf_counter() - began
            told = find_label_issues(given[numbers], probs, filter_by=theirs, confident_joint=joint(all_of_it))
        others = set(numbers[mask].tolist())
        apart = len(ours ^ set(numbers[told].tolist())) if by == "noise-rate" else "-"
        kept = kept or all_of_it.rows
        for name, named in ((f"curator, {by}", ours), (f"cleanlab, {theirs}", others)):
            right = len(named & planted)
            table.append(
                f"| {kind} | {name} | {len(named)} | {right} | {right / len(named):.1%} | {right / len(planted):.1%} |"
            )
        hint = sum(truth[int(row["uri"][7:11])] == row["suggested"] for row in all_of_it.rows)
        agreed.append(
            f"| {kind} | {by} | {len(ours & others)} | {len(ours - others)} | {len(others - ours)} | {apart} "
            f"| {hint / len(ours):.1%} | {all_of_it.noise:.1%} | {seconds:.2f} / {other_seconds:.2f} |"
        )
    return table, agreed, kept, ambiguous(all_of_it, probs)


def joint(found: issues.Issues) -> np.ndarray:
    """The scaled confident joint [classes, classes]."""
    matrix = np.zeros((len(CLASSES), len(CLASSES)), np.int64)
    for cell in found.cells:
        matrix[int(cell["given_class"]), int(cell["class_name"])] = cell["estimated"]
    np.fill_diagonal(matrix, [row["images"] for row in found.classes] - matrix.sum(axis=1))
    return matrix


def ambiguous(found: issues.Issues, probs: np.ndarray) -> int:
    """Images that reach the thresholds of several classes, but not that of the most probable one."""
    reached = probs >= np.array([row["threshold"] for row in found.classes]) - 1e-6
    return int(((reached.sum(axis=1) > 1) & ~reached[np.arange(len(probs)), probs.argmax(axis=1)]).sum())


def mended(
    folder: Path,
    kind: str,
    given: np.ndarray,
    truth: np.ndarray,
    labeled: np.ndarray,
    holdout: np.ndarray,
    suspects: list[Any],
    changes: list[str],
    seeds: int,
) -> list[str]:
    """Accuracies after training on the labels as they are, without the suspects, and with other labels."""
    named = np.array([int(row["uri"][7:11]) for row in suspects])
    relabeled = given.copy()
    relabeled[named] = [row["suggested"] for row in suspects]
    variants = {
        "changed labels": (labeled, given),
        "suspects left out": (np.setdiff1d(labeled, named), given),
        "suspects with the suggested label": (labeled, relabeled),
        "true labels": (labeled, truth),
    }
    rows = []
    for number, (name, (images, labels)) in enumerate(variants.items()):
        store = made(folder / f"{kind}-{number}", images, labels, holdout, truth)
        reached = []
        for seed in range(seeds):
            done = training.train(store, RECIPE, name=f"m{seed}", changes=[*changes, f"seed={seed}"])
            reached.append(done.top1 or 0.0)
        each = ", ".join(f"{top1:.1%}" for top1 in reached)
        print(f"{kind}, {name}: {each}", file=sys.stderr)
        still = int((labels[images] != truth[images]).sum())
        rows.append(f"| {kind} | {name} | {len(images)} | {still} | {np.mean(reached):.2%} | {each} |")
    return rows


def report(
    found: list[str], agreed: list[str], worth: list[str], several: list[int], images: int, steps: int, seeds: int
) -> str:
    low, high = wilson(round(0.97 * HOLDOUT * len(CLASSES)), HOLDOUT * len(CLASSES))
    return "\n".join(
        [
            "# Planted label noise",
            "",
            f"{dt.date.today()}, {os.cpu_count()} cores, torch {version('torch')}, duckdb {version('duckdb')}, "
            f"cleanlab {PACKAGES[0].partition('==')[2]}. `make bench-issues`",
            "",
            f"{images} digits of `curator demo`, {SHARE:.0%} of them with a wrong label: any other class, or the other "
            f"one of a pair (0-6, 1-7, 2-3, 4-9, 5-8). {FOLDS} folds of {RECIPE}, {steps} steps each. The digits' own "
            "labels count as right.",
            "",
            "## What is found",
            "",
            "| noise | method | suspects | planted ones | precision | recall |",
            "|---|---|---|---|---|---|",
            *found,
            "",
            "## Against cleanlab, on the same stored probabilities",
            "",
            "| noise | method | both | curator alone | cleanlab alone | apart with one joint "
            "| suggested class right | estimated noise "
            "| seconds, curator / cleanlab |",
            "|---|---|---|---|---|---|---|---|---|",
            *agreed,
            "",
            "The sets differ by three things. Where cells of the scaled joint have equal remainders, the "
            "rounding gives the image to one or the other. An image that reaches the thresholds of several "
            f"classes, but not that of its most probable class ({several[0]} and {several[1]} of them here), "
            "counts for the most probable class of all in cleanlab, and for the most probable one of those "
            "reached in curator, as in the paper. And cleanlab also names images for a pair whose other class "
            "is less probable than the given one, and takes any of equal margins: what is apart when cleanlab "
            "is given curator's joint. Seconds include opening the store.",
            "",
            "## What mending brings",
            "",
            f"| noise | labels | images | wrong ones | top-1, mean of {seeds} seeds | each |",
            "|---|---|---|---|---|---|",
            *worth,
            "",
            f"{RECIPE} with {steps} steps whatever the images, on {HOLDOUT * len(CLASSES)} others. The 95 % interval "
            f"of one accuracy of 97 % is {low:.1%} to {high:.1%}.",
            "",
        ]
    )


if __name__ == "__main__":
    main()
