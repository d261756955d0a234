"""What the studies found, as tables: each arm over its seeds, each claim of the paper beside the difference here.

figures of arms and seeds -> mean and 95 % interval over seeds; differences of two arms, seed by seed -> verdict
"""

from __future__ import annotations

import datetime as dt
import json
import math
import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from scipy import stats
from study import Claim, Study

RESULTS = Path(__file__).parents[1] / "results"
SAME = 0.005  # accuracies that differ by less are the same, for a claim that two arms are
Row = dict[str, Any]


def show(
    studies: Mapping[str, Study], rows: Sequence[Row], labeled: int, steps: float, tuned: bool, result: str | None
) -> None:
    """Prints the tables.

    Args:
        studies: The studies by name.
        rows: Figures, one of each arm and seed.
        labeled: Labeled images of each class.
        steps: What the recipes' steps were multiplied by.
        tuned: Whether the validation part was the judge.
        result: Name to keep tables and figures under; None for a look.
    """
    seeds = sorted({row["seed"] for row in rows})
    machines = "; ".join(sorted({row["machine"] for row in rows}))
    judge = "5,000 images of the training set" if tuned else "the 10,000 test images"
    text = [
        "# Studies",
        "",
        f"{dt.date.today()}, {machines}. Fashion-MNIST, {labeled} labeled images of each class, seeds {seeds[0]} to "
        f"{seeds[-1]}, steps x {steps:g}, judged by {judge}.",
        "",
        "Top-1 and its kin: mean over the seeds, +- half of the 95 % interval by Student's t. A seed draws the labeled "
        "images, the weights, the order and the noise. Differences are taken seed by seed. s: seconds of training, "
        "steps x batch / images a second. Right: pseudo labels that are the true ones, by images. Verdict on a claim "
        "that one arm is better: agrees where the interval of the difference lies above 0, disagrees where it lies "
        "below, else too noisy to say. On a claim of no difference: agrees where the interval lies within "
        f"{SAME:.1%}, disagrees where it excludes 0 and the difference is larger than that, else too noisy to say.",
    ]
    for name, study in studies.items():
        text += ["", f"## {study.title}", "", f"`--studies {name}`. {study.question}", "", *_arms(study, rows)]
        if study.claims:
            text += ["", *_claims(study.claims, rows)]
        if study.note:
            text += ["", study.note]
    print("\n".join(text))
    if result is not None:
        (RESULTS / f"{result}.md").write_text("\n".join(text) + "\n")
        lines = ",\n".join(json.dumps(row) for row in rows)
        (RESULTS / f"{result}.json").write_text(f"[\n{lines}\n]\n")


def machine() -> str:
    """What computes, in words."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return (
        f"{os.cpu_count()} cores, {memory:.0f} GiB{gpu}, Python {platform.python_version()}, torch {torch.__version__}"
    )


def _arms(study: Study, rows: Sequence[Row]) -> list[str]:
    columns = {"top1": "top-1", "ece": "ECE", "corruption_error": "error, corrupted"}
    attacked = sorted({key for row in rows for key in row if key.startswith("fgsm_")}, key=lambda key: float(key[5:]))
    columns |= {key: f"top-1, FGSM {key[5:]}" for key in attacked}
    of = {arm.name: [row for row in rows if row["arm"] == arm.name] for arm in study.arms}
    there = [key for key in columns if any(key in row for mine in of.values() for row in mine)]
    if not study.robustness:
        there = [key for key in there if key in ("top1", "ece")]
    heads = [columns[key] for key in there]
    text = [f"| arm | {' | '.join(heads)} | images | rows | right | steps | s |", "|---" * (len(heads) + 6) + "|"]
    for name, mine in of.items():
        cells = [_over([row[key] for row in mine if key in row]) for key in there]
        counts = [_mean([row[key] for row in mine if key in row], "{:,.0f}") for key in ("images", "rows")]
        right = _mean([row["right"] for row in mine if "right" in row], "{:.1%}")
        steps = [_mean([row[key] for row in mine], "{:,.0f}") for key in ("steps", "seconds")]
        text.append(f"| {' | '.join([name, *cells, *counts, right, *steps])} |")
    return text


def _claims(claims: Sequence[Claim], rows: Sequence[Row]) -> list[str]:
    text = ["| claim | in the paper | difference here, points | seeds | verdict |", "|---|---|---|---|---|"]
    for claim in claims:
        apart = differences(claim, rows)
        word = "above" if claim.by == "higher" else "like"
        text.append(
            f"| {claim.better} {word} {claim.than} | {claim.paper} | {_points(apart)} | {len(apart)} "
            f"| {verdict(apart, claim.by)} |"
        )
    return text


def differences(claim: Claim, rows: Sequence[Row]) -> list[float]:
    """Top-1 of the better arm less that of the other, of each seed that both have."""
    top1 = {(row["arm"], row["seed"]): row["top1"] for row in rows}
    seeds = sorted(seed for arm, seed in top1 if arm == claim.better and (claim.than, seed) in top1)
    return [top1[claim.better, seed] - top1[claim.than, seed] for seed in seeds]


def verdict(apart: Sequence[float], by: str) -> str:
    """What differences of top-1, one a seed, say of a claim."""
    low, high = interval(apart)
    if by == "same":
        if low > -SAME and high < SAME:
            return "agrees"
        apart_indeed = (low > 0 or high < 0) and abs(statistics.fmean(apart)) > SAME
        return "disagrees" if apart_indeed else "too noisy to say"
    return "agrees" if low > 0 else "disagrees" if high < 0 else "too noisy to say"


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The 95 % interval of a mean by Student's t; without end for a single value."""
    if len(values) < 2:
        return -math.inf, math.inf
    half = float(stats.t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
    return statistics.fmean(values) - half, statistics.fmean(values) + half


def _over(values: Sequence[float]) -> str:
    if not values:
        return ""
    low, high = interval(values)
    wide = "" if math.isinf(low) else f" +- {(high - low) / 2:.2%}"
    return f"{statistics.fmean(values):.2%}{wide}".replace("%", "")


def _points(values: Sequence[float]) -> str:
    low, high = interval(values)
    return f"{100 * statistics.fmean(values):+.2f} ({100 * low:+.2f} to {100 * high:+.2f})"


def _mean(values: Sequence[float], form: str) -> str:
    return form.format(statistics.fmean(values)) if values else ""
