"""Corruptions that blur: defocus, glass, motion and zoom.

    pixels uint8 [N, S, S, 3], lots of N pictures, parameters -> float32 [N, S, S, 3], before cutting to 0..255

Formulas and parameters: Hendrycks and Dietterich, ICLR 2019, and the program released with it. That program leaves the
motion blur to ImageMagick; here its rule is followed, a one-sided Gaussian along a line of whole pixels.
"""

from __future__ import annotations

import math

import cv2
import numpy as np
import numpy.typing as npt

from curator.draws import Lots
from curator.noise.noises import Changed, Floats, Pixels


def defocus_blur(pixels: Pixels, lots: Lots, radius: float, soften: float) -> Changed:
    """Folds with a disc of `radius` pixels, whose edge a Gaussian of sigma `soften` smooths."""
    kernel = disc(radius, soften)
    return np.stack([cv2.filter2D(picture, -1, kernel) for picture in pixels.astype(np.float32)])


def glass_blur(pixels: Pixels, lots: Lots, sigma: float, reach: int, times: int) -> Changed:
    """Blurs, lets each pixel take the colour of a random one at most `reach` away, `times` over, and blurs again.

    The published program means to swap the two pixels, but its swap of two views of one array only copies; what it
    made, and models are compared on, is what is done here: from the last row and column to the first, each pixel takes
    the colour that its random neighbour has by then.
    """
    count, side = pixels.shape[:2]
    first = np.stack([smooth(picture, sigma) for picture in pixels.astype(np.float32)])
    found = first.astype(np.uint8).reshape(count, side * side, 3)
    rows = np.arange(count)[:, None]
    for time in range(times):
        found = found[rows, _sources(lots.uniforms(2 * side * side, time), side, reach)]
    again = found.reshape(pixels.shape).astype(np.float32)
    return np.stack([smooth(picture, sigma) for picture in again])


def _sources(drawn: npt.NDArray[np.float64], side: int, reach: int) -> npt.NDArray[np.int32]:
    """Which pixel's colour each pixel [N, side * side] ends with.

    A pixel points to its neighbour. Where that one came earlier in the order, its own source counts instead: pointers
    are followed by doubling, for all pixels at once.
    """
    count = len(drawn)
    y, x = np.divmod(np.arange(side * side, dtype=np.int32), side)
    steps = (drawn.reshape(count, 2, -1) * (2 * reach)).astype(np.int32) - reach
    inside = (y > reach) & (y <= side - reach) & (x > reach) & (x <= side - reach)
    here = np.arange(side * side, dtype=np.int32)
    found = np.where(inside, here + steps[:, 0] * side + steps[:, 1], here)
    final = ~inside[found] | (found <= here)
    rows = np.arange(count)[:, None]
    while not final.all():
        ahead, known = found[rows, found], final[rows, found]
        found, final = np.where(final, found, ahead), final | known
    return found


def motion_blur(pixels: Pixels, lots: Lots, radius: int, sigma: float) -> Changed:
    """Blurs along a line at an angle of -45 to 45 degrees, at random."""
    angles = lots.between(-45, 45)
    return np.stack(
        [moved(picture, radius, sigma, a) for picture, a in zip(pixels.astype(np.float32), angles, strict=True)]
    )


def zoom_blur(pixels: Pixels, lots: Lots, end: float, step: float) -> Changed:
    """Mean of the picture and its enlargements by 1, 1 + `step` and so on, below `end`."""
    picture = pixels.astype(np.float32)
    factors = np.arange(1, end, step)
    total = picture.copy()
    for factor in factors.tolist():
        total += enlarged(picture, factor)
    return total / (len(factors) + 1)


def disc(radius: float, soften: float) -> Floats:
    """The kernel of a defocused lens; its sum is 1 but for what softening mirrors at its border."""
    half = 8 if radius <= 8 else math.ceil(radius)
    y, x = np.mgrid[-half : half + 1, -half : half + 1]
    flat = (x * x + y * y <= radius * radius).astype(np.float32)
    flat /= flat.sum()
    kernel = cv2.GaussianBlur(flat, (3, 3) if radius <= 8 else (5, 5), soften)
    used = np.flatnonzero(kernel.any(axis=0))
    edge = min(int(used[0]), 2 * half - int(used[-1]))
    trimmed: Floats = kernel[edge : 2 * half + 1 - edge, edge : 2 * half + 1 - edge]
    return trimmed


def smooth(picture: Floats, sigma: float) -> Floats:
    """A Gaussian blur that reaches 4 sigma, with the border's colour beyond the border."""
    side = 2 * int(4 * sigma + 0.5) + 1
    if side == 1:
        return picture
    blurred = cv2.GaussianBlur(picture, (side, side), sigma, borderType=cv2.BORDER_REPLICATE)
    return np.asarray(blurred, np.float32)


def moved(picture: Floats, radius: int, sigma: float, angle: float) -> Floats:
    """Folds with half a Gaussian of 2 * radius + 1 pixels along a line.

    Args:
        picture: [S, S] or [S, S, channels].
        radius: Pixels.
        sigma: Pixels.
        angle: Degrees from the row's direction towards the bottom.
    """
    width = 2 * radius + 1
    weights = np.exp(-(np.arange(width) ** 2) / (2 * sigma * sigma))
    weights /= weights.sum()
    turn = math.radians(angle)
    down, right = (np.ceil(np.arange(width) * part - 0.5).astype(np.int64) for part in (math.sin(turn), math.cos(turn)))
    top, left = min(0, int(down.min())), min(0, int(right.min()))
    kernel = np.zeros((int(down.max()) - top + 1, int(right.max()) - left + 1), np.float32)
    np.add.at(kernel, (down - top, right - left), weights)
    # The anchor is the pixel itself, which is the line's first one.
    blurred = cv2.filter2D(picture, -1, kernel, anchor=(-left, -top), borderType=cv2.BORDER_REPLICATE)
    return np.asarray(blurred, np.float32)


def enlarged(pictures: Floats, factor: float) -> Floats:
    """The middle of the pictures [N, S, S, ...], enlarged to their own size by linear interpolation.

    As scipy's `zoom` of order 1 does it: the corners of the part that is kept fall on the corners of the result.
    """
    if factor == 1:
        return pictures
    side = pictures.shape[1]
    kept = math.ceil(side / factor)
    made = round(kept * factor)
    places = (np.arange(side) + (made - side) // 2) * ((kept - 1) / (made - 1))
    low = np.minimum(places.astype(np.int64), kept - 2)
    share = (places - low).astype(np.float32)
    low += (side - kept) // 2
    for axis in (1, 2):
        form = [1] * pictures.ndim
        form[axis] = side
        near, far = pictures.take(low, axis), pictures.take(low + 1, axis)
        far -= near
        far *= share.reshape(form)
        pictures = near + far
    return pictures
