"""Corruptions of each pixel by itself: Gaussian, shot and impulse noise.

    pixels uint8 [N, S, S, 3], lots of N pictures, strength -> float32 or uint8 [N, S, S, 3], before cutting to 0..255

Formulas and strengths: Hendrycks and Dietterich, "Benchmarking neural network robustness to common corruptions and
perturbations", ICLR 2019, and the program released with it; the table of strengths is in corruptions.py.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from curator.draws import Lots

Pixels = npt.NDArray[np.uint8]
Changed = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]

_PARTS = 1024


def gaussian_noise(pixels: Pixels, lots: Lots, scale: float) -> Changed:
    """Adds to each value a normal number of standard deviation `scale`, of a range of 1."""
    noise = lots.normals(pixels[0].size).reshape(pixels.shape)
    noise *= np.float32(255 * scale)
    noise += pixels
    return noise


def shot_noise(pixels: Pixels, lots: Lots, photons: float) -> Changed:
    """Replaces each value by a Poisson number of its expected photons, where white has `photons`."""
    below, starts = _poisson(photons)
    values, drawn = pixels.ravel().astype(np.int64), lots.uniforms(pixels[0].size).ravel()
    # A step or two from where the table says is faster than a search; only tails are longer.
    counts = starts[values, (drawn * _PARTS).astype(np.int64)]
    open_ = np.flatnonzero(below[values, counts] <= drawn)
    while len(open_):
        counts[open_] += 1
        open_ = open_[below[values[open_], counts[open_]] <= drawn[open_]]
    return (counts.astype(np.float32) * np.float32(255 / photons)).reshape(pixels.shape)


def impulse_noise(pixels: Pixels, lots: Lots, share: float) -> Changed:
    """Makes a share of the values, channel by channel, 0 or 255, each half of the time."""
    drawn = lots.uniforms(pixels[0].size).reshape(pixels.shape)
    found = pixels.copy()
    found[drawn < share] = 255
    found[drawn < share / 2] = 0
    return found


@lru_cache(maxsize=8)
def _poisson(photons: float) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """The distribution functions of the 256 values, and where each of them passes n / _PARTS, for n below _PARTS."""
    width = int(photons + 12 * photons**0.5 + 20)
    expected = np.arange(256)[:, None] * (photons / 255)
    factorials = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, width)))])
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.arange(width) * np.log(expected) - expected - factorials
    logs[0], logs[0, 0] = -np.inf, 0.0
    below = np.minimum(np.cumsum(np.exp(logs), axis=1), 1.0)
    below[:, -1] = 1.0
    parts = np.arange(_PARTS) / _PARTS
    return below, np.stack([np.searchsorted(row, parts, side="right") for row in below])
