"""The store: a folder of Delta Lake tables, opened at pinned versions, appended to in single commits.

    STORE/store.json                 format, root of relative uris, number of classes kept per soft label
    STORE/{images,labels,...}/       one Delta Lake table each, see schema.py
    STORE/manifests/NAME/*.parquet   manifests; their table lies in STORE/manifest_table/
    STORE/models/NAME/               weights and checkpoints; their table lies in STORE/model_table/

Delta Lake gives atomic commits, many writers and old versions. DuckDB reads the table's own list of files at a
version; no database file is kept, because an open one locks every writer out.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import deltalake
import pyarrow as pa
import pyarrow.parquet as pq
from deltalake.exceptions import CommitFailedError, DeltaError
from deltalake.transaction import AddAction, RemoveAction

from curator import queries
from curator.errors import InputError, StoreError, some
from curator.schema import CLASSES, TABLES

if TYPE_CHECKING:
    import duckdb

FORMAT = 1
KEPT_CLASSES = 20
_SETTINGS = "store.json"
# Where a table's name is also the name of a folder of artefacts, the table lies beside it.
_TABLE_FOLDERS = {name: name for name in TABLES} | {"manifests": "manifest_table", "models": "model_table"}

Versions = Mapping[str, int]


class CommitRaced(StoreError):
    """Another process committed the same claim first; nothing was changed."""


class Settings(NamedTuple):
    """What is fixed when a store is made (store.json)."""

    format: int
    root: str
    kept_classes: int


class Store:
    """A store on a local path.

    Args:
        path: The folder.

    Raises:
        StoreError: There is no store at the path, or it was written by a newer version.
    """

    def __init__(self, path: str | Path) -> None:
        if "://" in str(path):
            raise StoreError(
                f"the store '{path}' is a URL, and only local folders can be read so far",
                "use a local folder",
            )
        self.path = Path(path)
        try:
            stated = json.loads((self.path / _SETTINGS).read_text("utf-8"))
            self.settings = Settings(**stated)
        except (FileNotFoundError, NotADirectoryError):
            raise StoreError(f"there is no store at '{path}'", f"curator init --store {path}") from None
        except (ValueError, TypeError) as error:
            raise StoreError(
                f"{self.path / _SETTINGS} is damaged ({error})",
                'restore it; its form is {"format": 1, "root": "..", "kept_classes": 20}',
            ) from None
        if self.settings.format != FORMAT:
            raise StoreError(
                f"the store '{path}' has format {self.settings.format}; this version of curator reads format {FORMAT}",
                "install the version of curator that wrote it",
            )

    @classmethod
    def create(
        cls, path: str | Path, class_names: Sequence[str] | None = None, root: str | Path | None = None
    ) -> Store:
        """Makes an empty store, or finds the same one already there.

        Args:
            path: The folder; it must be missing or empty.
            class_names: The classes in the order of their indexes, or None to let the first labeled import say.
            root: Folder that relative uris start from; by default the folder that the store lies in.

        Raises:
            StoreError: The path holds something else, or a store with other classes.
        """
        path = Path(path)
        if (path / _SETTINGS).exists():
            store = cls(path)
            if class_names is not None and store.classes() != list(class_names):
                raise StoreError(
                    f"the store '{path}' exists and has other classes ({some(store.classes()) or 'none yet'})",
                    "choose another --store, or leave --classes out",
                )
            return store
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise StoreError(f"'{path}' exists and is not a store", "choose an empty or new folder for --store")
        path.parent.mkdir(parents=True, exist_ok=True)
        # The tables are made in a folder beside it and renamed, so that a killed init leaves no half store.
        making = Path(tempfile.mkdtemp(prefix=f".{path.name}.init-", dir=path.parent))
        making.chmod(0o755)
        try:
            for name, table in TABLES.items():
                deltalake.DeltaTable.create(str(making / _TABLE_FOLDERS[name]), table.schema, name=name)
            relative = os.path.relpath(root, path) if root is not None else ".."
            settings = Settings(FORMAT, relative, KEPT_CLASSES)
            (making / _SETTINGS).write_text(json.dumps(settings._asdict(), indent=1) + "\n", "utf-8")
            if path.exists():
                path.rmdir()
            making.rename(path)
        except BaseException:
            shutil.rmtree(making, ignore_errors=True)
            raise
        store = cls(path)
        if class_names is not None:
            store.define_classes(class_names)
        return store

    @property
    def root(self) -> Path:
        """The folder that relative uris start from."""
        return Path(os.path.normpath(self.path.absolute() / self.settings.root))

    def locate(self, uri: str) -> Path:
        """The file of a uri (for a picture in a shard, pass the shard)."""
        return self.root / uri

    def delta(self, table: str, version: int | None = None) -> deltalake.DeltaTable:
        """A table of the store, at its newest or at a given version."""
        where = self.path / _TABLE_FOLDERS[table]
        try:
            return deltalake.DeltaTable(str(where), version=version)
        except DeltaError as error:
            at = "" if version is None else f" at version {version}"
            raise StoreError(
                f"the table '{table}' of the store '{self.path}' cannot be read{at} ({str(error).splitlines()[0]})",
                f"restore {where} from a backup; its _delta_log folder must be complete",
            ) from None

    def versions(self) -> dict[str, int]:
        """The newest version of each table, to read them all at one state later."""
        return {name: self.delta(name).version() for name in TABLES}

    def connect(self, versions: Versions | None = None) -> duckdb.DuckDBPyConnection:
        """A DuckDB connection in memory with the store's views.

        Args:
            versions: Table versions to read; the newest for a table that is not named.
        """
        import duckdb

        con = duckdb.connect(config={"temp_directory": str(Path(tempfile.gettempdir()) / f"curator-{os.getuid()}")})
        con.execute("set timezone = 'UTC'")
        for name, table in TABLES.items():
            files = self.delta(name, (versions or {}).get(name)).file_uris()
            if files:
                con.read_parquet(sorted(files)).create_view(f"stored_{name}")
            else:
                con.register(f"stored_{name}", table.schema.empty_table())
        queries.create_views(con)
        return con

    def rows(self, query: str, versions: Versions | None = None, **values: Any) -> list[dict[str, Any]]:
        """The answer of one query over the views, for answers of a few thousand rows."""
        con = self.connect(versions)
        try:
            return queries.rows(con, query, **values)
        finally:
            con.close()

    def append(self, table: str, rows: pa.Table | pa.RecordBatchReader) -> None:
        """Adds rows to a table in one commit, columns in the order of the schema."""
        deltalake.write_deltalake(
            self.delta(table),
            rows,
            mode="append",
            writer_properties=deltalake.WriterProperties(compression="ZSTD"),
        )

    def publish(self, table: deltalake.DeltaTable, files: Sequence[Path], claim: str) -> None:
        """Makes finished Parquet files part of a table, all of them in one commit.

        Args:
            table: The table at the version that the caller looked at when it decided what to write.
            files: Parquet files below the table's folder.
            claim: What is being published. Of two processes that publish the same claim from the same state, one wins.

        Raises:
            CommitRaced: Another process published the claim in the meantime; nothing was changed.
        """
        folder = Path(table.table_uri.removeprefix("file://"))
        adds: list[AddAction | RemoveAction] = [_add_action(folder, file) for file in files]
        turn = (table.transaction_version(claim) or 0) + 1
        try:
            table.create_write_transaction(
                adds,
                "append",
                table.schema(),
                commit_properties=deltalake.CommitProperties(app_transactions=[deltalake.Transaction(claim, turn)]),
            )
        except CommitFailedError:
            raise CommitRaced(
                f"another process published {claim} at the same time", "run the same command again"
            ) from None

    def classes(self) -> list[str]:
        """The class names in the order of their indexes; empty if none are known yet."""
        return [str(row["class_name"]) for row in self.rows("select class_name from classes order by label")]

    def define_classes(self, class_names: Sequence[str]) -> None:
        """Fixes the classes of a store that has none.

        Raises:
            InputError: A name is empty or repeated, or there are more classes than 16 bits can number.
        """
        seen: dict[str, int] = {}
        for line, name in enumerate(class_names, start=1):
            if not name:
                raise InputError(f"class {line} has an empty name", "give every class a name, one a line")
            if name in seen:
                raise InputError(
                    f"the class '{name}' appears twice, as number {seen[name]} and number {line}",
                    "remove one of them from the class file",
                )
            seen[name] = line
        if not seen:
            raise InputError("there are no class names", "write one class name a line into the class file")
        if len(seen) > 2**15:
            raise InputError(f"{len(seen)} classes are more than the {2**15} that a store can hold", "merge classes")
        table = self.delta("classes")
        rows = pa.table({"label": range(len(seen)), "class_name": list(seen)}).cast(CLASSES.schema)
        file = self.path / "classes" / f"classes-{time.time_ns()}.parquet"
        pq.write_table(rows, file)
        self.publish(table, [file], "the classes")


def check_name(what: str, name: str) -> None:
    """Names of models and manifests become folders and SQL views, so they are kept plain.

    Raises:
        InputError: The name is empty, too long or holds other characters than letters, digits, '.', '_' and '-'.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name) or name in TABLES:
        raise InputError(
            f"'{name}' cannot be the name of a {what}",
            "use up to 100 letters, digits, '.', '_' or '-', beginning with a letter or digit, and not a table's name",
        )


def _add_action(folder: Path, file: Path) -> AddAction:
    """Delta's record of one file, with the statistics that let other engines skip it."""
    meta = pq.read_metadata(file)
    low: dict[str, int] = {}
    high: dict[str, int] = {}
    for group in (meta.row_group(i) for i in range(meta.num_row_groups)):
        for column in (group.column(i) for i in range(group.num_columns)):
            stats = column.statistics
            if column.path_in_schema in ("image_id", "generation") and stats is not None and stats.has_min_max:
                name = column.path_in_schema
                low[name] = min(low.get(name, stats.min), stats.min)
                high[name] = max(high.get(name, stats.max), stats.max)
    state = file.stat()
    return AddAction(
        path=file.relative_to(folder).as_posix(),
        size=state.st_size,
        partition_values={},
        modification_time=int(state.st_mtime * 1000),
        data_change=True,
        stats=json.dumps({"numRecords": meta.num_rows, "minValues": low, "maxValues": high}),
    )
