"""Delta Lake's side of a table: finished Parquet files become part of it in one commit, or not at all.

deltalake gives commits, versions and conflicts; this adds the claim, by which two that publish the same thing from the
same state are told apart, and statistics that let readers pass over files.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote

import deltalake
import pyarrow.parquet as pq
from deltalake.exceptions import CommitFailedError
from deltalake.transaction import AddAction, RemoveAction

from curator.errors import StoreError


class CommitRaced(StoreError):
    """Another process committed the same claim first; nothing was changed."""


def publish(
    table: deltalake.DeltaTable,
    files: Sequence[Path],
    claim: str,
    replace: bool = False,
    gone: Sequence[str] = (),
    moved: bool = False,
) -> None:
    """Makes finished Parquet files part of a table, all of them in one commit.

    Args:
        table: The table at the version that the caller looked at when it decided what to write.
        files: Parquet files below the table's folder.
        claim: What is being published. Of two processes that publish the same claim from the same state, one wins.
        replace: Whether they take the place of the files that the table has.
        gone: Paths, as the table names them, of files that leave it in the same commit.
        moved: Whether the files hold the rows of those that leave, and no others: no reader has to look again, and
            no append at the same time fails.

    Raises:
        CommitRaced: Another process published the claim in the meantime; nothing was changed.
    """
    folder = Path(unquote(table.table_uri.removeprefix("file://")))
    actions: list[AddAction | RemoveAction] = [_add_action(folder, file, not moved) for file in files]
    actions += [RemoveAction(path, not moved, time.time_ns() // 1_000_000) for path in gone]
    turn = (table.transaction_version(claim) or 0) + 1
    try:
        table.create_write_transaction(
            actions,
            "overwrite" if replace else "append",
            table.schema(),
            commit_properties=deltalake.CommitProperties(app_transactions=[deltalake.Transaction(claim, turn)]),
        )
    except CommitFailedError:
        mend = "run the same command again"
        raise CommitRaced(f"another process published {claim} at the same time", mend) from None


def paths_of(table: deltalake.DeltaTable) -> list[str]:
    """The paths of a table's files, sorted; deltalake gives them with the escapes of a URL."""
    return sorted(unquote(uri.removeprefix("file://")) for uri in table.file_uris())


def _add_action(folder: Path, file: Path, data_change: bool) -> AddAction:
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
        path=file.resolve().relative_to(folder.resolve()).as_posix(),
        size=state.st_size,
        partition_values={},
        modification_time=int(state.st_mtime * 1000),
        data_change=data_change,
        stats=json.dumps({"numRecords": meta.num_rows, "minValues": low, "maxValues": high}),
    )
