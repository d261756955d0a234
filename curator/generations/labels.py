"""Soft labels in the store: writing a generation in parts, publishing it in one commit, importing from another tool.

Parts lie in the labels table's own folder, where no reader looks for them until the commit names them:

    labels/g000-teacher-1a2b3c4d/part-00000.parquet ...   written, synced, renamed
    labels/_delta_log/...json                             one commit makes all of them visible

A process that dies before the commit leaves parts that nobody sees. `label` finds them again and goes on behind them.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from collections.abc import Iterable, Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from curator import queries
from curator.errors import InputError
from curator.generations import label_file, publication, softlabels
from curator.generations.histogram import Histogram
from curator.names import check_name
from curator.schema import LABELS, MODELS
from curator.storage import additions, delta
from curator.storage.delta import CommitRaced
from curator.storage.store import Store

if TYPE_CHECKING:
    import deltalake
    import duckdb

_ROW_GROUP = 122_880
_ROW_GROUP_BYTES = 64 << 20  # in memory, where rows are long; 11,000 full distributions over 1000 classes
_PART_ROWS = 4_000_000
_ALREADY = "names an image that this generation has labeled already"  # as sql/import_rows.sql says it
_COUNTS = b"curator.confidences"  # in the footer of a part: its generation and the counts of its pool's confidences


class Imported(NamedTuple):
    """What an import of soft labels did."""

    generation: int
    images: int
    rejected: int
    problems: list[str]  # the first of the rejected rows, with their reasons


class PartWriter:
    """Writes one part of a generation; the part exists under its name only once it is whole and on the disk.

    Args:
        path: The part's file.
        classes: Number of classes; the footer gets the counts of the pool's confidences, see histogram.py.
    """

    def __init__(self, path: Path, classes: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.rows = 0
        self._waiting: list[pa.Table] = []
        self._histogram = Histogram(classes)
        self._generation = -1
        self._unfinished = path.with_suffix(".unfinished")
        self._writer = pq.ParquetWriter(
            self._unfinished,
            LABELS.schema,
            compression="zstd",
            compression_level=3,
            write_page_checksum=True,
            use_dictionary=["model", "split", "label", "generation", "top_classes.list.element"],
            column_encoding=dict.fromkeys(("confidence", "margin", "entropy", "tail", _PROBS), "BYTE_STREAM_SPLIT"),
        )

    def write(self, rows: pa.Table) -> None:
        """Adds rows of one generation; held until they fill a row group: small ones cost space and reading time."""
        self._waiting.append(rows)
        self._generation = rows["generation"][0].as_py()
        pool = rows.select(["label", "confidence"]).filter(pc.equal(rows["split"], "unlabeled"))
        self._histogram.add(pool["label"].to_numpy(), pool["confidence"].to_numpy())
        self.rows += rows.num_rows
        waiting, size = sum(t.num_rows for t in self._waiting), sum(t.nbytes for t in self._waiting)
        if waiting >= _ROW_GROUP or size >= _ROW_GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        if self._waiting:
            rows = pa.concat_tables(self._waiting)
            groups = max(1, rows.nbytes // _ROW_GROUP_BYTES)
            self._writer.write_table(rows, row_group_size=min(_ROW_GROUP, rows.num_rows // groups + 1))
        self._waiting = []

    def finish(self) -> Path:
        """Makes the part whole."""
        self._flush()
        self._writer.add_key_value_metadata({_COUNTS: b"%d " % self._generation + self._histogram.pack()})
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


def add_counts(footers: Iterable[Mapping[bytes, bytes]], generation: int, histogram: Histogram) -> bool:
    """Adds the counts of a generation's confidences that stand in the footers of its parts.

    Args:
        footers: What stands in the footers of all parts of the labels table.
        generation: The generation.
        histogram: What to add them to.

    Returns:
        Whether they were all there; if not, the histogram is of no use.
    """
    for metadata in footers:
        # A part that somebody else wrote, or that was merged with others, says nothing, and may be of any generation.
        if _COUNTS not in metadata:
            return False
        of, packed = metadata[_COUNTS].split(b" ", 1)
        if int(of) == generation and not histogram.unpack(packed):
            return False
    return True


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
            f"use '{others}', or another generation: a model that is trained on a manifest of generation {generation} "
            f"belongs to generation {generation + 1}",
        )
    known = queries.rows(con, "select generation from models where model = $model", model=model)
    # Labels without a row of their model are what an import that died left before models were registered first. A part
    # has one model, so that the statistics in its footer rule it out.
    elsewhere = known or queries.rows(
        con,
        "select generation from stored_labels where model = $model and generation <> $generation limit 1",
        generation=generation,
        model=model,
    )
    if elsewhere:
        _expect_generation(model, elsewhere[0]["generation"], generation)
    return bool(known)


def _expect_generation(model: str, own: int, asked: int) -> None:
    if own != asked:
        raise InputError(
            f"the model '{model}' belongs to generation {own}, not {asked}",
            "give the model's own generation, or another model name",
        )


def publish(store: Store, table: deltalake.DeltaTable, parts: list[Path], generation: int) -> None:
    """Makes the parts of a generation visible in one commit."""
    delta.publish(store.place, table, parts, f"generation {generation}")


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
    if not 0 <= generation < 2**15:
        raise InputError(f"the generation {generation} is not in 0 to {2**15 - 1}", "generations count from 0")
    if max_rejected < 0:
        raise InputError(f"--max-rejected {max_rejected} is negative", "give the number of rows that may be left out")
    versions = store.versions()
    table = store.delta("labels", versions["labels"])
    delta.expect_own_columns(table)
    con = store.connect(versions)
    (store.path / "labels").mkdir(exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".import-g{generation:03d}-", dir=store.path / "labels"))
    rejected: label_file.Rejected | None = None
    try:
        known = check_generation(con, generation, model)
        if not known and queries.rows(con, "select 1 from labels where generation = $g limit 1", g=generation):
            _register(store, model, generation)  # an import of an earlier release died between its two commits
        rejected = label_file.Rejected(max_rejected, ", or leave up to N of them out with --max-rejected N")
        parts = _Parts(staging, len(store.classes()))
        with closing(label_file.read(store, con, file, "import_rows", {"generation": generation}, rejected)) as batches:
            for summary, images in batches:
                ids, splits = images["image_id"].to_numpy(), images["split"].to_pylist()
                parts.write(softlabels.table(summary, ids, generation, model, splits))
        done = parts.finish()
        if not known:
            _register(store, model, generation)  # first: a model without labels harms nobody, two generations would
        _publish_import(store, table, done, folder_of(store, generation, model, ""), generation)
    except InputError as error:
        if rejected is not None and rejected.are_all(_ALREADY):
            publication.follow(store, generation)  # in case that is what an earlier import of the file did not come to
            error.mend = "none, if this file was imported before: its labels are there"
        raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        con.close()
    publication.follow(store, generation)
    return Imported(generation, rejected.total - rejected.count, rejected.count, rejected.first)


def _publish_import(
    store: Store, table: deltalake.DeltaTable, parts: list[Path], folder: Path, generation: int
) -> None:
    """Moves the parts of an import to their place and publishes them."""
    folder.mkdir(exist_ok=True)
    token = uuid.uuid4().hex[:8]
    moved = [part.rename(folder / f"part-{token}-{part.name[5:]}") for part in parts]
    try:
        publish(store, table, moved, generation)
    except CommitRaced:
        # Only here is it certain that no commit names them.
        for part in moved:
            store.place.remove(part)
        with suppress(OSError):
            folder.rmdir()
        raise


def _register(store: Store, model: str, generation: int) -> None:
    """Notes a model from outside in the models table, once, whoever else does so at the same time.

    Raises:
        InputError: Somebody else noted it for another generation.
    """
    table = store.delta("models")
    if not store.rows("select 1 from models where model = $model", {"models": table.version()}, model=model):
        now = additions.now(store.rows, "models")
        row = {"model": model, "generation": generation, "parents": [], "created_at": now}
        with suppress(CommitRaced):
            additions.claim(store, "models", pa.Table.from_pylist([row], MODELS.schema), f"model {model}", table)
    own = store.rows("select generation from models where model = $model", model=model)[0]["generation"]
    _expect_generation(model, own, generation)


class _Parts:
    """Writes rows as parts in a folder, a new part whenever one is large enough."""

    def __init__(self, folder: Path, classes: int) -> None:
        self._folder, self._classes = folder, classes
        self._done: list[Path] = []
        self._writer: PartWriter | None = None

    def write(self, rows: pa.Table) -> None:
        if self._writer is None:
            self._writer = PartWriter(self._folder / f"part-{len(self._done):05d}.parquet", self._classes)
        self._writer.write(rows)
        if self._writer.rows >= _PART_ROWS:
            self.finish()

    def finish(self) -> list[Path]:
        if self._writer is not None:
            self._done.append(self._writer.finish())
            self._writer = None
        return self._done
