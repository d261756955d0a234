"""A network's probabilities for stored images: clean centre crop, eval mode, threads that decode ahead."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from curator.augment import center_crop, single_threaded
from curator.decode import UnreadableImage, decode
from curator.errors import CuratorError
from curator.images import read_bytes
from curator.network import Network, leave_a_core
from curator.recipes import Recipe


class Predictions(NamedTuple):
    """One batch: probs float32 [N, C] of the rows `good` [N] of `rows`; `failed` are the others, by row."""

    rows: pa.Table
    good: npt.NDArray[np.int64]
    probs: npt.NDArray[np.float32]
    failed: dict[int, str]


def predict(
    network: Network, recipe: Recipe, root: Path, tables: Iterable[pa.Table], threads: int | None = None
) -> Iterator[Predictions]:
    """Probabilities of images.

    Args:
        network: In eval mode.
        recipe: Its recipe, for resolution and crop.
        root: Folder that relative uris start from.
        tables: Batches of rows with uri, shard, byte_offset, byte_length.
        threads: Threads that read and decode.

    Yields:
        One answer for each batch, in order. An image that cannot be read is named, not replaced.

    Raises:
        CuratorError: The network's answer is not a number.
    """
    leave_a_core()
    threads = threads or os.cpu_count() or 1
    size = recipe.network.resolution
    waiting: deque[Future[tuple[pa.Table, npt.NDArray[np.uint8], dict[int, str]]]] = deque()
    with ThreadPoolExecutor(threads, "decode", single_threaded) as pool:
        batches = iter(tables)
        try:
            for table in batches:
                waiting.append(pool.submit(_pixels, root, table, size, recipe.network.test_crop))
                if len(waiting) > threads:
                    yield _forward(network, *waiting.popleft().result())
            while waiting:
                yield _forward(network, *waiting.popleft().result())
        finally:
            for future in waiting:
                future.cancel()


def _pixels(
    root: Path, table: pa.Table, size: int, crop: float
) -> tuple[pa.Table, npt.NDArray[np.uint8], dict[int, str]]:
    out = np.empty((table.num_rows, size, size, 3), np.uint8)
    failed: dict[int, str] = {}
    places: list[dict[str, Any]] = table.select(["uri", "shard", "byte_offset", "byte_length"]).to_pylist()
    for i, place in enumerate(places):
        try:
            center_crop(decode(read_bytes(root, **place)), size, crop, out[i])
        except UnreadableImage as error:
            failed[i] = str(error)
    return table, out, failed


def _forward(network: Network, table: pa.Table, pixels: npt.NDArray[np.uint8], failed: dict[int, str]) -> Predictions:
    good = np.setdiff1d(np.arange(table.num_rows), np.fromiter(failed, np.int64, len(failed)))
    if not len(good):
        return Predictions(table, good, np.empty((0, 0), np.float32), failed)
    with torch.inference_mode():
        # float64 softmax: the stored sum must be 1 within 1e-3 at any number of classes
        logits = network(torch.from_numpy(pixels[good]))
        probs = torch.softmax(logits.double(), dim=1).float().numpy()
    bad = good[~np.isfinite(probs).all(axis=1)]
    if len(bad):
        raise CuratorError(
            f"the network gives NaN for {len(bad)} of {len(good)} images, e.g. {table['uri'][int(bad[0])]}",
            "its training went wrong: train again with a lower optimizer.learning_rate",
        )
    return Predictions(table, good, probs, failed)
