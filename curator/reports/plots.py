"""The plots of a report, as SVG that stands inside a page and says in words what it shows.

    figures of a manifest -> matplotlib, without a screen -> SVG with its text as text -> Plot(svg, words)

A few classes are named; of many, their order is drawn, and of thousands the median and the range of neighbours, so that
a plot has at most some hundreds of points. The same figures give the same text, whatever the user's matplotlibrc says.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from curator.errors import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NAMED = 40  # up to here each class has a line of its own
STEPS = 50  # of confidence, see sql/report_confidence.sql
_POINTS = 200
_GREY, _BLUE, _ORANGE, _DARK = "#c3c9d2", "#2563a8", "#c2571a", "#30343b"
_STYLE: Any = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a class may be called "$x$"
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#8a919c",
    "axes.labelcolor": _DARK,
    "text.color": _DARK,
    "xtick.color": _DARK,
    "ytick.color": _DARK,
    "axes.axisbelow": True,
    "grid.color": "#e3e6ea",
    "legend.frameon": False,
}


class Plot(NamedTuple):
    """An SVG element, and what it shows as sentences."""

    svg: str
    words: str


def funnel(steps: Sequence[tuple[str, int]], words: str) -> Plot:
    """Images that each rule leaves, as shares of the first step.

    Args:
        steps: What is counted, and how many; the last is rows, counted with copies.
        words: The sentences for the plot.
    """
    first = max(steps[0][1], 1)

    def paint(axes: Axes) -> None:
        numbers = [number for _, number in steps]
        axes.barh(range(len(steps)), numbers, 0.66, color=[_BLUE] * (len(steps) - 1) + [_ORANGE])
        for at, number in enumerate(numbers):
            axes.text(number + max(numbers) * 0.008, at, f"{number:,}  ({percent(number / first)})", va="center")
        name_rows(axes, [name for name, _ in steps])
        axes.set_xlim(0, max(*numbers, 1) * 1.17)
        axes.set_xticks([])
        axes.spines["bottom"].set_visible(False)

    return draw("funnel", 0.45 + 0.27 * len(steps), paint, words)


def classes(rows: Sequence[Mapping[str, Any]], quota: int, words: str) -> Plot:
    """Candidates and kept images of each class against the quota.

    The scale is logarithmic, with a zero, where the classes are many or far apart.

    Args:
        rows: class_name, candidates and kept of each class, in the order to draw.
        quota: Rows of each class, counted with copies.
        words: The sentences for the plot.
    """
    candidates, kept = ([int(row[name]) for row in rows] for name in ("candidates", "kept"))

    def bars(axes: Axes) -> None:
        places = range(len(rows))
        axes.barh(places, candidates, 0.78, color=_GREY, label="candidates")
        axes.barh(places, kept, 0.42, color=_BLUE, label="kept")
        axes.axvline(quota, color=_ORANGE, linestyle="--", label=f"quota {quota:,}")
        for at, (has, took) in enumerate(zip(candidates, kept, strict=True)):
            axes.text(1.01, at, f"{took:,} of {has:,}", va="center", transform=axes.get_yaxis_transform())
        name_rows(axes, [str(row["class_name"]) for row in rows])
        if max(*candidates, quota) > 20 * max(min(*candidates, quota), 1):
            _logarithmic(axes, "x", max(*candidates, quota) * 1.5)
        else:
            axes.xaxis.set_major_formatter(_thousands)
            axes.grid(axis="x")
        axes.set_xlabel("images")
        legend(axes)

    def lines(axes: Axes) -> None:
        _along(axes, candidates, _GREY, "candidates", fill=True)
        _along(axes, kept, _BLUE, "kept")
        axes.axhline(quota, color=_ORANGE, linestyle="--", label=f"quota {quota:,}")
        _logarithmic(axes, "y", max(*candidates, quota) * 2)
        axes.set_ylabel("images")
        axes.set_xlabel("classes, the one with the most candidates first")
        legend(axes)

    return draw("classes", *((tall(rows), bars) if len(rows) <= NAMED else (3.4, lines)), words)


def cut_offs(rows: Sequence[Mapping[str, Any]], minimum: float, words: str) -> Plot:
    """The confidence of the last image that each class kept.

    Args:
        rows: class_name and cut_off of each class that kept an image, in the order to draw.
        minimum: The confidence that a candidate must have.
        words: The sentences for the plot.
    """
    values = [float(row["cut_off"]) for row in rows]
    low = max(min(*values, minimum, 1.0) - 0.02, 0.0)

    def dots(axes: Axes) -> None:
        axes.scatter(values, range(len(rows)), color=_BLUE, zorder=3)
        for at, value in enumerate(values):
            axes.annotate(f"{value:.3f}", (value, at), (7, 0), textcoords="offset points", va="center")
        axes.axvline(minimum, color=_ORANGE, linestyle="--", label=f"least confidence {minimum:g}")
        name_rows(axes, [str(row["class_name"]) for row in rows])
        axes.grid(axis="x")
        axes.set_xlim(low, 1 + (1 - low) * 0.08)
        axes.set_xlabel("confidence of the last kept image")
        legend(axes)

    def lines(axes: Axes) -> None:
        _along(axes, values, _BLUE, "cut-off")
        axes.axhline(minimum, color=_ORANGE, linestyle="--", label=f"least confidence {minimum:g}")
        axes.grid(axis="y")
        axes.set_ylim(low, 1.01)
        axes.set_ylabel("confidence of the last kept image")
        axes.set_xlabel("classes that kept an image, the one with the most candidates first")
        legend(axes)

    return draw("cut-offs", *((tall(rows), dots) if len(rows) <= NAMED else (2.8, lines)), words)


def precision(rows: Sequence[Mapping[str, Any]], words: str) -> Plot:
    """The estimated share of right labels of each class, with its interval.

    Args:
        rows: class_name, precision, low and high of each class, in the order to draw.
        words: The sentences for the plot.
    """
    value, low, high = (np.array([row[name] for row in rows], float) for name in ("precision", "low", "high"))

    def dots(axes: Axes) -> None:
        places = range(len(rows))
        axes.hlines(places, low, high, color=_GREY, linewidth=5, label="95 % interval")
        axes.scatter(value, places, color=_BLUE, zorder=3, label="estimate")
        name_rows(axes, [str(row["class_name"]) for row in rows])
        axes.grid(axis="x")
        axes.set_xlim(max(low.min() - 0.03, 0), 1.01)
        axes.set_xlabel("estimated share of right labels")
        legend(axes)

    def lines(axes: Axes) -> None:
        edges = _edges(len(rows))
        least, most = [np.min(part) for part in _parts(low)], [np.max(part) for part in _parts(high)]
        _band(axes, edges, least, most, _GREY, label="95 % interval")
        _along(axes, value, _BLUE, "estimate")
        axes.grid(axis="y")
        axes.set_ylim(0, 1.02)
        axes.set_ylabel("share of right labels")
        axes.set_xlabel("classes, the lowest estimate first")
        legend(axes)

    return draw("precision", *((tall(rows), dots) if len(rows) <= NAMED else (2.8, lines)), words)


def copies(rows: Sequence[Mapping[str, Any]], words: str) -> Plot:
    """How many images count once, twice, 3 to 4 times, 5 to 8 times, ..., and how many rows these make.

    Args:
        rows: copies and images, as sql/report_copies.sql gives them.
        words: The sentences for the plot.
    """
    found: dict[int, list[int]] = {}
    for row in rows:
        counts = found.setdefault((int(row["copies"]) - 1).bit_length(), [0, 0])
        counts[0] += row["images"]
        counts[1] += row["images"] * row["copies"]
    powers = range(max(found) + 1)
    both = [found.get(power, [0, 0]) for power in powers]
    total = sum(rows for _, rows in both)

    def paint(axes: Axes) -> None:
        places = np.arange(len(both))
        axes.bar(places - 0.2, [images for images, _ in both], 0.38, color=_GREY, label="images")
        axes.bar(places + 0.2, [rows for _, rows in both], 0.38, color=_BLUE, label="rows (images x copies)")
        for at, (_, number) in enumerate(both):
            if number:
                axes.annotate(
                    percent(number / total), (at + 0.2, number), (0, 2), textcoords="offset points", ha="center"
                )
        names = [str(2**p) if p < 2 else f"{2 ** (p - 1) + 1:,}-{2**p:,}" for p in powers]
        axes.set_xticks(places, names, rotation=0 if len(names) < 13 else 45)
        axes.yaxis.set_major_formatter(_thousands)
        axes.set_xlim(-0.6, max(len(both), 4) - 0.4)
        axes.margins(y=0.12)
        axes.grid(axis="y")
        axes.set_xlabel("copies of an image")
        legend(axes)

    return draw("copies", 2.6, paint, words)


def confidence(
    pool: npt.NDArray[np.int64],
    images: npt.NDArray[np.int64],
    rows: npt.NDArray[np.int64],
    minimum: float,
    words: str,
) -> Plot:
    """Confidence in the pool, of the kept images, and of the rows.

    Args:
        pool: [STEPS] images of the pool in each step of 1 / STEPS.
        images: [STEPS] kept images.
        rows: [STEPS] kept images counted with copies.
        minimum: The confidence that a candidate must have.
        words: The sentences for the plot.
    """
    edges = np.linspace(0, 1, STEPS + 1)
    used = np.flatnonzero(pool + images)
    left = max(float(edges[used[0]]) - 0.02, 0.0) if len(used) else 0.0

    def paint(axes: Axes) -> None:
        axes.stairs(pool, edges, fill=True, color=_GREY, label="pool")
        axes.stairs(images, edges, fill=True, color=_BLUE, alpha=0.55, label="kept images")
        axes.stairs(rows, edges, color=_ORANGE, linewidth=1.4, label="rows (images x copies)")
        axes.axvline(minimum, color=_DARK, linestyle=":", label=f"least confidence {minimum:g}")
        highest = int(max(pool.max(), rows.max(), 1))
        if highest > 30 * max(int(images.max()), 1):  # the kept ones would be a line on the axis
            _logarithmic(axes, "y", highest * 2)
        else:
            axes.yaxis.set_major_formatter(_thousands)
        axes.set_xlim(min(left, minimum), 1)
        axes.grid(axis="y")
        axes.set_xlabel("confidence, in steps of 0.02")
        axes.set_ylabel("images")
        legend(axes)

    return draw("confidence", 3.2, paint, words)


def percent(share: float) -> str:
    """A share in percent, never rounded up to all or down to nothing."""
    if 0 < share < 0.001:
        return "under 0.1%"
    return "over 99.9%" if 0.999 < share < 1 else f"{100 * share:.1f}%".replace(".0%", "%")


def draw(name: str, height: float, paint: Callable[[Axes], None], words: str) -> Plot:
    """Draws one plot of that height in inches; ids inside it are derived from its name."""
    import matplotlib
    from matplotlib.figure import Figure

    out = io.StringIO()
    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE | {"svg.hashsalt": name})
        # A browser has fonts for the letters that matplotlib's own does not have.
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        figure = Figure(figsize=(9.2, height), layout="constrained")
        paint(figure.add_subplot())
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(out, format="svg", transparent=True, metadata=nothing)
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :].strip()
    wanted = set(re.findall(r"#([\w-]+)", svg))
    # "figure_1" and its like are in every plot, and a page has an id only once.
    svg = re.sub(r' id="([^"]*)"', lambda found: found.group() if found.group(1) in wanted else "", svg)
    return Plot(svg, words)


def tall(rows: Sequence[object]) -> float:
    """Inches of a plot with a line for each row."""
    return 0.9 + 0.22 * len(rows)


def name_rows(axes: Axes, names: Sequence[str]) -> None:
    """Names along the left side, the first on top."""
    axes.set_yticks(range(len(names)), [short(name, 32) for name in names])
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(names) - 0.4, -0.6)


def short(text: str, most: int) -> str:
    """Foreign text on one line, with its middle left out where it is long."""
    text = printable(text)
    return text if len(text) <= most else f"{text[: most // 2]}...{text[len(text) - most // 2 + 3 :]}"


def _logarithmic(axes: Axes, side: Literal["x", "y"], end: float) -> None:
    axes.set(**{f"{side}scale": "symlog", f"{side}lim": (0, end)})
    axis = axes.xaxis if side == "x" else axes.yaxis
    axis.set_major_formatter(_thousands)
    axes.grid(axis=side)


def _thousands(value: float, _: float) -> str:
    return f"{value:,.0f}" if value == int(value) else f"{value:g}"


def legend(axes: Axes) -> None:
    """What the colours mean, above the plot on the right."""
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=4, borderaxespad=0)


def _parts(values: Sequence[float] | npt.NDArray[np.float64]) -> list[npt.NDArray[np.float64]]:
    return np.array_split(np.asarray(values, float), min(len(values), _POINTS))


def _edges(count: int) -> npt.NDArray[np.float64]:
    """Where the parts of so many classes begin, the first class at 1, and where the last one ends."""
    return np.cumsum([0.5, *(len(part) for part in _parts(np.zeros(count)))])


def _along(
    axes: Axes, values: Sequence[float] | npt.NDArray[np.float64], colour: str, label: str, fill: bool = False
) -> None:
    """One value of each class from left to right: the median of neighbours, with their range behind it."""
    parts, edges = _parts(values), _edges(len(values))
    if len(values) > _POINTS and not fill:
        label += f" (median and range of {len(parts[0])})"
    axes.stairs([np.median(part) for part in parts], edges, color=colour, fill=fill, label=label, linewidth=1.3)
    if not fill and len(values) > _POINTS:
        _band(axes, edges, [np.min(part) for part in parts], [np.max(part) for part in parts], colour, alpha=0.25)
    axes.set_xlim(edges[0], edges[-1])
    axes.xaxis.set_major_formatter(_thousands)


def _band(
    axes: Axes, edges: npt.NDArray[np.float64], low: Sequence[float], high: Sequence[float], colour: str, **look: Any
) -> None:
    axes.fill_between(edges, [*low, low[-1]], [*high, high[-1]], step="post", color=colour, linewidth=0, **look)
