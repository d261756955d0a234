"""Questions about two generations of many images: what the kept tables cost, and how fast they answer.

    python benchmarks/disagreement.py [--rows 10000000] [--work DIR] [--write]

A synthetic pool in two generations, a thousand classes whose sizes fall like 1 / rank; one image in seven changes its
class, mostly to one of a few, the confidences move by a tenth. 50,000 holdout images have a trusted class. Each query
is asked 15 times over an open connection, once to warm up; commands are processes of their own, with the operating
system's figures.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).parent / "selection"))
from pool import _GROUP, _PART, CLASSES, _images, _labels

from curator import queries
from curator.generations.labels import PartWriter, publish
from curator.storage import delta
from curator.storage.store import Store

CURATOR = str(Path(sys.executable).with_name("curator"))
RESULT = Path(__file__).parent / "results" / "disagreement.md"
HOLDOUT = 50_000
Place = Callable[[pa.Table], pa.Table]
PAGES = ("totals", "classes", "flips", "images", "images of one class", "holdout", "confusion")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rows", type=int, default=10_000_000)
    options.add_argument("--work", type=Path)
    options.add_argument("--write", action="store_true")
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory(dir=chosen.work, prefix="curator-bench-") as folder:
        store = Path(folder) / "store"
        # in a process of its own, since a child's peak memory begins with its parent's
        program = "import sys, pathlib, disagreement as d; d.make(pathlib.Path(sys.argv[1]), int(sys.argv[2]))"
        here = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
        subprocess.run([sys.executable, "-c", program, str(store), str(chosen.rows)], check=True, env=here)
        first, peak, _ = command(store, "quality", "disagreement")
        size = {name: sum(f.stat().st_size for f in (store / name).glob("*.parquet")) for name in ("drift", "changes")}
        kept = Store(store).rows(
            "select (select count(*) from drift) as drift, (select count(*) from changes) as changes"
        )[0]
        lines = [
            f"# Two generations of {chosen.rows:,} images",
            "",
            f"{dt.date.today()}, {os.cpu_count()} cores, {memory_gib():.0f} GiB, Python {platform.python_version()}, "
            f"duckdb {version('duckdb')}; {CLASSES} classes. `make bench-drift`",
            "",
            f"Making the tables, as a publication or the first question does: {first:.1f} s with the answer, peak "
            f"{peak:.0f} MB. drift: {kept['drift']:,} rows, {size['drift'] / 1e6:.1f} MB; changes: "
            f"{kept['changes']:,} rows, {size['changes'] / 1e6:.1f} MB.",
            "",
            "| query over an open connection | p50 ms | slowest ms |",
            "|---|---|---|",
            *pages(store),
            "",
            "| command, from its start to its end | seconds | peak MB | answer |",
            "|---|---|---|---|",
        ]
        for asked in (
            ("quality", "disagreement", "--class", "class0003"),
            ("build-manifest", "m", "--per-class", str(chosen.rows * 433 // 1_000_000)),
            ("quality", "queue"),
            ("quality", "audit"),
            ("quality", "audit", "--class", "class0003"),
            ("quality", "domain"),
        ):
            seconds, peak, answer = command(store, *asked)
            lines.append(f"| `{' '.join(asked)}` | {seconds:.1f} | {peak:.0f} | {said(answer)} |")
    text = "\n".join([*lines, ""])
    print(text)
    if chosen.write:
        RESULT.parent.mkdir(exist_ok=True)
        RESULT.write_text(text)


def make(path: Path, rows: int, place: Place = lambda table: table) -> None:
    """A store of so many pool images and a holdout, in two generations.

    Args:
        path: Where it is made.
        rows: Images of the pool.
        place: Gives rows of the images table other places in shards.
    """
    store = Store.create(path, [f"class{i:04d}" for i in range(CLASSES)])
    parts: dict[int, list[Path]] = {0: [], 1: []}
    pictures = []
    for generation in parts:
        (store.path / "labels" / f"g{generation:03d}-outside-outside").mkdir()
    for number, start in enumerate(range(0, rows + HOLDOUT, _PART)):
        rng = np.random.default_rng([7, number])
        ids = rng.integers(0, 2**63 - 1, min(_PART, rows + HOLDOUT - start))
        held = np.arange(start, start + len(ids)) >= rows
        writers = {
            g: PartWriter(store.path / "labels" / f"g{g:03d}-outside-outside" / f"part-{number:05d}.parquet", CLASSES)
            for g in parts
        }
        truth = np.zeros(len(ids), np.int16)
        for first in range(0, len(ids), _GROUP):
            chunk = slice(first, first + _GROUP)
            before = _labels(rng, ids[chunk], wide=False)
            before = replaced(before, split=np.where(held[chunk], "holdout", "unlabeled"))
            label, confidence = before["label"].to_numpy(), before["confidence"].to_numpy()
            n = len(label)
            truth[chunk] = np.where(rng.random(n) < 0.8, label, rng.integers(CLASSES, size=n))
            moved = (confidence + rng.normal(0, 0.1, n)).clip(0.05, 1).astype(np.float32)
            # a class is taken for the next ones more often than for far ones
            other = (label + np.minimum(rng.zipf(1.5, n), CLASSES - 1)) % CLASSES
            flipped = np.where(rng.random(n) < 1 / 7, other, label).astype(np.int16)
            after = replaced(before, generation=np.ones(n, np.int16), label=flipped, confidence=moved)
            writers[0].write(before)
            writers[1].write(after)
        for generation, writer in writers.items():
            parts[generation].append(writer.finish())
        pictures.append(store.path / "images" / f"part-{number:05d}.parquet")
        split, label = np.where(held, "holdout", "unlabeled"), pa.array(truth, mask=~held)
        images = replaced(_images(ids, start), split=split, label=label)
        pq.write_table(place(images), pictures[-1], compression="zstd", row_group_size=_GROUP)
    delta.publish(store.place, store.delta("images"), pictures, "synthetic images")
    for generation, files in parts.items():
        publish(store, store.delta("labels"), files, generation)


def replaced(table: pa.Table, **columns: np.ndarray | pa.Array) -> pa.Table:
    """A table with other values in some of its columns."""
    for name, values in columns.items():
        place = table.schema.get_field_index(name)
        field = table.schema.field(name)
        table = table.set_column(place, field, pc.cast(pa.array(values), field.type))
    return table


def pages(store: Path) -> list[str]:
    """Each query of the answer, and the join that it would take without the tables."""
    con = Store(store).connect()
    values = {"generation": 1, "previous": 0, "split": "unlabeled", "label": None, "limit": 20}
    asked = {page: (queries.text(f"disagreement_{page.split()[0]}"), values) for page in PAGES}
    asked["confusion"] = (queries.compose(queries.steps("mistakes"), asked["confusion"][0]), values)
    asked["images of one class"] = (asked["images"][0], values | {"label": 3})
    flips = "select label_before, label_after, count(*) as n from pairs group by 1, 2 order by n desc limit 20"
    asked["flips, without the tables"] = (queries.compose({"pairs": queries.text("pairs")}, flips), values)
    lines = []
    for page, (query, bound) in asked.items():
        times = []
        for _ in range(16 if "without" not in page else 4):
            began = time.perf_counter()
            queries.rows(con, query, **bound)
            times.append((time.perf_counter() - began) * 1000)
        lines.append(f"| {page} | {statistics.median(times[1:]):.0f} | {max(times[1:]):.0f} |")
    con.close()
    return lines


def command(store: Path, *arguments: str) -> tuple[float, float, dict]:
    """Seconds, peak MB and answer of a command."""
    began = time.perf_counter()
    process = subprocess.Popen(
        [CURATOR, *arguments, "--store", str(store), "--json", "--quiet"], stdout=subprocess.PIPE, text=True
    )
    out = process.stdout.read() if process.stdout else ""
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{arguments} failed")
    return time.perf_counter() - began, usage.ru_maxrss / 1024, json.loads(out)


def said(answer: dict) -> str:
    """The part of an answer that shows that there was one."""
    parts = [f"{name} {answer[name]:,}" for name in ("images", "flipped", "rows") if isinstance(answer.get(name), int)]
    lists = ("classes", "open", "sources")
    parts += [f"{name} {len(answer[name])}" for name in lists if isinstance(answer.get(name), list)]
    return ", ".join(parts) or ", ".join(f"{number} {reason}" for reason, number in answer.get("reasons", {}).items())


def memory_gib() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30


if __name__ == "__main__":
    main()
