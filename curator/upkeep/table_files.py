"""A table's Parquet files against what Delta's log says of them, and their rows against their own footers.

    log: path, bytes, rows, lowest and highest ids --of_file--> there, as long, readable, with these columns and rows
    pages --of_pages--> every checksum holds, every value decodes, and no statistic of the footer would hide a row

What curator writes with pyarrow has a checksum for each page. A footer has none: what of it readers go by is worked out
again from the rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import deltalake
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from curator.generations import labels
from curator.generations.histogram import Histogram
from curator.schema import FOLDERS, TABLES
from curator.storage.place import Place

_BATCH = 65_536
_BOUNDED = ("image_id", "generation")  # whose bounds in the log readers pass files over by


class Stated(NamedTuple):
    """What the log says of a file.

    Attributes:
        name: The file, below the store.
        size: Its bytes.
        rows: Its rows; None where the log does not say.
        bounds: Lowest and highest value of a column.
    """

    name: str
    size: int
    rows: int | None
    bounds: dict[str, tuple[int, int]]


def stated(table: str, opened: deltalake.DeltaTable) -> list[Stated]:
    """The files of a table, in the order of their names."""
    from urllib.parse import unquote

    found = []
    for file in pa.table(opened.get_add_actions(flatten=True)).to_pylist():
        bounds = {name: (file.get(f"min.{name}"), file.get(f"max.{name}")) for name in _BOUNDED}
        known = {name: (low, high) for name, (low, high) in bounds.items() if None not in (low, high)}
        name = f"{FOLDERS[table]}/{unquote(file['path'])}"
        found.append(Stated(name, file["size_bytes"], file.get("num_records"), known))
    return sorted(found)


class Files:
    """The files of a store's tables.

    Footers are read by DuckDB: asked for a damaged one, pyarrow 26 may end the whole process.

    Args:
        place: Where the store lies.
        classes: Number of classes that it has.
    """

    def __init__(self, place: Place, classes: int) -> None:
        import duckdb

        self._place, self._classes = place, classes
        self._con = duckdb.connect()
        place.register(self._con, afresh=True)
        self._unreadable = (*_UNREADABLE, duckdb.Error)

    def close(self) -> None:
        """Lets go of what reads them."""
        self._con.close()

    def of_file(self, table: str, said: Stated) -> str | None:
        """What is wrong with a file as far as its size and footer show it; None where nothing is.

        Raises:
            StoreError: The bucket cannot be read.
        """
        size = self._place.size(said.name)
        if size is None:
            return "is missing"
        if size != said.size:
            return f"has {size} bytes, and the log says {said.size}"
        try:
            found = self._con.read_parquet(self._place.uri(said.name))
            want = self._con.from_arrow(TABLES[table].schema.empty_table())
            if (found.columns, found.types) != (want.columns, want.types):
                return "has other columns than the table"
            with self._open(said) as file:
                if said.rows is not None and file.metadata.num_rows != said.rows:
                    return f"holds {file.metadata.num_rows} rows, and the log says {said.rows}"
            for group in self._footer(table, said):
                for column, (low, high) in said.bounds.items():
                    ends = [end for end in group.columns[column].ends if end is not None]
                    if any(not low <= end <= high for end in ends):
                        return f"holds a {column} outside of what the log says, by which readers pass over files"
        except self._unreadable as error:
            return self._cannot(error)
        return None

    def of_pages(self, table: str, said: Stated, advance: Callable[[int], None]) -> str | None:
        """What is wrong with the rows of a file that `of_file` found nothing wrong with; None where nothing is.

        Args:
            table: Name of the table.
            said: The file.
            advance: Called with the number of rows that were read since the last call.

        Raises:
            StoreError: The bucket cannot be read.
        """
        counts = _Counts(self._classes) if table == "labels" else None
        try:
            footer = self._footer(table, said)
            with self._open(said) as file:
                for number in range(file.metadata.num_row_groups):
                    bounds = _Bounds(TABLES[table].schema)
                    for batch in file.iter_batches(_BATCH, row_groups=[number]):
                        bounds.add(batch)
                        if counts is not None:
                            counts.add(batch)
                        advance(batch.num_rows)
                    if wrong := bounds.wrong(footer[number]):
                        return wrong
                if counts is not None and counts.wrong(file.metadata.metadata or {}):
                    return "has other confidences than its footer counts"
        except self._unreadable as error:
            return self._cannot(error)
        return None

    @contextmanager
    def _open(self, said: Stated) -> Iterator[pq.ParquetFile]:
        with (
            self._place.afresh(said.name) as opened,
            pq.ParquetFile(opened, page_checksum_verification=True, pre_buffer=False) as file,
        ):
            yield file

    def _footer(self, table: str, said: Stated) -> list[_Group]:
        """What the footer of a file says of its row groups."""
        found: list[_Group] = []
        answer = self._con.execute(_FOOTER, [self._place.uri(said.name)]).fetchall()
        for number, rows, name, values, low, high, nulls in answer:
            if number == len(found):
                found.append(_Group(rows, {}))
            if name in TABLES[table].schema.names:  # and so is no list
                if values != rows:
                    raise ValueError(f"{values} values of {name} in {rows} rows")
                kind = TABLES[table].schema.field(name).type
                ends = [None if end is None else pa.scalar(end).cast(kind).as_py() for end in (low, high)]
                found[number].columns[name] = _Column(ends if kind in _ORDERED else [None, None], nulls)
        return found

    def _cannot(self, error: BaseException) -> str:
        # Only DuckDB makes a text of what a bucket came to; pyarrow passes it on as it is.
        if not isinstance(error, _UNREADABLE) and (failed := self._place.failure(error)):
            raise failed
        return f"cannot be read ({(str(error).splitlines() or [type(error).__name__])[0]})"


# A length that is wrong comes out as any of these.
_UNREADABLE = (pa.ArrowException, OSError, ValueError, OverflowError, LookupError, MemoryError)
# Types of which readers compare lowest and highest values.
_ORDERED = {pa.int16(), pa.int32(), pa.int64(), pa.float32(), pa.float64(), pa.string()}
_FOOTER = (
    "select row_group_id, row_group_num_rows, path_in_schema, num_values, stats_min_value, stats_max_value,"
    " stats_null_count from parquet_metadata(?) order by row_group_id, column_id"
)


class _Column(NamedTuple):
    """What a footer says of a column in a row group; None where it says nothing."""

    ends: list[Any]
    nulls: int | None


class _Group(NamedTuple):
    """What a footer says of a row group."""

    rows: int
    columns: dict[str, _Column]


class _Bounds:
    """Lowest and highest values and nulls of a row group's columns; lists are left out, nobody asks by them."""

    def __init__(self, schema: pa.Schema) -> None:
        self.schema = schema
        self.rows = 0
        self.nulls: dict[str, int] = {}
        self.ends: dict[str, list[Any]] = {}

    def add(self, batch: pa.RecordBatch) -> None:
        self.rows += batch.num_rows
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            self.nulls[name] = self.nulls.get(name, 0) + column.null_count
            if (kind := self.schema.field(name).type) in _ORDERED:
                ends = pc.min_max(column.cast(kind))  # deltalake writes some files with Arrow's other kinds of text
                self.ends.setdefault(name, []).extend(ends[end].as_py() for end in ("min", "max"))

    def wrong(self, group: _Group) -> str | None:
        """What of a footer's statistics the rows contradict."""
        if group.rows != self.rows:
            return f"holds {self.rows} rows in a group of {group.rows}"
        for name, column in group.columns.items():
            nulls = self.nulls.get(name, 0)  # a scan that found nothing wrote a group without rows
            if column.nulls not in (None, nulls):
                return f"has {nulls} nulls in {name}, and its footer says {column.nulls}"
            low, high = column.ends
            ends = [end for end in self.ends.get(name, []) if end is not None]
            if any((low is not None and end < low) or (high is not None and end > high) for end in ends):
                return f"holds values of {name} outside of what its footer says, by which readers pass over rows"
        return None


class _Counts:
    """The confidences of a part of the labels, which its footer counts for the selection."""

    def __init__(self, classes: int) -> None:
        self.classes = classes
        self.counted = Histogram(classes)
        self.generation: int | None = None

    def add(self, batch: pa.RecordBatch) -> None:
        self.generation = batch["generation"][0].as_py()
        pool = batch.filter(pc.equal(batch["split"], "unlabeled"))
        label = pool["label"].to_numpy(zero_copy_only=False)
        if len(label) and (label.min() < 0 or label.max() >= self.classes):
            return  # the question about classes names these rows
        self.counted.add(label, pool["confidence"].to_numpy(zero_copy_only=False))

    def wrong(self, metadata: dict[bytes, bytes]) -> bool:
        """Whether a footer counts others; one that counts none is not wrong."""
        said = Histogram(self.classes)
        if self.generation is None or not labels.add_counts([metadata], self.generation, said):
            return False
        return not np.array_equal(said.running, self.counted.running)
