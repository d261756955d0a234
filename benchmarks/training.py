"""What training adds to the bare network: images a second of `train` against the same steps on a batch in memory.

    pictures -> store --curator.runs.training.train--> images a second, share of the time spent waiting
    recipe -> network, optimiser, average --the same steps on one batch that is there already--> images a second

    python benchmarks/training.py [--seconds 20] [--runs 3] [--work DIR] [--write]

The bare loop takes forward, loss, backward, optimiser and average, with as many torch threads as `train` has: a core is
left to the threads that decode. --write keeps the table in benchmarks/results/training.md.
"""

from __future__ import annotations

import argparse
import datetime as dt
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import torch
from manifest import memory_gib

from curator.loading.batches import Batch
from curator.loading.rows import Rows
from curator.networks import network, recipes
from curator.pictures.images import add_images
from curator.ranks import Ranks
from curator.runs import optimization, phases
from curator.runs.steps import Steps
from curator.runs.training import train
from curator.storage.store import Store

RESULT = Path(__file__).parent / "results" / "training.md"
CLASSES = 10
# Name, recipe, changes, side of the pictures, how many.
CASES = (
    (
        "test_resnet, 32 px, PNGs kept decoded",
        "tiny-student",
        ["schedule.labeled_batch=128", "schedule.warmup_steps=0"],
        32,
        4000,
    ),
    (
        "the same, bfloat16",
        "tiny-student",
        ["schedule.labeled_batch=128", "schedule.warmup_steps=0", "compute.precision=bfloat16"],
        32,
        4000,
    ),
    (
        "efficientnet_lite0, 224 px, JPEGs",
        "efficientnet-lite0-student",
        ["schedule.labeled_batch=16", "schedule.warmup_epochs=0", "compute.precision=float32"],
        400,
        400,
    ),
)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--seconds", type=float, default=20)
    options.add_argument("--runs", type=int, default=3)
    options.add_argument("--work", type=Path)
    options.add_argument("--write", action="store_true")
    chosen = options.parse_args()
    network.leave_a_core()
    with tempfile.TemporaryDirectory(dir=chosen.work, prefix="curator-bench-") as folder:
        lines = []
        for number, case in enumerate(CASES):
            store = make(Path(folder) / str(number), case[3], case[4])
            lines.append(row(store, case[0], case[1], case[2], chosen.seconds, chosen.runs))
    text = "\n".join(
        [
            "# Training",
            "",
            f"{dt.date.today()}, {os.cpu_count()} cores, {memory_gib():.0f} GiB, Python {platform.python_version()}, "
            f"torch {torch.__version__}. Median of {chosen.runs} runs of about {chosen.seconds:.0f} s, in turn. "
            "`make bench-training`",
            "",
            "| network | bare loop, images/s (each run) | train, images/s (each run) | share | waiting for images |",
            "|---|---|---|---|---|",
            *lines,
            "",
        ]
    )
    print(text)
    if chosen.write:
        RESULT.write_text(text, "utf-8")


def make(root: Path, side: int, count: int) -> Store:
    """A store of noisy pictures of as many classes."""
    rng = np.random.default_rng(0)
    for i in range(count):
        coarse = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        picture = cv2.resize(coarse, (side, side), interpolation=cv2.INTER_CUBIC)
        path = root / "labeled" / f"c{i % CLASSES}" / f"{i}.{'png' if side < 100 else 'jpg'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), picture)
    store = Store.create(root / "store")
    add_images(store, str(root / "labeled"), "labeled")
    return store


def row(store: Store, title: str, recipe: str, changes: list[str], seconds: float, runs: int) -> str:
    found: list[tuple[float, float, float]] = []
    steps = 20
    for number in range(runs + 1):  # the first one says how many steps fill the time
        bare = bare_loop(store, recipe, [*changes, f"schedule.steps={steps}"], steps)
        done = train(store, recipe, name=f"r{number}", changes=[*changes, f"schedule.steps={steps}"])
        if number == 0:
            batch = recipes.load(recipe, changes)[1].schedule.labeled_batch
            steps = max(20, round(seconds * bare / batch))
            continue
        found.append((bare, done.images_per_second, done.input_bound))
    bares, trains, waits = zip(*found, strict=True)
    share = statistics.median(t / b for b, t, _ in found)
    listed = [f"{statistics.median(v):,.0f} ({', '.join(f'{x:,.0f}' for x in v)})" for v in (bares, trains)]
    return f"| {title} | {listed[0]} | {listed[1]} | {share:.0%} | {statistics.median(waits):.0%} |"


def bare_loop(store: Store, recipe: str, changes: list[str], steps: int) -> float:
    """Images a second of the same steps on one batch in memory."""
    plan = recipes.load(recipe, changes)[1]
    phase = phases.of(plan, Rows.labeled(store), None)[0]
    net = network.build(plan, CLASSES)
    ranks = Ranks(0, 1, torch.device("cpu"))
    precision = optimization.precision(plan, net, ranks.device, plan.schedule.labeled_batch)
    moving = optimization.Optimization(net, plan, phase, precision, ranks.device)
    taken = Steps(net, moving, plan, ranks)
    rows, side = plan.schedule.labeled_batch, plan.network.resolution
    images = torch.randint(0, 256, (rows, side, side, 3), dtype=torch.uint8)
    targets = torch.nn.functional.one_hot(torch.arange(rows) % CLASSES, CLASSES).float()
    batch = Batch(0, images, targets, torch.ones(rows), rows, np.arange(rows))
    moving.train()
    for step in range(2):
        taken.take(batch._replace(step=step))
    began = time.perf_counter()
    for step in range(2, steps):
        taken.take(batch._replace(step=step))
    return rows * (steps - 2) / (time.perf_counter() - began)


if __name__ == "__main__":
    main()
