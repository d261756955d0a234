"""The operations of RandAugment, as timm has them, on uint8 pictures with OpenCV.

    picture, level, fill colour --OPERATIONS[name]--> picture

A level is timm's magnitude / 10 with the drawn sign, which some operations ignore. An operation returns its input
where nothing changes and never writes into it. All are functions of their arguments only and release the GIL
inside OpenCV.

Source: `timm.data.auto_augment`, its operations "increasing" in strength and their ranges, which come from Cubuk et
al., arXiv:1909.13719. tests/test_augment.py and benchmarks/results/fidelity.md compare each with timm on Pillow.
"""

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[Any]  # uint8 [height, width, 3]; OpenCV's stubs do not tell uint8 from float
Colour = tuple[int, int, int]
Operation = Callable[[Pixels, float, Colour], Pixels]

_RAMP = np.arange(256, dtype=np.float32)
_RAMP3 = np.repeat(np.arange(256, dtype=np.float64)[:, None], 3, axis=1)
# Pillow's ImageFilter.SMOOTH.
_SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], dtype=np.float32) / np.float32(13)
# Pillow cuts a blended value off where OpenCV rounds it. Taking away half a grey level first gives Pillow's
# result; a little less than half, so that whole numbers stay whole.
_CUT_OFF = -0.4995


@lru_cache(maxsize=1024)
def _blend_table(degenerate: int, factor: float) -> Pixels:
    """Pillow's `Image.blend` of one grey level and every value: uint8 [256], cut off, not rounded."""
    table: Pixels = np.float32(degenerate) + np.float32(factor) * (_RAMP - np.float32(degenerate))
    return table.clip(0, 255).astype(np.uint8)


@lru_cache(maxsize=64)
def _table(operation: str, level: float) -> Pixels:
    """The uint8 [256] table of a point operation that does not look at the picture."""
    values = np.arange(256)
    if operation == "posterize":
        # timm keeps 4 - int(level * 4) bits, which is 0 from magnitude 10 on: a black picture, and an error
        # in Pillow 13. One bit is kept here.
        values &= 256 - (1 << 8 - max(1, 4 - int(level * 4)))
    elif operation == "solarize":
        values = np.where(values < 256 - min(256, int(level * 256)), values, 255 - values)
    else:  # solarize_add; the sum stops at white and does not wrap round
        values = np.where(values < 128, np.minimum(values + min(128, int(level * 110)), 255), values)
    return values.astype(np.uint8)


def _enhancement(level: float) -> float:
    # 1 is no change; timm keeps the factor at 0.1 or more.
    return max(0.1, 1.0 + level * 0.9)


def _autocontrast(picture: Pixels, level: float, fill: Colour) -> Pixels:
    rows = picture.reshape(picture.shape[0], -1)  # reducing long rows first is many times faster than (0, 1)
    low = rows.min(axis=0).reshape(-1, 3).min(axis=0).astype(np.float64)
    high = rows.max(axis=0).reshape(-1, 3).max(axis=0)
    spread = high - low
    if (spread == 255).all():
        return picture  # most photographs
    scale = np.where(spread > 0, 255.0 / np.maximum(spread, 1.0), 1.0)
    offset = np.where(spread > 0, -low * scale, 0.0)
    table = np.clip(_RAMP3 * scale + offset, 0, 255).astype(np.uint8)
    return cv2.LUT(picture, table[None])


def _equalize(picture: Pixels, level: float, fill: Colour) -> Pixels:
    table = _RAMP3.astype(np.uint8)
    pixels = picture.shape[0] * picture.shape[1]
    for channel in range(3):
        counts = cv2.calcHist([picture], [channel], None, [256], [0, 256]).ravel().astype(np.int64)
        used = counts.nonzero()[0]
        step = (pixels - int(counts[used[-1]])) // 255
        if step:  # 0 when one value has nearly all pixels: Pillow leaves the channel alone
            below = counts.cumsum() - counts
            table[:, channel] = np.minimum((step // 2 + below) // step, 255)
    return cv2.LUT(picture, table[None])


def _color(picture: Pixels, level: float, fill: Colour) -> Pixels:
    factor = _enhancement(level)
    grey = cv2.cvtColor(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    return cv2.addWeighted(picture, factor, grey, 1.0 - factor, _CUT_OFF)


def _contrast(picture: Pixels, level: float, fill: Colour) -> Pixels:
    mean = int(cv2.mean(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY))[0] + 0.5)
    return cv2.LUT(picture, _blend_table(mean, _enhancement(level)))


def _sharpness(picture: Pixels, level: float, fill: Colour) -> Pixels:
    factor = _enhancement(level)
    result = cv2.addWeighted(picture, factor, cv2.filter2D(picture, -1, _SMOOTH), 1.0 - factor, _CUT_OFF)
    # Pillow's filter leaves the outermost pixels as they are.
    for edge in (np.s_[0], np.s_[-1], np.s_[:, 0], np.s_[:, -1]):
        result[edge] = picture[edge]
    return result


def _affine(picture: Pixels, a: float, b: float, c: float, d: float, e: float, f: float, fill: Colour) -> Pixels:
    """Bilinear warp by the matrix that leads from output to input pixel centres.

    Bilinear only; timm picks bilinear or bicubic at random where its interpolation is "random". Pillow cuts
    off what OpenCV rounds, one grey level. Where the picture ends, OpenCV blends into the fill colour over
    one pixel, while Pillow switches to it at once.
    """
    size, flags = (picture.shape[1], picture.shape[0]), cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    # OpenCV warps four channels twice as fast as three, to the same values.
    four = cv2.cvtColor(picture, cv2.COLOR_RGB2RGBA)
    four = cv2.warpAffine(four, np.array(((a, b, c), (d, e, f))), size, flags=flags, borderValue=fill)
    return cv2.cvtColor(four, cv2.COLOR_RGBA2RGB)


def _rotate(picture: Pixels, level: float, fill: Colour) -> Pixels:
    # Counter-clockwise by level * 30 degrees about the centre of the picture.
    cos, sin = math.cos(math.radians(level * 30)), math.sin(math.radians(level * 30))
    x, y = (picture.shape[1] - 1) / 2, (picture.shape[0] - 1) / 2
    return _affine(picture, cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y, fill)


# Pillow counts positions from the corner of the first pixel and OpenCV from its centre, hence level * 0.15.
OPERATIONS: dict[str, Operation] = {
    "autocontrast": _autocontrast,
    "equalize": _equalize,
    "invert": lambda image, level, fill: cv2.bitwise_not(image),
    "rotate": _rotate,
    "posterize": lambda image, level, fill: cv2.LUT(image, _table("posterize", abs(level))),
    "solarize": lambda image, level, fill: cv2.LUT(image, _table("solarize", abs(level))),
    "solarize_add": lambda image, level, fill: cv2.LUT(image, _table("solarize_add", abs(level))),
    "color": _color,
    "contrast": _contrast,
    "brightness": lambda image, level, fill: cv2.LUT(image, _blend_table(0, _enhancement(level))),
    "sharpness": _sharpness,
    "shear_x": lambda image, level, fill: _affine(image, 1, level * 0.3, level * 0.15, 0, 1, 0, fill),
    "shear_y": lambda image, level, fill: _affine(image, 1, 0, 0, level * 0.3, 1, level * 0.15, fill),
    "translate_x": lambda image, level, fill: _affine(image, 1, 0, level * 0.45 * image.shape[1], 0, 1, 0, fill),
    "translate_y": lambda image, level, fill: _affine(image, 1, 0, 0, 0, 1, level * 0.45 * image.shape[0], fill),
}
