"""Messages and progress on standard error: bars after two seconds on a terminal, one plain line a minute elsewhere.

The library is silent until the command line calls `show`; answers never go through here.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_BAR_AFTER_S = 2.0
_LINE_EVERY_S = 60.0
_shown = False


def show(on: bool) -> None:
    """Turns messages and progress on or off for this process; of several under torchrun only the first one speaks."""
    global _shown
    _shown = on and os.environ.get("RANK", "0") == "0"


def say(message: str) -> None:
    """One line on standard error, unless the user asked for quiet."""
    if _shown:
        print(message, file=sys.stderr, flush=True)


@contextmanager
def progress(what: str, total: int | None, unit: str = "images") -> Iterator[Callable[..., None]]:
    """Shows how far a long piece of work is.

    Args:
        what: The work as a verb phrase, e.g. "scanning pool".
        total: Number of units to do, or None where it is not known.
        unit: What is counted.

    Yields:
        `advance(n, note="")`, to be called with the units done since the last call and a short text shown beside
        the bar.
    """
    if not _shown:
        yield lambda n, note="": None
    elif sys.stderr.isatty():
        with _bar(what, total, unit) as advance:
            yield advance
    else:
        yield _lines(what, total, unit)


@contextmanager
def _bar(what: str, total: int | None, unit: str) -> Iterator[Callable[..., None]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TextColumn(f"{unit} {{task.fields[note]}}"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        refresh_per_second=4,
    )
    task = bar.add_task(what, total=total, note="")
    started = time.monotonic()
    running = False

    def advance(n: int, note: str = "") -> None:
        nonlocal running
        if not running and time.monotonic() - started > _BAR_AFTER_S:
            bar.start()
            running = True
        bar.update(task, advance=n, note=note)

    try:
        yield advance
    finally:
        if running:
            bar.stop()


def _lines(what: str, total: int | None, unit: str) -> Callable[..., None]:
    started = last = time.monotonic()
    done = 0

    def advance(n: int, note: str = "") -> None:
        nonlocal done, last
        done += n
        now = time.monotonic()
        if now - last >= _LINE_EVERY_S:
            last = now
            of = f" of {total}" if total else ""
            say(f"{what}: {done}{of} {unit}, {done / (now - started):.0f} a second {note}".rstrip())

    return advance
