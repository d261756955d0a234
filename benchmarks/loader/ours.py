"""Our loader over the same files, and the floor below it: decoding and resizing alone.

    work/files/KIND/cNN/* --curator init, add-images, import-labels, build-manifest, pack--> work/KIND (a store)
    method(work, randaugment, threads) -> batch, batch, ...

The manifest has every picture many times over, as copies, so that no pass ends while the clock runs. Decoded pictures
are kept in memory only where they are small: of two thousand large ones a part would fit, of a real set nearly none.
"""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import simplejpeg
import torch

from curator.loading.loader import CACHE_BYTES, ManifestLoader
from curator.noise.augment import DRAWS, Augmentation, crop_box, resize, single_threaded
from curator.pictures import decode

BATCH, SMALL_BATCH = 64, 256
SIZE = 224
QUOTA = 100_000  # rows of a class in a pass
PACK = ("--size", "256", "--quality", "90")
CURATOR = str(Path(sys.executable).with_name("curator"))


def loader(work: Path, kind: str, how: Augmentation, threads: int, pack: str | None, **options: int) -> Iterator[Any]:
    options = {"batch_size": BATCH, "cache_bytes": 0, "threads": threads} | options
    made = ManifestLoader.open(work / kind, "m", size=how.size, augmentation=how, pack=pack, **options)
    return (batch.images for batch in made)


def ours(work: Path, randaugment: bool, threads: int) -> Iterator[Any]:
    """The files as they are."""
    assert decode._jpeg is not None, "curator._jpeg was not built"
    return loader(work, "jpeg", _noise(SIZE, randaugment), threads, None)


def ours_wheels(work: Path, randaugment: bool, threads: int) -> Iterator[Any]:
    """Where curator._jpeg was not built."""
    decode._jpeg = None
    return loader(work, "jpeg", _noise(SIZE, randaugment), threads, None)


def ours_packed(work: Path, randaugment: bool, threads: int) -> Iterator[Any]:
    """The pack that curator pack made."""
    return loader(work, "jpeg", _noise(SIZE, randaugment), threads, "auto")


def small(size: int, augmented: bool) -> Callable[[Path, bool, int], Iterator[Any]]:
    """Small pictures, kept decoded: as they are, or with crop, flip and RandAugment."""

    def method(work: Path, randaugment: bool, threads: int) -> Iterator[Any]:
        plain = Augmentation(size, scale=(1, 1), ratio=(1, 1), flip=0)
        how = _noise(size, True) if augmented else plain
        return loader(work, f"png{size}", how, threads, None, batch_size=SMALL_BATCH, cache_bytes=CACHE_BYTES)

    return method


def floor(work: Path, randaugment: bool, threads: int) -> Iterator[torch.Tensor]:
    """Decoding of the crop and antialiased resize, of bytes in memory and boxes drawn before, nothing else."""
    assert decode._jpeg is not None, "curator._jpeg was not built"
    return _tight(work, threads, lambda data, box: decode.decode_crop(data, lambda width, height: box))


def floor_wheels(work: Path, randaugment: bool, threads: int) -> Iterator[torch.Tensor]:
    """The same with simplejpeg, which decodes whole pictures."""

    def cut(data: bytes, box: tuple[int, int, int, int]) -> np.ndarray:
        left, top, width, height = box
        return simplejpeg.decode_jpeg(data)[top : top + height, left : left + width]

    return _tight(work, threads, cut)


METHODS = {method.__name__: method for method in (ours, ours_wheels, ours_packed, floor, floor_wheels)}
METHODS |= {
    f"small_{size}_{name}": small(size, name == "augmented") for size in (28, 32, 64) for name in ("plain", "augmented")
}


def _noise(size: int, randaugment: bool) -> Augmentation:
    return Augmentation(size, randaugment_ops=2, magnitude=9) if randaugment else Augmentation(size)


def _tight(work: Path, threads: int, cut: Callable[[bytes, Any], np.ndarray]) -> Iterator[torch.Tensor]:
    files = sorted((work / "files" / "jpeg").rglob("*.jpg"))
    rng = np.random.default_rng(0)
    rng.shuffle(files)
    how, pictures = Augmentation(SIZE), [file.read_bytes() for file in files]
    shapes = [simplejpeg.decode_jpeg_header(data)[:2] for data in pictures]
    boxes = [[crop_box(w, h, how, list(rng.random(DRAWS))) for h, w in shapes] for _ in range(4)]
    done: queue.Queue[torch.Tensor] = queue.Queue(threads + 1)

    def run(thread: int) -> None:
        single_threaded()
        at = thread * len(pictures) // threads
        while True:
            batch = np.empty((BATCH, SIZE, SIZE, 3), np.uint8)
            for out in batch:
                number = at % len(pictures)
                out[:] = resize(cut(pictures[number], boxes[at // len(pictures) % 4][number]), SIZE, SIZE)
                at += 1
            done.put(torch.from_numpy(batch))

    for thread in range(threads):
        threading.Thread(target=run, args=(thread,), daemon=True).start()
    while True:
        yield done.get()


def prepare(work: Path, kind: str) -> None:
    """Makes a store of the pictures of one kind, and its manifest."""
    classes = sorted(folder.name for folder in (work / "files" / kind).iterdir())
    (work / "classes.txt").write_text("".join(f"{name}\n" for name in classes))
    files = sorted((work / "files" / kind).rglob("*.*"))
    rng = np.random.default_rng(0)
    probs = rng.exponential(size=(len(files), len(classes))).astype(np.float32) ** 3
    probs[np.arange(len(files)), [classes.index(file.parent.name) for file in files]] += probs.sum(axis=1)
    probs /= probs.sum(axis=1, keepdims=True)
    uris = [str(file.relative_to(work)) for file in files]
    pq.write_table(pa.table({"uri": uris, "probs": list(probs)}), work / "probs.parquet")
    run = [CURATOR, "--store", kind, "--json", "--quiet"]
    for command in (
        ("init", "--classes", "classes.txt"),
        ("add-images", f"files/{kind}", "--split", "unlabeled"),
        ("import-labels", "probs.parquet", "--generation", "0", "--model", "random"),
        ("build-manifest", "m", "--per-class", str(QUOTA)),
        *([("pack", "m", *PACK)] if kind == "jpeg" else []),
    ):
        done = subprocess.run([run[0], *command, *run[1:]], cwd=work, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"curator {' '.join(command)}: {done.stderr}")
        if command[0] == "build-manifest" and json.loads(done.stdout)["unique_images"] != len(files):
            sys.exit(f"the manifest has not all of the {len(files)} pictures: {done.stdout}")


if __name__ == "__main__":
    for each in sys.argv[2:]:
        prepare(Path(sys.argv[1]), each)
