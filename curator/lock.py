"""A lock on a folder that goes with its process, however that ends."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from curator.errors import StoreError


@contextmanager
def unless_held(folder: Path) -> Iterator[bool]:
    """Holds a folder for this process, unless another one does or it is not there; gives whether nobody else has it."""
    try:
        held = os.open(folder, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        yield not folder.is_symlink() and not folder.exists()
        return
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        yield False
    else:
        yield True
    finally:
        os.close(held)


@contextmanager
def alone(folder: Path, doing: str | None = None) -> Iterator[None]:
    """Holds a folder for this process.

    Args:
        folder: Made if it is missing.
        doing: What another holder would be doing, for the message. None waits for the other instead.

    Raises:
        StoreError: Another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    held = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX if doing is None else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(held)
        raise StoreError(f"another run is {doing}", "wait for it, or stop it") from None
    try:
        yield
    finally:
        if doing is not None:
            with suppress(OSError):  # a folder in which nothing came to be does not stay
                folder.rmdir()
        os.close(held)
