"""A bucket's Parquet files as DuckDB and pyarrow read them: in blocks, each of which is asked for once and then kept.

Files of a store never change, so a block that was read is good for ever, and so is a file's size.
"""

from __future__ import annotations

import datetime as dt
import io
import threading
from collections.abc import Callable
from typing import Any

import fsspec

from curator.storage.bucket import SCHEMES, Bucket
from curator.storage.cache import Cache

_BLOCK = 2**20
_RECENT = 16  # blocks
_EVER = dt.datetime(2000, 1, 1, tzinfo=dt.UTC)


class Blocks(fsspec.AbstractFileSystem):  # type: ignore[misc]
    """The files below a bucket's URL, by their whole URLs, for reading.

    Args:
        bucket: The bucket.
        cache: Where blocks are kept.

    Attributes:
        failure: What the last request that failed came to: DuckDB makes a text of it that nobody can read.
        tell: Called with each failure, in the thread that meets it.
    """

    protocol = SCHEMES
    cachable = False

    def __init__(self, bucket: Bucket, cache: Cache) -> None:
        super().__init__()
        self.bucket, self.cache = bucket, cache
        self.failure: Exception | None = None
        self.tell: Callable[[Exception], None] = lambda _: None
        self._recent: dict[str, bytes] = {}
        self._turn = threading.Lock()

    def name(self, path: str) -> str:
        """A file's name below the bucket's URL."""
        where = self.bucket.url.partition("://")[2]
        name = path.partition("://")[2] or path
        if not name.startswith(f"{where}/"):
            raise FileNotFoundError(path)
        return name[len(where) + 1 :]

    def size(self, path: str) -> int:
        """Bytes of a file."""
        key = f"{self.bucket.url}/{self.name(path)} size"
        kept = self.cache.get(key)
        if kept is None:
            kept = b"%d" % self._noting(lambda: self.bucket.size(self.name(path)))
            self.cache.keep(key, kept)
        return int(kept)

    def piece(self, path: str, first: int, end: int, size: int) -> bytes:
        """The bytes from `first` up to `end` of a file of so many bytes."""
        name = self.name(path)
        numbers = range(first // _BLOCK, (end - 1) // _BLOCK + 1)
        keys = {number: f"{self.bucket.url}/{name} {number}" for number in numbers}
        found = {number: self._recent.get(key) or self.cache.get(key) for number, key in keys.items()}
        missing = [number for number in numbers if found[number] is None]
        if missing:
            starts = [number * _BLOCK for number in missing]
            ends = [min(start + _BLOCK, size) for start in starts]
            for number, data in zip(missing, self._noting(lambda: self.bucket.ranges(name, starts, ends)), strict=True):
                found[number] = data
                self.cache.keep(keys[number], data)
        for number, key in keys.items():
            self._remember(key, found[number] or b"")
        whole = b"".join(found[number] or b"" for number in numbers)
        start = numbers[0] * _BLOCK
        return whole[first - start : end - start]

    def _remember(self, key: str, data: bytes) -> None:
        """Keeps the last blocks in memory: small reads come one after the other, and the cache may be full."""
        with self._turn:
            self._recent.pop(key, None)
            self._recent[key] = data
            while len(self._recent) > _RECENT:
                del self._recent[next(iter(self._recent))]

    def _noting(self, request: Any) -> Any:
        try:
            return request()
        except Exception as error:
            self.failure = error
            self.tell(error)
            raise

    def _open(self, path: str, mode: str = "rb", **options: Any) -> File:
        if mode != "rb":
            raise PermissionError(f"{path} is for reading")
        return File(self, path)

    def info(self, path: str, **options: Any) -> dict[str, Any]:
        """Name, size and kind of a file; there are no folders."""
        return {"name": path, "size": self.size(path), "type": "file"}

    def modified(self, path: str) -> dt.datetime:
        """A constant: DuckDB keeps what it knows of a file as long as this stays the same."""
        return _EVER

    def glob(self, path: str, **options: Any) -> list[str]:
        """The path itself: the names come from Delta's log, and none is a pattern."""
        return [path]

    def exists(self, path: str, **options: Any) -> bool:
        """True: a file that is missing says so when it is read."""
        return True


class File(io.RawIOBase):
    """One file, open for reading; DuckDB's threads share it, so each of them has a position of its own."""

    def __init__(self, blocks: Blocks, path: str) -> None:
        super().__init__()
        self._blocks, self._path = blocks, path
        self._at: dict[int, int] = {}
        self.size = blocks.size(path)

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def tell(self) -> int:
        """The position of this thread."""
        return self._at.get(threading.get_ident(), 0)

    def seek(self, to: int, whence: int = io.SEEK_SET) -> int:
        """Moves this thread's position."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self.tell(), io.SEEK_END: self.size}[whence]
        self._at[threading.get_ident()] = base + to
        return base + to

    def read(self, count: int | None = -1) -> bytes:
        """The next bytes, all that were asked for unless the file ends before."""
        at = self.tell()
        end = self.size if count is None or count < 0 else min(self.size, at + count)
        if end <= at:
            return b""
        self.seek(end)
        return self._blocks.piece(self._path, at, end, self.size)

    def readinto(self, into: Any) -> int:
        """The next bytes into a buffer."""
        data = self.read(len(into))
        into[: len(data)] = data
        return len(data)
