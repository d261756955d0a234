"""Import of full soft labels and build-manifest at a million images and a thousand classes: time and peak memory.

    python benchmarks/manifest.py [--rows 1000000] [--classes 1000] [--work DIR] [--write]

Probabilities are softmax outputs of Zipf-distributed classes with beta-distributed confidence. Each command runs as a
process of its own; time and peak memory are the operating system's figures for that process. --write keeps the table in
benchmarks/results/manifest.md.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

CURATOR = str(Path(sys.executable).with_name("curator"))
RESULT = Path(__file__).parent / "results" / "manifest.md"
BATCH = 10_000


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rows", type=int, default=1_000_000)
    options.add_argument("--classes", type=int, default=1000)
    options.add_argument("--per-class", type=int, default=433)
    options.add_argument("--work", type=Path)
    options.add_argument("--write", action="store_true")
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory(dir=chosen.work, prefix="curator-bench-") as folder:
        work = Path(folder)
        make(work, chosen.rows, chosen.classes)
        size = (work / "probs.parquet").stat().st_size
        lines = [run(work, chosen.rows, "init", "--classes", "classes.txt")]
        lines += [run(work, chosen.rows, "add-images", "list.parquet", "--split", "unlabeled", "--no-scan")]
        lines += [run(work, chosen.rows, "import-labels", "probs.parquet", "--generation", "0", "--model", "outside")]
        labels = sum(f.stat().st_size for f in (work / "store" / "labels").rglob("*.parquet"))
        build = ("build-manifest", "--per-class", str(chosen.per_class))
        lines += [run(work, chosen.rows, *build, "a"), run(work, chosen.rows, *build, "b", "--where", "margin > 0.2")]
    text = "\n".join(
        [
            f"# Soft labels in, manifest out: {chosen.rows} images x {chosen.classes} classes",
            "",
            f"{dt.date.today()}, {os.cpu_count()} cores, {memory_gib():.0f} GiB, Python {platform.python_version()}; "
            f"full float32, {size / 1e9:.2f} GB; stored soft labels {labels / chosen.rows:.1f} bytes an image.",
            "`make bench-manifest`",
            "",
            "| command | seconds | rows/s | peak MB | answer |",
            "|---|---|---|---|---|",
            *lines[1:],
            "",
        ]
    )
    print(text)
    if chosen.write:
        RESULT.parent.mkdir(exist_ok=True)
        RESULT.write_text(text)


def make(work: Path, rows: int, classes: int) -> None:
    """Writes classes.txt, list.parquet and probs.parquet."""
    rng = np.random.default_rng(0)
    share = np.arange(1, classes + 1) ** -0.7
    (work / "classes.txt").write_text("".join(f"class{i:04d}\n" for i in range(classes)))
    uris = np.array([f"pool/{i:08d}.jpg" for i in range(rows)])
    pq.write_table(pa.table({"uri": uris}), work / "list.parquet")
    schema = pa.schema({"uri": pa.string(), "probs": pa.list_(pa.float32(), classes)})
    with pq.ParquetWriter(work / "probs.parquet", schema, compression="zstd", compression_level=1) as writer:
        for start in range(0, rows, BATCH):
            n = min(BATCH, rows - start)
            rest = rng.standard_exponential((n, classes), np.float32) ** 3
            top = rng.choice(classes, n, p=share / share.sum())
            confidence = np.round(rng.beta(2, 1.3, n) * 0.92 + 0.07, 3).astype(np.float32)
            rest[np.arange(n), top] = 0
            probs = rest * ((1 - confidence) / rest.sum(axis=1))[:, None]
            probs[np.arange(n), top] = confidence
            values = pa.FixedSizeListArray.from_arrays(pa.array(probs.ravel()), classes)
            writer.write_batch(pa.record_batch([pa.array(uris[start : start + n]), values], schema=schema))


def run(work: Path, rows: int, *arguments: str) -> str:
    """Runs a command and returns its row of the table."""
    began = time.perf_counter()
    process = subprocess.Popen(
        [CURATOR, *arguments, "--json"], cwd=work, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    out = process.stdout.read() if process.stdout else ""
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - began
    if status:
        sys.exit(f"{arguments}: {process.stderr.read() if process.stderr else ''}")
    answer = json.loads(out)
    shown = {k: v for k, v in answer.items() if k in ("added", "images", "rows", "unique_images", "classes")}
    shown |= {"short": len(answer["short_classes"])} if "short_classes" in answer else {}
    command = " ".join(a for a in arguments if not a.startswith("class"))
    text = ", ".join(f"{k} {v}" for k, v in shown.items())
    return f"| `{command}` | {seconds:.1f} | {rows / seconds:.0f} | {usage.ru_maxrss / 1024:.0f} | {text} |"


def memory_gib() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30


if __name__ == "__main__":
    main()
