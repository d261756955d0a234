"""The loader: labeled and pseudo-labeled images of a step in one batch, decoded and augmented by threads.

    step -> positions of each stream -> rows (keyed shuffle over copies) -> decode -> augment -> one uint8 batch

Which images a step holds, and how each is augmented, is a function of (seed, rows, step) alone. A run that stops after
any step goes on with the same batches, whatever the number of threads.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from curator import draws, manifests, queries, softlabels
from curator.augment import DRAWS, OPERATIONS, Augmentation, augment, single_threaded
from curator.decode import UnreadableImage, decode
from curator.errors import CuratorError, InputError, some
from curator.images import read_bytes
from curator.recipes import Recipe
from curator.store import Store

_PLACE = ("uri", "shard", "byte_offset", "byte_length")
_SOFT = ("top_classes", "top_probs", "tail")


@dataclass(frozen=True)
class Rows:
    """Training rows in memory: where each image is, its target, and how often it counts.

    Attributes:
        name: What the rows are, part of the key of their order.
        image_id: [N] int64.
        places: N rows of uri, shard, byte_offset, byte_length.
        targets: [N, K] class indexes, [N, K] probabilities and [N] tails, see `softlabels.expand`.
        upto: [N] running total of copies, so that upto[-1] is the length of one pass.
        weight: [N] what a row weighs in the loss.
        unscanned: Labeled rows without a content hash, which cannot be compared with the holdout.
    """

    name: str
    image_id: npt.NDArray[np.int64]
    places: pa.Table
    targets: tuple[npt.NDArray[np.int16], npt.NDArray[np.float32], npt.NDArray[np.float32]]
    upto: npt.NDArray[np.int64]
    weight: npt.NDArray[np.float32]
    unscanned: int = 0

    @classmethod
    def labeled(cls, store: Store) -> Rows:
        """The labeled split, one copy each, one-hot targets."""
        con = store.connect()
        try:
            steps = {"holdout_twins": queries.text("holdout_twins")}
            table = con.sql(queries.compose(steps, queries.text("labeled_rows"))).to_arrow_table()
        finally:
            con.close()
        if not table.num_rows:
            raise InputError("there are no labeled images to train on", "curator add-images FOLDER --split labeled")
        n = table.num_rows
        label = table["label"].to_numpy().astype(np.int16)[:, None]
        targets = (label, np.ones((n, 1), np.float32), np.zeros(n, np.float32))
        unscanned = pc.sum(pc.equal(table["status"], "unscanned")).as_py()
        ids, places = table["image_id"].to_numpy(), table.select(_PLACE)
        return cls("labeled", ids, places, targets, np.arange(1, n + 1), np.ones(n, np.float32), unscanned)

    @classmethod
    def manifest(cls, store: Store, name: str) -> Rows:
        """The rows of a manifest, its soft labels as they stand (temperature is applied when targets are made).

        Raises:
            InputError: Its files are gone or damaged, or an image of it is in the holdout by now.
        """
        found = manifests.find(store, name)
        try:
            table = pq.read_table(found.path, columns=["image_id", "copies", "weight", *_PLACE, *_SOFT])
        except (OSError, pa.ArrowException) as error:
            raise InputError(
                f"the files of the manifest '{name}' cannot be read ({str(error).splitlines()[0]})",
                f"remove {found.path}, and curator build-manifest {name} --as-of {name}",
            ) from None
        twins = pa.array([row["image_id"] for row in store.rows(queries.text("holdout_twins"))], pa.int64())
        leaks = table["uri"].filter(pc.is_in(table["image_id"], twins)).to_pylist()
        if leaks:
            raise InputError(
                f"{len(leaks)} images of the manifest '{name}' have the same bytes as images that were added to the "
                f"holdout since: {some(leaks)}",
                "build it again under another name; images of the holdout are left out",
            )
        k = pc.max(pc.list_value_length(table["top_classes"])).as_py()
        classes, probs = np.full((len(table), k), -1, np.int16), np.zeros((len(table), k), np.float32)
        first = 0
        for batch in table.select(_SOFT).to_batches():  # the lists of all rows together may pass Arrow's 2^31 items
            part = slice(first, first := first + len(batch))
            there = np.arange(k)[None, :] < np.asarray(pc.list_value_length(batch["top_classes"]))[:, None]
            classes[part][there] = batch["top_classes"].flatten().to_numpy()
            probs[part][there] = batch["top_probs"].flatten().to_numpy()
        return cls(
            f"manifest {found.sha256}",
            table["image_id"].to_numpy(),
            table.select(_PLACE),
            (classes, probs, table["tail"].to_numpy()),
            np.cumsum(table["copies"].to_numpy(), dtype=np.int64),
            table["weight"].to_numpy(),
        )

    def __len__(self) -> int:
        return len(self.image_id)

    def at(self, positions: npt.NDArray[np.int64], seed: int) -> npt.NDArray[np.int64]:
        """Row numbers [N] of positions [N] in the endless sequence of passes, each pass shuffled anew."""
        length = int(self.upto[-1])
        shuffled = np.empty(len(positions), np.int64)
        passes = positions // length
        for number in np.unique(passes):
            inside = passes == number
            key = draws.key(seed, "order", self.name, int(number))
            shuffled[inside] = draws.shuffle(key, positions[inside] % length, length)
        return np.searchsorted(self.upto, shuffled, side="right")


class Batch(NamedTuple):
    """One step's images; the tensors are overwritten when the next batch is asked for.

    images: uint8 [B, size, size, 3]; targets: float32 [B, C]; weight: float32 [B], 0 where an image could not be read;
    labeled: how many rows at the front are from the labeled stream; image_ids: int64 [B].
    """

    step: int
    images: torch.Tensor
    targets: torch.Tensor
    weight: torch.Tensor
    labeled: int
    image_ids: npt.NDArray[np.int64]


@dataclass
class Statistics:
    """Seconds that the threads spent in each stage, and that the consumer waited."""

    read: float = 0.0
    decode: float = 0.0
    augment: float = 0.0
    wait: float = 0.0
    images: int = 0
    failures: dict[int, str] = field(default_factory=dict)  # image_id to reason


class ManifestLoader:
    """Batches for the steps of a run.

    Args:
        root: Folder that relative uris start from.
        streams: Rows with the number of rows that each step takes from them; the labeled stream comes first.
        augmentation: Size and noise.
        classes: C.
        seed: Seed of order and augmentation.
        temperature: Of the soft labels.
        threads: Threads that decode and augment.
        cache_bytes: Decoded images are kept in memory up to this many bytes.
        max_failures: Share of the rows that may be unreadable before the run stops.
    """

    def __init__(
        self,
        root: Path,
        streams: list[tuple[Rows, int]],
        augmentation: Augmentation,
        classes: int,
        *,
        seed: int = 0,
        temperature: float = 1.0,
        threads: int | None = None,
        cache_bytes: int = 512 * 2**20,
        max_failures: float = 0.001,
    ) -> None:
        self.root = root
        self.streams = [(rows, count) for rows, count in streams if count]
        self.augmentation = augmentation
        self.classes = classes
        self.seed = seed
        self.temperature = temperature
        self.threads = threads or os.cpu_count() or 1
        self.statistics = Statistics()
        self._failure_budget = max(1, int(max_failures * sum(len(rows) for rows, _ in self.streams)))
        self._cache: dict[tuple[int, int], npt.NDArray[np.uint8]] = {}
        self._cache_left = cache_bytes
        self._lock = Lock()

    @property
    def batch_size(self) -> int:
        """Images of a step."""
        return sum(count for _, count in self.streams)

    def batches(self, start: int, stop: int) -> Generator[Batch]:
        """The batches of steps start to stop - 1, in order.

        Raises:
            CuratorError: More images than the budget could not be read.
        """
        ahead = self.threads + 1
        buffers = deque(self._buffer() for _ in range(ahead + 1))
        waiting: deque[tuple[Future[Batch], torch.Tensor]] = deque()
        pool = ThreadPoolExecutor(self.threads, "loader", single_threaded)
        try:
            for step in range(start, min(start + ahead, stop)):
                waiting.append(self._submit(pool, step, buffers.popleft()))
            for step in range(start, stop):
                future, images = waiting.popleft()
                began = time.perf_counter()
                batch = future.result()
                self.statistics.wait += time.perf_counter() - began
                self._check_failures()
                yield batch
                buffers.append(images)
                if step + ahead < stop:
                    waiting.append(self._submit(pool, step + ahead, buffers.popleft()))
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _buffer(self) -> torch.Tensor:
        size = self.augmentation.size
        return torch.empty((self.batch_size, size, size, 3), dtype=torch.uint8)

    def _submit(self, pool: ThreadPoolExecutor, step: int, images: torch.Tensor) -> tuple[Future[Batch], torch.Tensor]:
        return pool.submit(self._make, step, images), images

    def _make(self, step: int, images: torch.Tensor) -> Batch:
        """One batch, in one thread: images are small against batches, so threads share nothing but the cache."""
        out = images.numpy()
        targets = np.empty((self.batch_size, self.classes), np.float32)
        weight = np.empty(self.batch_size, np.float32)
        ids = np.empty(self.batch_size, np.int64)
        place, seconds = 0, 0.0
        for number, (rows, count) in enumerate(self.streams):
            positions = np.arange(step * count, (step + 1) * count)
            chosen = rows.at(positions, self.seed)
            part = slice(place, place + count)
            ids[part], weight[part] = rows.image_id[chosen], rows.weight[chosen]
            classes, probs, tail = rows.targets
            targets[part] = softlabels.expand(
                classes[chosen], probs[chosen], tail[chosen], self.classes, self.temperature
            )
            uniforms = draws.uniforms(draws.key(self.seed, "augment", rows.name), positions, DRAWS)
            for i, row in enumerate(chosen.tolist()):
                pixels = self._pixels(number, rows, row)
                if pixels is None:
                    out[place + i], weight[place + i] = 0, 0
                    continue
                began = time.perf_counter()
                augment(pixels, self.augmentation, uniforms[i], out[place + i])
                seconds += time.perf_counter() - began
            place += count
        with self._lock:
            self.statistics.augment += seconds
            self.statistics.images += self.batch_size
        labeled = self.streams[0][1] if self.streams[0][0].name == "labeled" else 0
        return Batch(step, images, torch.from_numpy(targets), torch.from_numpy(weight), labeled, ids)

    def _pixels(self, number: int, rows: Rows, row: int) -> npt.NDArray[np.uint8] | None:
        cached = self._cache.get((number, row))
        if cached is not None:
            return cached
        began = time.perf_counter()
        where: dict[str, Any] = {name: rows.places[name][row].as_py() for name in _PLACE}
        try:
            data = read_bytes(self.root, **where)
            read = time.perf_counter()
            pixels = decode(data)
        except UnreadableImage as error:
            with self._lock:
                self.statistics.failures[int(rows.image_id[row])] = f"{where['uri']}: {error}"
            return None
        with self._lock:
            self.statistics.read += read - began
            self.statistics.decode += time.perf_counter() - read
            if pixels.nbytes <= self._cache_left and (number, row) not in self._cache:
                self._cache[number, row] = pixels
                self._cache_left -= pixels.nbytes
        return pixels

    def _check_failures(self) -> None:
        with self._lock:
            failures = dict(self.statistics.failures)
        if len(failures) > self._failure_budget:
            raise CuratorError(
                f"{len(failures)} images could not be read, more than the budget of {self._failure_budget}: "
                f"{some(failures.values())}",
                "restore them, or raise max_failures in the recipe (--set max_failures=0.01)",
            )


def augmentation(recipe: Recipe) -> Augmentation:
    """The augmentation that a recipe's noise describes."""
    noise = recipe.noise
    return Augmentation(
        size=recipe.network.resolution,
        scale=noise.crop_scale,
        ratio=noise.crop_ratio,
        flip=noise.flip,
        randaugment_ops=noise.randaugment_ops,
        magnitude=noise.randaugment_magnitude,
        operations=noise.operations or OPERATIONS,
        cutout=noise.cutout,
    )
