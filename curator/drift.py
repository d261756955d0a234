"""What changed between a generation and the one before it, kept as two small tables that answer questions at once.

    labels of g-1, labels of g --sql/pairs.sql--> pairs --sql/drift.sql----> counts per class before and class after
                                                        --sql/changes.sql--> images that changed, worst first per class

Both are made when a generation is published, and made again when a question finds that the label files are others than
those they were made from: labels that came later, a kill in between, a store that is older than the tables.
"""

from __future__ import annotations

import hashlib
import os
import uuid
from contextlib import closing
from typing import TYPE_CHECKING, NamedTuple

import pyarrow as pa

from curator import progress, queries
from curator.errors import CuratorError
from curator.lock import alone
from curator.store import Store

if TYPE_CHECKING:
    import deltalake
    import duckdb

# Small, so that a page of one class reads little: these are passed over by their lowest and highest class.
_ROW_GROUP = 16_384


class Pair(NamedTuple):
    """A generation, the one before it that has labels, and the state of the labels of both.

    Attributes:
        basis: Digest of the names of the label files that may hold rows of either.
    """

    generation: int
    previous: int
    basis: str


def pair(store: Store, con: duckdb.DuckDBPyConnection, generation: int, version: int) -> Pair | None:
    """The pair of a generation, or None where there is no earlier one.

    Args:
        store: The store.
        con: A connection that reads the labels at the version.
        generation: The later generation.
        version: Version of the labels table.
    """
    query = "select max(generation) as previous from stored_labels where generation < $generation"
    previous = queries.rows(con, query, generation=generation)[0]["previous"]
    if previous is None:
        return None
    names = "\n".join(sorted(_holding(store.delta("labels", version), generation, previous)))
    return Pair(generation, previous, hashlib.blake2b(names.encode(), digest_size=16).hexdigest())


def is_kept(con: duckdb.DuckDBPyConnection, wanted: Pair) -> bool:
    """Whether the tables that a connection reads hold a pair as it is now."""
    query = "select 1 from stored_drift where generation = $generation and basis = $basis limit 1"
    return bool(queries.rows(con, query, **wanted._asdict()))


def follow(store: Store, generation: int) -> None:
    """Makes the tables of a generation that was just published.

    The labels are there whatever comes of this: where it fails, the first question makes the tables.
    """
    import duckdb

    try:
        keep(store, generation)
    except (CuratorError, OSError, duckdb.Error) as error:
        said = str(error).splitlines()[0]
        progress.say(f"not compared with the generation before it ({said}); curator quality disagreement does it")


def keep(store: Store, generation: int) -> None:
    """Makes the tables of a generation unless they are there; processes that want the same take turns."""
    for name in ("changes", "drift"):
        store.make(name)
    with alone(store.path / "drift"):
        versions = store.versions()
        with closing(store.connect(versions)) as con:
            wanted = pair(store, con, generation, versions["labels"])
            if wanted is None or is_kept(con, wanted):
                return
            values = wanted._asdict()
            query = queries.text("pairs")
            con.execute(f"create temp table pairs as {query}", queries.bind(con, query, values))
            for name in ("changes", "drift"):  # `drift` says that both are there, so it comes last
                _put(store, con, name, wanted)


def _put(store: Store, con: duckdb.DuckDBPyConnection, name: str, wanted: Pair) -> None:
    """Puts the rows of a pair in the place of those of its generation."""
    table = store.delta(name)
    file = store.path / name / f"{uuid.uuid4().hex}.parquet"
    query = queries.text(name)
    try:
        rows = con.sql(query, params=queries.bind(con, query, wanted._asdict()))
        rows.to_parquet(str(file), compression="zstd", row_group_size=_ROW_GROUP)
        with file.open("rb") as written:
            os.fsync(written.fileno())
        # A file that was merged holds other generations too. They come back when they are asked for.
        gone = _holding(table, wanted.generation)
        store.publish(table, [file], f"{name} of generation {wanted.generation}", gone=gone)
    except BaseException:
        store.discard(name, file)
        raise


def _holding(table: deltalake.DeltaTable, *generations: int) -> list[str]:
    """The files of a table, by the paths that it gives them, that may hold rows of any of the generations."""
    found = []
    for file in pa.table(table.get_add_actions(flatten=True)).to_pylist():
        low, high = file.get("min.generation"), file.get("max.generation")
        # without statistics it may hold anything
        if low is None or high is None or any(low <= generation <= high for generation in generations):
            found.append(str(file["path"]))
    return found
