"""Corruptions by weather: snow, frost, fog and brightness.

    pixels uint8 [N, S, S, 3], lots of N pictures, parameters -> float32 [N, S, S, 3], before cutting to 0..255

Formulas and parameters: Hendrycks and Dietterich, ICLR 2019, and the program released with it. That program lays
photographs of frozen panes over the picture, which are not ours to hand on: `panes` draws five instead, with the colour
and the contrast of those five, and ridges for the edges of crystals.
"""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np
import numpy.typing as npt

from curator import draws
from curator.draws import Lots
from curator.noise.blurs import enlarged, moved
from curator.noise.noises import Changed, Floats, Pixels

_PANE = 512  # pixels
# Mean red, green, blue and standard deviation of the brightness of the photographs that the program draws from.
_LOOKS = (
    ((78, 149, 166), 18.0),
    ((201, 205, 214), 22.0),
    ((201, 205, 214), 22.0),
    ((138, 153, 165), 29.0),
    ((112, 123, 135), 43.0),
)


def snow(
    pixels: Pixels,
    lots: Lots,
    density: float,
    spread: float,
    size: float,
    least: float,
    radius: int,
    sigma: float,
    keep: float,
) -> Changed:
    """Whitens the picture and lays flakes over it, twice, the second time turned by 180 degrees.

    The flakes are normal numbers of mean `density` and deviation `spread`, enlarged by `size`, cut below `least` and
    blurred as by motion at an angle of -135 to -45 degrees; the picture keeps a share `keep` of its colours.
    """
    count, side = pixels.shape[:2]
    layer = lots.normals(side * side, "flakes").reshape(count, side, side) * np.float32(spread) + np.float32(density)
    layer = enlarged(layer, size)
    layer = np.where(layer < least, 0, np.clip(layer, 0, 1)).astype(np.float32)
    angles = lots.between(-135, -45, "angle")
    fallen = np.stack([moved(flakes, radius, sigma, a) for flakes, a in zip(layer, angles, strict=True)])
    fallen = np.rint(fallen * 255)
    picture = pixels.astype(np.float32)
    grey = picture @ np.array([0.299, 0.587, 0.114], np.float32)
    white = np.maximum(picture, grey[..., None] * 1.5 + 127.5)
    found: Changed = keep * picture + (1 - keep) * white + (fallen + fallen[:, ::-1, ::-1])[..., None]
    return found


def frost(pixels: Pixels, lots: Lots, keep: float, strength: float, scale: float = 1.0) -> Changed:
    """Adds `strength` of a random part of a random pane, drawn at `scale` of its size, to `keep` of the picture."""
    side = pixels.shape[1]
    drawn = lots.uniforms(3)
    found = pixels.astype(np.float32)
    found *= np.float32(keep)
    made = panes(scale, side)
    for picture, (which, down, right) in zip(found, drawn.tolist(), strict=True):
        pane = made[int(which * len(made))]
        top, left = int(down * (len(pane) - side)), int(right * (len(pane) - side))
        picture += strength * pane[top : top + side, left : left + side]
    return found


@lru_cache(maxsize=2)
def panes(scale: float, side: int) -> list[Floats]:
    """Five frozen panes [M, M, 3], M more than `side`."""
    made = []
    for number, (colour, deviation) in enumerate(_LOOKS):
        bright = _crystals(number)
        bright = (bright - bright.mean()) * (deviation / bright.std())
        pane = bright[..., None] + np.array(colour, np.float32)
        longer = max(round(_PANE * scale), int(np.ceil(1.1 * side)))
        made.append(np.clip(cv2.resize(pane, (longer, longer), interpolation=cv2.INTER_CUBIC), 0, 255))
    return made


def _crystals(number: int) -> Floats:
    """Ridges along which smooth noise changes its sign, bent by other noise, on seven scales."""
    key = draws.key(0, "frost", number)
    y, x = np.mgrid[:_PANE, :_PANE].astype(np.float32)
    bend = [24 * _smooth_noise(key, 100 + axis, 8) for axis in (0, 1)]
    total = np.zeros((_PANE, _PANE), np.float32)
    for octave in range(7):
        noise = _smooth_noise(key, octave, 4 << octave)
        ridges = np.exp(
            -3 * np.abs(cv2.remap(noise, x + bend[0], y + bend[1], cv2.INTER_LINEAR, None, cv2.BORDER_REFLECT))
        )
        total += (ridges - ridges.mean()) * np.float32(0.95**octave)
    return total


def _smooth_noise(key: np.uint64, position: int, cells: int) -> Floats:
    grid = draws.normals(key, [position], cells * cells).reshape(cells, cells)
    noise = cv2.resize(grid, (_PANE, _PANE), interpolation=cv2.INTER_CUBIC)
    return np.asarray(noise, np.float32)


def fog(pixels: Pixels, lots: Lots, strength: float, decay: float) -> Changed:
    """Adds `strength` of a plasma fractal to each picture and scales the sum back to its brightest value."""
    side = pixels.shape[1]
    picture = pixels.astype(np.float32)
    brightest = picture.max(axis=(1, 2, 3), keepdims=True)
    clouds = plasma(lots, 1 << max(1, (side - 1).bit_length()), decay)[:, :side, :side, None]
    more = np.float32(255 * strength)
    found: Changed = (picture + more * clouds) * (brightest / (brightest + more))
    return found


def plasma(lots: Lots, side: int, decay: float) -> Floats:
    """Fractals [N, side, side] in 0..1 by the diamond-square rule on a torus.

    Each new point is the mean of its four neighbours and a uniform number; the range of these shrinks by the square of
    `decay` from one scale to the next.

    Args:
        lots: Of N pictures.
        side: A power of two.
        decay: Above 1.
    """
    count = len(lots.positions)
    heights = np.zeros((count, side, side))
    step, reach = side, 100.0**2
    while step >= 2:
        half, cells = step // 2, side // step
        drawn = lots.uniforms(3 * cells * cells, step).reshape(count, 3, cells, cells) * (2 * reach) - reach
        corners = heights[:, ::step, ::step]
        pairs = corners + np.roll(corners, -1, 1)
        middles = (pairs + np.roll(pairs, -1, 2)) / 4 + drawn[:, 0]
        heights[:, half::step, half::step] = middles
        across = corners + np.roll(corners, -1, 2)  # left and right of a point between two corners
        heights[:, ::step, half::step] = (across + middles + np.roll(middles, 1, 1)) / 4 + drawn[:, 1]
        heights[:, half::step, ::step] = (pairs + middles + np.roll(middles, 1, 2)) / 4 + drawn[:, 2]
        step, reach = half, reach / decay**2
    heights -= heights.min(axis=(1, 2), keepdims=True)
    heights /= heights.max(axis=(1, 2), keepdims=True)
    return heights.astype(np.float32)


def brightness(pixels: Pixels, lots: Lots, more: float) -> Changed:
    """Raises the value of hue, saturation and value by `more`, of a range of 1.

    Hue and saturation stay where all three channels are multiplied alike; black becomes grey.
    """
    return brightened(pixels.astype(np.float32), more)


def brightened(pictures: npt.NDArray[np.float32], more: float) -> npt.NDArray[np.float32]:
    """The rule of `brightness` for pictures [..., 3]; `more` may be below 0."""
    value = pictures.max(axis=-1, keepdims=True)
    wanted = np.clip(value + np.float32(255 * more), 0, 255)
    scaled = pictures * (wanted / np.maximum(value, 1))
    found: npt.NDArray[np.float32] = np.where(value > 0, scaled, wanted)
    return found
