"""Random numbers as pure functions of a key and a position: no generator, no state, the same on every thread and rank.

The mixer is splitmix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014). The
shuffle is the generalised Feistel cipher of Black and Rogaway, "Ciphers with arbitrary finite domains" (CT-RSA 2002):
two digits of bases whose product is hardly above the size, and cycle walking. The order of a billion rows needs no
memory.
"""

from __future__ import annotations

import hashlib
import math
from typing import NamedTuple

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
    return (_bits(key, positions, count) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def normals(key: np.uint64, positions: npt.ArrayLike, count: int) -> npt.NDArray[np.float32]:
    """Numbers of the standard normal distribution for each position (Box and Muller, 1958).

    Args:
        key: From `key`.
        positions: [N] integers.
        count: Numbers for each position; another count gives other numbers.

    Returns:
        [N, count] float32, between -6.7 and 6.7: a radius and an angle of 32 random bits each give two.
    """
    half = (count + 1) // 2
    bits = _bits(key, positions, half)
    radius = ((bits >> np.uint64(32)).astype(np.float32) + 1) * np.float32(2.0**-32)
    np.sqrt(-2 * np.log(radius, out=radius), out=radius)
    angle = (bits & np.uint64(0xFFFFFFFF)).astype(np.float32) * np.float32(2.0**-31 * math.pi)
    found = np.empty((len(bits), 2 * half), np.float32)
    np.multiply(radius, np.cos(angle), out=found[:, :half])
    np.multiply(radius, np.sin(angle, out=angle), out=found[:, half:])
    return found[:, :count]


class Lots(NamedTuple):
    """Random numbers of some things for one purpose: what a thing gets depends on its own number alone.

    Attributes:
        seed: The seed.
        purpose: What they are for; lots for another purpose are others.
        positions: [N] integers, the numbers of the things.
    """

    seed: int
    purpose: tuple[str | int, ...]
    positions: npt.NDArray[np.int64]

    def uniforms(self, count: int, *part: str | int) -> npt.NDArray[np.float64]:
        """[N, count] in [0, 1), others for each part of the purpose."""
        return uniforms(key(self.seed, *self.purpose, *part), self.positions, count)

    def normals(self, count: int, *part: str | int) -> npt.NDArray[np.float32]:
        """[N, count] of the standard normal distribution, see `normals`."""
        return normals(key(self.seed, *self.purpose, *part), self.positions, count)

    def between(self, low: float, high: float, *part: str | int) -> npt.NDArray[np.float64]:
        """[N] uniform in [low, high)."""
        return low + (high - low) * self.uniforms(1, *part)[:, 0]


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


def _bits(key: np.uint64, positions: npt.ArrayLike, count: int) -> Words:
    start = _mix(np.asarray(positions).astype(np.uint64) * _GOLDEN + key)
    steps = np.arange(1, count + 1, dtype=np.uint64) * _GOLDEN
    return _mix(start[:, None] + steps[None, :])


def _mix(words: Words) -> Words:
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))
