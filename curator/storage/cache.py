"""Bytes of a bucket's objects kept on the local disk, up to a bound.

An entry is a file of its own, written beside its place and renamed, so that several processes may use one cache. What
has been used since this process began stays: a shuffled pass over more pictures than fit finds the share again that
does fit, where "the oldest goes first" would find next to nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
import threading
import time
from pathlib import Path

_RECOUNT = 1 / 64  # of the bound: after so many bytes the folder is counted again, as other processes write there too


class Cache:
    """Entries by name.

    Args:
        folder: Where they lie; made when the first one is kept.
        most: Bytes that they may take up together.
    """

    def __init__(self, folder: Path, most: int) -> None:
        self._folder, self._most = folder, most
        self._began = time.time()
        self._held = self._fresh = 0
        self._counted = self._full = False
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type[Cache], tuple[Path, int]]:
        """What a worker process makes the same cache from."""
        return Cache, (self._folder, self._most)

    def get(self, name: str) -> bytes | None:
        """An entry, or None where it is not kept."""
        place = self._place(name)
        try:
            data = place.read_bytes()
            os.utime(place)
        except OSError:
            return None
        return data

    def keep(self, name: str, data: bytes) -> None:
        """Keeps an entry if there is room; a disk that is full or may not be written to is no error."""
        with self._lock:
            if self._full or not self._room(len(data)):
                return
            self._held += len(data)
            self._fresh += len(data)
        place = self._place(name)
        with contextlib.suppress(OSError):
            place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            handle, beside = tempfile.mkstemp(dir=place.parent)
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(data)
                Path(beside).rename(place)
            except BaseException:
                Path(beside).unlink(missing_ok=True)
                raise

    def _place(self, name: str) -> Path:
        digest = hashlib.blake2b(name.encode(), digest_size=16).hexdigest()
        return self._folder / digest[:2] / digest[2:]

    def _room(self, size: int) -> bool:
        """Whether so many bytes more stay under the bound, after what is older than this process has gone."""
        margin = self._most * _RECOUNT  # what other processes may have written since the folder was counted
        if not self._counted or self._fresh > margin or self._held + size > self._most - margin:
            found = sorted(self._entries())
            self._held, self._fresh, self._counted = sum(length for _, length, _ in found), 0, True
            for used, length, file in found:
                if self._held + size <= self._most - margin or used >= self._began:
                    break
                with contextlib.suppress(OSError):
                    file.unlink()
                    self._held -= length
            self._full = self._held + size > self._most - margin
        return not self._full

    def _entries(self) -> list[tuple[float, int, Path]]:
        """When each was last used, its bytes and its file."""
        found = []
        for file in self._folder.glob("??/*"):
            with contextlib.suppress(OSError):
                state = file.stat()
                found.append((state.st_mtime, state.st_size, file))
        return found
