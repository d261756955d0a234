"""Ctrl-C and SIGTERM while a piece of work goes on that has to come to a good end first."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def stoppable() -> Iterator[Callable[[], bool]]:
    """Lets the step that is being taken end when Ctrl-C or SIGTERM comes; a second one stops at once.

    Yields:
        Whether one came.
    """
    came = threading.Event()

    def stop(number: int, frame: FrameType | None) -> None:
        if came.is_set():
            raise KeyboardInterrupt
        came.set()

    if threading.current_thread() is not threading.main_thread():  # signals are the main thread's
        yield came.is_set
        return
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield came.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
