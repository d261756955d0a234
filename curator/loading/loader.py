"""The loader: images of a manifest, and labeled ones beside them, decoded and augmented by threads into uint8 batches.

    position -> rows of each stream (keyed shuffle over copies) -> read -> decode the crop -> augment -> one batch

Which images a batch holds, and how each is augmented, is a function of (rows, seed, position) alone: a run that stops
after any batch goes on with the same ones, whatever the number of threads, and the ranks of a run share each batch.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt

from curator import draws
from curator.delivery import packs
from curator.errors import CuratorError, InputError, some
from curator.generations import softlabels
from curator.loading.batches import Batch, Piece, Slots, Statistics
from curator.loading.rows import Part, Rows
from curator.networks.recipes import Recipe
from curator.noise.augment import (
    DRAWS,
    OPERATIONS,
    Augmentation,
    CentreCrop,
    center_crop,
    crop_box,
    distort,
    single_threaded,
)
from curator.pictures.decode import Box, UnreadableImage, decode_crop
from curator.pictures.reading import Asked, Reader, is_far
from curator.storage.bucket import AT_ONCE
from curator.storage.roots import Root
from curator.storage.store import Store

Noise = Augmentation | CentreCrop
CACHE_BYTES = 512 * 2**20
_LEAST, _MOST = 8, 64  # images of a piece of work, of which batches are made


# Step, and the positions of each stream.
_Spans = tuple[int, list[tuple[int, int]]]
# Row numbers of a piece, what is known of them, and their pictures, which are asked for.
_Found = tuple[npt.NDArray[np.int64], Part, Asked]


class ManifestLoader:
    """Batches of a run.

    Iterating gives one pass over the last stream, from where the loader stands, the last batch perhaps smaller;
    `batches` gives the batches of numbered steps. The memory of a batch is used again once nobody holds it.

    Args:
        root: Folder that relative uris start from.
        streams: Rows with the number of rows that each batch takes from them, all ranks together. Passes are counted
            by the last; labeled rows come first.
        noise: Size and noise of the rows of each stream, or of all of them.
        classes: C.
        seed: Seed of order and augmentation.
        rank: Which part of each batch this process makes.
        world: Into how many parts a batch is split.
        threads: Threads that decode and augment; one a core by default.
        cache_bytes: Decoded images are kept in memory if all of them fit into that many bytes: each that is no larger
            than its share of it.
        max_failures: Share of the rows that may be unreadable before the run stops.
        reviews: Version of the reviews that the labeled rows were read at, for the state.
    """

    def __init__(
        self,
        root: Root,
        streams: list[tuple[Rows, int]],
        noise: Noise | list[Noise],
        classes: int,
        *,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        threads: int | None = None,
        cache_bytes: int = CACHE_BYTES,
        max_failures: float = 0.001,
        reviews: int | None = None,
    ) -> None:
        _expect_sensible(rank, world, threads, max_failures, [count for _, count in streams])
        self.root = root
        each = noise if isinstance(noise, list) else [noise] * len(streams)
        self.noise = [kind for kind, (_, count) in zip(each, streams, strict=True) if count]
        self.streams = [(rows, count) for rows, count in streams if count]
        self.classes = classes
        self.seed = seed
        self.rank, self.world = rank, world
        self.reviews = reviews
        self._labeled = [rows.digest for rows, _ in self.streams if rows.name == "labeled"]
        self.threads = threads or os.cpu_count() or 1
        self.statistics = Statistics()
        rows = sum(len(rows) for rows, _ in self.streams)
        self._budget = max(1, int(max_failures * rows / world))
        self._share = cache_bytes // rows
        self._cache: dict[tuple[int, int], npt.NDArray[np.uint8]] = {}
        self._position = 0
        self._failed: set[int] = set()  # unreadable images of the batches that were given out
        self._lock = Lock()

    @classmethod
    def open(
        cls,
        store: Store | str | Path,
        manifest: str | None,
        *,
        size: int,
        batch_size: int,
        labeled_batch: int = 0,
        augmentation: Augmentation | None = None,
        pack: str | None = "auto",
        reviews: int | None = None,
        **options: Any,
    ) -> ManifestLoader:
        """A loader for a loop of your own.

        Args:
            store: The store, or its folder.
            manifest: Name of the manifest; None for the labeled split alone.
            size: Side of the square images in pixels.
            batch_size: Rows of the manifest in each batch.
            labeled_batch: Labeled rows in front of them.
            augmentation: Noise, of the same size; a random resized crop and a flip by default.
            pack: The pack to read images from where it has them, None for the originals; "auto" takes the one that
                `packs.fitting` finds.
            reviews: Version of the reviews that labeled rows are read at, as a state names it; the newest by default.
            options: Of the constructor: seed, rank, world, threads, cache_bytes, max_failures.

        Raises:
            InputError: The manifest or the pack is not there or cannot be used.
        """
        store = store if isinstance(store, Store) else Store(store)
        how = augmentation or Augmentation(size)
        if how.size != size:
            raise InputError(f"the augmentation makes images of {how.size} px, not {size}", "give both the same size")
        pack = packs.chosen(store, pack, size)
        streams = []
        if manifest is None or labeled_batch:
            reviews = store.versions()["reviews"] if reviews is None else reviews
            labeled = Rows.labeled(store, pack, versions={"reviews": reviews})
            streams.append((labeled, batch_size if manifest is None else labeled_batch))
        if manifest is not None:
            streams.append((Rows.manifest(store, manifest, pack), batch_size))
        return cls(store.root, streams, how, len(store.classes()), reviews=reviews, **options)

    @property
    def batch_size(self) -> int:
        """Rows of a batch, all ranks together."""
        return sum(count for _, count in self.streams)

    @property
    def epoch(self) -> int:
        """Passes that are done."""
        return self._position // self.streams[-1][0].length

    @property
    def position(self) -> int:
        """Rows of the pass that are done, all ranks together."""
        return self._position % self.streams[-1][0].length

    @property
    def _packs(self) -> list[list[Any]]:
        """The pack of each stream, and how many of its images lie in it."""
        return [[rows.pack, rows.packed] for rows, _ in self.streams]

    def state_dict(self) -> dict[str, Any]:
        """Where the loader stands: behind the batch that was given out last."""
        return {
            "epoch": self.epoch,
            "position": self.position,
            "seed": self.seed,
            "rows": self.streams[-1][0].name,
            "packs": self._packs,
            "labeled": self._labeled,
            "reviews": self.reviews,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a state; threads, ranks and batch size may be others than when it was written.

        Raises:
            InputError: It is the state of another order of other rows.
        """
        rows = self.streams[-1][0]
        if (state["rows"], state["seed"]) != (rows.name, self.seed):
            raise InputError(
                f"the loader's state is of {state['rows']} with seed {state['seed']}, and this loader has {rows.name} "
                f"with seed {self.seed}",
                "load it into a loader of the same manifest and seed",
            )
        if state["packs"] != self._packs:
            raise InputError(
                f"the loader's state is of other pictures: packs and their images {state['packs']}, now {self._packs}",
                "open the loader with the pack of before (pack=None for none); an extended pack cannot be taken back",
            )
        if state.get("labeled", self._labeled) != self._labeled:
            raise InputError(
                "the loader's state is of other labeled images: some were added since, or decided about",
                f"reviews={state['reviews']} leaves out later decisions; added images stay, so begin anew",
            )
        self._position = int(state["epoch"]) * rows.length + int(state["position"])

    def __len__(self) -> int:
        """Batches of a whole pass."""
        rows, count = self.streams[-1]
        return math.ceil(rows.length / count)

    def __iter__(self) -> Iterator[Batch]:
        """The rest of the pass.

        Raises:
            CuratorError: More images than the budget could not be read.
        """
        rows, count = self.streams[-1]
        begin, end = self.epoch * rows.length, (self.epoch + 1) * rows.length
        starts = range(self._position, end, count)
        work = (((at - begin) // count, self._spans(at, min(at + count, end))) for at in starts)
        for at, batch in zip(starts, self._run(work), strict=True):
            self._position = min(at + count, end)
            yield batch

    def batches(self, start: int, stop: int) -> Generator[Batch]:
        """The batches of steps start to stop - 1, in order; a step may end one pass and begin the next.

        Raises:
            CuratorError: More images than the budget could not be read.
        """
        count = self.streams[-1][1]
        yield from self._run((step, self._spans(step * count, (step + 1) * count)) for step in range(start, stop))

    def _spans(self, first: int, last: int) -> list[tuple[int, int]]:
        """Positions of this rank in each stream, for positions of the last stream."""
        count = self.streams[-1][1]
        found = []
        for _, each in self.streams:
            begin, end = first * each // count, last * each // count
            length = end - begin
            found.append((begin + length * self.rank // self.world, begin + length * (self.rank + 1) // self.world))
        return found

    def _run(self, work: Iterable[_Spans]) -> Generator[Batch]:
        """Makes batches ahead of the consumer."""
        self._failed |= self.statistics.failures.keys()  # those that a resumed run knew before
        piece = min(_MOST, max(_LEAST, math.ceil(self.batch_size / self.world / self.threads / 2)))
        far = any(is_far(self.root, rows.read(np.zeros(1, np.int64)).places[0]) for rows, _ in self.streams)
        under_way = max(2 * self.threads * piece, 2 * AT_ONCE if far else 0)  # pictures
        ahead = 1 + math.ceil(under_way * self.world / self.batch_size)
        buffers: list[npt.NDArray[np.uint8]] = []
        waiting: deque[Slots] = deque()
        pool = ThreadPoolExecutor(self.threads, "loader", single_threaded)
        try:
            with Reader(self.root) as reader:
                for step, spans in work:
                    waiting.append(self._submit(pool, reader, far, step, spans, piece, self._buffer(buffers, ahead)))
                    if len(waiting) > ahead:
                        yield self._finish(waiting.popleft())
                while waiting:
                    yield self._finish(waiting.popleft())
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _buffer(self, buffers: list[npt.NDArray[np.uint8]], ahead: int) -> npt.NDArray[np.uint8]:
        """Memory for the images of a batch: of an earlier one that nobody holds any more, else new."""
        for number in range(len(buffers)):
            # Two holders: the list, and the call that counts. A tensor, or any view of one, would be another.
            if sys.getrefcount(buffers[number]) == 2:
                return buffers[number]
        size = self.noise[0].size
        most = sum(math.ceil(count / self.world) for _, count in self.streams)
        buffers.append(np.empty((most, size, size, 3), np.uint8))
        del buffers[: -(ahead + 3)]  # those that the consumer keeps are his
        return buffers[-1]

    def _submit(
        self,
        pool: ThreadPoolExecutor,
        reader: Reader,
        far: bool,
        step: int,
        spans: list[tuple[int, int]],
        most: int,
        images: npt.NDArray[np.uint8],
    ) -> Slots:
        rows = sum(last - first for first, last in spans)
        labeled = spans[0][1] - spans[0][0] if self.streams[0][0].name == "labeled" else 0
        slots = Slots.empty(step, images[:rows], self.classes, labeled)
        slot = 0
        for stream, (first, last) in enumerate(spans):
            for at in range(first, last, most):
                piece = Piece(stream, at, min(at + most, last), slot)
                find = partial(self._find, reader, piece)
                found = reader.early(find).result if far else find
                slots.pieces.append(pool.submit(self._fill, piece, slots, found))
                slot += piece.last - piece.first
        return slots

    def _finish(self, slots: Slots) -> Batch:
        began = time.perf_counter()
        for piece in slots.pieces:
            piece.result()
        self.statistics.wait += time.perf_counter() - began
        self.statistics.images += int(slots.there.sum())
        if not slots.there.all():
            self._check_failures(slots.image_ids[~slots.there].tolist())
        return slots.batch()

    def _find(self, reader: Reader, piece: Piece) -> _Found:
        """The rows of a piece; their pictures are asked for, but those that are kept."""
        rows = self.streams[piece.stream][0]
        chosen = rows.at(np.arange(piece.first, piece.last), self.seed)
        part = rows.read(chosen)
        kept = {number for number, row in enumerate(chosen.tolist()) if (piece.stream, row) in self._cache}
        return chosen, part, reader.ask(part.places, kept)

    def _fill(self, piece: Piece, slots: Slots, find: Callable[[], _Found]) -> None:
        """One piece of a batch, in one thread."""
        began = time.perf_counter()
        (rows, _), noise = self.streams[piece.stream], self.noise[piece.stream]
        positions = np.arange(piece.first, piece.last)
        chosen, part, asked = find()
        here = slice(piece.slot, piece.slot + len(positions))
        slots.image_ids[here], slots.weight[here] = part.image_id, part.weight
        slots.targets[here] = softlabels.expand(part.classes, part.probs, part.tail, self.classes, rows.temperature)
        uniforms = draws.uniforms(draws.key(self.seed, "augment", rows.name), positions, DRAWS).tolist()
        spent = Statistics(collate=time.perf_counter() - began)
        with asked:
            for number, (row, place, image_id, numbers) in enumerate(
                zip(chosen.tolist(), part.places, part.image_id.tolist(), uniforms, strict=True)
            ):
                slot = piece.slot + number
                try:
                    crop = self._crop((piece.stream, row), partial(asked.take, number), noise, numbers, spent)
                except UnreadableImage as error:
                    inside = f" (in {place.shard})" if place.shard and not place.uri.startswith(place.shard) else ""
                    spent.failures[image_id] = f"{place.uri}: {error}{inside}"
                    continue
                began = time.perf_counter()
                if isinstance(noise, CentreCrop):
                    center_crop(crop, noise.size, noise.share, slots.images[slot])
                else:
                    distort(crop, noise, numbers, slots.images[slot])
                spent.augment += time.perf_counter() - began
                slots.there[slot] = True
        with self._lock:
            self.statistics.add(spent)

    def _crop(
        self, key: tuple[int, int], take: Callable[[], bytes], noise: Noise, numbers: list[float], spent: Statistics
    ) -> npt.NDArray[np.uint8]:
        """The pixels of an image that its noise asks for; a small image is decoded whole, and kept."""
        picture = self._cache.get(key)
        if picture is None:
            small = False

            def choose(width: int, height: int) -> Box:
                nonlocal small
                small = width * height * 3 <= self._share
                return (0, 0, width, height) if small else _box(width, height, noise, numbers)

            began = time.perf_counter()
            data = take()
            read = time.perf_counter()
            picture = decode_crop(data, choose)
            spent.read += read - began
            spent.decode += time.perf_counter() - read
            if not small:
                return picture
            self._cache[key] = picture
        left, top, width, height = _box(picture.shape[1], picture.shape[0], noise, numbers)
        return picture[top : top + height, left : left + width]

    def _check_failures(self, image_ids: list[int]) -> None:
        """Counts images of a batch that is given out: those of later ones may be known, or not yet."""
        self._failed.update(image_ids)
        if len(self._failed) > self._budget:
            with self._lock:
                reasons = [self.statistics.failures[image_id] for image_id in sorted(self._failed)]
            raise CuratorError(
                f"{len(reasons)} images could not be read, more than the budget of {self._budget}: {some(reasons)}",
                "restore them (a pack's: curator pack NAME --verify), or raise max_failures (of a recipe: --set "
                "max_failures=0.01)",
            )


def _expect_sensible(rank: int, world: int, threads: int | None, max_failures: float, counts: list[int]) -> None:
    whole = {"rank": rank, "world": world, "threads": 1 if threads is None else threads}
    whole |= {f"batch size {number}": count for number, count in enumerate(counts, start=1)}
    for what, value in whole.items():
        if not isinstance(value, int) or value < 0:
            raise InputError(f"the loader's {what} is {value!r}", "give a whole number")
    if rank >= world:
        raise InputError(f"there is no rank {rank} among {world}", "ranks are 0 to world - 1")
    if not counts or counts[-1] < world:
        raise InputError(f"batches of {counts[-1] if counts else 0} rows for {world} ranks", "give a larger batch size")
    if threads == 0 or not isinstance(max_failures, float | int) or not 0 <= max_failures <= 1:
        raise InputError(f"threads are {threads}, max_failures is {max_failures}", "1 or more; a share between 0 and 1")


def _box(width: int, height: int, noise: Noise, numbers: list[float]) -> Box:
    return (0, 0, width, height) if isinstance(noise, CentreCrop) else crop_box(width, height, noise, numbers)


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
