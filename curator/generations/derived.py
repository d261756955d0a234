"""Tables that are worked out of the labels, kept so that questions are answered at once.

    label files of a generation (and of the one before it) --sql/NAME.sql--> tables of a family, each row with the basis

They are made when a generation is published, and made again when a question finds that the label files are others than
those they were made from: labels that came later, a kill in between, a store that is older than the tables.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pyarrow as pa

from curator import queries
from curator.lock import alone
from curator.storage import additions, delta
from curator.storage.store import Store

if TYPE_CHECKING:
    import deltalake
    import duckdb


class Family(NamedTuple):
    """Tables that are made together.

    Attributes:
        tables: Their names, each made by sql/NAME.sql; the last one says that all are there, so it is written last.
        common: A query of sql/ whose answer they read, under its own name.
        group: Rows of a row group: small, so that a page of one class reads little. Groups are passed over by their
            lowest and highest values.
    """

    tables: tuple[str, ...]
    common: str
    group: int


class Wanted(NamedTuple):
    """What the tables of a family are to hold for a generation.

    Attributes:
        generation: The generation.
        previous: The generation that it is compared with; itself where there is none.
        basis: Digest of the names of the label files that may hold rows of either.
    """

    generation: int
    previous: int
    basis: str


def wanted(store: Store, version: int, generation: int, previous: int | None = None) -> Wanted:
    """What is to be kept of a generation as its labels are now.

    Args:
        store: The store.
        version: Version of the labels table.
        generation: The generation.
        previous: The generation that it is compared with; None where there is none.
    """
    previous = generation if previous is None else previous
    names = "\n".join(sorted(_holding(store.delta("labels", version), generation, previous)))
    return Wanted(generation, previous, hashlib.blake2b(names.encode(), digest_size=16).hexdigest())


def is_kept(con: duckdb.DuckDBPyConnection, family: Family, want: Wanted) -> bool:
    """Whether the tables that a connection reads hold a generation as it is now."""
    query = f"select 1 from stored_{family.tables[-1]} where generation = $generation and basis = $basis limit 1"
    return bool(queries.rows(con, query, **want._asdict()))


def keep(
    store: Store, family: Family, find: Callable[[duckdb.DuckDBPyConnection, int], Wanted | None]
) -> Wanted | None:
    """Makes the tables of a generation unless they are there; processes that want the same take turns.

    Args:
        store: The store.
        family: The tables.
        find: Says what they are to hold, from a connection and the version of the labels that it reads.

    Returns:
        What they hold now; None where there is nothing to hold.
    """
    for name in family.tables:
        additions.make(store, name)
    with alone(store.path / family.tables[-1]):
        versions = store.versions()
        with closing(store.connect(versions)) as con:
            want = find(con, versions["labels"])
            if want is None or is_kept(con, family, want):
                return want
            query = queries.text(family.common)
            con.execute(f"create temp table {family.common} as {query}", queries.bind(con, query, want._asdict()))
            for name in family.tables:
                _put(store, con, name, want, family.group)
    return want


def _put(store: Store, con: duckdb.DuckDBPyConnection, name: str, want: Wanted, group: int) -> None:
    """Puts the rows of a generation in the place of those that it had."""
    table = store.delta(name)
    query = queries.text(name)

    def write(file: Path) -> None:
        rows = con.sql(query, params=queries.bind(con, query, want._asdict()))
        rows.to_parquet(str(file), compression="zstd", row_group_size=group)

    # A file that was merged holds other generations too. They come back when they are asked for.
    gone = _holding(table, want.generation)
    delta.put(store.place, name, table, write, f"{name} of generation {want.generation}", gone=gone)


def _holding(table: deltalake.DeltaTable, *generations: int) -> list[str]:
    """The files of a table, by the paths that it gives them, that may hold rows of any of the generations."""
    found = []
    for file in pa.table(table.get_add_actions(flatten=True)).to_pylist():
        low, high = file.get("min.generation"), file.get("max.generation")
        # without statistics it may hold anything
        if low is None or high is None or any(low <= generation <= high for generation in generations):
            found.append(str(file["path"]))
    return found
