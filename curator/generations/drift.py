"""What changed between a generation and the one before it, kept as two small tables that answer questions at once.

    labels of g-1, labels of g --sql/pairs.sql--> pairs --sql/drift.sql----> counts per class before and class after
                                                        --sql/changes.sql--> images that changed, worst first per class

See derived.py for when they are made.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from curator import queries
from curator.generations import derived
from curator.generations.derived import Family, Wanted
from curator.storage.store import Store

if TYPE_CHECKING:
    import duckdb

FAMILY = Family(("changes", "drift"), "pairs", 16_384)


def pair(store: Store, con: duckdb.DuckDBPyConnection, generation: int, version: int) -> Wanted | None:
    """A generation and the one before it that has labels, or None where there is no earlier one.

    Args:
        store: The store.
        con: A connection that reads the labels at the version.
        generation: The later generation.
        version: Version of the labels table.
    """
    query = "select max(generation) as previous from stored_labels where generation < $generation"
    previous = queries.rows(con, query, generation=generation)[0]["previous"]
    return None if previous is None else derived.wanted(store, version, generation, previous)


def is_kept(con: duckdb.DuckDBPyConnection, want: Wanted) -> bool:
    """Whether the tables that a connection reads hold a pair as it is now."""
    return derived.is_kept(con, FAMILY, want)


def keep(store: Store, generation: int) -> None:
    """Makes the tables of a generation unless they are there; processes that want the same take turns."""
    derived.keep(store, FAMILY, lambda con, version: pair(store, con, generation, version))
