"""Synthetic stores: many images, a thousand classes whose sizes fall like 1 / rank, confidences with many ties.

A narrow store has the columns that a selection reads, and soft labels of one class; a wide one has 20 classes kept and
the images table, so that a whole manifest can be built from it. Both are what the tool itself would have written.

    python benchmarks/selection/pool.py STORE ROWS narrow|wide
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from curator.generations.labels import PartWriter, publish
from curator.generations.softlabels import round_probabilities
from curator.schema import IMAGES, LABELS
from curator.storage import delta
from curator.storage.store import Store

CLASSES = 1000
_PART = 4_000_000
_GROUP = 122_880


def make(path: Path, rows: int, wide: bool) -> None:
    """Makes a store with so many pool images, labeled as generation 0."""
    store = Store.create(path, [f"class{i:04d}" for i in range(CLASSES)])
    folder = store.path / "labels" / "g000-outside-outside"
    folder.mkdir()
    parts, pictures = [], []
    for number, start in enumerate(range(0, rows, _PART)):
        rng = np.random.default_rng([7, number])
        ids = rng.integers(0, 2**63 - 1, min(_PART, rows - start))
        writer = PartWriter(folder / f"part-{number:05d}.parquet", CLASSES)
        for first in range(0, len(ids), _GROUP):
            writer.write(_labels(rng, ids[first : first + _GROUP], wide))
        parts.append(writer.finish())
        if wide:
            pictures.append(store.path / "images" / f"part-{number:05d}.parquet")
            pq.write_table(_images(ids, start), pictures[-1], compression="zstd", row_group_size=_GROUP)
    publish(store, store.delta("labels"), parts, 0)
    if wide:
        delta.publish(store.place, store.delta("images"), pictures, "synthetic images")


def _labels(rng: np.random.Generator, ids: np.ndarray, wide: bool) -> pa.Table:
    n, kept = len(ids), 20 if wide else 1
    share = 1 / np.arange(1, CLASSES + 1)
    label = np.searchsorted((share / share.sum()).cumsum(), rng.random(n)).clip(0, CLASSES - 1)
    confidence = np.round(rng.beta(2, 1.3, n) * 0.92 + 0.07, 3).astype(np.float32)
    rest = np.sort(rng.standard_exponential((n, kept - 1), np.float32) ** 2, axis=1)[:, ::-1]
    rest = rest * ((1 - confidence) * 0.9 / np.maximum(rest.sum(axis=1), 1e-9))[:, None]
    probs = np.concatenate([confidence[:, None], np.minimum(rest, confidence[:, None])], axis=1)
    others = rng.integers(1, 900, (n, 1)) + np.arange(1, kept) * rng.integers(1, 5, (n, 1))
    classes = np.concatenate([label[:, None], (label[:, None] + others) % CLASSES], axis=1)
    tail = (1 - probs.sum(axis=1)).clip(0).astype(np.float32)
    offsets = pa.array(np.arange(0, n * kept + 1, kept, dtype=np.int32))
    second = probs[:, 1] if wide else np.zeros(n, np.float32)
    return pa.table(
        [
            pa.array(ids),
            pa.array(np.zeros(n, np.int16)),
            pa.array(["outside"] * n),
            pa.array(["unlabeled"] * n),
            pa.array(label.astype(np.int16)),
            pa.array(confidence),
            pa.array(confidence - second),
            pa.array(tail),
            pa.ListArray.from_arrays(offsets, pa.array(classes.astype(np.int16).ravel())),
            pa.ListArray.from_arrays(offsets, pa.array(round_probabilities(probs.astype(np.float32)).ravel())),
            pa.array(round_probabilities(tail)),
        ],
        schema=LABELS.schema,
    )


def _images(ids: np.ndarray, start: int) -> pa.Table:
    n = len(ids)
    known = {
        "image_id": pa.array(ids),
        "uri": pa.array(np.char.add("pool/", np.char.zfill(np.arange(start, start + n).astype("U"), 9))),
        "split": pa.array(["unlabeled"] * n),
        "status": pa.array(["unscanned"] * n),
        "added_at": pa.array(np.zeros(n, "datetime64[us]"), IMAGES.schema.field("added_at").type),
    }
    columns = [known.get(column.name, pa.nulls(n, column.type)) for column in IMAGES.columns]
    return pa.table(columns, schema=IMAGES.schema)


if __name__ == "__main__":
    make(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "wide")
