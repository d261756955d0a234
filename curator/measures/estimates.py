"""Figures of a model's answers with their bootstrap intervals, as rows for a document and for the table of evaluations.

Answers of N images --> top1, top5, ece, confidence; accuracy of each class --> value, low, high
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from curator.curation.account import wilson
from curator.measures import bootstrap
from curator.measures.evaluation import Answers
from curator.measures.evaluations import figure
from curator.quality.calibration import BINS, ece, reliability

MEASURES = ("top1", "top5", "ece", "confidence")

Floats = npt.NDArray[np.float64]
# A figure and its interval; None for one that is not defined, or has none.
Estimate = tuple[float | None, tuple[float, float] | None]


def measured(cells: Sequence[Answers], seed: int) -> tuple[list[dict[str, Estimate]], Floats]:
    """The figures MEASURES of several answers of the same N images.

    The calibration error of a resample is the sum over bins of |sum of right - confidence| / N, which is the definition
    with its counts cancelled.

    Args:
        cells: The answers.
        seed: Of the resamples.

    Returns:
        Of each cell its figures, and top1 over the resamples [cells, D].
    """
    columns = []
    for cell in cells:
        gaps = np.zeros((len(cell.label), BINS), np.float32)
        places = np.minimum((cell.confidence * BINS).astype(np.int64), BINS - 1)
        gaps[np.arange(len(places)), places] = cell.right - cell.confidence
        columns.append(np.column_stack([cell.right, cell.right5, cell.confidence, gaps]))
    drawn = bootstrap.means(np.concatenate(columns, axis=1), seed).reshape(-1, len(cells), BINS + 3)
    found: list[dict[str, Estimate]] = []
    for number, cell in enumerate(cells):
        right = cell.right
        values = {
            "top1": float(right.mean()),
            "top5": float(cell.right5.mean()),
            "ece": ece(reliability(cell.confidence, right)),
            "confidence": float(cell.confidence.mean()),
        }
        own = drawn[:, number]
        resampled = (own[:, 0], own[:, 1], np.abs(own[:, 3:]).sum(axis=1), own[:, 2])
        found.append(
            {name: (values[name], bootstrap.interval(each)) for name, each in zip(MEASURES, resampled, strict=True)}
        )
    return found, drawn[:, :, 0].T


def classes(found: Answers, names: Sequence[str], seed: int) -> list[dict[str, Any]]:
    """Accuracy of each class with images and two intervals: bootstrap, and Wilson's, which has a width at 0 and 1.

    Args:
        found: The answers.
        names: Of the classes, in the order of their indexes.
        seed: Of the resamples, which are of all images: a class's share of them varies, as it does in a new holdout.
    """
    order = np.argsort(found.label, kind="stable")
    labels, first = np.unique(found.label[order], return_index=True)
    right = found.right[order].astype(np.float32)
    drawn = []
    for each in bootstrap.counts(len(order), seed):
        placed = each[:, order]
        with np.errstate(invalid="ignore"):  # a resample may have no image of a class
            drawn.append(np.add.reduceat(placed * right, first, axis=1) / np.add.reduceat(placed, first, axis=1))
    resampled = np.concatenate(drawn).astype(np.float64)
    rows = []
    for place, (label, own) in enumerate(zip(labels.tolist(), np.split(right, first[1:]), strict=True)):
        low, high = bootstrap.interval(resampled[:, place])
        wide = wilson(float(own.sum()), len(own))
        rows.append(
            {"label": label, "class_name": names[label], "images": len(own), "top1": float(own.mean())}
            | {"top1_low": low, "top1_high": high, "wilson_low": wide[0], "wilson_high": wide[1]}
        )
    return rows


def estimate(value: Floats | None, drawn: Floats | None) -> Estimate:
    """A figure [1] and its interval over resamples [D]."""
    if value is None:
        return None, None
    return float(value[0]), None if drawn is None else bootstrap.interval(drawn)


def named(told: Mapping[str, Estimate]) -> dict[str, Any]:
    """Figures as NAME, NAME_low and NAME_high; without an interval, NAME alone."""
    found: dict[str, Any] = {}
    for name, (value, interval) in told.items():
        found[name] = value
        if interval is not None:
            found[f"{name}_low"], found[f"{name}_high"] = interval
    return found


def rows(told: Mapping[str, Estimate], kind: str | None = None, level: float | None = None) -> list[dict[str, Any]]:
    """Figures for `evaluations.record`, those that are defined."""
    return [
        figure(name, value, kind, level, *(wide or ())) for name, (value, wide) in told.items() if value is not None
    ]


def class_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of `classes` for `evaluations.record`."""
    interval = row["top1_low"], row["top1_high"]
    return figure("top1", row["top1"], row["class_name"], row["label"], *interval) | {"images": row["images"]}


def bin_rows(row: Mapping[str, float]) -> list[dict[str, Any]]:
    """A row of `calibration.reliability` for `evaluations.record`; the level is where the bin begins."""
    interval = row["accuracy_low"], row["accuracy_high"]
    found = [
        figure("accuracy", row["accuracy"], None, row["low"], *interval),
        figure("confidence", row["confidence"], None, row["low"]),
    ]
    return [each | {"images": row["images"]} for each in found]
