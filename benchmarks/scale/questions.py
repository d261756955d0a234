"""What the arithmetic of scale needs and no other benchmark measures: starts, parts, publication, wide soft labels.

    small pictures --curator label--> seconds of each part      torchrun, nothing left to label --> seconds of a start
    a synthetic store --the query of label, publish, browse, build-manifest--> rows/s, ms a part, bytes a row

    python benchmarks/scale/questions.py QUESTION FOLDER [ARGUMENT ...]

Each question is asked in a process of its own, whose peak memory it tells.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent / "selection"))

PICTURE = 64  # pixels
BATCH = 64
PART = 3.0  # seconds
Answer = dict[str, Any]


def ask(question: str, folder: Path, *arguments: object) -> Answer:
    """Asks a question in a process of its own."""
    command = [sys.executable, __file__, question, str(folder), *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    answer: Answer = json.loads(done.stdout.splitlines()[-1])
    print(question, *arguments, answer, file=sys.stderr)
    return answer


def parts(folder: Path, pictures: int) -> Answer:
    """Labels small pictures with parts of a few seconds, and tells what each part took; leaves the store there."""
    import cv2

    from curator.networks import network
    from curator.networks.recipes import Recipe, from_json
    from curator.pictures.images import add_images
    from curator.schema import MODELS
    from curator.storage import additions
    from curator.storage.store import Store
    from curator.teachers.labeling import label

    rng = np.random.default_rng(0)
    (folder / "pool").mkdir(parents=True)
    for number in range(pictures):
        small = rng.integers(0, 255, (8, 8, 3)).astype(np.uint8)
        cv2.imwrite(
            str(folder / "pool" / f"n{number % 1000:08}_{number:08}.png"), cv2.resize(small, (PICTURE, PICTURE))
        )
    shape = {"architecture": "resnet10t", "resolution": PICTURE}
    document = {"title": "scale", "network": shape, "schedule": {"steps": 1, "labeled_batch": 1}}
    recipe = from_json(Recipe.model_validate(document).model_dump_json())
    store = Store.create(folder / "store", [f"{i:04}" for i in range(1000)])
    weights = store.path / "models" / "m" / "weights.safetensors"
    weights.parent.mkdir(parents=True)
    digest = network.save(network.build(recipe, 1000).eval(), weights)
    row = {"model": "m", "generation": 0, "recipe": recipe.model_dump_json(), "parents": [], "weights_hash": digest}
    row |= {"weights": "models/m/weights.safetensors", "created_at": dt.datetime.now(dt.UTC)}
    additions.append(store, "models", pa.Table.from_pylist([row], MODELS.schema))
    add_images(store, str(folder / "pool"), "unlabeled")
    done = label(store, "m", batch_size=16, part_seconds=PART, engine="torch")
    written = sorted((store.path / "labels").glob("g*/part-*"), key=lambda part: part.stem.split("-")[3])
    at = [int(part.stem.split("-")[3]) / 1e9 for part in written]
    rows = [pq.read_metadata(part).num_rows for part in written]
    # When the first began is not known, and the last is cut short by the end.
    rates = [n / (after - before) for before, after, n in zip(at[:-1], at[1:], rows[1:], strict=True)][:-1]
    bytes_each = _size(store.path / "images") / pictures
    return {"rates": rates, "images_per_second": done.images_per_second, "image_row_bytes": bytes_each}


def start(folder: Path) -> Answer:
    """Seconds of `curator label` where nothing is left: in one process, and in two under torchrun."""
    label = ["-m", "curator", "label", "--model", "m", "--store", str(folder / "store"), "--engine", "torch"]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    seconds = []
    for command in (label, torchrun + label):
        began = time.perf_counter()
        subprocess.run(
            [sys.executable, *command], check=True, capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
        )
        seconds.append(time.perf_counter() - began)
    return {"alone": seconds[0], "torchrun": seconds[1]}


def make(folder: Path, rows: int, classes: int) -> Answer:
    """Makes a synthetic store, every image labeled as generation 0."""
    import pool

    pool.CLASSES, pool._PART = classes, min(pool._PART, rows // 2)
    pool.make(folder / "store", rows, True)
    return {name: _size(folder / "store" / name) / rows for name in ("labels", "images")}


def listing(folder: Path, done: int) -> Answer:
    """What each rank does when `label` starts: counts and sorts what is left, and goes through it batch by batch."""
    from curator import queries
    from curator.storage.store import Store

    store = Store(folder / "store")
    written = sorted((store.path / "labels").glob("g*/part-*"))[:done]
    began = time.perf_counter()
    with closing(store.connect()) as con:
        con.register("staged", _ids(written))
        query, values = queries.text("unlabeled_by"), {"generation": 1, "splits": ["unlabeled"]}
        total = queries.rows(con, f"select count(*) as n from ({query})", **values)[0]["n"]
        counted = time.perf_counter()
        tables = queries.batches(con, query, BATCH, **values)
        next(tables)
        first = time.perf_counter()
        seen = sum(table.num_rows for table, _ in zip(tables, range(20_000), strict=False))
        last = time.perf_counter()
    return {"left": total, "count": counted - began, "first": first - began, "rows_per_second": seen / (last - first)}


def publication(folder: Path) -> Answer:
    """What follows a commit: the labels sorted for the app."""
    from curator.generations import browse
    from curator.storage.store import Store

    store = Store(folder / "store")
    began = time.perf_counter()
    images = browse.keep(store, 0)
    seconds = time.perf_counter() - began
    size = _size(store.path / "browse") + _size(store.path / "histograms")
    return {"images": images, "seconds": seconds, "bytes": size / images}


def manifest(folder: Path, per_class: int) -> Answer:
    """A whole manifest, and the bytes of its rows with and without what a loader reads."""
    from curator.curation import building
    from curator.loading import records
    from curator.storage.store import Store

    store = Store(folder / "store")
    began = time.perf_counter()
    built = building.build(store, "m", {"per_class": per_class, "min_confidence": 0.3})
    records.lay_out(store, built, None)
    seconds = time.perf_counter() - began
    each = {name: _size(store.path / name) for name in ("manifests", "rows")}
    return {
        "seconds": seconds,
        "images": built.unique_images,
        "bytes": each["manifests"] / built.unique_images,
        "laid_out": each["rows"] / built.unique_images,
    }


def commit(folder: Path, count: int) -> Answer:
    """Many small parts: what one costs in the commit, when a run that was stopped goes on, and to open the table."""
    import pool

    from curator.generations.labels import PartWriter, publish
    from curator.storage.store import Store

    store = Store.create(folder / "store", [f"{i:04}" for i in range(1000)])
    place = store.path / "labels" / "g000-outside-outside"
    place.mkdir()
    writer = PartWriter(place / "part-00000.parquet", 1000)
    writer.write(pool._labels(np.random.default_rng(0), np.arange(1000), True))
    written = [writer.finish()]
    for number in range(1, count):
        written.append(Path(shutil.copy(written[0], place / f"part-{number:05}.parquet")))
    began = time.perf_counter()
    _ids(written)
    known = time.perf_counter()
    publish(store, store.delta("labels"), written, 0)
    committed = time.perf_counter()
    with closing(store.connect()) as con:
        con.execute("select count(*) from labels").fetchall()
    opened = time.perf_counter()
    log = sum(file.stat().st_size for file in (store.path / "labels" / "_delta_log").glob("*1.json"))
    each = {"resume_ms": known - began, "commit_ms": committed - known, "open_ms": opened - committed}
    return {name: 1e3 * seconds / count for name, seconds in each.items()} | {"log_bytes": log / count}


def wide(folder: Path, classes: int, distinct: int, rows: int) -> Answer:
    """Soft labels over many classes: softmax and summary in rows/s, bytes of a row in a part of so many."""
    from curator.generations import softlabels
    from curator.generations.labels import PartWriter
    from curator.networks.engines import probabilities
    from curator.networks.network import leave_a_core

    leave_a_core()
    rng = np.random.default_rng(0)
    logits = 3 * np.log(rng.standard_exponential((distinct, classes), np.float32) + np.float32(1e-9))
    logits[np.arange(distinct), rng.integers(0, classes, distinct)] += np.log(classes) + rng.normal(1, 2, distinct)
    began = time.perf_counter()
    probs = [probabilities(logits[at : at + BATCH]) for at in range(0, distinct, BATCH)]
    softmax = time.perf_counter()
    # As label does: as many batches at once as have so many values as 1024 of 256 classes.
    chunk = max(1, round(1024 * 256 / classes / BATCH))
    pieces = [np.concatenate(probs[at : at + chunk]) for at in range(0, len(probs), chunk)]
    joined = time.perf_counter()
    summary = softlabels.Summary(*map(np.concatenate, zip(*(softlabels.summarize(p, 20) for p in pieces), strict=True)))
    summed = time.perf_counter()
    writer = PartWriter(folder / f"{classes}.parquet", classes)
    for at in range(0, rows, distinct):
        moved = summary._replace(label=(summary.label + at) % classes, top_classes=(summary.top_classes + at) % classes)
        ids = rng.integers(0, 2**63, distinct)
        writer.write(softlabels.table(moved, ids, 0, "teacher", ["unlabeled"] * distinct))
    size = writer.finish().stat().st_size
    return {
        "softmax_rows": distinct / (softmax - began),
        "summary_rows": distinct / (summed - joined),
        "bytes": size / (len(range(0, rows, distinct)) * distinct),
        "confidence": float(np.median(summary.confidence)),
    }


def _ids(parts: list[Path]) -> pa.Table:
    """The images of written parts, which each rank has to know."""
    none = pa.schema({"image_id": pa.int64()}).empty_table()
    return pa.concat_tables([none, *(pq.read_table(part, columns=["image_id"]) for part in parts)])


def _size(folder: Path) -> int:
    """Bytes of all files of a folder, the logs of tables left out."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file() and "_delta_log" not in file.parts)


def everything(work: Path, rows: int, pictures: int, count: int) -> dict[str, Any]:
    """Asks all questions."""
    few = max(1000, rows // 10)
    return {
        "rows": rows,
        "few": few,
        "count": count,
        "parts": ask("parts", work / "small", pictures),
        "start": ask("start", work / "small"),
        "commit": ask("commit", work / "many", count),
        "wide_1000": ask("wide", work, 1000, 20_000 if rows > 100_000 else 500, 60_000 if rows > 100_000 else 1000),
        "wide_21000": ask("wide", work, 21_000, 4_000 if rows > 100_000 else 100, 60_000 if rows > 100_000 else 1000),
        "made": ask("make", work / "large", rows, 1000),
        "listing": ask("listing", work / "large", 0),
        "listing_going_on": ask("listing", work / "large", 1),
        "publication": ask("publication", work / "large"),
        "made_few": ask("make", work / "few", few, 1000),
        "listing_few": ask("listing", work / "few", 0),
        "manifest_1000": ask("manifest", work / "few", 1 + few // 2310),
        "made_21000": ask("make", work / "classes", few, 21_000),
        "manifest_21000": ask("manifest", work / "classes", 1 + few // 48_500),
    }


if __name__ == "__main__":
    QUESTIONS: dict[str, Callable[..., Answer]] = {
        each.__name__: each for each in (parts, start, make, listing, publication, manifest, commit, wide)
    }
    place = Path(sys.argv[2])
    place.mkdir(parents=True, exist_ok=True)
    found = QUESTIONS[sys.argv[1]](place, *map(int, sys.argv[3:]))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps(found | {"peak_mb": peak}))
