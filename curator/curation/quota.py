"""The quota: the first K rows of each class and their copies, out of a stream of any length.

    rows --Histogram--> how many rows of each class lie in each bin of the score --place--> the bin of the K-th row
    the rows again --keep--> in a better bin: written at once
                             in this bin: set aside in a file, sorted when the stream ends, cut at K

sql/quota.sql and sql/copies.sql define the same rows, and a test holds the two against each other. Where they sort the
whole pool, here only the rows of one bin of each class are sorted, by DuckDB within its limit, and the memory depends
on the number of classes alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from curator import queries
from curator.generations.histogram import Floats, Histogram, Integers, Ints

if TYPE_CHECKING:
    import duckdb

_BATCH = 100_000


class Rule(NamedTuple):
    """How many rows a class gets, see sql/quota.sql and sql/copies.sql."""

    per_class: int
    fill: str = "copies"
    max_copies: int | None = None


class Rows(NamedTuple):
    """N rows of a stream: ids [N], labels [N], scores [N], and other columns [N] that go along."""

    image_id: Ints
    label: Integers
    score: Floats
    carried: dict[str, npt.NDArray[Any]]

    def take(self, places: Ints) -> Rows:
        """The rows at the places."""
        carried = {name: column.take(places) for name, column in self.carried.items()}
        return Rows(self.image_id.take(places), self.label.take(places), self.score.take(places), carried)


class Cut(NamedTuple):
    """What is known of each class [C] when all rows are counted; ranks count from 1."""

    kept: Ints  # rows within the quota
    extra: Ints  # the first so many of them have one copy more
    copies: Ints  # copies of the others
    edge: Ints  # bin of the last kept row; behind the last bin where all are kept
    extra_bin: Ints  # bin of the last row with one more copy; -1 where there is none
    before_edge: Ints  # rows in better bins than the edge
    before_extra: Ints  # rows in better bins than extra_bin
    lowest: Floats  # no row below this score is kept


def place(histogram: Histogram, rule: Rule) -> Cut:
    """Where the quota cuts each class."""
    running = histogram.running
    kept = np.minimum(running[:, -1], rule.per_class)
    copies, extra = np.divmod(rule.per_class, np.maximum(kept, 1))
    if rule.fill == "none":
        copies, extra = np.ones_like(copies), np.zeros_like(extra)
    full = running[:, -1] > rule.per_class
    edge = np.where(full, (running < kept[:, None]).sum(axis=1), histogram.bins)
    extra_bin = np.where(extra > 0, (running < extra[:, None]).sum(axis=1), -1)
    ends = np.pad(running, ((0, 0), (1, 0)))  # ends[c, b] rows of the class c lie in bins better than b
    classes = np.arange(len(kept))
    lowest = np.where(full, histogram.lowest(edge), -np.inf).astype(np.float32)
    return Cut(
        kept,
        extra,
        copies,
        edge,
        extra_bin,
        ends[classes, edge],
        np.where(extra_bin >= 0, ends[classes, extra_bin], 0),
        np.maximum(lowest, np.nextafter(histogram.above, np.float32(np.inf))),
    )


def keep(
    con: duckdb.DuckDBPyConnection, rows: Iterable[Rows], histogram: Histogram, rule: Rule, folder: Path
) -> Path | None:
    """Writes the rows within the quota to a Parquet file: image_id, label, score, copies and what was carried along.

    Args:
        con: A connection that sorts what was set aside.
        rows: The same rows that the histogram has counted.
        histogram: Their counts.
        rule: The quota.
        folder: Where to write.

    Returns:
        The file, its rows in no order; None if no row is within the quota.
    """
    cut = place(histogram, rule)
    # Looked up once for each row of the stream, so they are kept small.
    edge, extra_bin = cut.edge.astype(np.int32), cut.extra_bin.astype(np.int32)
    kept, waiting = _Writer(folder / "selected.parquet"), _Writer(folder / "waiting.parquet")
    copies = _Copies(cut, rule)
    with kept, waiting:
        for part in rows:
            near = part.take(np.flatnonzero(part.score >= cut.lowest.take(part.label)))
            bins = histogram.bin(near.score)
            edges, extras = edge.take(near.label), extra_bin.take(near.label)
            waits = (bins == edges) | (bins == extras)
            sure = np.flatnonzero((bins < edges) & ~waits)
            kept.write(near.take(sure), copies=copies.of(near.label[sure], bins[sure] < extras[sure]))
            later = np.flatnonzero(waits)
            waiting.write(near.take(later), bin=bins[later])
        waiting.close()
        if waiting.rows:
            con.read_parquet(str(waiting.file)).create_view("waiting", replace=True)
            for batch in con.sql(queries.text("waiting_rows")).to_arrow_reader(_BATCH):
                columns = {
                    name: column.to_numpy() for name, column in zip(batch.schema.names, batch.columns, strict=True)
                }
                bins, places = columns.pop("bin"), columns.pop("place")
                held = Rows(columns.pop("image_id"), columns.pop("label"), columns.pop("score"), columns)
                before = np.where(bins == edge[held.label], cut.before_edge[held.label], cut.before_extra[held.label])
                rank = before + places
                inside = np.flatnonzero(rank <= cut.kept[held.label])
                more = (rank <= cut.extra[held.label])[inside]
                kept.write(held.take(inside), copies=copies.of(held.label[inside], more))
    if kept.rows != cut.kept.sum():
        raise RuntimeError(f"{kept.rows} rows are within the quota, and {cut.kept.sum()} were counted")
    return kept.file if kept.rows else None


class _Copies:
    """The copies of kept rows."""

    def __init__(self, cut: Cut, rule: Rule) -> None:
        most = rule.per_class if rule.max_copies is None else rule.max_copies
        self._usual = np.minimum(cut.copies, most).astype(np.int32)
        self._more = np.minimum(cut.copies + 1, most).astype(np.int32)

    def of(self, label: Integers, more: npt.NDArray[np.bool_]) -> npt.NDArray[np.int32]:
        """Copies [N] of rows of the labels [N]; `more` [N] says which have one more than others of their class."""
        return np.where(more, self._more.take(label), self._usual.take(label))


class _Writer:
    """Writes rows to a file that begins with the first of them."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.rows = 0
        self._writer: pq.ParquetWriter | None = None

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def write(self, rows: Rows, **columns: npt.NDArray[Any]) -> None:
        """Adds rows with further columns."""
        if not len(rows.label):
            return
        own = {"image_id": rows.image_id, "label": rows.label.astype(np.int32), "score": rows.score}
        table = pa.table(own | columns | rows.carried)
        if self._writer is None:
            # Read once and deleted: packing it would take longer than reading it saves.
            options = {"compression": "none", "use_dictionary": False, "write_statistics": False}
            self._writer = pq.ParquetWriter(self.file, table.schema, **options)
        self._writer.write_table(table)
        self.rows += table.num_rows

    def close(self) -> None:
        """Makes the file whole."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
