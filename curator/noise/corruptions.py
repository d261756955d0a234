"""Corrupted pictures in the manner of ImageNet-C: 15 kinds in 5 severities, each picture with its own random numbers.

    pixels uint8 [N, S, S, 3], image ids, kind, severity, seed --noises, blurs, weather, digital--> uint8 [N, S, S, 3]

Source: Hendrycks and Dietterich, "Benchmarking neural network robustness to common corruptions and perturbations", ICLR
2019, with the parameters of the two programs released with it: those of ImageNet-C from 100 pixels on, those of
CIFAR-10-C below. As there, values are cut to 0..255 and rounded down.

The package `imagecorruptions` (1.1.2) has the same kinds and is not used: it does not load beside current numpy, scipy,
scikit-image and setuptools, draws from the state of the process, knows no parameters for small pictures and ships the
photographs of frost. benchmarks/robustness.py mends and compares it, kind by kind. It departs from the program in
`elastic_transform`, which moves nothing affinely there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from curator.draws import Lots
from curator.errors import InputError, suggestion
from curator.noise import blurs, digital, noises, weather
from curator.noise.noises import Pixels

SEVERITIES = (1, 2, 3, 4, 5)
_LARGE_FROM = 100  # pixels
_AT_ONCE = 400_000  # values; what fits a core's cache
_WORK: dict[str, Callable[..., npt.NDArray[Any]]] = {
    function.__name__: function
    for function in (
        noises.gaussian_noise, noises.shot_noise, noises.impulse_noise,
        blurs.defocus_blur, blurs.glass_blur, blurs.motion_blur, blurs.zoom_blur,
        weather.snow, weather.frost, weather.fog, weather.brightness,
        digital.contrast, digital.elastic_transform, digital.pixelate, digital.jpeg_compression,
    )
}  # fmt: skip
KINDS = tuple(_WORK)

# The parameters of each kind for the five severities, as the functions take them.
_LARGE: dict[str, tuple[tuple[float, ...], ...]] = {
    "gaussian_noise": ((0.08,), (0.12,), (0.18,), (0.26,), (0.38,)),
    "shot_noise": ((60,), (25,), (12,), (5,), (3,)),
    "impulse_noise": ((0.03,), (0.06,), (0.09,), (0.17,), (0.27,)),
    "defocus_blur": ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
    "glass_blur": ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
    "motion_blur": ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
    "zoom_blur": ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)),
    "snow": (
        (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
        (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
        (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
        (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
        (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
    ),
    "frost": ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)),
    "fog": ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)),
    "brightness": ((0.1,), (0.2,), (0.3,), (0.4,), (0.5,)),
    "contrast": ((0.4,), (0.3,), (0.2,), (0.1,), (0.05,)),
    "elastic_transform": (
        (488, 170.8, 24.4),
        (488, 19.52, 48.8),
        (12.2, 2.44, 4.88),
        (17.08, 2.44, 4.88),
        (29.28, 2.44, 4.88),
    ),
    "pixelate": ((0.6,), (0.5,), (0.4,), (0.3,), (0.25,)),
    "jpeg_compression": ((25,), (18,), (15,), (10,), (7,)),
}
_SMALL: dict[str, tuple[tuple[float, ...], ...]] = {
    "gaussian_noise": ((0.04,), (0.06,), (0.08,), (0.09,), (0.10,)),
    "shot_noise": ((500,), (250,), (100,), (75,), (50,)),
    "impulse_noise": ((0.01,), (0.02,), (0.03,), (0.05,), (0.07,)),
    "defocus_blur": ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
    "glass_blur": ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
    "motion_blur": ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
    "zoom_blur": ((1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01)),
    "snow": (
        (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
        (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
        (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
        (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
        (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
    ),
    # the last one: the photographs are shrunk to a fifth
    "frost": ((1, 0.2, 0.2), (1, 0.3, 0.2), (0.9, 0.4, 0.2), (0.85, 0.4, 0.2), (0.75, 0.45, 0.2)),
    "fog": ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
    "brightness": ((0.05,), (0.1,), (0.15,), (0.2,), (0.3,)),
    "contrast": ((0.75,), (0.5,), (0.4,), (0.3,), (0.15,)),
    # for 32 pixels
    "elastic_transform": ((0, 0, 2.56), (1.6, 6.4, 2.24), (2.56, 1.92, 1.92), (3.2, 1.28, 1.6), (3.2, 0.96, 0.96)),
    "pixelate": ((0.95,), (0.9,), (0.85,), (0.75,), (0.65,)),
    "jpeg_compression": ((80,), (65,), (58,), (50,), (40,)),
}


def parameters(size: int) -> str:
    """Whose parameters pictures of that side in pixels are corrupted with: "ImageNet-C" or "CIFAR-10-C"."""
    return "ImageNet-C" if size >= _LARGE_FROM else "CIFAR-10-C"


def corrupt(pixels: Pixels, ids: npt.NDArray[np.int64], kind: str, severity: int, seed: int = 0) -> Pixels:
    """Corrupts pictures; what becomes of one depends on itself, its id, the kind, the severity and the seed alone.

    Args:
        pixels: uint8 [N, S, S, 3] RGB.
        ids: [N] numbers of the images.
        kind: One of KINDS.
        severity: One of SEVERITIES.
        seed: Seed.

    Returns:
        uint8 [N, S, S, 3].

    Raises:
        InputError: There is no such kind or severity.
    """
    if kind not in _WORK:
        raise InputError(f"the corruption '{kind}' is unknown{suggestion(kind, KINDS)}", ", ".join(KINDS))
    if severity not in SEVERITIES:
        raise InputError(f"there is no severity {severity}", "1 to 5")
    size = pixels.shape[1]
    given = (_LARGE if parameters(size) == "ImageNet-C" else _SMALL)[kind][severity - 1]
    if kind == "elastic_transform" and size < _LARGE_FROM:
        given = tuple(value * size / 32 for value in given)
    found = np.empty_like(pixels)
    few = max(1, _AT_ONCE // pixels[0].size) if len(pixels) else 1
    for start in range(0, len(pixels), few):
        part = slice(start, start + few)
        lots = Lots(seed, ("corruption", kind, severity), ids[part])
        found[part] = np.clip(_WORK[kind](pixels[part], lots, *given), 0, 255)
    return found
