"""Bootstrap intervals: a figure of N images, of many resamples of them, and the range that 95 % of these take.

    columns [N, M] --1000 times N of the images, with replacement--> their means [1000, M] --percentiles--> low, high

Source: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13 (percentile interval). The resamples
are a function of N and the seed: figures of the same images, of two severities say, are resampled together. What is 0
or 1 for every image has an interval of no width; Wilson's is better there.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from curator import draws

DRAWS = 1000
_AT_ONCE = 4_000_000  # values of resamples

Floats = npt.NDArray[np.float64]


def counts(images: int, seed: int) -> Iterator[npt.NDArray[np.float32]]:
    """How often each image is in each resample: float32 [D, images], D adding up to DRAWS.

    Args:
        images: How many there are, at least 1.
        seed: Seed.
    """
    key = draws.key(seed, "bootstrap")
    few = max(1, _AT_ONCE // images)
    for start in range(0, DRAWS, few):
        drawn = draws.uniforms(key, np.arange(start, min(start + few, DRAWS)), images)
        places = (drawn * images).astype(np.int64) + np.arange(len(drawn))[:, None] * images
        found = np.bincount(places.ravel(), minlength=drawn.size).reshape(drawn.shape)
        yield found.astype(np.float32)


def means(columns: npt.NDArray[np.floating], seed: int) -> Floats:
    """The means [DRAWS, M] of columns [N, M] over each resample."""
    given = columns.astype(np.float32)
    return np.concatenate([drawn @ given for drawn in counts(len(given), seed)]).astype(np.float64) / len(given)


def interval(values: Floats) -> tuple[float, float]:
    """The 2.5th and the 97.5th percentile of a figure over the resamples; what is not a number is left out.

    Returns:
        Both; NaN where no value is a number.
    """
    known = values[~np.isnan(values)]
    if not len(known):
        return float("nan"), float("nan")
    low, high = np.percentile(known, (2.5, 97.5))
    return float(low), float(high)
