"""The most confident K of each class out of Parquet files, in several ways; each is run in a process of its own.

    python benchmarks/selection/methods.py METHOD STORE QUOTA OUTPUT

prints seconds and rows as JSON. Libraries are imported and the store is opened before the clock starts; files are in
the page cache. All read image_id, label and confidence, keep what is above 0.3, and write an uncompressed Parquet file.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

THRESHOLD = 0.3
_COLUMNS = ["image_id", "label", "confidence"]


def scan(store: str, quota: int, output: Path) -> tuple[float, int]:
    """The limit: every value of three columns is read, in DuckDB, and nothing is kept."""
    con, source = _duckdb(store)
    began = time.perf_counter()
    con.execute(f"select sum(image_id::DOUBLE), sum(label), sum(confidence) from {source}").fetchall()
    return time.perf_counter() - began, 0


def write(store: str, quota: int, output: Path) -> tuple[float, int]:
    """What of our time is writing: the same rows written once more, as arrays that are there already."""
    curator(store, quota, output)
    batches = list(pq.ParquetFile(output).iter_batches(80_000))
    began = time.perf_counter()
    with pq.ParquetWriter(output, batches[0].schema, compression="none", use_dictionary=False) as writer:
        for batch in batches:
            writer.write_batch(batch)
    return time.perf_counter() - began, sum(batch.num_rows for batch in batches)


def curator(store: str, quota: int, output: Path, counted: bool = True) -> tuple[float, int]:
    """The tool: counts from the footers of the parts, one pass over the rows."""
    from curator.curation import selection
    from curator.storage.store import Store

    opened = Store(store)
    con = opened.connect()
    con.execute("set memory_limit = '1GB'")
    parameters = selection.Parameters(0, quota)
    selection.prepare(con, parameters)
    footers = opened.footers("labels") if counted else None
    began = time.perf_counter()
    selection.select(con, parameters, output.parent, footers)
    seconds = time.perf_counter() - began
    con.close()
    (output.parent / "selected.parquet").rename(output)
    return seconds, pq.read_metadata(output).num_rows


def curator_uncounted(store: str, quota: int, output: Path) -> tuple[float, int]:
    """The tool where nothing is known of the parts, as with a --where: two passes over the rows."""
    return curator(store, quota, output, counted=False)


def duckdb_window(store: str, quota: int, output: Path) -> tuple[float, int]:
    """One window function; the second key makes ties exact and avoids a slow rewrite of DuckDB 2.0."""
    con, source = _duckdb(store)
    began = time.perf_counter()
    con.execute(
        f"copy (select image_id, label, confidence from ("
        f"  select image_id, label, confidence,"
        f"    row_number() over (partition by label order by confidence desc, image_id) as rank"
        f"  from {source} where confidence > {THRESHOLD}::FLOAT"
        f") where rank <= {quota}) to '{output}' (compression 'uncompressed')"
    )
    return time.perf_counter() - began, pq.read_metadata(output).num_rows


def polars_rank(store: str, quota: int, output: Path) -> tuple[float, int]:
    """A rank over each class; of equals, the first in the files."""
    import polars as pl

    began = time.perf_counter()
    rows = pl.scan_parquet(_files(store)).select(_COLUMNS).filter(pl.col("confidence") > np.float32(THRESHOLD))
    kept = rows.filter(pl.col("confidence").rank("ordinal", descending=True).over("label") <= quota)
    kept.collect().write_parquet(output, compression="uncompressed")
    return time.perf_counter() - began, pq.read_metadata(output).num_rows


def pandas_head(store: str, quota: int, output: Path) -> tuple[float, int]:
    """Sort, then the head of each group."""
    import pandas as pd

    began = time.perf_counter()
    rows = pd.read_parquet(_files(store), columns=_COLUMNS)
    rows = rows[rows["confidence"] > np.float32(THRESHOLD)]
    rows = rows.sort_values(["label", "confidence", "image_id"], ascending=[True, False, True])
    rows.groupby("label").head(quota).to_parquet(output, compression=None, index=False)
    return time.perf_counter() - began, pq.read_metadata(output).num_rows


def released(store: str, quota: int, output: Path) -> tuple[float, int]:
    """The rule of the released code in numpy: count in bins of 0.01, then keep each row above the edge by chance.

    A restatement: it selects another, random, set, and the number of a class is right in expectation only.
    """
    from pool import CLASSES

    began = time.perf_counter()
    counts = np.zeros((CLASSES, 101), np.int64)
    for label, confidence in _batches(store, ["label", "confidence"]):
        high = confidence > np.float32(THRESHOLD)
        bins = (confidence[high] * 100).astype(np.int64)
        np.add.at(counts.reshape(-1), label[high].astype(np.int64) * 101 + bins, 1)
    above = counts[:, ::-1].cumsum(axis=1)[:, ::-1]
    edge = np.maximum((above >= quota).sum(axis=1) - 1, 0)
    chance = np.minimum(1, quota / np.maximum(above[np.arange(CLASSES), edge], 1))
    rng = np.random.default_rng(0)
    kept = 0
    schema = pa.schema({"image_id": pa.int64(), "label": pa.int16(), "confidence": pa.float32()})
    with pq.ParquetWriter(output, schema, compression="none", use_dictionary=False) as writer:
        for image_id, label, confidence in _batches(store, _COLUMNS):
            lucky = rng.random(len(label)) < chance[label]
            keep = (confidence > np.float32(THRESHOLD)) & ((confidence * 100).astype(np.int64) >= edge[label]) & lucky
            rows = [pa.array(column[keep]) for column in (image_id, label, confidence)]
            writer.write_batch(pa.record_batch(rows, schema=schema))
            kept += len(rows[0])
    return time.perf_counter() - began, kept


METHODS = {
    method.__name__: method
    for method in (scan, write, curator, curator_uncounted, duckdb_window, polars_rank, pandas_head, released)
}


def _files(store: str) -> list[str]:
    return sorted(str(file) for file in (Path(store) / "labels").rglob("*.parquet"))


def _duckdb(store: str):
    import duckdb

    return duckdb.connect(), f"read_parquet({_files(store)})"


def _batches(store: str, columns: list[str]):
    for file in _files(store):
        for batch in pq.ParquetFile(file).iter_batches(400_000, columns=columns):
            yield [column.to_numpy() for column in batch.columns]


if __name__ == "__main__":
    name, source, quota, output = sys.argv[1:]
    seconds, rows = METHODS[name](source, int(quota), Path(output))
    print(json.dumps({"seconds": seconds, "rows": rows}))
