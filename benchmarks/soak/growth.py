"""Whether a process grows: samples of its memory, open files and threads, and a fresh process beside it.

    /proc/PID --every 5 s--> samples --> slope over the last half; mean of the last minutes, beside that of a fresh one

A store that grows takes more memory to read, caches fill up: a slope alone does not tell that from a leak. A fresh
process that does the same work on the same store has all of that but the leak.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy import stats

BLOCKS = 12  # of the last half: samples five seconds apart are not independent, means of minutes nearly are
SHARE = 0.01  # of the mean, which a slope has to add over the last half to count
MINUTES = 3.0  # at the end, whose mean is compared with that of a fresh process
ABOVE = 1.1  # times the mean of a fresh process is a leak, where the slope counts, too
MEASURES = ("memory, MiB", "of which anonymous", "open files", "threads")


class Line(NamedTuple):
    """One measure of one process.

    Attributes:
        process: Its role.
        measure: One of MEASURES.
        first: The first sample.
        most: The highest.
        mean: Over the last half.
        slope: Of a line through the means of blocks of the last half, an hour.
        low: Of the 95 % interval of the slope.
        high: Of the same.
        last: Mean of the last minutes.
        fresh: Mean of the last minutes of a fresh process.
    """

    process: str
    measure: str
    first: float
    most: float
    mean: float
    slope: float
    low: float
    high: float
    last: float
    fresh: float

    @property
    def rises(self) -> bool:
        """Whether the whole interval is above 0, and the slope adds something over the last half of an hour."""
        return self.low > 0 and self.slope / 2 > SHARE * self.mean

    @property
    def leaks(self) -> bool:
        """Whether it rises, and a fresh process has clearly less."""
        return self.rises and self.last > ABOVE * self.fresh

    @property
    def verdict(self) -> str:
        """In a word."""
        return "leaks" if self.leaks else "rises, as a fresh one has it" if self.rises else "flat"


def sample(pid: int) -> tuple[float, ...]:
    """The MEASURES of a process, now."""
    rolled = dict(line.split()[:2] for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:])
    return (
        int(rolled["Rss:"]) / 1024,
        int(rolled["Anonymous:"]) / 1024,
        len(os.listdir(f"/proc/{pid}/fd")),  # noqa: PTH208 - names are enough
        len(os.listdir(f"/proc/{pid}/task")),  # noqa: PTH208
    )


def lines(samples: dict[str, list[tuple[float, ...]]], fresh: dict[str, list[tuple[float, ...]]]) -> list[Line]:
    """What the samples come to: of each process minutes, and the MEASURES at them.

    Args:
        samples: Of the processes that lived from the beginning.
        fresh: Of those that were started at the end, of the same roles.
    """
    found = []
    for name, taken in samples.items():
        values, others = np.array(taken), np.array(fresh[name])
        half = values[values[:, 0] >= (values[0, 0] + values[-1, 0]) / 2]
        blocks = np.array([block.mean(0) for block in np.array_split(half, min(BLOCKS, len(half)))])
        for number, measure in enumerate(MEASURES, start=1):
            slope, low, high = (60 * value for value in _line(blocks[:, 0], blocks[:, number]))
            last, other = (float(of[of[:, 0] >= of[-1, 0] - MINUTES, number].mean()) for of in (values, others))
            column = values[:, number]
            found.append(
                Line(name, measure, column[0], column.max(), half[:, number].mean(), slope, low, high, last, other)
            )
    return found


def table(found: list[Line]) -> str:
    """The lines as Markdown."""
    head = (
        "process", "measure", "first", "most", "mean, last half", "slope, an hour", "last minutes", "fresh process",
        "verdict",
    )  # fmt: skip
    rows = [
        f"| {f.process} | {f.measure} | {f.first:.0f} | {f.most:.0f} | {f.mean:.1f} | {f.slope:+.2f} ({f.low:+.2f} to "
        f"{f.high:+.2f}) | {f.last:.0f} | {f.fresh:.0f} | {f.verdict} |"
        for f in found
    ]
    return "\n".join(["| " + " | ".join(head) + " |", "|---" * len(head) + "|", *rows])


def _line(x: np.ndarray, y: np.ndarray) -> tuple[float, float, float]:
    """Slope of a line through points, and its 95 % interval."""
    if len(x) < 3:
        return 0.0, -math.inf, math.inf
    if not np.ptp(y):
        return 0.0, 0.0, 0.0
    found = stats.linregress(x, y)
    wide = stats.t.ppf(0.975, len(x) - 2) * found.stderr
    return found.slope, found.slope - wide, found.slope + wide
