"""Counts of scores by class and bin: what it takes to know where a quota cuts each class, without sorting.

    rows --add--> counts [C, bins] --pack--> text in the footer of a part of the labels table --unpack, +--> counts

A part of a generation carries the counts of its pool rows' confidences, so that a selection need not count them again.
"""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Integers = npt.NDArray[np.integer[Any]]

# A bin is a range of (high - score) / (high - low), 64 of them to each halving down to 2^-25: teachers are often sure,
# and so most rows of a class may lie close below the highest score. Shifting a float's bits gives the bin.
_FIRST = (127 - 25) << 23
_LAST = 127 << 23
_BITS, _BITS_MANY_CLASSES, _MANY_CLASSES = 6, 3, 4096
# Of confidences, the usual threshold is an edge between two bins: rows above it can be told from counts alone.
EDGE = np.float32(0.3)


class Histogram:
    """Counts of the scores of each class.

    Args:
        classes: C; labels are 0 to C - 1.
        low: No score is below.
        high: No score is above.
        above: Rows with a score that is not above this do not count.
    """

    def __init__(self, classes: int, low: float = 0.0, high: float = 1.0, above: float = -np.inf) -> None:
        self.classes = classes
        self.high = np.float32(high)
        self.span = np.float32(high) - np.float32(low) if high > low else np.float32(1)
        self.above = np.float32(above)
        self._shift = np.int32(23 - (_BITS if classes <= _MANY_CLASSES else _BITS_MANY_CLASSES))
        self._first = np.int32(_FIRST >> int(self._shift))
        self.bins = (_LAST >> int(self._shift)) - int(self._first) + 2
        self._counts = np.zeros((classes, self.bins + 1), np.int64)  # the last bin takes what does not count

    def bin(self, score: Floats) -> npt.NDArray[np.int32]:
        """The bin [N] of each score [N]; 0 is the best, and a lower score is never in a better bin."""
        below = self.high - score
        if self.span != 1:
            below /= self.span
        bins = below.view(np.int32)
        bins >>= self._shift
        bins -= self._first
        np.maximum(bins, 0, out=bins)
        bins += score <= EDGE
        return bins

    def add(self, label: Integers, score: Floats) -> None:
        """Counts rows [N]."""
        bins = self.bin(score)
        if self.above > -np.inf:
            np.putmask(bins, score <= self.above, self.bins)
        place = label.astype(np.int64)
        place *= self.bins + 1
        place += bins
        np.add.at(self._counts.reshape(-1), place, 1)

    @property
    def counted(self) -> Ints:
        """The number of rows [C] of each class."""
        counted: Ints = self._counts[:, :-1].sum(axis=1)
        return counted

    @property
    def running(self) -> Ints:
        """The number of rows [C, bins] of each class in a bin and those better than it."""
        running: Ints = self._counts[:, :-1].cumsum(axis=1)
        return running

    def lowest(self, bins: Integers) -> npt.NDArray[np.float64]:
        """A score [N] that no score in the bins [N], or in better ones, is below; it may be a little too low."""
        end = (np.minimum(bins, self.bins - 1) + 1 + int(self._first)).astype(np.int32)
        reach = (end << self._shift).view(np.float32).astype(np.float64) * float(self.span)
        # Far above what float32 rounds off, far below the width of a bin of rows that matter.
        found: npt.NDArray[np.float64] = float(self.high) - reach - 1e-6 * (abs(float(self.high)) + float(self.span))
        return found

    def pack(self) -> bytes:
        """The counts as text: readers of Parquet in other languages expect that of a footer."""
        packed = pa.compress(self._counts.astype("<i4").tobytes(), codec="zstd", asbytes=True)
        return b"%d %d " % (self.classes, self.bins) + base64.b64encode(packed)

    def unpack(self, packed: bytes) -> bool:
        """Adds counts that `pack` made of confidences.

        Returns:
            Whether they could be added: not if they were made with other bins, or rows in a bin with the threshold do
            not all count.
        """
        classes, bins, text = packed.split(b" ")
        if (int(classes), int(bins)) != (self.classes, self.bins) or self.above not in (EDGE, -np.inf):
            return False
        size = self._counts.size * 4
        counts = np.frombuffer(pa.decompress(base64.b64decode(text), size, codec="zstd"), "<i4")
        counts = counts.reshape(self._counts.shape)
        usable = self.bins if self.above == -np.inf else int(self.bin(np.array([EDGE], np.float32))[0])
        self._counts[:, :usable] += counts[:, :usable]
        return True
