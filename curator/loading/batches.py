"""Batches of the loader: what one holds, how threads fill it in, and what that took.

    pieces of a batch -> slots, each filled in by one thread -> batch without what could not be read

What a thread spends is added up in a `Statistics` of its own and then in the loader's.
"""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

STAGES = ("read", "decode", "augment", "collate")


class Batch(NamedTuple):
    """One batch. An image that cannot be read is not in it.

    Attributes:
        step: Its number in the run, or in the pass.
        images: uint8 [B, size, size, 3].
        targets: float32 [B, C].
        weight: float32 [B], what each row's loss counts.
        labeled: How many rows at the front are from the labeled stream.
        image_ids: int64 [B].
    """

    step: int
    images: torch.Tensor
    targets: torch.Tensor
    weight: torch.Tensor
    labeled: int
    image_ids: npt.NDArray[np.int64]


@dataclass
class Statistics:
    """What the loader's time went to.

    Attributes:
        read: Seconds that threads spent getting files' bytes; as all of these four, summed over the threads.
        decode: Making pixels of them.
        augment: Resizing, flipping and distorting.
        collate: Choosing rows, reading their records and making targets.
        wait: Seconds that the consumer waited for a batch.
        images: Images in the batches so far.
        failures: image_id to reason, of images that could not be read.
    """

    read: float = 0.0
    decode: float = 0.0
    augment: float = 0.0
    collate: float = 0.0
    wait: float = 0.0
    images: int = 0
    failures: dict[int, str] = field(default_factory=dict)

    def add(self, other: Statistics) -> None:
        """Adds what another one counted."""
        for name in (*STAGES, "wait", "images"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.failures |= other.failures

    @property
    def shares(self) -> dict[str, float]:
        """The parts of the threads' work, which add up to 1."""
        work = {stage: getattr(self, stage) for stage in STAGES}
        total = sum(work.values()) or 1.0
        return {stage: seconds / total for stage, seconds in work.items()}


class Piece(NamedTuple):
    """A part of a batch: positions of one stream, and the slot of the first of them."""

    stream: int
    first: int
    last: int
    slot: int


class Slots(NamedTuple):
    """A batch in the making; threads fill in different slots."""

    step: int
    images: npt.NDArray[np.uint8]
    targets: npt.NDArray[np.float32]
    weight: npt.NDArray[np.float32]
    image_ids: npt.NDArray[np.int64]
    there: npt.NDArray[np.bool_]
    labeled: int
    pieces: list[Future[None]]

    @classmethod
    def empty(cls, step: int, images: npt.NDArray[np.uint8], classes: int, labeled: int) -> Slots:
        """Slots for as many images as the memory is for."""
        n = len(images)
        targets, weight, image_ids = np.empty((n, classes), np.float32), np.empty(n, np.float32), np.empty(n, np.int64)
        return cls(step, images, targets, weight, image_ids, np.zeros(n, np.bool_), labeled, [])

    def batch(self) -> Batch:
        """What is there. In place of what is missing come the rows behind it, so that every row is a picture."""
        _, images, targets, weight, image_ids, there, labeled, _ = self
        if not there.all():
            left = np.flatnonzero(there)
            for slot, row in enumerate(left.tolist()):
                images[slot] = images[row]
            images, targets, weight, image_ids = images[: len(left)], targets[left], weight[left], image_ids[left]
            labeled = int(there[:labeled].sum())
        pixels, soft, weights = torch.from_numpy(images), torch.from_numpy(targets), torch.from_numpy(weight)
        return Batch(self.step, pixels, soft, weights, labeled, image_ids)
