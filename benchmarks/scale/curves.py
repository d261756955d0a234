"""The simulated labelings in one picture: when they are done, and what the length of a part changes.

outcomes by images, days between deaths, seconds of a part, rule -> two plots -> PNG
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from pathlib import Path

from failures import Outcome
from matplotlib.figure import Figure

_TOP = 20  # of the plot; who takes longer is given up
Key = tuple[float, float, float, str]
COLOURS = {"together": "#c2571a", "later": "#8a919c", "listed": "#2563a8", "alone": "#30343b"}
WORDS = {
    "together": "all start again",
    "later": "the host stands still, then a second command",
    "listed": "all start again, the list made once (not built)",
    "alone": "the rank alone starts again (not built)",
}


def labeling(runs: Mapping[Key, list[Outcome]], file: Path) -> None:
    """Draws the labeling of the largest pool.

    Args:
        runs: Outcomes by images, days between deaths of a rank, seconds of a part, and rule.
        file: The picture to write.
    """
    most = max(images for images, *_ in runs)
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for rule, colour in COLOURS.items():
        points = sorted(
            (days, statistics.median(o.slower for o in outcomes))
            for (images, days, part, by), outcomes in runs.items()
            if (images, part, by) == (most, 30.0, rule)
        )
        done = [point for point in points if math.isfinite(point[1])]
        left.plot(*zip(*done, strict=True), "o-", color=colour, label=WORDS[rule])
        never = [days for days, slower in points if not math.isfinite(slower)]
        left.plot(never, [0.85 * _TOP] * len(never), "x", color=colour, markersize=9)
    left.text(4, 0.85 * _TOP, "x: not done after 20 times as long", fontsize=8, va="center")
    left.set(xscale="log", yscale="log", ylim=(0.95, _TOP))
    left.set(xlabel="days between two deaths of a rank", ylabel="time, x of the work alone")
    left.set_title(f"256 ranks, {most / 1e9:g}B images, parts of 30 s", fontsize=10)
    left.legend(fontsize=8, frameon=False, loc="upper right", bbox_to_anchor=(1, 0.92))
    for axis, ticks in ((left.yaxis, [1, 1.5, 2, 3, 5, 10, 20]), (left.xaxis, [1, 3, 10, 30, 100])):
        axis.set_ticks(ticks, [f"{tick:g}" for tick in ticks])
        axis.set_ticks([], minor=True)
    middle = min(days for _, days, part, _ in runs if part != 30.0)
    points = sorted(
        (part, statistics.mean(o.twice for o in outcomes) * 100, statistics.mean(o.parts for o in outcomes))
        for (images, days, part, by), outcomes in runs.items()
        if (images, days, by) == (most, middle, "together")
    )
    seconds, twice, parts = zip(*points, strict=True)
    right.plot(seconds, twice, "o-", color="#2563a8")
    right.set(xscale="log", xlabel="seconds of a part", ylim=(0, None))
    right.set_ylabel("images computed twice, %", color="#2563a8")
    right.set_title(f"the length of a part, {middle:g} days between deaths", fontsize=10)
    count = right.twinx()
    count.plot(seconds, parts, "o-", color="#c2571a")
    count.set_yscale("log")
    count.set_ylabel("parts", color="#c2571a")
    for axes in (left, right, count):
        axes.spines["top"].set_visible(False)
    figure.savefig(file, dpi=110)
