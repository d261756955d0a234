"""The claims of the studies in one picture: differences of two arms in points, with their intervals.

figures of arms and seeds -> a line for each claim, seeds as dots -> PNG
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from study import Study
from tables import differences, interval, verdict

COLOURS = {"agrees": "#2563a8", "disagrees": "#c2571a", "too noisy to say": "#8a919c"}


def claims(studies: Mapping[str, Study], rows: Sequence[Mapping[str, Any]], file: Path) -> None:
    """Draws every claim whose arms have figures.

    Args:
        studies: The studies by name.
        rows: Figures, one of each arm and seed.
        file: The picture to write.
    """
    lines = []
    for name, study in studies.items():
        for claim in study.claims:
            apart = differences(claim, rows)
            if len(apart) > 1:
                points = [100 * value for value in apart]
                lines.append((f"{name}: {claim.better} - {claim.than}", points, verdict(apart, claim.by)))
    figure = Figure(figsize=(9, 0.28 * len(lines) + 1), layout="constrained")
    axes = figure.subplots()
    for place, (_, apart, said) in enumerate(lines):
        low, high = interval(apart)
        middle, colour = sum(apart) / len(apart), COLOURS[said]
        axes.plot([low, high], [place, place], color=colour, linewidth=2, alpha=0.5)
        axes.plot(apart, [place] * len(apart), ".", color=colour, markersize=4)
        axes.plot([middle], [place], "o", color=colour, markersize=5)
    axes.axvline(0, color="#30343b", linewidth=0.8)
    axes.set_yticks(range(len(lines)), [label for label, *_ in lines], fontsize=7)
    axes.invert_yaxis()
    axes.set_xscale("symlog", linthresh=3)  # a few claims are about tens of points
    ticks = [-10, -3, -1, 0, 1, 3, 10, 30]
    axes.set_xticks(ticks, [f"{tick:+d}" if tick else "0" for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.margins(y=0.01)
    axes.set_xlabel("difference of top-1 in points: mean, seeds, 95 % interval")
    axes.spines[["top", "right"]].set_visible(False)
    for said, colour in COLOURS.items():
        axes.plot([], [], "o", color=colour, label=said)
    axes.legend(loc="upper right", fontsize=7, frameon=False, title="the claim", title_fontsize=7)
    figure.savefig(file, dpi=110)
