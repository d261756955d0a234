"""Passes of one network over pictures: threads change them, ask the network and keep what became of each.

    holdout, a sample, or a folder --decode, crop--> uint8 pictures --threads: work--> its answer for each batch

A thread computes a batch by itself, torch with one thread and in float32: answers do not depend on how many there are.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from curator import progress, queries
from curator.loading.rows import holdout_rows
from curator.measures import evaluation
from curator.networks.engines import Torch, cores
from curator.networks.inference import Pictures, decoded
from curator.networks.network import load
from curator.noise.augment import single_threaded
from curator.noise.noises import Pixels
from curator.ranks import device_of
from curator.storage.store import Store

_BATCH = 128
_VALUES = 4_000_000  # of a batch's pixels in the network at once; a quarter of it where gradients are taken
_T = TypeVar("_T")


class Batch(NamedTuple):
    """Pictures of the holdout: uint8 [N, S, S, 3], the images' ids [N] int64, their true classes [N] int64."""

    pixels: Pixels
    ids: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]


class Trial:
    """A registered model at rest, and the pictures that it is tested on; to be closed.

    Args:
        store: The store; its tables are read as they are now, however long the passes take.
        model: A registered model with weights.
        limit: Size of a sample of the holdout; None for all of it.
        seed: Of the sample.
        threads: Threads that compute; one a core by default.
        device: Name of the device that computes; "auto" is a GPU where there is one.

    Raises:
        InputError: The model or the device is not there.
    """

    def __init__(
        self, store: Store, model: str, limit: int | None, seed: int, threads: int | None = None, device: str = "auto"
    ) -> None:
        self.store, self.model, self.threads = store, model, threads or cores()
        self.device = device_of(device)
        network, self.recipe, row = load(store, model)
        self.network, self.generation = network.to(self.device).eval().requires_grad_(False), int(row["generation"])
        self.engine = Torch(self.network)
        self.size = self.recipe.network.test_resolution
        self._query = holdout_rows(sample=limit is not None)
        self._values = {"limit": limit, "seed": seed}
        self._con = store.connect()

    def close(self) -> None:
        """Lets the store's tables go."""
        self._con.close()

    def batch(self, copies: int = 1, gradients: bool = False) -> int:
        """Images of a batch, of which the network sees so many copies at once."""
        most = _VALUES // (4 if gradients else 1) // (3 * self.size * self.size * copies)
        return max(1, min(_BATCH, most))

    def holdout(self, what: str, work: Callable[[Batch], _T], size: int) -> tuple[list[_T], int]:
        """One pass over the holdout, or the sample of it, in the order of image ids.

        Args:
            what: What the pass is for, shown beside the progress.
            work: What to do with a batch, in a thread.
            size: Images of a batch.

        Returns:
            What it gave for each batch, and how many images could not be read.

        Raises:
            InputError: There is no holdout, or no image of it can be read.
        """
        total = evaluation.size(self._con, self._query, **self._values)
        tables = queries.batches(self._con, self._query, size, **self._values)
        found, failed = self.over(what, tables, total, lambda seen: work(_batch(seen)))
        evaluation.expect_some(found)
        return found, failed

    def over(
        self, what: str, tables: Iterable[pa.Table], total: int, work: Callable[[Pictures], _T]
    ) -> tuple[list[_T], int]:
        """One pass over any pictures.

        Args:
            what: What the pass is for, shown beside the progress.
            tables: Batches of rows with uri, shard, byte_offset, byte_length.
            total: Rows of all of them.
            work: What to do with the pictures of a batch, in a thread; not called where none can be read.

        Returns:
            What it gave for each batch, and how many images could not be read.
        """
        found: list[_T] = []
        failed = 0
        with (
            progress.progress(f"{self.model}: {what}", total) as tell,
            closing(decoded(self.recipe, self.store.root, tables, self.threads)) as batches,
            ThreadPoolExecutor(self.threads, "trial", single_threaded) as pool,
        ):
            for seen, result in _in_turn(pool, work, batches, self.threads):
                failed += len(seen.failed)
                if result is not None:
                    found.append(result.result())
                tell(seen.rows.num_rows)
        return found, failed


def _batch(seen: Pictures) -> Batch:
    ids, labels = (seen.rows[name].to_numpy()[seen.good].astype(np.int64) for name in ("image_id", "label"))
    return Batch(seen.pixels, ids, labels)


def _in_turn(
    pool: ThreadPoolExecutor, work: Callable[[Pictures], _T], batches: Iterable[Pictures], ahead: int
) -> Generator[tuple[Pictures, Future[_T] | None]]:
    """The pictures of batches with what threads make of them, in order; the threads are `ahead` batches ahead."""
    waiting: deque[tuple[Pictures, Future[_T] | None]] = deque()
    try:
        for seen in batches:
            waiting.append((seen, pool.submit(work, seen) if len(seen.good) else None))
            if len(waiting) > ahead:
                yield waiting.popleft()
        while waiting:
            yield waiting.popleft()
    finally:
        for _, future in waiting:
            if future is not None:
                future.cancel()
