"""The content hash of a manifest: sha256 over parameters and rows, not over times, names, paths or bytes on disk.

The rows go in as tables of a fixed size, so the hash depends on where the stream is cut: always after `ROWS` rows.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from curator.schema import MANIFEST_ROW

ROWS = 65_536


def begin(changed: Mapping[str, Any]) -> hashlib._Hash:
    """A hash that holds the parameters that are not at their defaults, and no rows yet."""
    return hashlib.sha256(json.dumps(changed, sort_keys=True).encode())


def of_files(changed: Mapping[str, Any], files: list[Path]) -> str:
    """The hash of a manifest from its files, in a memory that does not grow with them.

    Args:
        changed: The parameters that are not at their defaults.
        files: The Parquet files in the order of the rows; each but the last holds a multiple of `ROWS`.
    """
    digest = begin(changed)
    for path in files:
        with pq.ParquetFile(path, pre_buffer=False) as file:
            for batch in file.iter_batches(ROWS):
                table = pa.Table.from_batches([batch])
                update(digest, table.select(MANIFEST_ROW.schema.names).cast(MANIFEST_ROW.schema))
    return digest.hexdigest()


def update(digest: hashlib._Hash, table: pa.Table) -> None:
    """Adds the values of a table to a hash, column by column, independent of how Arrow laid them out."""
    for name, column in zip(table.column_names, table.columns, strict=True):
        digest.update(name.encode())
        for part in _bytes(column.combine_chunks()):
            digest.update(part)


def _bytes(array: pa.Array) -> Iterator[bytes | memoryview]:
    """Nulls, lengths and values of an array as little-endian bytes."""
    if isinstance(array, pa.ChunkedArray):
        array = array.chunk(0) if array.num_chunks else pa.array([], array.type)
    if array.null_count:
        yield np.packbits(np.asarray(array.is_null())).tobytes()
    if pa.types.is_list(array.type):
        yield np.asarray(pc.fill_null(pc.list_value_length(array), -1)).astype("<i4").data
        yield from _bytes(array.flatten())
    elif pa.types.is_string(array.type):
        filled = pc.fill_null(array, "")
        yield np.asarray(pc.binary_length(filled)).astype("<i4").data
        yield "".join(filled.to_pylist()).encode()
    else:
        zero = pa.scalar(0, pa.int64()).cast(array.type)
        values = np.asarray(pc.fill_null(array, zero))
        yield values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes()
