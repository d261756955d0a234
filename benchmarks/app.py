"""The app on a store of many images, in a browser: how long pages, gallery steps and review keys take.

    python benchmarks/app.py [--rows 10000000] [--work DIR] [--keep] [--write]

The store is that of benchmarks/disagreement.py, two generations of synthetic labels, with pictures: each image is one of
1,000 JPEGs in a tar. A manifest is built, the tables that publications make are made. Then headless Chromium opens each
page, steps through the gallery and presses keys in the review. --keep leaves the store in DIR/app for another run.
"""

from __future__ import annotations

import argparse
import datetime as dt
import io
import os
import platform
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
from disagreement import command, make, memory_gib, replaced

RESULT = Path(__file__).parent / "results" / "app.md"
PICTURES = 1000


def build(folder: Path, rows: int) -> Path:
    """The store, with pictures, a manifest and the tables that questions need."""
    folder.mkdir(parents=True, exist_ok=True)
    store = folder / "store"
    places = write_pictures(folder / "pictures.tar")
    rng = np.random.default_rng(0)

    def place(images: pa.Table) -> pa.Table:
        chosen = rng.integers(PICTURES, size=images.num_rows)
        uris = np.char.add("pictures.tar::", images["uri"].to_numpy().astype("U"))
        return replaced(
            images,
            uri=uris,
            shard=np.full(images.num_rows, "pictures.tar"),
            byte_offset=places[chosen, 0],
            byte_length=places[chosen, 1],
        )

    make(store, rows, place)
    command(store, "quality", "disagreement")
    command(store, "build-manifest", "m", "--per-class", str(max(1, rows * 433 // 1_000_000)), "--generation", "1")
    return store


def write_pictures(shard: Path) -> np.ndarray:
    """Writes JPEGs of 480 x 360 into a tar; offset and length [N, 2] of each."""
    rng = np.random.default_rng(0)
    with tarfile.open(shard, "w") as tar:
        for number in range(PICTURES):
            coarse = rng.integers(0, 255, (9, 12, 3)).astype(np.uint8)
            pixels = cv2.resize(coarse, (480, 360), interpolation=cv2.INTER_CUBIC)
            noisy = np.clip(pixels + rng.normal(0, 8, pixels.shape), 0, 255).astype(np.uint8)
            cv2.putText(noisy, str(number), (150, 210), cv2.FONT_HERSHEY_SIMPLEX, 3, (255, 255, 255), 6)
            data = cv2.imencode(".jpg", noisy, [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes()
            entry = tarfile.TarInfo(f"{number:04}.jpg")
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    with tarfile.open(shard) as tar:
        return np.array([(entry.offset_data, entry.size) for entry in tar])
