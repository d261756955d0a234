"""Labeling: a model's soft labels for every image it has not labeled yet, written as it goes, published at once.

Parts are written every few seconds of work. A run that is killed leaves whole parts behind; the next run counts their
images as done and publishes all parts in one commit. A lock on the folder keeps two runs of one model apart.
"""

from __future__ import annotations

import time
import uuid
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from curator import progress, queries, softlabels
from curator.errors import InputError, some, suggestion
from curator.inference import Predictions, predict
from curator.labels import PartWriter, check_generation, folder_of, publish
from curator.lock import alone
from curator.network import load
from curator.schema import SPLITS
from curator.store import Store

PART_SECONDS = 30.0


class Labeled(NamedTuple):
    """What a labeling run did."""

    model: str
    generation: int
    images: int
    resumed: int
    already_labeled: int
    images_per_second: float
    failed: int
    problems: list[str]


def label(
    store: Store,
    model: str,
    splits: list[str] | None = None,
    batch_size: int = 64,
    threads: int | None = None,
    part_seconds: float = PART_SECONDS,
) -> Labeled:
    """Labels every image of the splits that the model has not labeled yet.

    Args:
        store: The store.
        model: A registered model with weights.
        splits: Splits to label; all of them by default (the holdout's labels are for calibration).
        batch_size: Images of a forward pass.
        threads: Threads that read and decode.
        part_seconds: Work that a kill can lose at most, in seconds.

    Raises:
        InputError: The model is unknown, or its generation belongs to another one.
        StoreError: Another run labels with this model.
    """
    wanted = splits or list(SPLITS)
    for split in wanted:
        if split not in SPLITS:
            raise InputError(f"the split '{split}' is unknown{suggestion(split, SPLITS)}", ", ".join(SPLITS))
    if batch_size < 1:
        raise InputError(f"the batch size {batch_size} is not at least 1", "--batch-size 64")
    network, recipe, row = load(store, model)
    generation = int(row["generation"])
    folder = folder_of(store, generation, model, row["weights_hash"])
    work = _Work(store, folder, generation, model, part_seconds)
    began = time.perf_counter()
    with alone(folder, f"labeling with '{model}'"):
        for unfinished in folder.glob("*.unfinished"):
            unfinished.unlink()
        table = store.delta("labels")
        con = store.connect({"labels": table.version()})
        try:
            check_generation(con, generation, model)
            published = {Path(uri).name for uri in table.file_uris() if Path(uri).parent.name == folder.name}
            # Parts of other splits stay where they are: publishing them now would show a piece of their split.
            staged = [part for split in wanted for part in sorted(folder.glob(f"part-{split}-*.parquet"))]
            parts = [part for part in staged if part.name not in published]
            resumed = sum(pq.read_metadata(part).num_rows for part in parts)
            if resumed:
                progress.say(f"going on: {resumed} images were labeled by a run that did not finish")
            con.register("staged", _staged(parts))
            query = queries.text("unlabeled_by")
            values = {"generation": generation, "splits": wanted}
            total = queries.rows(con, f"select count(*) as n from ({query})", **values)[0]["n"]
            already = queries.rows(
                con,
                "select count(*) as n from stored_labels"
                " where generation = $generation and list_contains($splits, split)",
                **values,
            )[0]["n"]
            with progress.progress(f"labeling with {model}", total) as advance:
                tables = queries.batches(con, query, batch_size, **values)
                for answer in predict(network, recipe, store.root, tables, threads):
                    work.add(answer)
                    advance(answer.rows.num_rows)
            parts += work.finish()
        except KeyboardInterrupt:
            work.finish()
            raise
        except BaseException:
            work.abandon()  # whole parts stay for the next run
            raise
        finally:
            con.close()
        if parts:
            publish(store, table, parts, generation)
    seconds = time.perf_counter() - began
    if total and not work.images and not resumed and not already:
        raise InputError(
            f"none of the {total} images can be read: {some(work.problems)}", "check that the files are where they were"
        )
    return Labeled(
        model,
        generation,
        work.images + resumed,
        resumed,
        already,
        round(work.images / max(seconds, 1e-9), 1),
        len(work.problems),
        work.problems[:20],
    )


class _Work:
    """Collects answers and writes a part whenever enough time has gone into it."""

    def __init__(self, store: Store, folder: Path, generation: int, model: str, part_seconds: float) -> None:
        self.images = 0
        self.problems: list[str] = []
        self._keep = store.settings.kept_classes
        self._classes = len(store.classes())
        self._folder, self._generation, self._model = folder, generation, model
        self._part_seconds = part_seconds
        self._since = time.monotonic()
        self._waiting: dict[str, list[pa.Table]] = {}  # by split: a part holds one split
        self._paths: dict[str, Path] = {}
        self._parts: list[Path] = []
        self._writer: PartWriter | None = None

    def add(self, answer: Predictions) -> None:
        uris = answer.rows["uri"]
        self.problems += [f"{uris[i].as_py()}: {reason}" for i, reason in answer.failed.items()]
        if not len(answer.good):
            return
        rows = answer.rows.take(pa.array(answer.good))
        summary = softlabels.summarize(answer.probs, self._keep)
        ids, splits = rows["image_id"].to_numpy(), rows["split"].to_pylist()
        labels = softlabels.table(summary, ids, self._generation, self._model, splits)
        for split in dict.fromkeys(splits):
            part = labels if set(splits) == {split} else labels.filter(pc.equal(labels["split"], split))
            self._waiting.setdefault(split, []).append(part)
            self._paths.setdefault(split, self._new_path(split))
        self.images += rows.num_rows
        if time.monotonic() - self._since > self._part_seconds:
            self._write()

    def _write(self) -> None:
        for split in list(self._waiting):
            # A Ctrl-C may come anywhere in here. What waits is then written again, under the same name.
            self.abandon()
            self._writer = PartWriter(self._paths[split], self._classes)
            self._writer.write(pa.concat_tables(self._waiting[split]))
            self._parts.append(self._writer.finish())
            del self._waiting[split], self._paths[split]
        self._writer = None
        self._since = time.monotonic()

    def _new_path(self, split: str) -> Path:
        return self._folder / f"part-{split}-{time.time_ns()}-{uuid.uuid4().hex[:8]}.parquet"

    def finish(self) -> list[Path]:
        """The parts written, all work in them."""
        self._write()
        return self._parts

    def abandon(self) -> None:
        """Removes a part that is not whole."""
        if self._writer is not None:
            self._writer.abandon()


def _staged(parts: list[Path]) -> pa.Table:
    """The image_ids of parts that are written but not published."""
    schema = pa.schema({"image_id": pa.int64()})
    return pa.concat_tables([schema.empty_table(), *(pq.read_table(part, columns=["image_id"]) for part in parts)])
