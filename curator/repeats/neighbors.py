"""Pairs of close perceptual hashes and of close vectors, found without comparing all with all.

hashes --bands of bits, few of them different--> candidates --count differing bits--> pairs within a distance
vectors --graph index (usearch)--> nearest ones --cosine--> pairs above a cosine

Close hashes are found all of them, close vectors nearly all of them.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations
from math import comb
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from curator.errors import InputError

BITS = 64
# Of the bits of a pHash (see decode.scan), those whose frequencies change sign when the picture is mirrored: the odd
# columns. The hash of the mirrored picture differs from `hash ^ MIRROR` by a few bits only, where the median is not 0.
MIRROR = np.uint64(0x5555555555555555)
_EXACT = 1_000_000_000  # products of as many vectors are computed, half a minute's work; above, an index looks them up
_NEAREST = 16  # of a vector that the index looks up
_CANDIDATES = 1 << 15  # compared at a time: as many as stay in a core's cache
MOST_PAIRS = 20_000_000
MOST_DISTANCE = 32

Hashes = npt.NDArray[np.uint64]
Vectors = npt.NDArray[np.int8]


class Pairs(NamedTuple):
    """Pairs of rows of two arrays: int64 [N] each, and a distance float32 [N]."""

    left: npt.NDArray[np.int64]
    right: npt.NDArray[np.int64]
    distance: npt.NDArray[np.float32]


_NONE = Pairs(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))


class _Band(NamedTuple):
    """Some neighbouring bits of the hashes, and in how many of them two hashes may differ to be compared."""

    first: int
    width: int
    errors: int


def close_hashes(
    hashes: Hashes, distance: int, mirrored: bool = False, advance: Callable[..., None] = lambda n: None
) -> Pairs:
    """All pairs of hashes that differ in at most `distance` bits.

    The bits are cut into m bands. Where two hashes differ in at most d bits, the differences cannot be too many in
    every band: in one of them there are at most its `errors`, which sum to d - m + 1. So for each band only hashes are
    compared that are so close there, and no pair is missed.

    Args:
        hashes: uint64 [N], all different.
        distance: Most differing bits, 0 to 32.
        mirrored: Compare with the hashes of the mirrored pictures instead.
        advance: Called with the share of the work done since the last call.

    Returns:
        Each pair once, left < right; of mirrored ones no picture with itself.

    Raises:
        InputError: There are more than MOST_PAIRS.
    """
    found = [_NONE]
    total = 0
    flip = MIRROR if mirrored else np.uint64(0)
    bands = _bands(len(hashes), distance)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for band in bands:
            for pairs in _in_band(hashes, flip, band, distance, pool):
                found.append(pairs)
                total += len(pairs.left)
                if total > MOST_PAIRS * len(bands):
                    raise InputError(
                        f"more than {MOST_PAIRS:,} pairs of different pictures are within {distance} bits",
                        "these pictures are too simple or too much alike for such a distance: give a lower --distance",
                    )
            advance(1 / len(bands))
    # a pair that is close in several bands was found in each of them
    left, right, apart = (np.concatenate([getattr(p, name) for p in found]) for name in Pairs._fields)
    _, first = np.unique(left * len(hashes) + right, return_index=True)
    return Pairs(left[first], right[first], apart[first])


def close_vectors(vectors: Vectors, cosine: float, rows: npt.NDArray[np.int64] | None = None) -> Pairs:
    """Pairs of vectors whose cosine is at least `cosine`.

    All of them up to _EXACT comparisons; above, those that an HNSW index finds among the 16 nearest of each.

    Args:
        vectors: int8 [N, D].
        cosine: The least one.
        rows: Compare with these rows alone, int64 [M]; by default with all.

    Returns:
        Each pair once, left < right, and 1 minus its cosine.

    Raises:
        InputError: The index is needed and not installed, or there are too many pairs.
    """
    others = np.arange(len(vectors)) if rows is None else rows
    if len(vectors) * len(others) <= _EXACT:
        found = _products(vectors, others, cosine)
    else:
        found = _looked_up(vectors, others, cosine)
    left, right, distance = (np.concatenate(column) for column in zip(*found, strict=True))
    left, right = np.minimum(left, right), np.maximum(left, right)
    _, first = np.unique(left * len(vectors) + right, return_index=True)
    first = first[left[first] != right[first]]
    return Pairs(left[first], right[first], np.maximum(distance[first], 0))


def _products(vectors: Vectors, others: npt.NDArray[np.int64], cosine: float) -> list[Pairs]:
    def unit(rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        some = vectors[rows].astype(np.float32)
        length = np.linalg.norm(some, axis=1, keepdims=True)
        return np.asarray(some / np.where(length > 0, length, 1), np.float32)

    found, total = [_NONE], 0
    for begin in range(0, len(others), 1024):
        block = others[begin : begin + 1024]
        against = unit(block).T
        for at in range(0, len(vectors), 8192):
            cosines = unit(np.arange(at, min(at + 8192, len(vectors)))) @ against
            row, column = np.nonzero(cosines >= cosine)
            found.append(Pairs(row + at, block[column], 1 - cosines[row, column]))
            total += len(row)
            if total > 2 * MOST_PAIRS:
                raise InputError(f"more than {MOST_PAIRS:,} pairs have such a cosine", "give a higher --cosine")
    return found


def _looked_up(vectors: Vectors, others: npt.NDArray[np.int64], cosine: float) -> list[Pairs]:
    try:
        usearch: Any = importlib.import_module("usearch.index")
    except ImportError:
        raise InputError(
            f"{len(vectors):,} embeddings are too many to compare each with each", "pip install 'curator[near]'"
        ) from None
    index = usearch.Index(ndim=vectors.shape[1], metric="cos", dtype="i8")
    index.add(others, np.ascontiguousarray(vectors[others]))
    found = [_NONE]
    for at in range(0, len(vectors), 65536):
        some = vectors[at : at + 65536]
        matches = index.search(np.ascontiguousarray(some), min(_NEAREST, len(others)))
        row, place = np.nonzero(matches.distances <= 1 - cosine)
        keys = matches.keys[row, place].astype(np.int64)
        found.append(Pairs(row + at, keys, matches.distances[row, place].astype(np.float32)))
    return found


def _bands(count: int, distance: int) -> list[_Band]:
    """The cut with the least work: few bands make many keys to look up, many bands make many candidates."""

    def cut(number: int) -> list[_Band]:
        errors = max(0, distance - number + 1)
        shares = [errors // number + (i >= number - errors % number) for i in range(number)]
        edges = [BITS * i // number for i in range(number + 1)]
        return [_Band(edges[i], edges[i + 1] - edges[i], shares[i]) for i in range(number)]

    def work(bands: list[_Band]) -> float:
        # in steps of some nanoseconds: the table of buckets, the calls, the rows looked up, the candidates
        return float(
            sum(10 * 2**band.width + _keys(band) * (10_000 + count * (2 + count / 2**band.width)) for band in bands)
        )

    return min((cut(number) for number in range(3, 9)), key=work)


def _keys(band: _Band) -> int:
    return sum(comb(band.width, errors) for errors in range(band.errors + 1))


def _in_band(hashes: Hashes, flip: np.uint64, band: _Band, distance: int, pool: ThreadPoolExecutor) -> Iterator[Pairs]:
    """The pairs that are close in one band."""
    mask = np.uint64((1 << band.width) - 1)
    keys = (hashes >> np.uint64(band.first)) & mask
    order = np.argsort(keys, kind="stable")
    keys, values = keys[order].astype(np.int64), hashes[order]
    starts = np.searchsorted(keys, np.arange((1 << band.width) + 1)).astype(np.int32)
    turned = int((flip >> np.uint64(band.first)) & mask)
    changes = (
        sum(1 << bit for bit in bits)
        for errors in range(band.errors + 1)
        for bits in combinations(range(band.width), errors)
    )

    def compare(change: int) -> list[Pairs]:
        there = keys ^ (change ^ turned)
        # the other bucket is met from both sides: the pair is taken from the lower one
        rows = np.flatnonzero(there >= keys)
        begin, end = starts[there[rows]], starts[there[rows] + 1]
        kept = end > begin
        rows, begin, counts = rows[kept], begin[kept], (end - begin)[kept]
        mine = values[rows] ^ flip
        sums = np.cumsum(counts, dtype=np.int64)
        shifts = (begin - (sums - counts)).astype(np.int64)
        pairs = []
        at = 0
        while at < len(rows):
            done = sums[at - 1] if at else 0
            to = max(at + 1, int(np.searchsorted(sums, done + _CANDIDATES, "right")))
            number = counts[at:to]
            right = np.arange(done, sums[to - 1])
            right += np.repeat(shifts[at:to], number)
            apart = np.bitwise_count(np.repeat(mine[at:to], number) ^ values[right])
            near = np.flatnonzero(apart <= distance)
            if len(near):
                left, right = rows[np.searchsorted(sums, done + near, "right")], right[near]
                other = left != right
                one, two, bits = order[left[other]], order[right[other]], apart[near[other]]
                pairs.append(Pairs(np.minimum(one, two), np.maximum(one, two), bits.astype(np.float32)))
            at = to
        return pairs

    for pairs in pool.map(compare, changes):
        yield from pairs
