"""The labels of a generation in the order in which people look at them, kept so that a page takes milliseconds.

    labels of g, images --sql/browse_rows.sql--sql/browse.sql--> one row per image, sorted by split, class, confidence
    labels of g         --sql/histograms.sql--> how many images have which confidence, per split and class

Labels lie in image order, in which a page of one class reads all of them. See derived.py for when the tables are made.
"""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

from curator.generations import derived
from curator.generations.derived import Family
from curator.storage.store import Store

if TYPE_CHECKING:
    import duckdb

FAMILY = Family(("browse", "histograms"), "browse_rows", 32_768)
COMMAND = "curator index"


def is_kept(store: Store, con: duckdb.DuckDBPyConnection, generation: int, version: int) -> bool:
    """Whether the tables that a connection reads hold a generation as it is now.

    Args:
        store: The store.
        con: A connection.
        generation: The generation.
        version: Version of the labels table that it reads.
    """
    return derived.is_kept(con, FAMILY, derived.wanted(store, version, generation))


def keep(store: Store, generation: int) -> int:
    """Makes the tables of a generation unless they are there; processes that want the same take turns.

    Returns:
        How many images the generation has.
    """
    derived.keep(store, FAMILY, lambda _, version: derived.wanted(store, version, generation))
    query = "select coalesce(sum(images), 0)::BIGINT as images from stored_histograms where generation = $generation"
    with closing(store.connect()) as con:
        found = con.execute(query, {"generation": generation}).fetchone()
    return int(found[0]) if found else 0
