"""Adding rows to the tables of a store: appended by whoever comes, claimed by the first, or put together.

rows --append, claim--> one more file --one commit--> the next version of the table
many small files --gather--> one file with the same rows
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from functools import partial
from typing import Any
from urllib.parse import unquote

import deltalake
import pyarrow as pa
from deltalake.exceptions import DeltaError

from curator.errors import StoreError
from curator.schema import FOLDERS, LATER, TABLES
from curator.storage import delta
from curator.storage.delta import CommitRaced
from curator.storage.store import Store

Ask = Callable[[str], list[dict[str, Any]]]  # answers a query over the views: `Store.rows`, or of a connection
# A table with more files of less than so many bytes than this is put together, see `gather`.
_MOST_SMALL, _SMALL = 40, 2**23


def append(
    store: Store, table: str, rows: pa.Table, opened: deltalake.DeltaTable | None = None
) -> deltalake.DeltaTable:
    """Adds rows to a table in one commit, columns in the order of the schema.

    Args:
        store: The store.
        table: Name of the table.
        rows: The rows.
        opened: The table, for who has it open, at any version; opening it is half of the time that a row takes.

    Returns:
        The table as it is then.

    Raises:
        StoreError: Nothing was added, as where the disk is full, others kept committing first, or the table has columns
            of a later release.
    """
    make(store, table)
    grown = store.delta(table) if opened is None else opened
    try:
        # not deltalake's own way to append, which syncs nothing: of a power cut it would leave less than was said
        delta.put(store.place, table, grown, partial(delta.write, rows.cast(TABLES[table].schema)), None)
    except (DeltaError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        what = f"nothing was added to the table '{table}' ({str(error).splitlines()[0]})"
        mend = "look whether the disk is full, and run the same command again"
        raise store.place.failure(error) or StoreError(what, mend) from None
    store.follow(table, grown)
    return grown


def claim(store: Store, table: str, rows: pa.Table, claim: str, opened: deltalake.DeltaTable) -> None:
    """Adds rows that only one process may add.

    Args:
        store: The store.
        table: Name of the table.
        rows: The rows.
        claim: What is added, see `delta.publish`.
        opened: The table at the version at which they were not there.

    Raises:
        CommitRaced: Another process added them since.
    """
    delta.put(store.place, table, opened, partial(delta.write, rows), claim)


def now(ask: Ask, table: str) -> dt.datetime:
    """The time of rows that are added now to a table of which the newest row counts.

    Args:
        ask: Answers a query over the views.
        table: Name of the table.

    Returns:
        A time later than those the table has, also where the clock was set back.
    """
    (column,) = (field.name for field in TABLES[table].schema if pa.types.is_timestamp(field.type))
    return later(ask(f'select max("{column}") as latest from stored_{table}')[0]["latest"])


def later(*times: dt.datetime | None) -> dt.datetime:
    """The time now, or, where the clock was set back, one that is later than all of these."""
    least = dt.timedelta(microseconds=1)
    return max([dt.datetime.now(dt.UTC), *(time + least for time in times if time is not None)])


def gather(store: Store, table: str, opened: deltalake.DeltaTable) -> None:
    """Puts the rows of a table's small files into one, where there are many: each of them costs every reader time.

    The files stay where they are, so older versions can be read. Of processes that do this at once one wins, and
    whoever appends meanwhile loses nothing. (deltalake 1.6 has `optimize.compact` for this; two of them at once both
    take the same files, and leave their rows twice.)

    Args:
        store: The store.
        table: Name of the table.
        opened: The table.
    """
    from pyarrow import dataset

    sizes = pa.table(opened.get_add_actions()).select(["path", "size_bytes"]).to_pylist()
    small = [row["path"] for row in sizes if row["size_bytes"] < _SMALL]
    if len(small) <= _MOST_SMALL:
        return
    paths = [store.place.uri(f"{FOLDERS[table]}/{unquote(path)}") for path in small]
    # what a file no longer holds as it was written must not get a new checksum
    checked = dataset.ParquetFragmentScanOptions(page_checksum_verification=True)
    form = dataset.ParquetFileFormat(default_fragment_scan_options=checked)
    files = dataset.dataset(paths, TABLES[table].schema, form, filesystem=store.place.filesystem)
    rows = files.to_table()
    try:
        delta.put(
            store.place,
            table,
            opened,
            partial(delta.write, rows),
            f"the rows of {table} together",
            gone=small,
            moved=True,
        )
    except CommitRaced:
        return  # another process did it


def make(store: Store, table: str) -> None:
    """Makes a table that the store may be too old to have."""
    if table in LATER and not store.place.has(FOLDERS[table]):
        schema = TABLES[table].schema

        def create(uri: str) -> None:
            deltalake.DeltaTable.create(uri, schema, mode="ignore", name=table)

        store.place.make_table(FOLDERS[table], create)
