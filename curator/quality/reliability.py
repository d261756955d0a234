"""The reliability diagram of a model: accuracy against confidence on the holdout, before and after its temperature.

bins of a Calibration -> matplotlib, without a screen -> a picture file, the same for the same figures
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from curator.errors import InputError
from curator.quality.calibration import Calibration

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FORMATS = (".png", ".svg", ".pdf")
_BLUE, _ORANGE, _GREY = "#2563a8", "#c2571a", "#8a919c"
_STYLE: Any = {"font.size": 9, "axes.grid": True, "grid.color": "#e3e6ea", "axes.axisbelow": True}


def check(file: Path) -> None:
    """Whether a diagram can be written to the file.

    Raises:
        InputError: Its ending is not one of FORMATS, it exists, or its folder does not.
    """
    if file.suffix not in FORMATS:
        raise InputError(f"'{file}' does not end in {', '.join(FORMATS)}", "--plot reliability.png")
    if file.exists():
        raise InputError(f"'{file}' exists", "name a file that is not there yet")
    if not file.parent.is_dir():
        raise InputError(f"there is no folder '{file.parent}'", f"mkdir -p '{file.parent}'")


def draw(found: Calibration, file: Path) -> None:
    """Writes the diagram.

    Args:
        found: What `calibration.calibrate` found.
        file: Picture to write, PNG, SVG or PDF by its ending.

    Raises:
        InputError: See `check`.
    """
    check(file)
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE | {"svg.hashsalt": "reliability"})
        figure = Figure(figsize=(9.2, 4.6), layout="constrained")
        left, right = figure.subplots(1, 2, sharex=True, sharey=True)
        _panel(left, found.bins, f"as given: ECE {found.ece_before:.3f}, NLL {found.nll_before:.3f}", _BLUE)
        title = f"temperature {found.temperature:.3f}: ECE {found.ece_after:.3f}, NLL {found.nll_after:.3f}"
        _panel(right, found.bins_after, title, _ORANGE)
        left.set_ylabel("share of right ones, with 95 % interval")
        figure.suptitle(f"{found.model}: {found.images:,} holdout images", fontsize=10, parse_math=False)
        kind = file.suffix.removeprefix(".")
        # none of them may hold a time or a version
        about = {"png": {"Software": None}, "svg": {"Date": None, "Creator": None}, "pdf": {"CreationDate": None}}
        unfinished = file.with_name(file.name + ".unfinished")
        try:
            figure.savefig(unfinished, format=kind, dpi=150, metadata=about[kind])
            unfinished.rename(file)
        finally:
            unfinished.unlink(missing_ok=True)


def _panel(axes: Axes, bins: list[dict[str, float]], title: str, colour: str) -> None:
    """Accuracy with its interval over confidence; a dot's area follows the images of its bin."""
    x, y, low, high, images = (
        [row[name] for row in bins] for name in ("confidence", "accuracy", "accuracy_low", "accuracy_high", "images")
    )
    axes.plot([0, 1], [0, 1], color=_GREY, linestyle="--", linewidth=1)
    axes.vlines(x, low, high, color=colour, alpha=0.5, linewidth=2)
    axes.scatter(x, y, s=[20 + 180 * count / max(images) for count in images], color=colour, zorder=3)
    axes.set(xlim=(0, 1.02), ylim=(0, 1.02), xlabel="confidence", title=title)
