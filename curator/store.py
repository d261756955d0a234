"""The store: a folder of Delta Lake tables, opened at pinned versions, appended to in single commits.

    STORE/store.json                 format, root of relative uris, number of classes kept per soft label
    STORE/{images,labels,...}/       one Delta Lake table each, see schema.py
    STORE/manifests/NAME/*.parquet   manifests; their table lies in STORE/manifest_table/
    STORE/models/NAME/               weights and checkpoints; their table lies in STORE/model_table/
    STORE/packs/NAME/*.tar           copies of pictures for training; their table lies in STORE/packed/

Delta Lake gives atomic commits, many writers and old versions. DuckDB reads the table's own list of files at a
version; no database file is kept, because an open one locks every writer out.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import tempfile
import uuid
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import unquote

import deltalake
import pyarrow as pa
import pyarrow.parquet as pq
from deltalake.exceptions import DeltaError

from curator import delta, queries
from curator.delta import CommitRaced, paths_of
from curator.errors import InputError, StoreError, interrupted, some
from curator.names import MOST_CLASSES, check_classes, check_path
from curator.schema import CLASSES, TABLES

if TYPE_CHECKING:
    import duckdb

FORMAT = 2
KEPT_CLASSES = 20
# Of DuckDB, which puts what is above it into temporary files; readers' buffers and Python itself come on top.
MEMORY = "1GB"
_SETTINGS = "store.json"
# Where a table's name is also the name of a folder of artefacts, the table lies beside it.
_TABLE_FOLDERS = {name: name for name in TABLES} | {"manifests": "manifest_table", "models": "model_table"}
# Made when something is first written to them; until then they are empty.
_LATER = {
    "packed", "duplicates", "embeddings", "held_out", "calibrations", "drift", "changes", "browse", "histograms",
    "audits", "evaluations",
}  # fmt: skip
# The version of a table that a store does not have yet.
ABSENT = -1
# A table with more files of less than so many bytes than this is put together, see Store.gather.
_MOST_SMALL, _SMALL = 40, 2**23
_ZSTD = deltalake.WriterProperties(compression="ZSTD")

Versions = Mapping[str, int]


class Settings(NamedTuple):
    """What is fixed when a store is made (store.json)."""

    format: int
    root: str
    kept_classes: int  # of each soft label; MOST_CLASSES where all are kept


class Store:
    """A store on a local path.

    Args:
        path: The folder.

    Raises:
        StoreError: There is no store at the path, or one that cannot be read.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        check_path(self.path)
        try:
            stated = json.loads((self.path / _SETTINGS).read_text("utf-8"))
            if stated["format"] != FORMAT:
                raise StoreError(
                    f"the store '{path}' has format {stated['format']}; this version of curator reads format {FORMAT}",
                    "install the version of curator that wrote it",
                )
            self.settings = Settings(FORMAT, os.fspath(stated["root"]), int(stated["kept_classes"]))
        except (FileNotFoundError, NotADirectoryError):
            mend = f"curator init --store {shlex.quote(str(path))}"
            raise StoreError(f"there is no store at '{path}'", mend) from None
        except (ValueError, TypeError, KeyError) as error:
            why = f"'{error.args[0]}' is missing" if isinstance(error, KeyError) else str(error)
            mend = f'restore it; its form is {{"format": {FORMAT}, "root": "..", "kept_classes": 20}}'
            raise StoreError(f"{self.path / _SETTINGS} is damaged ({why})", mend) from None

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
            path: The folder; it must be missing or empty.
            class_names: The classes in the order of their indexes, or None to let the first labeled import say.
            root: Folder that relative uris start from; by default the folder that the store lies in.
            kept_classes: How many classes each soft label keeps, 20 by default, all of them with MOST_CLASSES.

        Raises:
            StoreError: The path holds something else, or a store with another root, other classes or kept classes.
            InputError: The class names or the number of kept classes cannot be used.
        """
        path = Path(path)
        check_path(path)
        if class_names is not None:
            check_classes(class_names)
        if kept_classes is not None and not 1 <= kept_classes <= MOST_CLASSES:
            raise InputError(f"no store can keep {kept_classes} classes", f"keep 1 to {MOST_CLASSES} of them, or all")
        if (path / _SETTINGS).exists():
            return cls(path)._same(class_names, root, kept_classes)
        place = path.resolve() if path.is_symlink() else Path(os.path.abspath(path))  # noqa: PTH100 - keeps links
        if place.exists() and (not place.is_dir() or any(place.iterdir())):
            raise StoreError(f"'{path}' exists and is not a store", "choose an empty or new folder for --store")
        if place.exists() and (place.samefile(Path.cwd()) or place.is_mount()):
            mend = f"curator init --store {shlex.quote(str(path / 'store'))}"
            raise StoreError(f"'{path}' is the current folder or a mount point, and cannot be replaced", mend)
        place.parent.mkdir(parents=True, exist_ok=True)
        # The store is made in a folder beside it and renamed, so that a killed init leaves no half store.
        beside = Path(tempfile.mkdtemp(prefix=f".{place.name}.init-", dir=place.parent))
        try:
            making = beside / "store"
            making.mkdir()
            for name in TABLES.keys() - _LATER:
                deltalake.DeltaTable.create(str(making / _TABLE_FOLDERS[name]), TABLES[name].schema, name=name)
            relative = os.path.relpath(root, path) if root is not None else ".."
            settings = Settings(FORMAT, relative, kept_classes or KEPT_CLASSES)
            (making / _SETTINGS).write_text(json.dumps(settings._asdict(), indent=1) + "\n", "utf-8")
            if class_names is not None:
                cls(making).define_classes(class_names)
            try:
                making.rename(place)
            except OSError:
                if not (place / _SETTINGS).exists():
                    raise
                return cls(path)._same(class_names, root, kept_classes)  # another init was faster
        finally:
            shutil.rmtree(beside, ignore_errors=True)
        return cls(path)

    def _same(self, class_names: Sequence[str] | None, root: str | Path | None, kept_classes: int | None) -> Store:
        """This store, if it is what `create` was asked for."""
        known = self.classes()
        other = ""
        if root is not None and Path(os.path.abspath(root)) != self.root:  # noqa: PTH100 - as in root
            other = f"another root ({self.root})"
        elif class_names is not None and known and known != list(class_names):
            other = f"other classes ({some(known)})"
        elif kept_classes not in (None, self.settings.kept_classes):
            other = f"another number of kept classes ({self.settings.kept_classes})"
        if other:
            mend = "choose another --store, or leave --root, --classes and --keep-classes out"
            raise StoreError(f"the store '{self.path}' exists and has {other}", mend)
        if class_names is not None and not known:
            self.define_classes(class_names)
        return self

    @property
    def root(self) -> Path:
        """The folder that relative uris start from."""
        return Path(os.path.normpath(self.path.absolute() / self.settings.root))

    def delta(self, table: str, version: int | None = None) -> deltalake.DeltaTable:
        """A table of the store, at its newest or at a given version."""
        folder = self.path / _TABLE_FOLDERS[table]
        try:
            found = deltalake.DeltaTable(str(folder), version=version)
        except DeltaError as error:
            raise self.unreadable(table, error) from None
        commit = folder / "_delta_log" / f"{found.version():020}.json"
        if commit.exists() and not commit.stat().st_size:
            # read as it stands, it would hide the rows of that commit, and the next one would bury it
            mend = f"rm {shlex.quote(str(commit))}, then run again what was running"
            raise StoreError(f"{commit} is empty; it was being written when the machine stopped", mend)
        return found

    def unreadable(self, table: str, error: Exception) -> StoreError:
        """What to tell when the files of a table are damaged or gone."""
        return StoreError(
            f"the table '{table}' of the store '{self.path}' cannot be read ({str(error).splitlines()[0]})",
            f"restore {self.path / _TABLE_FOLDERS[table]} from a backup, with all files that its _delta_log names",
        )

    def files(self, table: str, version: int | None = None) -> list[str]:
        """The Parquet files of a table, sorted; none where the store is or was older than the table."""
        if version == ABSENT or (table in _LATER and not (self.path / _TABLE_FOLDERS[table]).exists()):
            return []
        return paths_of(self.delta(table, version))

    def versions(self) -> dict[str, int]:
        """The newest version of each table that an answer depends on, to read them all at one state later.

        The later steps' tables are looked at first, so that what they name is there in the earlier ones, whatever is
        committed in between. A table that the store is too old to have is at version ABSENT, where it is empty.
        """
        order = (
            "manifests", "metrics", "models", "reviews", "duplicates", "embeddings", "labels", "images", "classes",
        )  # fmt: skip
        return self._newest(order)

    def every_version(self) -> dict[str, int]:
        """The newest version of every table, see `versions`."""
        return self._newest(reversed(TABLES))

    def _newest(self, names: Iterable[str]) -> dict[str, int]:
        absent = {name for name in _LATER if not (self.path / _TABLE_FOLDERS[name]).exists()}
        return {name: ABSENT if name in absent else self.delta(name).version() for name in names}

    def connect(self, versions: Versions | None = None) -> duckdb.DuckDBPyConnection:
        """A DuckDB connection in memory with the store's views.

        Args:
            versions: Table versions to read; the newest for a table that is not named.
        """
        import duckdb

        spill = Path(tempfile.gettempdir()) / f"curator-{os.getuid()}"
        con = duckdb.connect(config={"temp_directory": str(spill), "memory_limit": MEMORY})
        con.execute("set timezone = 'UTC'")
        con.execute("set enable_progress_bar = false")  # it goes to standard output, where the answer belongs
        try:
            for name in TABLES:
                self.view(con, name, (versions or {}).get(name))
        except BaseException:
            con.close()
            raise
        queries.create_views(con)
        return con

    def view(self, con: duckdb.DuckDBPyConnection, table: str, version: int | None = None) -> None:
        """Makes a connection's view stored_TABLE, or turns it to another version.

        Its cursors see it too: what `register` gives a connection they would not.
        """
        import duckdb

        paths = self.files(table, version)
        try:
            if paths:
                con.read_parquet(paths).create_view(f"stored_{table}")
            else:
                con.execute(f"drop table if exists empty_{table}")
                con.from_arrow(TABLES[table].schema.empty_table()).create(f"empty_{table}")
                con.table(f"empty_{table}").create_view(f"stored_{table}")
        except duckdb.Error as error:
            raise KeyboardInterrupt if interrupted(error) else self.unreadable(table, error) from None

    def rows(self, query: str, versions: Versions | None = None, **values: Any) -> list[dict[str, Any]]:
        """The answer of one query over the views, for answers of a few thousand rows."""
        con = self.connect(versions)
        try:
            return queries.rows(con, query, **values)
        finally:
            con.close()

    def append(
        self, table: str, rows: pa.Table | pa.RecordBatchReader, opened: deltalake.DeltaTable | None = None
    ) -> deltalake.DeltaTable:
        """Adds rows to a table in one commit, columns in the order of the schema.

        Args:
            table: Name of the table.
            rows: The rows.
            opened: The table, for who has it open, at any version; opening it is half of the time that a row takes.

        Returns:
            The table as it is then.

        Raises:
            StoreError: Nothing was added, as where the disk is full or others kept committing first.
        """
        if table in _LATER:
            self.make(table)
        grown = self.delta(table) if opened is None else opened
        try:
            deltalake.write_deltalake(grown, rows, mode="append", writer_properties=_ZSTD)
        except DeltaError as error:
            what = f"nothing was added to the table '{table}' ({str(error).splitlines()[0]})"
            raise StoreError(what, "look whether the disk is full, and run the same command again") from None
        return grown

    def gather(self, table: str, opened: deltalake.DeltaTable) -> None:
        """Puts the rows of a table's small files into one, where there are many: each of them costs every reader time.

        The files stay where they are, so older versions can be read. Of processes that do this at once one wins, and
        whoever appends meanwhile loses nothing. (deltalake 1.6 has `optimize.compact` for this; two of them at once
        both take the same files, and leave their rows twice.)

        Args:
            table: Name of the table.
            opened: The table.
        """
        from pyarrow import dataset

        sizes = pa.table(opened.get_add_actions()).select(["path", "size_bytes"]).to_pylist()
        small = [row["path"] for row in sizes if row["size_bytes"] < _SMALL]
        if len(small) <= _MOST_SMALL:
            return
        folder = self.path / _TABLE_FOLDERS[table]
        file = folder / f"{uuid.uuid4().hex}.parquet"
        try:
            rows = dataset.dataset([str(folder / unquote(path)) for path in small], TABLES[table].schema).to_table()
            pq.write_table(rows, file, compression="zstd")
            with file.open("rb") as written:
                os.fsync(written.fileno())
            delta.publish(opened, [file], f"the rows of {table} together", gone=small, moved=True)
        except CommitRaced:
            file.unlink()
        except BaseException:
            self.discard(table, file)
            raise

    def make(self, table: str) -> None:
        """Makes a table that the store is too old to have; beside its place, so that a kill leaves no half table."""
        place = self.path / _TABLE_FOLDERS[table]
        if place.exists():
            return
        with tempfile.TemporaryDirectory(prefix=f".{place.name}-", dir=self.path) as beside:
            made = Path(beside) / place.name
            deltalake.DeltaTable.create(str(made), TABLES[table].schema, name=table)
            try:
                made.rename(place)
            except OSError:
                if not place.exists():  # else another process was faster
                    raise

    def discard(self, table: str, file: Path) -> None:
        """Deletes a file whose publication failed, unless it came so far that the table names it.

        Ctrl-C, or a disk that fills up, may strike between the commit and the return of `publish`.
        """
        if file.name not in {Path(path).name for path in paths_of(self.delta(table))}:
            file.unlink(missing_ok=True)

    def classes(self) -> list[str]:
        """The class names in the order of their indexes; empty if none are known yet."""
        return [str(row["class_name"]) for row in self.rows("select class_name from classes order by label")]

    def define_classes(self, class_names: Sequence[str]) -> None:
        """Fixes the classes of a store that has none.

        Raises:
            InputError: A name is empty or repeated, or there are more classes than 16 bits can number.
        """
        check_classes(class_names)
        table = self.delta("classes")
        # Two first imports may both have seen no classes: the later one goes on only with the same ones.
        if not paths_of(table):
            rows = pa.table({"label": range(len(class_names)), "class_name": list(class_names)}).cast(CLASSES.schema)
            file = self.path / "classes" / f"{uuid.uuid4().hex}.parquet"
            try:
                pq.write_table(rows, file)
                delta.publish(table, [file], "the classes")
            except CommitRaced:
                file.unlink()
            except BaseException:
                self.discard("classes", file)
                raise
        if self.classes() != list(class_names):
            raise CommitRaced(f"the store has other classes by now ({some(self.classes())})", "run the command again")
