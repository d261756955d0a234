"""A file of soft labels of another tool: which image each row belongs to, and which rows can be used.

    file --image_id or uri, a query of sql/--> image and problem of each row
         --softlabels.read--> distributions, problems --> usable rows in batches; the others are named by number

labels.py imports a generation from it, held_out.py out-of-sample labels of the labeled split.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from curator import progress, queries
from curator.errors import InputError
from curator.generations import softlabels
from curator.pictures import listings
from curator.storage.store import Store

if TYPE_CHECKING:
    import duckdb

_BATCH = 2048
_NAMED_PROBLEMS = 100


def read(
    store: Store,
    con: duckdb.DuckDBPyConnection,
    file: str,
    query: str,
    values: Mapping[str, Any],
    rejected: Rejected,
) -> Generator[tuple[softlabels.Summary, pa.Table]]:
    """The usable rows of a file of soft labels, batch by batch.

    Args:
        store: The store.
        con: A connection to it, which gets the relation `keyed`.
        file: As for `labels.import_labels`.
        query: File of sql/ that gives row, image_id, split and problem of each row of `keyed`, in its order.
        values: Its parameters.
        rejected: Takes the rows that are not usable.

    Yields:
        Soft labels, and the query's rows of their images.

    Raises:
        InputError: The store has no classes, or the file no rows; or, after the last batch, more rows than may be left
            out were not usable, or all.
    """
    classes = len(store.classes())
    if not classes:
        raise InputError("the store has no classes yet", "curator init --classes FILE, or add labeled images first")
    file = listings.local(file)
    keys, total = _rows_of(con, Path(file), queries.text(query), values)
    with progress.progress("importing soft labels", total, "rows") as advance:
        for batch in listings.table_batches(Path(file), (), rows=_BATCH):
            images = keys.take(batch.num_rows)
            summary, good, bad = softlabels.read(batch, classes, store.settings.kept_classes)
            bad |= {place: reason for place, reason in enumerate(images["problem"].to_pylist()) if reason}
            rejected.add(batch.num_rows, bad)
            usable = np.setdiff1d(good, np.fromiter(bad, np.int64, len(bad)))
            if len(usable) and not rejected.too_many:
                yield summary.take(np.searchsorted(good, usable)), images.take(pa.array(usable))
            advance(batch.num_rows)
    if rejected.too_many or rejected.count == total:
        raise InputError(
            f"{rejected.count} of {total} rows of '{file}' are not usable; nothing was imported (counting from 0): "
            f"{rejected}",
            "correct them" + (rejected.instead if rejected.count < total else ""),
        )


class Rejected:
    """The rows of a file that were left out: how many, and the first of them.

    Args:
        most: How many may be.
        instead: What a user may do instead of correcting them.
    """

    def __init__(self, most: int, instead: str = "") -> None:
        self._most = most
        self.instead = instead
        self.total = self.count = 0
        self.first: list[str] = []

    @property
    def too_many(self) -> bool:
        """Whether more were left out than may be."""
        return self.count > self._most

    def are_all(self, reason: str) -> bool:
        """Whether every row was left out, and each that is named for this reason."""
        return self.count == self.total > 0 and all(said.endswith(reason) for said in self.first)

    def add(self, rows: int, bad: Mapping[int, str]) -> None:
        """Takes in the next rows of the file: how many, and what is wrong with some of them by their places."""
        self.count += len(bad)
        room = _NAMED_PROBLEMS - len(self.first)
        self.first += [f"row {self.total + place} {reason}" for place, reason in sorted(bad.items())[:room]]
        self.total += rows

    def __str__(self) -> str:
        more = f" and {self.count - 10} more" if self.count > 10 else ""
        return ", ".join(self.first[:10]) + more


def _rows_of(con: duckdb.DuckDBPyConnection, file: Path, query: str, values: Mapping[str, Any]) -> tuple[_Rows, int]:
    """What a query says of the image of each row of the file, in the file's order, and the number of rows.

    Raises:
        InputError: The file names no images, or has no rows.
    """
    first = next(listings.table_batches(file, ()), None)
    names = first.schema.names if first is not None else []
    key = next((name for name in ("image_id", "uri") if name in names), None)
    if first is None or key is None:
        has = f"its columns are {', '.join(names)}" if names else "it has no rows"
        raise InputError(f"'{file}' has no column 'image_id' or 'uri' ({has})", "name the image of each row")
    kind = first.schema.field(key).type
    text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_dictionary(kind)
    if not (pa.types.is_integer(kind) if key == "image_id" else text):
        raise InputError(f"the column '{key}' of '{file}' holds {kind}", "write image_id as int64, uri as string")
    con.execute(f"create temp table given (row BIGINT, {key} {'BIGINT' if key == 'image_id' else 'VARCHAR'})")
    total = 0
    for batch in listings.table_batches(file, (key,), columns=[key]):
        # An unsigned number above the signed ones wraps to one that no image has.
        cells = batch.column(key).cast(pa.int64() if key == "image_id" else pa.string(), safe=False)
        numbered = pa.table({"row": np.arange(total, total + batch.num_rows), key: cells})
        con.register("given_batch", numbered)
        con.execute("insert into given from given_batch")
        con.unregister("given_batch")
        total += batch.num_rows
    if not total:
        raise InputError(f"'{file}' has no rows", "write one row per image")
    if key == "image_id":
        con.execute("create temp view keyed as from given")
    else:
        con.execute(
            "create temp table keyed as select g.row, i.image_id from given as g"
            " left join stored_images as i on i.uri = g.uri"
        )
    reader = con.sql(query, params=dict(values)).to_arrow_reader(_BATCH)
    return _Rows(reader), total


class _Rows:
    """Hands out a reader's rows in the sizes asked for."""

    def __init__(self, reader: pa.RecordBatchReader) -> None:
        self._reader = reader
        self._waiting = pa.Table.from_batches([], reader.schema)

    def take(self, n: int) -> pa.Table:
        while self._waiting.num_rows < n:
            self._waiting = pa.concat_tables([self._waiting, pa.Table.from_batches([self._reader.read_next_batch()])])
        taken, self._waiting = self._waiting.slice(0, n), self._waiting.slice(n)
        return taken
