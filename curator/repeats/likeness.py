"""Whether two pictures are copies of each other: re-encoded, resized, recoloured, grey, mirrored, or cropped a little.

    two thumbnails --as they lie--> agree? --a few scales and places (template matching), then ECC--> agree there?

Both pictures are shrunk to one grey square. Where one lies on the other, copies agree in their detail: the band of
frequencies between the pixel noise and the large patches of light has a correlation near 1, in which brightness,
contrast and hue play no part. Two pictures of a kind - two skies, two rooms, two ways to write a digit - agree in the
patches and not in the detail. The limits were chosen on one half of the pictures of benchmarks/duplicates, whose other
half benchmarks/results/duplicates.md reports on.

ECC: G. Evangelidis and E. Psarakis, "Parametric Image Alignment Using Enhanced Correlation Coefficient Maximization",
PAMI 2008.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from curator.pictures.decode import decode_small

SIDE = 96
_READ = 4 * SIDE  # pixels of the longer side that a JPEG is decoded at, or more
_SMALL = 32
# Width and height of a part of the small picture that may be all of the other one; ECC finds what lies between them.
_PARTS = ((32, 32), (32, 30), (30, 32), (30, 30), (30, 28), (28, 30), (28, 28), (28, 26), (26, 28), (26, 26))
_FOUND = 0.7  # least correlation of the small pictures to go on; that of crops of the benchmark is above 0.79
_STEPS = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 15, 1e-4)
_FINE, _COARSE = 1.0, 4.0  # standard deviations in pixels of the two blurs whose difference is the detail
_DETAIL, _ALL = 0.95, 0.8  # least correlations: of the detail, of the pictures
# In grey levels: below it, rounding and JPEG are a good part of the detail. Such pictures are copies only as they lie.
_PLAIN = 1.5
_PLAIN_DETAIL, _PLAIN_ALL = 0.5, 0.98
_SCALE, _OVERLAP, _SHEAR = 1.33, 0.55, 0.03
_EDGE = 4  # pixels along the border of the overlap that are left out: blurs look beyond it
_EVERYWHERE = np.ones((SIDE, SIDE), np.uint8)
_AS_IT_LIES = np.array([[1, 0, 0], [0, 1, 0]], np.float64)

Thumbnail = npt.NDArray[np.float32]
# Takes a place in one picture to that in another one, both from 0 to 1: float64 [2, 3].
_Map = npt.NDArray[np.float64]


def thumbnail(data: bytes) -> Thumbnail:
    """A picture as a grey square: float32 [SIDE, SIDE], 0 to 255.

    Args:
        data: The bytes of its file.

    Raises:
        UnreadableImage: As `decode_small`.
    """
    picture: Any = decode_small(data, _READ)
    height, width, _ = picture.shape
    grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY).astype(np.float32)
    less: Any = cv2.resize(grey, (min(width, SIDE), min(height, SIDE)), interpolation=cv2.INTER_AREA)
    whole: Any = cv2.resize(less, (SIDE, SIDE), interpolation=cv2.INTER_LINEAR)
    return np.asarray(whole, np.float32)


def are_copies(one: Thumbnail, other: Thumbnail, mirrored: bool | None = None) -> bool:
    """Whether one picture is a copy of the other, or both are crops of one that share most of it.

    Args:
        one: Thumbnail of the one.
        other: Thumbnail of the other.
        mirrored: Whether one of them would be mirrored, which hashes tell; None to try both.
    """
    for flip in (False, True) if mirrored is None else (mirrored,):
        turned = np.ascontiguousarray(other[:, ::-1]) if flip else other
        if _agree(one, turned, _AS_IT_LIES):
            return True
        small: list[Any] = [cv2.resize(p, (_SMALL, _SMALL), interpolation=cv2.INTER_AREA) for p in (one, turned)]
        start = _start(small[0], small[1])
        if start is None:
            continue
        # the part is laid on the whole, whichever is which: ECC is surer where nothing of what it moves lies outside
        part, whole = turned, one
        if start[0, 0] * start[1, 1] > 1:
            part, whole = one, turned
            start = np.asarray(cv2.invertAffineTransform(start), np.float64)
        place = _align(whole, part, start)
        if place is not None and _is_crop(place) and _agree(whole, part, place):
            return True
    return False


def _align(one: Thumbnail, other: Thumbnail, start: _Map) -> _Map | None:
    """The map from the other picture to the one under which they are most alike; None where it finds none."""
    try:
        _, found = cv2.findTransformECC(other, one, _in_pixels(start), cv2.MOTION_AFFINE, _STEPS, _EVERYWHERE, 5)
    except cv2.error:  # it does not converge
        return None
    place: _Map = found.astype(np.float64)
    place[:, 2] = (place[:, 2] + 0.5 - 0.5 * place[:, :2].sum(axis=1)) / SIDE
    return place


def _start(one: Thumbnail, other: Thumbnail) -> _Map | None:
    """Where a part of one small picture is most like all of the other one, or the other way round."""
    best, start = _FOUND, None
    for width, height in _PARTS:
        for whole, part in ((one, other), (other, one)):
            template = cv2.resize(part, (width, height), interpolation=cv2.INTER_AREA)
            _, alike, _, (left, top) = cv2.minMaxLoc(cv2.matchTemplate(whole, template, cv2.TM_CCOEFF_NORMED))
            if alike > best:
                best = alike
                scale, shift = np.array([width, height]) / _SMALL, np.array([left, top]) / _SMALL
                if whole is other:
                    scale, shift = 1 / scale, -shift / scale
                start = np.column_stack([np.diag(scale), shift])
    return start


def _in_pixels(place: _Map) -> npt.NDArray[np.float32]:
    """The same map for pixels of thumbnails, whose centres are half a pixel from their corners."""
    found = place.astype(np.float32)
    found[:, 2] = SIDE * place[:, 2] + 0.5 * place[:, :2].sum(axis=1) - 0.5
    return found


def _is_crop(place: _Map) -> bool:
    """Whether a map is what cropping and resizing do: no turn, no large change of scale, most of the picture there."""
    (width, lean, left), (fall, height, top) = place
    if max(abs(lean), abs(fall)) > _SHEAR or not 1 / _SCALE < min(width, height) <= max(width, height) < _SCALE:
        return False
    across, down = (min(at + size, 1) - max(at, 0) for at, size in ((left, width), (top, height)))
    return bool(across > 0 < down and across * down / max(1, width * height) > _OVERLAP)


def _agree(one: Thumbnail, other: Thumbnail, place: _Map) -> bool:
    """Whether the pictures agree where they overlap."""
    moved: Any = one
    inside: Any = _EVERYWHERE
    if place is not _AS_IT_LIES:
        how: dict[str, Any] = {"dsize": (SIDE, SIDE), "flags": cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP}
        pixels = _in_pixels(place)
        moved = cv2.warpAffine(one, pixels, borderMode=cv2.BORDER_REPLICATE, **how)
        inside = cv2.warpAffine(inside, pixels, borderMode=cv2.BORDER_CONSTANT, **how)
    inside = cv2.erode(inside, np.ones((2 * _EDGE + 1, 2 * _EDGE + 1), np.uint8), borderValue=0)
    whole, _ = _correlation(moved, other, inside)
    if whole < _ALL:
        return False
    detail, level = _correlation(_detail(moved), _detail(other), inside)
    if detail >= _DETAIL:
        return True
    return place is _AS_IT_LIES and level < _PLAIN and detail >= _PLAIN_DETAIL and whole >= _PLAIN_ALL


def _detail(picture: Thumbnail) -> Thumbnail:
    found: Thumbnail = cv2.GaussianBlur(picture, (0, 0), _FINE) - cv2.GaussianBlur(picture, (0, 0), _COARSE)
    return found


def _correlation(one: Thumbnail, other: Thumbnail, inside: npt.NDArray[np.uint8]) -> tuple[float, float]:
    """The correlation of two pictures inside a mask, and the smaller of their standard deviations."""
    a, b = one[inside > 0], other[inside > 0]
    a, b = a - a.mean(), b - b.mean()
    size = float(a @ a), float(b @ b)
    product = (size[0] * size[1]) ** 0.5
    return (float(a @ b) / product if product else 0.0), (min(size) / max(len(a), 1)) ** 0.5
