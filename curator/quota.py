"""The quota: the first K rows of each class and their copies, out of a stream of any length.

    rows --Histogram--> how many rows of each class lie in each bin of the score --place--> the bin of the K-th row
    the rows again --keep--> in a better bin: written at once
                             in this bin: set aside, sorted when the stream ends, cut at K

sql/quota.sql and sql/copies.sql define the same rows, and a test holds the two against each other. Where they sort the
whole pool, the memory here depends on the number of classes, and on the rows of one bin of each class, of which never
more than the quota are kept.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from curator.histogram import Floats, Histogram, Integers, Ints

# Rows that may wait for the end of the stream before those that are settled are let go.
_ASIDE = 4_000_000


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


def keep(rows: Iterable[Rows], histogram: Histogram, rule: Rule, file: Path) -> None:
    """Writes the rows within the quota to a Parquet file: image_id, label, score, copies and what was carried along.

    Args:
        rows: The same rows that the histogram has counted.
        histogram: Their counts.
        rule: The quota.
        file: The file to write, in no order; it is not written if no row is within the quota.
    """
    cut = place(histogram, rule)
    # Positions in these are looked up once for each row of the stream, so they are kept small.
    edge, extra_bin = cut.edge.astype(np.int32), cut.extra_bin.astype(np.int32)
    aside: list[Rows] = []
    held, limit = 0, _ASIDE
    with _Writer(file, cut, rule) as writer:
        for part in rows:
            near = part.take(np.flatnonzero(part.score >= cut.lowest.take(part.label)))
            bins = histogram.bin(near.score)
            edges, extras = edge.take(near.label), extra_bin.take(near.label)
            waits = (bins == edges) | (bins == extras)
            sure = np.flatnonzero((bins < edges) & ~waits)
            writer.write(near.take(sure), bins[sure] < extras[sure])
            aside.append(near.take(np.flatnonzero(waits)))
            held += len(aside[-1].label)
            if held > limit:
                aside = [_settle(aside, histogram, cut, writer, last=False)]
                held = len(aside[0].label)
                limit = max(_ASIDE, 2 * held)
        if aside:
            _settle(aside, histogram, cut, writer, last=True)
        if writer.rows != cut.kept.sum():
            raise RuntimeError(f"{writer.rows} rows are within the quota, and {cut.kept.sum()} were counted")


def _settle(aside: list[Rows], histogram: Histogram, cut: Cut, writer: _Writer, last: bool) -> Rows:
    """Writes those rows whose copies are certain, drops those that are certainly out, and returns the others.

    While rows are still to come, the rank of one that was set aside can only grow.
    """
    rows = Rows(
        np.concatenate([part.image_id for part in aside]),
        np.concatenate([part.label for part in aside]),
        np.concatenate([part.score for part in aside]),
        {name: np.concatenate([part.carried[name] for part in aside]) for name in aside[0].carried},
    )
    rows = rows.take(np.lexsort((rows.image_id, -rows.score, rows.label)))
    label, bins = rows.label, histogram.bin(rows.score)
    first = np.flatnonzero(np.r_[True, (label[1:] != label[:-1]) | (bins[1:] != bins[:-1])][: len(label)])
    place = np.arange(len(label)) - np.repeat(first, np.diff(np.r_[first, len(label)]))
    at_edge = bins == cut.edge[label]
    rank = np.where(at_edge, cut.before_edge[label], cut.before_extra[label]) + place + 1
    kept, more = rank <= cut.kept[label], rank <= cut.extra[label]
    settled = last | ~kept | (~at_edge & ~more)
    sure = np.flatnonzero(settled & kept)
    writer.write(rows.take(sure), more[sure])
    return rows.take(np.flatnonzero(~settled))


class _Writer:
    """Writes rows with their copies."""

    def __init__(self, file: Path, cut: Cut, rule: Rule) -> None:
        most = rule.per_class if rule.max_copies is None else rule.max_copies
        self._copies = np.minimum(cut.copies, most).astype(np.int32)
        self._more = np.minimum(cut.copies + 1, most).astype(np.int32)
        self._file = file
        self._writer: pq.ParquetWriter | None = None
        self.rows = 0

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            self._writer.close()

    def write(self, rows: Rows, more: npt.NDArray[np.bool_]) -> None:
        """Adds rows [N]; `more` [N] says which have one copy more than others of their class."""
        if not len(rows.label):
            return
        columns = {"image_id": rows.image_id, "label": rows.label.astype(np.int32), "score": rows.score}
        copies = np.where(more, self._more.take(rows.label), self._copies.take(rows.label))
        table = pa.table(columns | {"copies": copies} | rows.carried)
        if self._writer is None:
            # Read once and deleted: packing it would take longer than reading it saves.
            self._writer = pq.ParquetWriter(
                self._file, table.schema, compression="none", use_dictionary=False, write_statistics=False
            )
        self._writer.write_table(table)
        self.rows += table.num_rows
