"""Memory of the loader and seconds to its first batch, at manifests of many rows.

    python benchmarks/loader/memory.py make WORK NAME ROWS COPIES
    python benchmarks/loader/memory.py load WORK NAME THREADS BATCHES

`make` writes a manifest with so many rows of 1000 classes, each with 20 classes kept, as build-manifest would; its
pictures are a few real ones. `load` prints seconds from opening the loader to the first batch, and the peak memory of
the process in MB, before the loader was opened and after so many batches. WORK has the test files in files/jpeg.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
from measure import peak_mb

from curator.curation import building
from curator.generations.softlabels import round_probabilities
from curator.schema import MANIFEST_ROW, MANIFESTS
from curator.storage import additions
from curator.storage.store import Store

CLASSES, KEPT = 1000, 20
BATCH, SIZE = 64, 224
_GROUP = 122_880
_PART = 34 * _GROUP
# An odd number: multiplied by it, counting numbers become ids in no order, each another.
_SCATTER = np.int64(-7046029254386353131)


def make(work: Path, name: str, rows: int, copies: int) -> None:
    path = work / "large"
    store = Store(path) if path.exists() else Store.create(path, [f"class{i:04d}" for i in range(CLASSES)])
    folder = store.path / "manifests" / name
    folder.mkdir(parents=True)
    uris = pa.array(sorted(str(file.relative_to(work)) for file in (work / "files" / "jpeg").rglob("*.jpg"))[:50])
    rng = np.random.default_rng(0)
    probs = np.sort(rng.standard_exponential((_GROUP, KEPT), np.float32) ** 2, axis=1)[:, ::-1]
    probs = round_probabilities(np.ascontiguousarray(probs / (probs.sum(axis=1, keepdims=True) * 1.1)))
    classes = rng.integers(0, 50, (_GROUP, 1)) + np.arange(KEPT) * rng.integers(1, 49, (_GROUP, 1))
    for part, start in enumerate(range(0, rows, _PART)):
        with building._open(folder / f"part-{part:05d}.parquet") as writer:
            for first in range(start, min(start + _PART, rows), _GROUP):
                places = np.arange(first, min(first + _GROUP, rows))
                writer.write_table(_rows(places, rows, copies, uris, classes, probs), row_group_size=_GROUP)
    parameters = {"generation": 0, "per_class": rows // CLASSES, "temperature": 1.0}
    lineage = {"tables": {}, "parameters": parameters, "classes": [], "funnel": {}}
    row = {
        **{"name": name, "path": f"manifests/{name}", "generation": 0, "per_class": rows * copies // CLASSES},
        **{"rows": rows * copies, "unique_images": rows, "sha256": hashlib.sha256(name.encode()).hexdigest()},
        **{"lineage": json.dumps(lineage), "created_at": dt.datetime.now(dt.UTC)},
    }
    additions.append(store, "manifests", pa.Table.from_pylist([row], MANIFESTS.schema))


def _rows(
    places: np.ndarray, rows: int, copies: int, uris: pa.Array, classes: np.ndarray, probs: np.ndarray
) -> pa.Table:
    n = len(places)
    label = (places * CLASSES // rows).astype(np.int32)
    offsets = pa.array(np.arange(0, n * KEPT + 1, KEPT, dtype=np.int32))
    moved = ((classes[:n] + label[:, None]) % CLASSES).astype(np.int32)
    known = {
        "image_id": pa.array((places * _SCATTER) & np.int64(2**63 - 1)),
        "uri": uris.take(pa.array(places % len(uris))),
        "source": pa.array(["pseudo"]).take(pa.array(np.zeros(n, np.int32))),
        "label": pa.array(label),
        "confidence": pa.array(probs[:n, 0]),
        "copies": pa.array(np.full(n, copies, np.int32)),
        "weight": pa.array(np.ones(n, np.float32)),
        "generation": pa.array(np.zeros(n, np.int32)),
        "top_classes": pa.ListArray.from_arrays(offsets, pa.array(moved.ravel())),
        "top_probs": pa.ListArray.from_arrays(offsets, pa.array(probs[:n].ravel())),
        "tail": pa.array((1 - probs[:n].sum(axis=1)).clip(0)),
    }
    columns = [known.get(column.name, pa.nulls(n, column.type)) for column in MANIFEST_ROW.columns]
    columns = [column.cast(kind.type) for column, kind in zip(columns, MANIFEST_ROW.columns, strict=True)]
    return pa.table(columns, schema=MANIFEST_ROW.schema)


def load(work: Path, name: str, threads: int, batches: int) -> dict[str, float]:
    import torch

    from curator.loading.loader import ManifestLoader
    from curator.noise.augment import resize

    resize(np.zeros((300, 300, 3), np.uint8), SIZE, SIZE)  # what torch loads at its first use is not the loader's
    torch.set_num_threads(1)
    before, began = peak_mb(), time.perf_counter()
    loader = ManifestLoader.open(work / "large", name, size=SIZE, batch_size=BATCH, threads=threads, cache_bytes=0)
    for number, _ in enumerate(loader):
        if number == 0:
            seconds = time.perf_counter() - began
        if number + 1 == batches:
            break
    return {"first_batch": seconds, "before": before, "peak": peak_mb()}


if __name__ == "__main__":
    what, place, named, *numbers = sys.argv[1:]
    if what == "make":
        make(Path(place), named, *map(int, numbers))
    else:
        print(json.dumps(load(Path(place), named, *map(int, numbers))))
