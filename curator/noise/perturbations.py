"""Short films of pictures that change a little from frame to frame, in the manner of ImageNet-P: 10 kinds.

    pixels uint8 [N, S, S, 3], image ids, kind, seed --frames--> uint8 [F, N, S, S, 3] --network--> classes [F, N]
        --flips--> share of the frames whose class is another one

Source: Hendrycks and Dietterich, ICLR 2019, with the step sizes of the two programs released with it: those of
ImageNet-P from 100 pixels on, those of CIFAR-10-P below. Two things differ from ImageNet-P: its films are cut from
larger pictures, where here what comes in from outside is black (as in CIFAR-10-P), and they are compressed as video.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from curator.draws import Lots
from curator.noise import noises
from curator.noise.blurs import enlarged, moved
from curator.noise.corruptions import parameters
from curator.noise.noises import Floats, Pixels
from curator.noise.weather import brightened

FRAMES = 31


class _Steps(NamedTuple):
    """What the frames differ by; angles in degrees, moves in pixels."""

    deviation: float  # of Gaussian noise
    photons: float  # of white, in shot noise
    blur: tuple[int, float, int, int, int]  # radius, sigma, frames, angle of the first frame, of a step
    flakes: tuple[float, int, float]  # size, radius, sigma
    light: float
    moves: int  # frames of `translate`
    tilt: float
    scale: tuple[float, float]  # of the first frame, of a step


_LARGE = _Steps(0.03, 300, (10, 3, 31, -120, 4), (3, 14, 4), 0.02, 41, 1.0, (0.40, 0.025))
_SMALL = _Steps(0.02, 700, (6, 1.8, 21, -180, 9), (2, 10, 2), 0.015, 16, 0.75, (0.70, 0.02))


def frames(pixels: Pixels, ids: npt.NDArray[np.int64], kind: str, seed: int = 0) -> Pixels:
    """The film of each picture; what becomes of one depends on itself, its id, the kind and the seed alone.

    Args:
        pixels: uint8 [N, S, S, 3] RGB.
        ids: [N] numbers of the images.
        kind: One of KINDS.
        seed: Seed.

    Returns:
        uint8 [F, N, S, S, 3], 16 to 41 frames.
    """
    steps = _LARGE if parameters(pixels.shape[1]) == "ImageNet-C" else _SMALL
    made = _WORK[kind](pixels, Lots(seed, ("perturbation", kind), ids), steps)
    return np.stack([np.clip(frame, 0, 255).astype(np.uint8) for frame in made])


def flips(classes: npt.NDArray[np.int64], kind: str) -> npt.NDArray[np.float64]:
    """The flip probability of each picture [N]: how many frames have another class than the one before.

    Frames of noise do not follow from one another: theirs are compared with the clean picture, the first frame.

    Args:
        classes: [F, N] the network's classes.
        kind: One of KINDS.
    """
    before = classes[:1] if kind in _NOISES else classes[:-1]
    found: npt.NDArray[np.float64] = (classes[1:] != before).mean(axis=0)
    return found


def _gaussian(pixels: Pixels, lots: Lots, steps: _Steps) -> list[Any]:
    parts = (lots._replace(purpose=(*lots.purpose, i)) for i in range(1, FRAMES))
    return [pixels, *(noises.gaussian_noise(pixels, part, steps.deviation) for part in parts)]


def _shot(pixels: Pixels, lots: Lots, steps: _Steps) -> list[Any]:
    parts = (lots._replace(purpose=(*lots.purpose, i)) for i in range(1, FRAMES))
    return [pixels, *(noises.shot_noise(pixels, part, steps.photons) for part in parts)]


def _motion(pixels: Pixels, lots: Lots, steps: _Steps) -> list[Any]:
    radius, sigma, count, first, step = steps.blur
    return _each(pixels, lambda picture, i: moved(picture, radius, sigma, first + step * i), count)


def _zoom(pixels: Pixels, lots: Lots, steps: _Steps) -> list[Any]:
    middle = (pixels.shape[1] - 1) / 2
    zoomed = _warped(pixels, lambda i: cv2.getRotationMatrix2D((middle, middle), 0, 1 + 0.004 * i))
    total, found = np.zeros(pixels.shape, np.float32), []
    for count, frame in enumerate(zoomed, 1):
        total += frame
        found.append(total / np.float32(count))
    return found


def _snow(pixels: Pixels, lots: Lots, steps: _Steps) -> list[Any]:
    size, radius, sigma = steps.flakes
    count, side = pixels.shape[:2]
    layer = enlarged(lots.normals(side * side).reshape(count, side, side) * np.float32(0.3) + np.float32(0.05), size)
    layer = np.where(layer < 0.5, 0, np.clip(layer, 0, 1)).astype(np.float32)
    picture = pixels.astype(np.float32)
    grey = picture @ np.array([0.299, 0.587, 0.114], np.float32)
    white = 0.85 * picture + 0.15 * np.maximum(picture, grey[..., None] * 1.5 + 127.5)
    found = []
    for i in range(FRAMES):
        fallen = np.stack([moved(flakes, radius, sigma, 4 * i - 150) for flakes in layer]) * 255
        found.append(white + (fallen + fallen[:, ::-1, ::-1])[..., None])
    return found


def _brightness(pixels: Pixels, lots: Lots, steps: _Steps) -> list[Any]:
    picture = pixels.astype(np.float32)
    return [brightened(picture, (i - FRAMES // 2) * steps.light) for i in range(FRAMES)]


def _translate(pixels: Pixels, lots: Lots, steps: _Steps) -> list[Any]:
    first, side = -((steps.moves - 1) // 2), pixels.shape[1]
    found = []
    for shift in range(first, first + steps.moves):
        frame = np.zeros_like(pixels)
        right, left = min(side, max(0, shift)), min(side, max(0, -shift))
        frame[:, :, right : side - left] = pixels[:, :, left : side - right]
        found.append(frame)
    return found


def _rotate(pixels: Pixels, lots: Lots, steps: _Steps) -> list[Any]:
    middle = (pixels.shape[1] - 1) / 2
    return _warped(pixels, lambda i: cv2.getRotationMatrix2D((middle, middle), FRAMES // 2 - i, 1.0))


def _tilt(pixels: Pixels, lots: Lots, steps: _Steps) -> list[Any]:
    """The picture as a plane in space, turned about both its axes and seen from a distance of its diagonal."""
    side = pixels.shape[1]
    away, half = side * 2**0.5, side / 2

    def turned(i: int) -> npt.NDArray[np.float64]:
        angle = np.deg2rad(steps.tilt * (i - FRAMES // 2))
        cos, sin = np.cos(angle), np.sin(angle)
        place = np.array([[1, 0, -half], [0, 1, -half], [0, 0, 0]])  # x, y and depth of a pixel
        about_y = np.array([[cos, 0, -sin], [0, 1, 0], [sin, 0, cos]])
        about_x = np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]])
        space = about_x @ about_y @ place
        space[2] += (0, 0, away)
        found: npt.NDArray[np.float64] = np.array([[away, 0, half], [0, away, half], [0, 0, 1]]) @ space
        return found

    return _warped(pixels, turned)


def _scale(pixels: Pixels, lots: Lots, steps: _Steps) -> list[Any]:
    middle = (pixels.shape[1] - 1) / 2
    first, step = steps.scale
    return _warped(pixels, lambda i: cv2.getRotationMatrix2D((middle, middle), 0, first + step * i))


def _warped(pixels: Pixels, matrix: Callable[[int], Any]) -> list[Any]:
    """Frames under affine maps [2, 3] or projective ones [3, 3], black beyond the picture."""
    matrices = [matrix(i) for i in range(FRAMES)]
    warp = cv2.warpAffine if len(matrices[0]) == 2 else cv2.warpPerspective
    size = pixels.shape[1:3]
    return _each(pixels, lambda picture, i: warp(picture, matrices[i], size))


def _each(pixels: Pixels, change: Callable[[Floats, int], Any], count: int = FRAMES) -> list[Any]:
    pictures = pixels.astype(np.float32)
    return [np.stack([change(picture, i) for picture in pictures]) for i in range(count)]


_WORK: dict[str, Callable[[Pixels, Lots, _Steps], list[Any]]] = {
    "gaussian_noise": _gaussian,
    "shot_noise": _shot,
    "motion_blur": _motion,
    "zoom_blur": _zoom,
    "snow": _snow,
    "brightness": _brightness,
    "translate": _translate,
    "rotate": _rotate,
    "tilt": _tilt,
    "scale": _scale,
}
_NOISES = ("gaussian_noise", "shot_noise")
KINDS = tuple(_WORK)
