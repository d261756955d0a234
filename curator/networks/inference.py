"""A network's probabilities for stored images: clean centre crop, threads that decode ahead of the engine.

    rows --threads: read, decode, crop--> uint8 [B, H, W, 3] --engine, in threads--> logits --softmax--> Predictions

Batches come out in the order in which they went in.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from functools import partial
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from curator.errors import CuratorError
from curator.networks.engines import Engine, Torch, cores, keep_memory, probabilities
from curator.networks.network import Network, leave_a_core
from curator.networks.recipes import Recipe
from curator.noise.augment import center_crop, single_threaded
from curator.pictures.decode import UnreadableImage, decode
from curator.pictures.reading import Asked, Reader, place_of
from curator.storage.roots import Root

_T = TypeVar("_T")
_R = TypeVar("_R")


class Predictions(NamedTuple):
    """One batch: probs float32 [N, C] of the rows `good` [N] of `rows`; `failed` are the others, by row."""

    rows: pa.Table
    good: npt.NDArray[np.int64]
    probs: npt.NDArray[np.float32]
    failed: dict[int, str]


class Pictures(NamedTuple):
    """The pictures of one batch: pixels uint8 [N, size, size, 3] of the rows `good` [N]; `failed` are the others."""

    rows: pa.Table
    good: npt.NDArray[np.int64]
    pixels: npt.NDArray[np.uint8]
    failed: dict[int, str]


def predict(
    network: Network,
    recipe: Recipe,
    root: Root,
    tables: Iterable[pa.Table],
    threads: int | None = None,
    engine: Engine | None = None,
) -> Generator[Predictions]:
    """Probabilities of images.

    Args:
        network: In eval mode.
        recipe: Its recipe, for test resolution and crop.
        root: Folder that relative uris start from.
        tables: Batches of rows with uri, shard, byte_offset, byte_length.
        threads: Threads that read and decode; one a core by default.
        engine: What computes; the network itself by default.

    Yields:
        One answer for each batch, in order. An image that cannot be read is named, not replaced.

    Raises:
        CuratorError: The network's answer is not a number.
    """
    keep_memory()
    engine = engine or Torch(network)
    with (
        closing(decoded(recipe, root, tables, threads)) as batches,
        ThreadPoolExecutor(engine.at_once, "engine", leave_a_core) as pool,
    ):
        yield from _in_order(pool, partial(_answer, engine), batches, engine.at_once)


def decoded(recipe: Recipe, root: Root, tables: Iterable[pa.Table], threads: int | None = None) -> Generator[Pictures]:
    """The pictures of batches, in order, read and decoded by threads that are a few batches ahead."""
    threads = threads or cores()
    with ThreadPoolExecutor(threads, "decode", single_threaded) as pool, Reader(root) as reader:
        asked = ((table, _ask(reader, table)) for table in tables)
        yield from _in_order(pool, partial(_decoded, recipe), asked, threads)


def _in_order(pool: ThreadPoolExecutor, work: Callable[[_T], _R], given: Iterable[_T], ahead: int) -> Generator[_R]:
    """What a pool's threads make of each thing given, in its order; they are at most `ahead` things ahead."""
    waiting: deque[Future[_R]] = deque()
    try:
        for each in given:
            waiting.append(pool.submit(work, each))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


def pictures(root: Root, table: pa.Table, recipe: Recipe) -> Pictures:
    """Reads the pictures of one batch as the recipe's network is to see them in a test."""
    with Reader(root) as reader:
        return _decoded(recipe, (table, _ask(reader, table)))


def _ask(reader: Reader, table: pa.Table) -> Asked:
    return reader.ask(map(place_of, table.select(["uri", "shard", "byte_offset", "byte_length"]).to_pylist()))


def _decoded(recipe: Recipe, batch: tuple[pa.Table, Asked]) -> Pictures:
    table, asked = batch
    size = recipe.network.test_resolution
    pixels = np.empty((table.num_rows, size, size, 3), np.uint8)
    failed: dict[int, str] = {}
    for i in range(table.num_rows):
        try:
            center_crop(decode(asked.take(i)), size, recipe.test_crop, pixels[i])
        except UnreadableImage as error:
            failed[i] = str(error)
    good = np.setdiff1d(np.arange(table.num_rows), np.fromiter(failed, np.int64, len(failed)))
    return Pictures(table, good, pixels[good] if failed else pixels, failed)


def _answer(engine: Engine, seen: Pictures) -> Predictions:
    if not len(seen.good):
        return Predictions(seen.rows, seen.good, np.empty((0, 0), np.float32), seen.failed)
    probs = probabilities(engine(seen.pixels))
    bad = seen.good[~np.isfinite(probs).all(axis=1)]
    if len(bad):
        raise CuratorError(
            f"the network gives NaN for {len(bad)} of {len(seen.good)} images, e.g. {seen.rows['uri'][int(bad[0])]}",
            "its training went wrong: train again with a lower optimizer.learning_rate",
        )
    return Predictions(seen.rows, seen.good, probs, seen.failed)
