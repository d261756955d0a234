"""Soft labels in the store: writing a generation in parts, publishing it in one commit, importing from another tool.

Parts lie in the labels table's own folder, where no reader looks for them until the commit names them:

    labels/g000-teacher-1a2b3c4d/part-00000.parquet ...   written, synced, renamed
    labels/_delta_log/...json                             one commit makes all of them visible

A process that dies before the commit leaves parts that nobody sees. `label` finds them again and goes on behind them.
"""

from __future__ import annotations

import datetime as dt
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from curator import progress, queries, softlabels, sources
from curator.errors import InputError, some
from curator.schema import LABELS, MODELS
from curator.store import Store, check_name

if TYPE_CHECKING:
    import deltalake
    import duckdb

_IMPORT_BATCH = 4096
_ROW_GROUP = 122_880
_PART_ROWS = 4_000_000


class Imported(NamedTuple):
    """What an import of soft labels did."""

    generation: int
    images: int
    rejected: int
    problems: list[str]


class PartWriter:
    """Writes one part of a generation; the part exists under its name only once it is whole and on the disk.

    Args:
        path: The part's file.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.rows = 0
        self._unfinished = path.with_suffix(".unfinished")
        self._writer = pq.ParquetWriter(
            self._unfinished,
            LABELS.schema,
            compression="zstd",
            compression_level=1,
            use_dictionary=["model", "split", "label", "generation", "top_classes.list.element"],
            column_encoding=dict.fromkeys(("confidence", "margin", "entropy", "tail", _PROBS), "BYTE_STREAM_SPLIT"),
        )

    def write(self, rows: pa.Table) -> None:
        """Adds rows, one row group for each call."""
        self._writer.write_table(rows, row_group_size=_ROW_GROUP)
        self.rows += rows.num_rows

    def finish(self) -> Path:
        """Makes the part whole."""
        self._writer.close()
        with self._unfinished.open("rb") as file:
            os.fsync(file.fileno())
        self._unfinished.rename(self.path)
        return self.path

    def abandon(self) -> None:
        """Removes what was written."""
        try:
            self._writer.close()
        finally:
            self._unfinished.unlink(missing_ok=True)


_PROBS = "top_probs.list.element"


def folder_of(store: Store, generation: int, model: str, weights_hash: str) -> Path:
    """Where the parts of a model's labels lie; other weights of the same name get another folder."""
    return store.path / "labels" / f"g{generation:03d}-{model}-{weights_hash[:12] or 'outside'}"


def check_generation(con: duckdb.DuckDBPyConnection, generation: int, model: str) -> bool:
    """A generation's labels come from one model, and a model has one generation.

    Returns:
        Whether the model is registered.

    Raises:
        InputError: Another model labeled this generation, or the model belongs to another one.
    """
    others = queries.rows(
        con,
        "select any_value(model) as model from labels where generation = $generation and model <> $model",
        generation=generation,
        model=model,
    )[0]["model"]
    if others is not None:
        raise InputError(
            f"generation {generation} was labeled by the model '{others}', and a generation has one teacher",
            f"use --model {others}, or another generation",
        )
    known = queries.rows(con, "select generation from models where model = $model", model=model)
    if known and known[0]["generation"] != generation:
        raise InputError(
            f"the model '{model}' belongs to generation {known[0]['generation']}, not {generation}",
            "give the model's own generation, or another model name",
        )
    return bool(known)


def publish(store: Store, table: deltalake.DeltaTable, parts: list[Path], generation: int) -> None:
    """Makes the parts of a generation visible in one commit."""
    store.publish(table, parts, f"generation {generation}")


def import_labels(store: Store, file: str, generation: int, model: str, max_rejected: int = 0) -> Imported:
    """Takes soft labels from another tool.

    Args:
        store: The store; its classes must be known.
        file: Parquet, Arrow or a folder of Parquet files with `image_id` or `uri`, and `probs` (C values), `logits` (C
            values) or `top_classes` and `top_probs`.
        generation: The generation of the model.
        model: Its name; registered if it is new.
        max_rejected: Rows that may be left out because they are no distribution or name no image.

    Raises:
        InputError: More rows than that are not usable; the message names them, and nothing was written.
    """
    check_name("model", model)
    if generation < 0:
        raise InputError(f"the generation {generation} is negative", "generations count from 0")
    versions = store.versions()
    con = store.connect(versions)
    staging = store.path / "labels" / f".import-g{generation:03d}-{os.getpid()}"
    try:
        classes = len(store.classes())
        if not classes:
            raise InputError("the store has no classes yet", "curator init --classes FILE, or add labeled images first")
        known = check_generation(con, generation, model)
        keys, total = _rows_of(con, Path(file), generation)
        rejected: dict[int, str] = {}
        parts = _write(store, Path(file), keys, total, staging, generation, model, classes, max_rejected, rejected)
        images = total - len(rejected)
        problems = [f"row {row} {reason}" for row, reason in sorted(rejected.items())]
        if len(rejected) > max_rejected or not images:
            raise InputError(
                f"{len(rejected)} of {total} rows of '{file}' are not usable; nothing was imported (counting from 0): "
                f"{some(problems, 10)}",
                "correct them, or leave up to N of them out with --max-rejected N",
            )
        final = folder_of(store, generation, model, "")
        final.mkdir(exist_ok=True)
        taken = len(list(final.glob("part-*.parquet")))
        moved = [part.rename(final / f"part-{taken + i:05d}-{os.getpid()}.parquet") for i, part in enumerate(parts)]
        if not known:
            row = {
                "model": model,
                "generation": generation,
                "parents": [],
                "created_at": dt.datetime.now(dt.UTC),
            }
            store.append("models", pa.Table.from_pylist([row], MODELS.schema))
        publish(store, store.delta("labels", versions["labels"]), moved, generation)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        con.close()
    return Imported(generation, images, len(rejected), problems)


def _rows_of(con: duckdb.DuckDBPyConnection, file: Path, generation: int) -> tuple[pa.RecordBatchReader, int]:
    """The image of each row of the file, in the file's order; see sql/import_rows.sql."""
    names = next(sources.table_batches(file, ()), pa.record_batch({})).schema.names
    key = "image_id" if "image_id" in names else "uri"

    def keys() -> Iterator[pa.RecordBatch]:
        row = 0
        for batch in sources.table_batches(file, (key,), columns=[key]):
            numbers = pa.array(np.arange(row, row + batch.num_rows))
            values = batch.column(key).cast(pa.int64() if key == "image_id" else pa.string())
            yield pa.record_batch({"row": numbers, key: values})
            row += batch.num_rows

    schema = pa.schema({"row": pa.int64(), key: pa.int64() if key == "image_id" else pa.string()})
    con.register("key_batches", pa.RecordBatchReader.from_batches(schema, keys()))
    if key == "image_id":
        con.execute("create temp table keyed as from key_batches")
    else:
        con.execute(
            "create temp table keyed as select k.row, i.image_id from key_batches as k"
            " left join stored_images as i on i.uri = k.uri"
        )
    con.unregister("key_batches")
    query = queries.text("import_rows")
    total = queries.rows(con, "select count(*) as n from keyed")[0]["n"]
    reader = con.sql(query, params={"generation": generation}).to_arrow_reader(_IMPORT_BATCH)
    return reader, total


def _write(
    store: Store,
    file: Path,
    keys: pa.RecordBatchReader,
    total: int,
    staging: Path,
    generation: int,
    model: str,
    classes: int,
    max_rejected: int,
    rejected: dict[int, str],
) -> list[Path]:
    """Writes the usable rows as parts in a staging folder and notes the others in `rejected`."""
    keep = store.settings.kept_classes
    queue = _Rows(keys)
    parts: list[Path] = []
    writer: PartWriter | None = None
    row = 0
    with progress.progress("importing soft labels", total, "rows") as advance:
        for batch in sources.table_batches(file, (), rows=_IMPORT_BATCH):
            known = queue.take(batch.num_rows)
            summary, good, bad = read_distributions(batch, classes, keep)
            for place, reason in enumerate(known["problem"].to_pylist()):
                if reason:
                    bad[place] = reason
            usable = np.setdiff1d(good, np.fromiter(bad, np.int64, len(bad)))
            rejected.update({row + place: reason for place, reason in bad.items()})
            row += batch.num_rows
            advance(batch.num_rows)
            if len(rejected) > max_rejected or not len(usable):
                continue
            chosen = np.searchsorted(good, usable)
            picked = summary.take(chosen)
            where = known.take(pa.array(usable))
            if writer is None:
                writer = PartWriter(staging / f"part-{len(parts):05d}.parquet")
            writer.write(
                softlabels.table(picked, where["image_id"].to_numpy(), generation, model, where["split"].to_pylist())
            )
            if writer.rows >= _PART_ROWS:
                parts.append(writer.finish())
                writer = None
    if writer is not None:
        parts.append(writer.finish())
    return parts


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


def read_distributions(
    batch: pa.RecordBatch, classes: int, kept: int
) -> tuple[softlabels.Summary, npt.NDArray[np.int64], dict[int, str]]:
    """The distributions of a batch of somebody's file.

    Args:
        batch: Rows with `probs`, `logits`, or `top_classes` and `top_probs`.
        classes: C of the store.
        kept: Classes to keep of each row.

    Returns:
        The summary of the usable rows, their places in the batch, and the reasons of the others.

    Raises:
        InputError: The columns are not there, or not lists of numbers.
    """
    names = batch.schema.names
    form = next((form for form in ("probs", "logits", "top_probs") if form in names), None)
    if form is None or (form == "top_probs" and "top_classes" not in names):
        raise InputError(
            f"the file has no soft labels; its columns are {', '.join(names)}",
            "give 'probs', 'logits', or 'top_classes' and 'top_probs'",
        )
    partial = form == "top_probs"
    values, good, bad = _matrix(batch.column(form), form, None if partial else classes)
    if form == "logits":
        finite = np.isfinite(values).all(axis=1)
        bad |= {int(place): "holds NaN or infinity" for place in good[~finite]}
        values, good = softlabels.softmax(values[finite]), good[finite]
    found = softlabels.problems(values, partial)
    if partial:
        indexes, places, _ = _matrix(batch.column("top_classes"), "top_classes", values.shape[1])
        fit = np.isin(good, places)
        bad |= {int(place): "has not as many top_classes as top_probs" for place in good[~fit]}
        values, good = values[fit], good[fit]
        indexes = indexes[np.isin(places, good)].astype(np.int64)
        found = softlabels.problems(values, partial)
        ordered = np.sort(indexes, axis=1)
        wrong = (ordered[:, :1] < 0).any(axis=1) | (ordered[:, -1:] >= classes).any(axis=1)
        wrong |= (np.diff(ordered, axis=1) == 0).any(axis=1)
        found |= {int(i): f"names a class twice or outside 0 to {classes - 1}" for i in np.flatnonzero(wrong)}
    bad |= {int(good[i]): reason for i, reason in found.items()}
    fine = np.setdiff1d(np.arange(len(good)), np.fromiter(found, np.int64, len(found)))
    probs = values[fine].astype(np.float32)
    if partial:
        summary = softlabels.summarize_top(indexes[fine], probs, kept, classes)
    else:
        summary = softlabels.summarize(probs, kept)
    return summary, good[fine], bad


def _matrix(
    column: pa.Array, name: str, width: int | None
) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64], dict[int, str]]:
    """A list column as [N, width] values, the places of rows of that width, and the reasons of the others."""
    kind = column.type
    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    if not lists or not (pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type)):
        raise InputError(
            f"the column '{name}' holds {kind}, not lists of numbers", f"write '{name}' as a list of float32"
        )
    lengths = np.asarray(pc.fill_null(pc.list_value_length(column), -1))
    if width is None:
        width = max(int(lengths.max(initial=1)), 1)
    fits = lengths == width
    bad = {
        int(place): "is null" if lengths[place] < 0 else f"has {lengths[place]} {name}, not {width}"
        for place in np.flatnonzero(~fits)
    }
    values = column.filter(pa.array(fits)).flatten()
    if values.null_count:
        values = pc.fill_null(values.cast(pa.float64()), float("nan"))
    return np.asarray(values).reshape(-1, width), np.flatnonzero(fits), bad
