"""Random numbers as pure functions of a key and a position: no generator, no state, the same on every thread and rank.

The mixer is splitmix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014). The
shuffle is the generalised Feistel cipher of Black and Rogaway, "Ciphers with arbitrary finite domains" (CT-RSA 2002):
two digits of bases whose product is hardly above the size, and cycle walking. The order of a billion rows needs no
memory.
"""

from __future__ import annotations

import hashlib
import math

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_ROUNDS = 6


def key(seed: int, *names: str | int) -> np.uint64:
    """A 64-bit number from a seed and the names of what it is for."""
    text = "\x00".join([str(seed), *map(str, names)])
    return np.uint64(int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little"))


def uniforms(key: np.uint64, positions: npt.ArrayLike, count: int) -> npt.NDArray[np.float64]:
    """Uniform numbers for each position.

    Args:
        key: From `key`.
        positions: [N] non-negative integers.
        count: Numbers for each position.

    Returns:
        [N, count] float64 in [0, 1), 53 random bits each.
    """
    start = _mix(np.asarray(positions, np.uint64) * _GOLDEN + key)
    steps = np.arange(1, count + 1, dtype=np.uint64) * _GOLDEN
    bits = _mix(start[:, None] + steps[None, :])
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def shuffle(key: np.uint64, positions: npt.ArrayLike, size: int) -> npt.NDArray[np.int64]:
    """Where a random permutation of range(size) sends each position.

    Args:
        key: From `key`; each key is another permutation.
        positions: [N] integers in [0, size).
        size: Size of the range, at least 1.

    Returns:
        [N] int64 in [0, size), different for different positions.
    """
    high = np.uint64(math.isqrt(size - 1) + 1)
    low = np.uint64(-(-size // int(high)))
    keys = _mix(np.arange(1, _ROUNDS + 1, dtype=np.uint64) * _GOLDEN + key)
    values = np.array(positions, np.uint64)
    walking = np.arange(len(values))
    while len(walking):  # seldom twice: of high * low values, fewer than `high` lie outside the range
        left, right = values[walking] // low, values[walking] % low
        for at in range(0, _ROUNDS, 2):
            left = (left + _mix(right + keys[at]) % high) % high
            right = (right + _mix(left + keys[at + 1]) % low) % low
        values[walking] = left * low + right
        walking = walking[values[walking] >= size]
    return values.astype(np.int64)


def _mix(words: Words) -> Words:
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))
