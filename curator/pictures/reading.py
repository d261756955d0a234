"""The bytes of pictures: read when they are taken, or ahead of that where they come from a bucket.

    places --ask--> file of this machine: nothing yet          --take--> bytes
                    object of a bucket: one of 64 threads      --take--> bytes

A disk answers at once, so as many threads read as decode. A bucket answers after some 30 ms, so a picture has to be
asked for long before its turn, and many others with it.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Callable, Container, Iterable, Mapping
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self, TypeVar

from curator.errors import InputError, StoreError
from curator.pictures.decode import UnreadableImage
from curator.storage.bucket import AT_ONCE, Bucket, is_url, patient_until
from curator.storage.roots import Root, located

T = TypeVar("T")
# uri, shard, byte_offset, byte_length
Where = tuple[str, str | None, int | None, int | None]
_HELD = 2**27
NO_OBJECT = "No such object"
# What is wrong with the file itself and stays so. All else (a mount that went away, too many open files) passes.
_OF_THE_FILE = frozenset(
    (
        errno.ENOENT,
        errno.EACCES,
        errno.EPERM,
        errno.EISDIR,
        errno.ENOTDIR,
        errno.ELOOP,
        errno.ENAMETOOLONG,
        errno.EINVAL,
        errno.ENXIO,
        errno.ENODEV,
        errno.EOVERFLOW,
    )
)
# Problems of pictures that are not there at all.
ABSENT = frozenset((os.strerror(errno.ENOENT), NO_OBJECT))


def read_bytes(root: Root, uri: str, shard: str | None, byte_offset: int | None, byte_length: int | None) -> bytes:
    """The encoded bytes of an image.

    Raises:
        UnreadableImage: The file is missing, not readable, not a regular file, or ends before the byte range does.
        StoreError: The bucket, disk or mount that holds it cannot be read, which says nothing of the image.
    """
    name = shard or uri
    if is_far(root, (uri, shard, byte_offset, byte_length)):
        return _from_bucket(root, name, byte_offset if shard else None, byte_length)
    folder = Path() if isinstance(root, Bucket) else root
    try:
        # opened so that a named pipe called x.jpg does not wait for a writer
        file = os.open(folder / name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            state = os.fstat(file)
            if not stat.S_ISREG(state.st_mode):
                raise UnreadableImage("not a regular file")
            if shard is None:
                byte_offset, byte_length = 0, state.st_size
            first, length = byte_offset or 0, byte_length or 0
            if first < 0 or length < 0 or first + length > state.st_size:
                raise UnreadableImage("its byte range is not inside the shard")
            return os.pread(file, length, first)
        finally:
            os.close(file)
    except OSError as error:
        if error.errno not in _OF_THE_FILE:
            raise StoreError(
                f"'{name}' cannot be read now ({error.strerror or error})",
                "look whether the disk or mount that holds it is there and sound, and run the same command again",
            ) from None
        raise UnreadableImage(error.strerror or str(error)) from None
    except ValueError as error:  # a zero byte in the name; UnreadableImage is a ValueError too
        raise UnreadableImage(str(error)) from None


def _from_bucket(root: Root, name: str, first: int | None, length: int | None) -> bytes:
    try:
        bucket, key = located(root, name)
    except InputError as error:
        raise UnreadableImage(error.what) from None
    try:
        return bucket.piece(key, first, length or 0)
    except FileNotFoundError:
        raise UnreadableImage(NO_OBJECT) from None
    except EOFError:
        raise UnreadableImage("its byte range is not inside the shard") from None


def is_far(root: Root, place: Where) -> bool:
    """Whether a picture comes over a network; one of a folder may belong to a store in a bucket, by its whole path."""
    name = place[1] or place[0]
    return is_url(name) or (isinstance(root, Bucket) and not name.startswith("/"))


def place_of(row: Mapping[str, Any]) -> Where:
    """Where the picture of a row of images is."""
    return row["uri"], row["shard"], row["byte_offset"], row["byte_length"]


class Reader:
    """Reads pictures below a root; closed, it gives up what was asked for.

    Args:
        root: What relative uris start from.
        held: Bytes of pictures that may have been read and not taken. With so many the threads stop, but for a
            picture that somebody waits for; what is under way comes on top.
    """

    def __init__(self, root: Root, held: int = _HELD) -> None:
        self.root, self.room = root, held
        self.closed = threading.Event()
        self.change = threading.Condition()
        self._pool = ThreadPoolExecutor(AT_ONCE, "reader", patient_until, (self.closed,))

    def __enter__(self) -> Self:
        """The reader."""
        return self

    def __exit__(self, *_: object) -> None:
        """Closes it without waiting: nothing more is asked for, and a request that fails is not made again."""
        with self.change:
            self.closed.set()
            self.change.notify_all()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def ask(self, places: Iterable[Where], kept: Container[int] = ()) -> Asked:
        """Asks for pictures, each of which is then to be taken or dropped.

        Args:
            places: Where they are.
            kept: Numbers of those that will hardly be taken.
        """
        return Asked(self, list(places), kept)

    def early(self, work: Callable[[], T]) -> Future[T]:
        """Gives work to the threads, as to look up what is to be asked for."""
        return self._pool.submit(work)


class Asked:
    """Pictures that were asked for, by their number; a `with` drops those that were not taken.

    Args:
        reader: Who reads them.
        places: Where they are.
        kept: See `Reader.ask`.
    """

    def __init__(self, reader: Reader, places: list[Where], kept: Container[int]) -> None:
        self._reader, self._places = reader, places
        self._early = [
            _Early(reader, place) if number not in kept and is_far(reader.root, place) else None
            for number, place in enumerate(places)
        ]

    def take(self, number: int) -> bytes:
        """The bytes of a picture, each of which can be had once.

        Raises:
            UnreadableImage: See `read_bytes`.
            StoreError: See `read_bytes`.
            CancelledError: The reader was closed.
        """
        early, self._early[number] = self._early[number], None
        return read_bytes(self._reader.root, *self._places[number]) if early is None else early.take()

    def __enter__(self) -> Self:
        """The pictures."""
        return self

    def __exit__(self, *_: object) -> None:
        """Drops those that were not taken."""
        for early in self._early:
            if early is not None:
                early.drop()


class _Early:
    """A picture that one of the threads reads."""

    def __init__(self, reader: Reader, place: Where) -> None:
        self._reader, self._place, self._wanted = reader, place, False
        self._future = reader.early(self._read)

    def _read(self) -> bytes:
        reader = self._reader
        with reader.change:
            reader.change.wait_for(lambda: reader.room > 0 or self._wanted or reader.closed.is_set())
        if reader.closed.is_set():
            raise CancelledError
        data = read_bytes(reader.root, *self._place)
        self._make_room(-len(data))
        return data

    def _make_room(self, size: int) -> None:
        with self._reader.change:
            self._reader.room += size
            if size > 0:
                self._reader.change.notify_all()

    def take(self) -> bytes:
        if self._reader.closed.is_set():
            raise CancelledError
        if self._future.cancel():  # no thread has come to it; if all wait for room, none will
            return read_bytes(self._reader.root, *self._place)
        with self._reader.change:
            self._wanted = True
            self._reader.change.notify_all()
        data = self._future.result()
        self._make_room(len(data))
        return data

    def drop(self) -> None:
        if not self._future.cancel():
            self._future.add_done_callback(lambda done: self._make_room(0 if done.exception() else len(done.result())))
