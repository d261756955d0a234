"""Digital corruptions: contrast, elastic deformation, pixelation and JPEG compression.

    pixels uint8 [N, S, S, 3], lots of N pictures, parameters -> float32 or uint8 [N, S, S, 3], before cutting to 0..255

Formulas and parameters: Hendrycks and Dietterich, ICLR 2019, and the program released with it.
"""

from __future__ import annotations

import io
from functools import lru_cache

import cv2
import numpy as np
from PIL import Image

from curator.draws import Lots
from curator.noise.noises import Changed, Floats, Pixels


def contrast(pixels: Pixels, lots: Lots, keep: float) -> Changed:
    """Keeps a share of each value's distance from the mean of its channel."""
    picture = pixels.astype(np.float32)
    mean = picture.mean(axis=(1, 2), keepdims=True)
    found: Changed = (picture - mean) * np.float32(keep) + mean
    return found


def elastic_transform(pixels: Pixels, lots: Lots, strength: float, sigma: float, jitter: float) -> Changed:
    """An affine map that moves three points by up to `jitter` pixels each way, then a smooth random displacement.

    The displacements are uniform numbers of -1 to 1, blurred with `sigma`, times `strength`, all in pixels.
    """
    count, side = pixels.shape[:2]
    centre, third = side // 2, side // 3
    points = np.array([[1, 1], [1, -1], [-1, -1]], np.float32) * third + centre
    moves = (lots.uniforms(6, "affine").reshape(count, 3, 2) * 2 - 1) * jitter
    blur = _mirrored_blur(side, sigma)
    drawn = (lots.uniforms(2 * side * side, "shift").astype(np.float32) * 2 - 1).reshape(count, 2, side, side)
    shifts = np.float32(strength) * (blur @ drawn @ blur.T)
    y, x = np.mgrid[:side, :side].astype(np.float32)
    found = np.empty(pixels.shape, np.float32)
    for picture, move, (right, down), out in zip(pixels.astype(np.float32), moves, shifts, found, strict=True):
        affine = cv2.getAffineTransform(points, (points + move).astype(np.float32))
        warped = cv2.warpAffine(picture, affine, (side, side), borderMode=cv2.BORDER_REFLECT_101)
        out[:] = cv2.remap(warped, x + right, y + down, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    return found


@lru_cache(maxsize=8)
def _mirrored_blur(side: int, sigma: float) -> Floats:
    """The matrix [side, side] of a Gaussian blur that reaches 3 sigma, of a row that is mirrored at its ends."""
    reach = int(3 * sigma + 0.5)
    offsets = np.arange(-reach, reach + 1)
    weights = np.exp(-0.5 * (offsets / sigma) ** 2) if reach else np.ones(1)
    places = (np.arange(side)[:, None] + offsets) % (2 * side)
    places = np.where(places < side, places, 2 * side - 1 - places)
    blur = np.zeros((side, side))
    np.add.at(blur, (np.arange(side)[:, None], places), weights / weights.sum())
    return blur.astype(np.float32)


def pixelate(pixels: Pixels, lots: Lots, share: float) -> Changed:
    """Shrinks to a share of the side by the mean of boxes, and enlarges without smoothing."""
    side = pixels.shape[1]
    few = (max(1, int(side * share)),) * 2
    small = (Image.fromarray(picture).resize(few, Image.Resampling.BOX) for picture in pixels)
    return np.stack([np.asarray(each.resize((side, side), Image.Resampling.BOX)) for each in small])


def jpeg_compression(pixels: Pixels, lots: Lots, quality: int) -> Changed:
    """What is left after JPEG of that quality, with colours at half the resolution."""
    found = np.empty_like(pixels)
    for picture, out in zip(pixels, found, strict=True):
        file = io.BytesIO()
        Image.fromarray(picture).save(file, "JPEG", quality=quality)
        out[:] = np.asarray(Image.open(file))
    return found
