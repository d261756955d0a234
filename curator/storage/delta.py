"""Delta Lake's side of a table: finished Parquet files become part of it in one commit, or not at all.

deltalake gives commits, versions and conflicts; this adds the claim, by which two that publish the same thing from the
same state are told apart, and statistics that let readers pass over files.
"""

from __future__ import annotations

import io
import itertools
import json
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import deltalake
import pyarrow as pa
import pyarrow.parquet as pq
from deltalake.exceptions import CommitFailedError
from deltalake.transaction import AddAction, RemoveAction

import curator
from curator.errors import StoreError, some
from curator.schema import FOLDERS, TABLES
from curator.storage.place import Place


class CommitRaced(StoreError):
    """Another process committed the same claim first; nothing was changed."""


def publish(
    place: Place,
    table: deltalake.DeltaTable,
    files: Sequence[Path],
    claim: str | None,
    replace: bool = False,
    gone: Sequence[str] = (),
    moved: bool = False,
) -> None:
    """Makes finished Parquet files part of a table, all of them in one commit.

    Args:
        place: Where the store lies.
        table: The table at the version that the caller looked at when it decided what to write.
        files: Parquet files below the table's working folder, where they are shared already, or not yet.
        claim: What is being published. Of two processes that publish the same claim from the same state, one wins.
            With None all do: each of them adds rows of its own.
        replace: Whether they take the place of the files that the table has.
        gone: Paths, as the table names them, of files that leave it in the same commit.
        moved: Whether the files hold the rows of those that leave, and no others: no reader has to look again, and
            no append at the same time fails.

    Raises:
        CommitRaced: Another process published the claim in the meantime; nothing was changed.
        StoreError: The table has columns of a later release, see `expect_own_columns`.
    """
    expect_own_columns(table)
    place.settle(files)
    added = [_add_action(place, file, not moved) for file in files]
    removed = [RemoveAction(path, not moved, time.time_ns() // 1_000_000) for path in gone]
    place.share(files)
    claimed = [] if claim is None else [deltalake.Transaction(claim, (table.transaction_version(claim) or 0) + 1)]
    try:
        table.create_write_transaction(
            [*added, *removed],
            "overwrite" if replace else "append",
            table.schema(),
            commit_properties=deltalake.CommitProperties(app_transactions=claimed or None),
        )
    except CommitFailedError:
        # Over a network the answer of a commit may be lost; made once more it fails, against itself. What won is told
        # by its files: their names are drawn anew each time.
        newest = pa.table(deltalake.DeltaTable(table.table_uri, storage_options=place.options).get_add_actions())[
            "path"
        ].to_pylist()
        if not {action.path for action in added} <= set(map(unquote, newest)):
            who = f"another process published {claim} at the same time" if claim else "others kept committing first"
            raise CommitRaced(who, "run the same command again") from None
    except OSError as error:
        raise place.failure(error) or error from None
    place.settle(_log_after(place, table))  # deltalake leaves that to chance
    place.release(files)


def _log_after(place: Place, table: deltalake.DeltaTable) -> Iterator[Path]:
    """The log of a table behind the version at which it is open, where it is files of this machine."""
    log = place.work / FOLDERS[table.metadata().name] / "_delta_log"
    for version in itertools.count(table.version() + 1):
        commit, checkpoint = log / f"{version:020}.json", log / f"{version:020}.checkpoint.parquet"
        if not commit.exists():
            return
        yield commit
        if checkpoint.exists():  # of every hundredth version
            yield from (checkpoint, log / "_last_checkpoint")


def needless(log: Path) -> list[Path]:
    """The checkpoints of a log of this machine, where one is damaged or gone and every commit is there anyway."""
    commits = sorted(int(file.stem) for file in log.glob("*.json"))
    hint, checkpoints = log / "_last_checkpoint", sorted(log.glob("*.checkpoint*.parquet"))
    damaged = hint.exists() and not checkpoints
    for file in checkpoints:
        try:
            pq.read_table(file)
        except (OSError, pa.ArrowException):
            damaged = True
    whole = commits == [*range(len(commits))]
    return [*checkpoints, *([hint] if hint.exists() else [])] if damaged and whole else []


def expect_own_columns(table: deltalake.DeltaTable) -> None:
    """Whether a table has no column that this release does not know, which its rows would leave empty.

    Raises:
        StoreError: A later release added one; the table can be read, but not written to.
    """
    name = table.metadata().name
    if others := sorted({field.name for field in table.schema().fields} - {*TABLES[name].schema.names}):
        what = f"the table '{name}' has columns that curator {curator.__version__} does not know ({some(others)})"
        raise StoreError(f"{what}, so it is read and not written to", "pip install --upgrade curator")


def expect_plain(table: deltalake.DeltaTable) -> None:
    """Whether the rows of a table are those of its files, as they stand there.

    Another engine may have turned on what is otherwise: rows that are deleted beside the files, columns of other names.
    Whoever reads the files alone would bring such rows back, and say nothing.

    Raises:
        StoreError: The table needs a reader of Delta Lake's protocol above version 1.
    """
    protocol = table.protocol()
    if protocol.min_reader_version > 1:
        features = protocol.reader_features or ["columnMapping"]  # what version 2 stands for; it lists none
        what = f"the table '{table.metadata().name}' needs what this version of curator cannot read ({some(features)})"
        mend = f"ALTER TABLE delta.`{table.table_uri}` DROP FEATURE {features[0]}, in the engine that turned it on"
        raise StoreError(what, mend)


def write(rows: pa.Table, file: Path) -> None:
    """Writes rows as a table's file; each page has a checksum, by which `curator doctor` finds a bit that flipped."""
    pq.write_table(rows, file, compression="zstd", write_page_checksum=True)


def put(
    place: Place,
    table: str,
    opened: deltalake.DeltaTable,
    write: Callable[[Path], object],
    claim: str | None,
    **how: Any,
) -> Path:
    """Writes one Parquet file and makes it part of a table.

    Args:
        place: Where the store lies.
        table: Name of the table.
        opened: The table, as for `publish`.
        write: Writes the file.
        claim: What is being published, see `publish`.
        **how: What else `publish` takes.

    Returns:
        The file.

    Raises:
        CommitRaced: Another process published the claim in the meantime; nothing was changed, and no file is left.
    """
    folder = place.work / FOLDERS[table]
    folder.mkdir(exist_ok=True)
    file = folder / f"{uuid.uuid4().hex}.parquet"
    try:
        write(file)
        publish(place, opened, [file], claim, **how)
    except CommitRaced:
        place.remove(file)
        raise
    except BaseException:
        # Ctrl-C, or a disk that fills up, may strike between the commit and the return of `publish`.
        newest = deltalake.DeltaTable(opened.table_uri, storage_options=place.options)
        if file.name not in {Path(path).name for path in paths_of(newest)}:
            place.abandon(file)
        raise
    return file


def paths_of(table: deltalake.DeltaTable) -> list[str]:
    """The paths of a table's files, sorted; deltalake gives them with the escapes of a URL."""
    return sorted(unquote(uri.removeprefix("file://")) for uri in table.file_uris())


def _add_action(place: Place, file: Path, data_change: bool) -> AddAction:
    """Delta's record of one file, with the statistics that let other engines skip it."""
    with place.open(file) as opened:
        meta = pq.read_metadata(opened)
        size = opened.seek(0, io.SEEK_END)
    low: dict[str, int] = {}
    high: dict[str, int] = {}
    for group in (meta.row_group(i) for i in range(meta.num_row_groups)):
        for column in (group.column(i) for i in range(group.num_columns)):
            stats = column.statistics
            if column.path_in_schema in ("image_id", "generation") and stats is not None and stats.has_min_max:
                name = column.path_in_schema
                low[name] = min(low.get(name, stats.min), stats.min)
                high[name] = max(high.get(name, stats.max), stats.max)
    return AddAction(
        path=file.relative_to(place.work).as_posix().partition("/")[2],
        size=size,
        partition_values={},
        modification_time=time.time_ns() // 1_000_000,
        data_change=data_change,
        stats=json.dumps({"numRecords": meta.num_rows, "minValues": low, "maxValues": high}),
    )
