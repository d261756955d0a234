"""A store below a prefix of a bucket: a working folder on this machine, and the objects that all machines share."""

from __future__ import annotations

import hashlib
import os
import posixpath
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator, Set
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from typing_extensions import override

from curator.errors import StoreError
from curator.storage.bucket import Bucket, check_url, is_url, patience, refusal
from curator.storage.cache import Cache
from curator.storage.place import Place
from curator.storage.roots import Root, home, kept, rooted

if TYPE_CHECKING:
    import duckdb

_PIECE = 2**23  # that a slow network brings within the half minute of a request
_PROBE = ".probe-"


class BucketPlace(Place):
    """A prefix of a bucket.

    Args:
        url: Its URL.
    """

    far = True
    looked_s = 5.0  # it takes two requests a table

    def __init__(self, url: str) -> None:
        self.url = check_url(url)
        self.cache = kept("tables")
        self.bucket = Bucket(self.url)
        self.work = home() / hashlib.blake2b(self.url.encode(), digest_size=10).hexdigest()
        self.work.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._blocks: Any = None
        self._uncached: Any = None
        self._shared: dict[str, tuple[int, int]] = {}  # what lies in the bucket as this process has it in its folder

    def __str__(self) -> str:
        return self.url

    @override
    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.url,)

    @property
    @override
    def options(self) -> dict[str, str]:  # type: ignore[override]
        seconds = f"{patience():g}s"
        return {"retry_timeout": seconds, "max_retries": "1000", "timeout": seconds}

    @property
    @override
    def absolute(self) -> str:
        return self.url

    @override
    def uri(self, name: str) -> str:
        return f"{self.url}/{name}"

    @override
    def relative(self, root: str | Path | None) -> str:
        if root is None:
            return "/".join([*self.url.split("/")[:3], *self.url.split("/")[3:-1]])
        return check_url(str(root)) if is_url(str(root)) else str(Path(root).absolute())

    @override
    def resolve(self, stated: str) -> Root:
        if is_url(stated) or Path(stated).is_absolute():
            return super().resolve(stated)
        # as a store states it that was copied into the bucket
        scheme, _, where = self.url.partition("://")
        bucket, _, prefix = where.partition("/")
        return rooted(f"{scheme}://{posixpath.normpath(posixpath.join('/', bucket, prefix, stated)).strip('/')}")

    @override
    def make(self, fill: Callable[[Place], None], folders: Set[str], last: str, data: bytes) -> bool:
        there = {name.partition("/")[0] for name, _ in self.bucket.list()}
        killed = {name for name in there if name.startswith(_PROBE)}
        self.bucket.remove(killed)
        if there - killed - folders:  # what a killed init left is tables alone
            raise StoreError(
                f"below '{self.url}' lies something that is no store", "choose an empty prefix for --store"
            )
        probe = f"{_PROBE}{uuid.uuid4().hex}"
        try:
            if not self.bucket.put(probe, b"1", new=True) or self.bucket.put(probe, b"2", new=True):
                raise StoreError(
                    f"the server of {self.url} writes over objects where it was asked not to (If-None-Match)",
                    "use a server that has conditional writes: without them commits would be lost",
                )
        finally:
            self.bucket.remove([probe])
        fill(self)
        return self.bucket.put(last, data, new=True)

    @override
    def make_table(self, name: str, create: Callable[[str], None]) -> None:
        create(self.uri(name))

    @override
    def has(self, name: str) -> bool:
        try:
            return self.bucket.size(name) >= 0
        except FileNotFoundError:
            return any(True for _ in self.bucket.list(name))

    @override
    def folders(self) -> set[str]:
        return self.bucket.folders()

    @override
    def identity(self, name: str) -> object:
        return None

    @override
    def read(self, name: str) -> bytes:
        return self.bucket.read(name)

    @override
    def names(self, folder: str, pattern: str = "*") -> list[str]:
        below = [name[len(folder) + 1 :] for name, _ in self.bucket.list(folder)]
        return sorted(name for name in below if "/" not in name and Path(name).match(pattern))

    @override
    def share(self, files: Iterable[Path]) -> None:
        for file in files:
            if file.exists():
                state = _state(file)
                self.bucket.put(self._name(file), file)
                self._shared[self._name(file)] = state

    @override
    def settle(self, files: Iterable[Path]) -> None:
        """What counts lies in the bucket."""

    @override
    def open(self, file: Path) -> BinaryIO:
        return file.open("rb") if file.exists() else self.blocks.open(self.uri(self._name(file)))

    @override
    def bring(self, name: str) -> Path:
        place = self.work / name
        for found, size in [*self._objects(name)]:
            file = self.work / found
            if file.exists() and file.stat().st_size == size:
                continue
            file.parent.mkdir(parents=True, exist_ok=True)
            handle, beside = tempfile.mkstemp(dir=file.parent, prefix=".unfinished-")
            try:
                with os.fdopen(handle, "wb") as written:
                    for at in range(0, size, _PIECE):
                        written.writelines(self.bucket.ranges(found, [at], [min(at + _PIECE, size)]))
                Path(beside).rename(file)
            except BaseException:
                Path(beside).unlink(missing_ok=True)
                raise
            self._shared[found] = _state(file)
        return place

    @override
    def anew(self, name: str) -> Path:
        for old in (self.work / name).glob("*"):  # the folder itself may be locked
            if old.is_dir():
                shutil.rmtree(old)
            else:
                old.unlink()
        return self.bring(name)

    def _objects(self, name: str) -> Iterable[tuple[str, int]]:
        """The object of a name, or those of a folder."""
        found = list(self.bucket.list(name))
        try:
            return found or [(name, self.bucket.size(name))]
        except FileNotFoundError:
            return []

    @override
    def afresh(self, name: str) -> BinaryIO:
        found: BinaryIO = self.fresh_blocks.open(self.uri(name))
        return found

    @override
    def removal(self, names: Iterable[str]) -> str:
        there = list(names)
        return f"remove {' '.join(map(self.uri, there))}, and here {super().removal(there)}"

    @override
    def mirror(self, folder: Path) -> None:
        mine = [file for file in folder.rglob("*") if file.is_file() and not _unfinished(file, folder)]
        fresh = [file for file in mine if self._shared.get(self._name(file)) != _state(file)]
        self.share(sorted(fresh, key=lambda file: (file.name == "hashes.json", file)))
        # what another machine may have put there stays
        below = {name for name in self._shared if name.startswith(f"{self._name(folder)}/")}
        gone = below - {self._name(file) for file in mine}
        self.bucket.remove(sorted(gone, key=lambda name: (not name.endswith("hashes.json"), name)))
        for name in gone:
            del self._shared[name]

    @override
    def own_folder(self, folder: str, digest: str) -> str:
        return f"{folder}/{digest[:12]}"

    @override
    def own_name(self, name: str) -> str:
        return f"{name}-{uuid.uuid4().hex[:8]}"

    @override
    def entries(self) -> Iterator[tuple[str, int, float]]:
        return self.bucket.entries()

    @override
    def size(self, name: str) -> int | None:
        try:
            return self.bucket.size(name)
        except FileNotFoundError:
            return None

    @override
    def locate(self, name: str) -> str:
        return self.uri(name)

    @override
    def release(self, files: Iterable[Path]) -> None:
        for file in files:
            file.unlink(missing_ok=True)

    @override
    def remove(self, file: Path) -> None:
        file.unlink(missing_ok=True)
        self.bucket.remove([self._name(file)])

    def _name(self, file: Path) -> str:
        return file.relative_to(self.work).as_posix()

    @property
    def blocks(self) -> Any:
        """The file system of the tables' files."""
        if self._blocks is None:
            from curator.storage.blocks import Blocks  # fsspec takes a tenth of a second

            self._blocks = Blocks(self.bucket, self.cache)
        return self._blocks

    @property
    def fresh_blocks(self) -> Any:
        """The same past the cache."""
        if self._uncached is None:
            from curator.storage.blocks import Blocks

            self._uncached = Blocks(self.bucket, Cache(self.work / ".none", 0))
        return self._uncached

    @property
    @override
    def filesystem(self) -> Any:
        from pyarrow.fs import FSSpecHandler, PyFileSystem

        return PyFileSystem(FSSpecHandler(self.blocks))

    @override
    def register(self, con: duckdb.DuckDBPyConnection, afresh: bool = False) -> None:
        con.register_filesystem(self.fresh_blocks if afresh else self.blocks)

    @override
    def on_failure(self, tell: Callable[[Exception], None]) -> None:
        self.blocks.tell = tell

    @override
    def failure(self, error: BaseException) -> StoreError | None:
        for blocks in (self.blocks, self.fresh_blocks):
            failed = blocks.failure
            if isinstance(failed, StoreError):
                blocks.failure = None
                return failed
        # an object that is not there is the store's damage
        asked = isinstance(error, OSError) and error.errno is None and not isinstance(error, FileNotFoundError)
        return refusal(self.url, error) if asked or "Error performing " in str(error) else None


def at(path: str | Path) -> Place:
    """The place that a path or URL names.

    Raises:
        StoreError: No store can lie there.
        InputError: The URL names no place in a bucket, or CURATOR_CACHE_BYTES is no number.
    """
    if not is_url(str(path)):
        return Place(Path(path))
    return BucketPlace(str(path))


def _state(file: Path) -> tuple[int, int]:
    """What another file of the same name would have different."""
    state = file.stat()
    return state.st_mtime_ns, state.st_size


def _unfinished(file: Path, folder: Path) -> bool:
    """Whether a file is one that is still being written."""
    parts = file.relative_to(folder).parts
    return file.suffix == ".unfinished" or any(part.startswith(".") for part in parts)
