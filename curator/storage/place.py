"""Where a store lies, as the other modules see it: here a folder, and in prefix.py a place in a bucket.

    module --writes--> work/NAME --share--> what others see --commit--> what counts
    module <--reads--- work/NAME <--bring---

Both have the same layout. A folder is its own working folder, and there is nothing to share or to bring. The tables'
files are read where they are, see blocks.py; other files are brought whole.
"""

from __future__ import annotations

import errno
import os
import shlex
import tempfile
from collections.abc import Callable, Iterable, Iterator, Set
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from curator.errors import StoreError
from curator.names import check_path
from curator.storage.bucket import check_url, is_url
from curator.storage.roots import Root, rooted

if TYPE_CHECKING:
    import duckdb


class Place:
    """A folder of this machine.

    Args:
        path: The folder.

    Attributes:
        work: The working folder.
        filesystem: What pyarrow reads the tables' files with; None for files of this machine.
        far: Whether each look at it takes a request.
        options: What deltalake is told of how to reach the tables; None for files of this machine.
        looked_s: Seconds between two looks for newer versions of all tables, for who follows them.
    """

    filesystem: Any = None
    far = False
    options: dict[str, str] | None = None
    looked_s = 1.0

    def __init__(self, path: Path) -> None:
        check_path(path)
        self.work = path

    def __str__(self) -> str:
        """As it was given."""
        return str(self.work)

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy opens the place anew: locks and clients are of one process."""
        return type(self), (self.work,)

    @property
    def absolute(self) -> str:
        """As a process in another folder has to name it."""
        return str(self.work.absolute())

    def uri(self, name: str) -> str:
        """What deltalake, DuckDB and pyarrow read a table or a file by."""
        return str(self.work / name)

    def relative(self, root: str | Path | None) -> str:
        """How a store states its root: a URL as it is, a path as seen from the store, so that both may move."""
        if root is None:
            return ".."
        return check_url(str(root)) if is_url(str(root)) else os.path.relpath(root, self.work)

    def resolve(self, stated: str) -> Root:
        """The root that a store states."""
        return rooted(stated) if is_url(stated) else Path(os.path.normpath(self.work.absolute() / stated))

    def make(self, fill: Callable[[Place], None], folders: Set[str], last: str, data: bytes) -> bool:
        """Makes a store that is there whole or not at all.

        Args:
            fill: Makes what a place is given.
            folders: All folders of tables that a store has.
            last: Name of the file that makes a store of it.
            data: What that file holds.

        Returns:
            Whether it was this process that made it.

        Raises:
            StoreError: The place holds something else.
        """
        path = self.work
        place = path.resolve() if path.is_symlink() else Path(os.path.abspath(path))  # noqa: PTH100 - keeps links
        if place.exists() and (not place.is_dir() or any(place.iterdir())):
            raise StoreError(f"'{path}' exists and is not a store", "choose an empty or new folder for --store")
        if place.exists() and (place.samefile(Path.cwd()) or place.is_mount()):
            mend = f"curator init --store {shlex.quote(str(path / 'store'))}"
            raise StoreError(f"'{path}' is the current folder or a mount point, and cannot be replaced", mend)
        with _beside(place, "init") as making:
            fill(Place(making))
            (making / last).write_bytes(data)
            _settle([*making.rglob("*"), making])
            try:
                making.rename(place)
            except OSError:
                if not (place / last).exists():
                    raise
                return False
        _settle([place.parent])
        return True

    def make_table(self, name: str, create: Callable[[str], None]) -> None:
        """Makes a table that is there whole or not at all.

        Args:
            name: Its folder.
            create: Creates a table at what it is given.
        """
        with _beside(self.work / name, "") as made:
            create(str(made))
            _settle([*made.rglob("*"), made])
            try:
                made.rename(self.work / name)
            except OSError:
                if not self.has(name):  # else another process was faster
                    raise

    def has(self, name: str) -> bool:
        """Whether there is a table or file of that name."""
        return (self.work / name).exists()

    def folders(self) -> set[str]:
        """The names of what lies at the top, for many questions after one look."""
        return {entry.name for entry in os.scandir(self.work)}

    def identity(self, name: str) -> object:
        """What tells a table from another one that takes its place, as far as this is known at no cost."""
        try:
            first = (self.work / name / "_delta_log" / f"{0:020}.json").stat()
        except OSError:
            return None
        return first.st_ino, first.st_ctime_ns

    def read(self, name: str) -> bytes:
        """A small file.

        Raises:
            OSError: There is none, or it cannot be read.
        """
        return (self.work / name).read_bytes()

    def names(self, folder: str, pattern: str = "*") -> list[str]:
        """The files that a folder holds, by their own names, sorted."""
        return sorted(path.name for path in (self.work / folder).glob(pattern) if path.is_file())

    def share(self, files: Iterable[Path]) -> None:
        """Puts files of the working folder where others find them, in the order given, but those that are there."""

    def settle(self, files: Iterable[Path]) -> None:
        """Has files, and their names in their folders, on the disk: what is said to be done outlives a power cut."""
        there = list(files)
        above = {folder for file in there for folder in file.parents if folder.is_relative_to(self.work)}
        _settle([*there, *sorted(above, reverse=True)])

    def open(self, file: Path) -> BinaryIO:
        """A table's file for reading, from the working folder or from where it was shared."""
        return file.open("rb")

    def bring(self, name: str) -> Path:
        """A file or folder that others may have written, in the working folder."""
        return self.work / name

    def anew(self, name: str) -> Path:
        """A folder as others see it, whatever the working folder holds of it."""
        return self.work / name

    def afresh(self, name: str) -> BinaryIO:
        """A file for reading as others see it, whatever this machine keeps of it."""
        return (self.work / name).open("rb")

    def removal(self, names: Iterable[str]) -> str:
        """How a person removes files or folders for good."""
        return f"rm -rf {shlex.join(str(self.work / name) for name in names)}"

    def mirror(self, folder: Path) -> None:
        """Makes what is shared of a folder what the working folder holds; files called hashes.json come last."""

    def own_folder(self, folder: str, digest: str) -> str:
        """Where files of a content lie that never changes: a bucket has no rename, so there each has a folder."""
        return folder

    def own_name(self, name: str) -> str:
        """A name for a file that no other process gives: in a bucket, where no lock keeps other machines out."""
        return name

    def files(self, folder: str) -> list[str]:
        """The Parquet files of a folder, sorted, as `uri` gives them."""
        return [self.uri(f"{folder}/{name}") for name in self.names(folder, "*.parquet")]

    def entries(self) -> Iterator[tuple[str, int, float]]:
        """All files, links among them that are not followed: name, bytes, and when it came there or changed.

        The time, in seconds since 1970, is the later one of those of the content and of the name: a file that was
        renamed a moment ago may be about to be committed, however old its bytes are.
        """
        for folder, below, names in os.walk(self.work):
            links = [name for name in below if (Path(folder) / name).is_symlink()]
            for name in names + links:
                path = Path(folder) / name
                with suppress(FileNotFoundError):  # it went meanwhile
                    state = path.lstat()
                    yield path.relative_to(self.work).as_posix(), state.st_size, max(state.st_mtime, state.st_ctime)

    def size(self, name: str) -> int | None:
        """The bytes of a file; None where there is none."""
        path = self.work / name
        return path.stat().st_size if path.is_file() else None

    def locate(self, name: str) -> str:
        """A file as `reading.read_bytes` takes it, whatever the root."""
        return str(self.work.absolute() / name)

    def release(self, files: Iterable[Path]) -> None:
        """Lets go of the working copies of files that were shared and are read where they are."""

    def remove(self, file: Path) -> None:
        """Removes a file of the working folder, and what was shared of it."""
        file.unlink(missing_ok=True)

    def abandon(self, file: Path) -> None:
        """Lets go of a file whose commit failed in some way: over a network it may still come through."""
        file.unlink(missing_ok=True)

    def register(self, con: duckdb.DuckDBPyConnection, afresh: bool = False) -> None:
        """Lets a connection read the tables' files; `afresh` as the method of that name does."""

    def on_failure(self, tell: Callable[[Exception], None]) -> None:
        """Has each failed read of a table's file told at once, in the thread that meets it."""

    def failure(self, error: BaseException) -> StoreError | None:
        """What to tell of an error of deltalake, DuckDB or pyarrow if it is the bucket's and not the store's."""
        return None


def _settle(paths: Iterable[Path]) -> None:
    """Has files, or the names in folders, on the disk when it returns."""
    for path in paths:
        opened = os.open(path, os.O_RDONLY)
        try:
            os.fsync(opened)
        except OSError as error:
            if error.errno != errno.EINVAL:  # a file system that does this for files alone
                raise
        finally:
            os.close(opened)


@contextmanager
def _beside(place: Path, what: str) -> Iterator[Path]:
    """A folder beside a place, to be renamed to it: a kill leaves nothing half."""
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{place.name}.{what}-", dir=place.parent) as beside:
        making = Path(beside) / place.name
        making.mkdir()
        yield making
