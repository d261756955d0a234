"""Where a store stands on the route, and the steps that come next.

tables --sql/overview_*.sql--> images per split, generations --> what is missing on the way to the next student
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from curator import queries
from curator.errors import plural

# Answers a query over the store's views.
Ask = Callable[[str], list[dict[str, Any]]]


class Step(NamedTuple):
    """Something to do.

    Attributes:
        what: What it is for, as a sentence.
        command: The command that does it; placeholders are in capitals.
    """

    what: str
    command: str


class Situation(NamedTuple):
    """Where a store stands.

    Attributes:
        images: Rows of sql/overview_images.sql.
        generations: Rows of sql/overview_generations.sql.
        extent: The row of sql/overview_extent.sql.
        steps: What comes next, the most urgent first.
    """

    images: list[dict[str, Any]]
    generations: list[dict[str, Any]]
    extent: dict[str, Any]
    steps: list[Step]


def situation(path: str, scanned: bool, ask: Ask) -> Situation:
    """Looks at a store.

    Args:
        path: Its folder or URL, for the commands.
        scanned: Whether anybody has looked for near-duplicates.
        ask: Answers a query over the store's views.
    """
    generations = queries.compose(queries.steps(*queries.TRUSTED), queries.text("overview_generations"))
    images, extent = ask(queries.text("overview_images")), ask(queries.text("overview_extent"))[0]
    found = Situation(images, ask(generations), extent, [])
    steps = [Step(what, f"curator {command}{option(path)}") for what, command in _steps(found, scanned)]
    return found._replace(steps=steps)


def option(path: str) -> str:
    """What the commands of a store need behind them: nothing where it is that of the current folder."""
    return "" if Path(path).absolute() == Path("store").absolute() else f" --store {shlex.quote(path)}"


def _steps(found: Situation, scanned: bool) -> list[tuple[str, str]]:
    splits = {row["split"]: row["images"] for row in found.images}
    if not splits:
        return [
            ("Images with a trusted class come first.", "add-images FOLDER --split labeled --labels folder"),
            ("Then the pool of images without one.", "add-images FOLDER --split unlabeled"),
            (
                "And images that are never trained on, to measure with.",
                "add-images FOLDER --split holdout --labels folder",
            ),
        ]
    steps = []
    for split, what, more in (
        ("labeled", "There are no labeled images to train the first teacher on.", " --labels folder"),
        ("unlabeled", "There is no pool to label.", ""),
        (
            "holdout",
            "There is no holdout: nothing can be measured, calibrated or protected from leaks.",
            " --labels folder",
        ),
    ):
        if split not in splits and not (split == "labeled" and found.generations):
            steps.append((what, f"add-images FOLDER --split {split}{more}"))
    if not found.generations:
        return [*steps, ("The first teacher can be trained.", "train --recipe RECIPE --name teacher")]
    newest = found.generations[-1]
    if newest["pool"] < splits.get("unlabeled", 0):
        left = splits["unlabeled"] - newest["pool"]
        images = plural(left, "image")
        what = f"Generation {newest['generation']} has not labeled {left:,} {images} of the pool."
        labeled = f"label --model {newest['model']}"
        imported = f"import-labels FILE --generation {newest['generation']} --model {newest['model']}"
        steps.append((what, labeled if newest["has_weights"] else imported))
    extent = found.extent
    if not scanned:
        steps.append(
            ("Nobody has looked for near-duplicates: images of the holdout may be in the pool.", "quality leaks")
        )
    if newest["pool"]:
        if newest["holdout"] and newest["generation"] not in extent["calibrated"]:
            what = f"The confidences of generation {newest['generation']} are not calibrated."
            steps.append((what, "quality calibration"))
        if not newest["manifests"]:
            what = f"Generation {newest['generation']} has labels and no manifest."
            steps.append((what, "build-manifest --per-class K"))
        elif newest["generation"] not in extent["taught"]:
            what = f"No student was trained on the manifest '{extent['manifest']}'."
            steps.append((what, f"train --recipe RECIPE --manifest {extent['manifest']}"))
    return steps
