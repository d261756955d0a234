"""The plots of an evaluation report: figures of several models beside each other, each with its interval.

series: of each model, (value, low, high) for each row or each place on an axis -> plots.draw -> Plot(svg, words)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from curator.reports.plots import Plot, draw, legend, name_rows, short, tall

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Value, and the ends of its interval; None where there is none.
Point = tuple[float, float | None, float | None]

_COLOURS = ("#2563a8", "#c2571a", "#3a8a4d", "#7a4fa3", "#a3852a", "#2a8f96")
_GREY = "#8a919c"


def dots(name: str, rows: Sequence[str], series: Mapping[str, Sequence[Point | None]], label: str, words: str) -> Plot:
    """A line for each row, on it a dot for each model, with its interval.

    Args:
        name: Of the plot, one on a page.
        rows: What the rows are called.
        series: Of each model its points, in the order of the rows; None where it has none.
        label: Of the axis.
        words: The sentences for the plot.
    """
    step = 0.6 / max(len(series), 1)

    def paint(axes: Axes) -> None:
        for number, (model, points) in enumerate(series.items()):
            off = step * (number - (len(series) - 1) / 2)
            known = [(place + off, *point) for place, point in enumerate(points) if point is not None]
            if not known:
                continue
            y, x, low, high = zip(*known, strict=True)
            colour = _COLOURS[number % len(_COLOURS)]
            lows, highs = _ends(x, low), _ends(x, high)
            axes.hlines(y, lows, highs, color=colour, alpha=0.4, linewidth=3)
            axes.scatter(x, y, color=colour, s=18, zorder=3, label=short(model, 40))
        name_rows(axes, rows)
        axes.grid(axis="x")
        axes.set_xlabel(label)
        axes.margins(x=0.03)
        legend(axes)

    height = tall(rows) * (1 if len(series) < 4 else len(series) / 3)
    return draw(name, height, paint, words)


def lines(
    name: str,
    series: Mapping[str, Sequence[tuple[float, Point]]],
    labels: tuple[str, str],
    words: str,
    scale: Literal["linear", "log"] = "linear",
    diagonal: bool = False,
) -> Plot:
    """A line for each model, with the band of its intervals.

    Args:
        name: Of the plot, one on a page.
        series: Of each model the places on the horizontal axis and the points there, from left to right.
        labels: Of the horizontal and the vertical axis.
        words: The sentences for the plot.
        scale: Of the horizontal axis; "log" names each place and counts doublings.
        diagonal: Whether to draw the line on which both axes are equal.
    """

    def paint(axes: Axes) -> None:
        if diagonal:
            axes.plot([0, 1], [0, 1], color=_GREY, linestyle="--", linewidth=1)
        places: set[float] = set()
        for number, (model, points) in enumerate(series.items()):
            x = [place for place, _ in points]
            value = [point[0] for _, point in points]
            low, high = ([point[end] for _, point in points] for end in (1, 2))
            colour, style = _COLOURS[number % len(_COLOURS)], ("-", "--")[number // len(_COLOURS) % 2]
            axes.fill_between(x, _ends(value, low), _ends(value, high), color=colour, alpha=0.15, linewidth=0)
            axes.plot(x, value, color=colour, linestyle=style, marker="o", markersize=3.5, label=short(model, 40))
            places.update(x)
        if scale == "log":
            from matplotlib.ticker import NullLocator

            axes.set_xscale("log", base=2)
            axes.set_xticks(sorted(places), [f"{place:g}" for place in sorted(places)])
            axes.xaxis.set_minor_locator(NullLocator())
        axes.set_ylim(bottom=0)
        axes.grid(axis="both")
        axes.set_xlabel(labels[0])
        axes.set_ylabel(labels[1])
        legend(axes)

    return draw(name, 3.2, paint, words)


def _ends(values: Sequence[Any], ends: Sequence[float | None]) -> list[float]:
    """The ends of intervals, or the values themselves where there are none."""
    return [value if end is None else end for value, end in zip(values, ends, strict=True)]
