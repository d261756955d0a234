"""The store: Delta Lake tables in a folder or a bucket, opened at pinned versions; additions.py adds rows.

    STORE/store.json                 format, root of relative uris, number of classes kept per soft label
    STORE/{images,labels,...}/       one Delta Lake table each, see schema.py
    STORE/manifests/NAME/*.parquet   manifests; their table lies in STORE/manifest_table/
    STORE/models/NAME/               weights and checkpoints; their table lies in STORE/model_table/
    STORE/packs/NAME/*.tar           copies of pictures for training; their table lies in STORE/packed/

Delta Lake gives atomic commits, many writers and old versions. DuckDB reads the table's own list of files at a
version; no database file is kept, because an open one locks every writer out.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import tempfile
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import deltalake
import pyarrow as pa
import pyarrow.parquet as pq
from deltalake.exceptions import DeltaError

from curator import queries
from curator.errors import InputError, StoreError, interrupted, some
from curator.names import MOST_CLASSES, check_classes
from curator.schema import CLASSES, FOLDERS, LATER, TABLES
from curator.storage import delta, prefix
from curator.storage.delta import CommitRaced, paths_of
from curator.storage.place import Place
from curator.storage.roots import Root

if TYPE_CHECKING:
    import duckdb

FORMAT = 2
KEPT_CLASSES = 20
# Of DuckDB, which puts what is above it into temporary files; readers' buffers and Python itself come on top.
MEMORY = "1GB"
_SETTINGS = "store.json"
# The version of a table that a store does not have yet.
ABSENT = -1

# What an answer depends on, the later steps' tables first: what they name is there in those behind them.
_ASKED = (
    "manifests", "metrics", "models", "reviews", "duplicates", "embeddings", "labels", "images", "classes",
)  # fmt: skip
_BACKWARDS = (*(name for name in reversed(TABLES) if name not in _ASKED), *_ASKED)

Versions = Mapping[str, int]


class Settings(NamedTuple):
    """What is fixed when a store is made (store.json)."""

    format: int
    root: str
    kept_classes: int  # of each soft label; MOST_CLASSES where all are kept


class Look(NamedTuple):
    """A table as it was seen.

    Attributes:
        version: Its version; ABSENT where there was none.
        files: Its Parquet files, sorted.
    """

    version: int
    files: list[str]

    @classmethod
    def at(cls, opened: deltalake.DeltaTable) -> Look:
        """A table as it is open."""
        return cls(opened.version(), paths_of(opened))


class Store:
    """A store in a folder or a bucket.

    Args:
        path: The folder, or the bucket's URL.

    Attributes:
        place: Where it lies.
        path: Its folder; of a store in a bucket, the working folder.

    Raises:
        StoreError: There is no store at the path, or one that cannot be read.
    """

    def __init__(self, path: str | Path) -> None:
        self.place = prefix.at(path)
        self.path = self.place.work
        # Tables as they were seen last, and which one of that name.
        self._open: dict[str, tuple[object, deltalake.DeltaTable, Look]] = {}
        self._turns = {name: threading.Lock() for name in TABLES}
        try:
            stated = json.loads(self.place.read(_SETTINGS))
            _expect_format(path, stated["format"])
            self.settings = Settings(FORMAT, os.fspath(stated["root"]), int(stated["kept_classes"]))
        except (FileNotFoundError, NotADirectoryError):
            mend = f"curator init --store {shlex.quote(str(path))}"
            raise StoreError(f"there is no store at '{path}'", mend) from None
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            why = f"'{error.args[0]}' is missing" if isinstance(error, KeyError) else str(error)
            mend = f'restore it; its form is {{"format": {FORMAT}, "root": "..", "kept_classes": 20}}'
            raise StoreError(f"{self.place.uri(_SETTINGS)} is damaged ({why})", mend) from None

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy, as in another process, opens the store anew."""
        return type(self), (self.place.absolute,)

    @classmethod
    def create(
        cls,
        path: str | Path,
        class_names: Sequence[str] | None = None,
        root: str | Path | None = None,
        kept_classes: int | None = None,
    ) -> Store:
        """Makes an empty store, or finds the same one already there.

        Args:
            path: The folder, which must be missing or empty, or a bucket's URL below which there is nothing.
            class_names: The classes in the order of their indexes, or None to let the first labeled import say.
            root: Folder or URL that relative uris start from; by default what the store lies in.
            kept_classes: How many classes each soft label keeps, 20 by default, all of them with MOST_CLASSES.

        Raises:
            StoreError: The path holds something else, or a store with another root, other classes or kept classes.
            InputError: The class names or the number of kept classes cannot be used.
        """
        where = prefix.at(path)
        if class_names is not None:
            check_classes(class_names)
        if kept_classes is not None and not 1 <= kept_classes <= MOST_CLASSES:
            raise InputError(f"no store can keep {kept_classes} classes", f"keep 1 to {MOST_CLASSES} of them, or all")
        if where.has(_SETTINGS):
            return cls(path)._same(class_names, root, kept_classes)
        settings = Settings(FORMAT, where.relative(root), kept_classes or KEPT_CLASSES)

        def fill(making: Place) -> None:
            for name in TABLES.keys() - LATER:
                uri = making.uri(FOLDERS[name])
                deltalake.DeltaTable.create(uri, TABLES[name].schema, mode="ignore", name=name)
            if class_names is not None:
                _publish_classes(making, class_names)

        stated = json.dumps(settings._asdict(), indent=1) + "\n"
        where.make(fill, {*FOLDERS.values()}, _SETTINGS, stated.encode())
        return cls(path)._same(class_names, root, kept_classes)  # or another init was faster

    def _same(self, class_names: Sequence[str] | None, root: str | Path | None, kept_classes: int | None) -> Store:
        """This store, if it is what `create` was asked for."""
        known = self.classes()
        other = ""
        if root is not None and self.place.resolve(self.place.relative(root)) != self.root:
            other = f"another root ({self.root})"
        elif class_names is not None and known and known != list(class_names):
            other = f"other classes ({some(known)})"
        elif kept_classes not in (None, self.settings.kept_classes):
            other = f"another number of kept classes ({self.settings.kept_classes})"
        if other:
            mend = "choose another --store, or leave --root, --classes and --keep-classes out"
            raise StoreError(f"the store '{self.place}' exists and has {other}", mend)
        if class_names is not None and not known:
            self.define_classes(class_names)
        return self

    @property
    def root(self) -> Root:
        """What relative uris start from."""
        return self.place.resolve(self.settings.root)

    def delta(self, table: str, version: int | None = None) -> deltalake.DeltaTable:
        """A table of the store, at its newest or at a given version."""
        uri = self.place.uri(FOLDERS[table])
        try:
            found = deltalake.DeltaTable(uri, version=version, storage_options=self.place.options)
        except (DeltaError, OSError) as error:
            raise self.unreadable(table, error) from None
        self._check(table, found)
        return found

    def follow(self, table: str, opened: deltalake.DeltaTable) -> None:
        """Turns a table that is open to its newest version; to open it anew takes a request for each commit.

        Raises:
            StoreError: It cannot be read; it stays as it was.
        """
        try:
            opened.update_incremental()
        except (DeltaError, OSError) as error:
            raise self.unreadable(table, error) from None
        self._check(table, opened)

    def _check(self, table: str, opened: deltalake.DeltaTable) -> None:
        delta.expect_plain(opened)
        commit = self.path / FOLDERS[table] / "_delta_log" / f"{opened.version():020}.json"
        if commit.exists() and not commit.stat().st_size:
            # read as it stands, it would hide the rows of that commit, and the next one would bury it
            mend = f"rm {shlex.quote(str(commit))}, then run again what was running"
            raise StoreError(f"{commit} is empty; it was being written when the machine stopped", mend)

    def has(self, table: str) -> bool:
        """Whether there is a table of that name, which there may not be in a store that is older than it."""
        return table not in LATER or self.place.has(FOLDERS[table])

    def unreadable(self, table: str, error: Exception) -> StoreError:
        """What to tell when the files of a table are damaged or gone, or the bucket that holds them is."""
        mend = f"restore {self.place.uri(FOLDERS[table])} from a backup, with all files that its _delta_log names"
        if broken := delta.needless(self.path / FOLDERS[table] / "_delta_log"):
            mend = f"rm {shlex.join(map(str, broken))}: summaries of commits, and those are all there"
        what = f"the table '{table}' of the store '{self.place}' cannot be read ({str(error).splitlines()[0]})"
        return self.place.failure(error) or StoreError(what, mend)

    def files(self, table: str, version: int | None = None) -> list[str]:
        """The Parquet files of a table, sorted; none where the store is or was older than the table."""
        if version == ABSENT or not self.has(table):
            return []
        return self._look(table, version).files

    def every_file(self) -> dict[str, list[str]]:
        """The files of all tables at their newest versions, see `files`."""
        return {name: look.files for name, look in self.look_at(dict.fromkeys(_BACKWARDS)).items()}

    def _look(self, table: str, version: int | None) -> Look:
        """Looks at a table, which stays open: to open it anew reads its whole log, a request for each commit."""
        with self._turns[table]:
            which = self.place.identity(FOLDERS[table])
            before, opened, known = self._open.get(table, (None, None, None))
            if before != which:  # what follows from other data may be deleted and made again
                opened = known = None
            if known is not None and known.version == version:
                return known
            if opened is None or version is not None:
                opened = self.delta(table, version)
            else:
                self.follow(table, opened)
            if known is not None and known.version == opened.version():
                return known
            look = Look.at(opened)
            if known is None or known.version < look.version:  # an older one is not kept: the newest follows on from it
                self._open[table] = which, opened, look
            return look

    def look_at(self, wanted: Mapping[str, int | None]) -> dict[str, Look]:
        """Looks at tables at given versions or, for None, the newest: in this order, or in a bucket at all at once.

        Raises:
            StoreError: One of them cannot be read.
        """
        folders = self.place.folders() if LATER & wanted.keys() else set()

        def look(name: str) -> Look:
            absent = wanted[name] == ABSENT or (name in LATER and FOLDERS[name] not in folders)
            return Look(ABSENT, []) if absent else self._look(name, wanted[name])

        if not self.place.far or not wanted:
            return {name: look(name) for name in wanted}
        with ThreadPoolExecutor(len(wanted)) as pool:
            return dict(zip(wanted, pool.map(look, wanted), strict=True))

    def versions(self) -> dict[str, int]:
        """The newest version of each table that an answer depends on, to read them all at one state later.

        The later steps' tables are looked at first, so that what they name is there in the earlier ones, whatever is
        committed in between. A table that the store is too old to have is at version ABSENT, where it is empty.
        """
        return self._newest(_ASKED)

    def every_version(self) -> dict[str, int]:
        """The newest version of every table, see `versions`."""
        return self._newest(_BACKWARDS)

    def _newest(self, names: Iterable[str]) -> dict[str, int]:
        wanted: dict[str, int | None] = dict.fromkeys(names)
        seen = self.look_at(wanted)
        if self.place.far:
            # All at once is in no order. But what two looks found the same was the state between them.
            before, seen = seen, self.look_at(wanted)
            if before != seen:
                for name in wanted:
                    seen |= self.look_at({name: None})
        return {name: look.version for name, look in seen.items()}

    def connect(
        self, versions: Versions | None = None, looks: Mapping[str, Look] | None = None, query: str | None = None
    ) -> duckdb.DuckDBPyConnection:
        """A DuckDB connection in memory with the store's views.

        Args:
            versions: Table versions to read; the newest for a table that is not named.
            looks: Tables as they were seen before, and are to be read.
            query: The one query that will be asked, if it is known: other tables than its own are not looked at.
        """
        import duckdb

        spill = Path(tempfile.gettempdir()) / f"curator-{os.getuid()}"
        con = duckdb.connect(config={"temp_directory": str(spill), "memory_limit": MEMORY})
        con.execute("set timezone = 'UTC'")
        con.execute("set enable_progress_bar = false")  # it goes to standard output, where the answer belongs
        self.place.register(con)
        try:
            given, versions = looks or {}, versions or {}
            views, read = queries.reads(query) if query is not None else (queries.names("views"), TABLES.keys())
            tables = [name for name in _BACKWARDS if name in read]
            seen = self.look_at({name: versions.get(name) for name in tables if name not in given}) | dict(given)
            for name in tables:
                self._show(con, name, seen[name].files)
        except BaseException:
            con.close()
            raise
        queries.create_views(con, views)
        return con

    def view(self, con: duckdb.DuckDBPyConnection, table: str, look: Look | None = None) -> None:
        """Makes a connection's view stored_TABLE, or turns it to another version.

        Its cursors see it too: what `register` gives a connection they would not.

        Args:
            con: The connection.
            table: The table.
            look: The table as it was seen; the newest version by default.
        """
        self._show(con, table, self.files(table) if look is None else look.files)

    def _show(self, con: duckdb.DuckDBPyConnection, table: str, paths: list[str]) -> None:
        import duckdb

        try:
            if paths:
                found, known = con.read_parquet(paths), TABLES[table].schema.names
                if found.columns != known:  # a later release added some, and files from before it lack them
                    found = con.read_parquet(paths, union_by_name=True).select(*known)
                found.create_view(f"stored_{table}")
            else:
                con.execute(f"create or replace view stored_{table} as {TABLES[table].no_rows}")
        except duckdb.Error as error:
            raise KeyboardInterrupt if interrupted(error) else self.unreadable(table, error) from None

    def rows(self, query: str, versions: Versions | None = None, **values: Any) -> list[dict[str, Any]]:
        """The answer of one query over the views that it names, for answers of a few thousand rows."""
        con = self.connect(versions, query=query)
        try:
            return queries.rows(con, query, **values)
        finally:
            con.close()

    def parquet(self, path: str, columns: list[str] | None = None, **options: Any) -> pa.Table:
        """The rows of one file of a table.

        Args:
            path: The file, as `files` names it.
            columns: Those to read; all of them by default.
            **options: Of `pyarrow.parquet.read_table`.
        """
        return pq.read_table(path, columns=columns, filesystem=self.place.filesystem, partitioning=None, **options)

    def footers(self, table: str, version: int | None = None) -> Iterator[dict[bytes, bytes]]:
        """What stands in the footers of a table's files, one after the other."""
        for path in self.files(table, version):
            yield pq.read_metadata(path, filesystem=self.place.filesystem).metadata or {}

    def classes(self) -> list[str]:
        """The class names in the order of their indexes; empty if none are known yet."""
        return [str(row["class_name"]) for row in self.rows("select class_name from classes order by label")]

    def define_classes(self, class_names: Sequence[str]) -> None:
        """Fixes the classes of a store that has none.

        Raises:
            InputError: A name is empty or repeated, or there are more classes than 16 bits can number.
        """
        check_classes(class_names)
        # Two first imports may both have seen no classes: the later one goes on only with the same ones.
        _publish_classes(self.place, class_names)
        if self.classes() != list(class_names):
            raise CommitRaced(f"the store has other classes by now ({some(self.classes())})", "run the command again")


def _expect_format(path: str | Path, stated: object) -> None:
    """Whether this release reads stores of a format; what may change within one stands in docs/store.md."""
    if not isinstance(stated, int) or isinstance(stated, bool):
        raise ValueError(f"'format' is {stated!r}, which is no whole number")
    if stated == FORMAT:
        return
    what = f"the store '{path}' has format {stated}; this version of curator reads format {FORMAT}"
    if stated > FORMAT:
        raise StoreError(what, "a later one wrote it: pip install --upgrade curator")
    raise StoreError(what, "an earlier one wrote it: install that one, or make a new store and add the images to it")


def _publish_classes(where: Place, class_names: Sequence[str]) -> None:
    """Gives the table of classes its rows, unless it has some."""
    table = deltalake.DeltaTable(where.uri("classes"))
    if paths_of(table):
        return
    rows = pa.table({"label": range(len(class_names)), "class_name": list(class_names)}).cast(CLASSES.schema)
    with contextlib.suppress(CommitRaced):
        delta.put(where, "classes", table, partial(delta.write, rows), "the classes")
