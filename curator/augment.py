"""Random crops, flips, RandAugment and cutout on uint8 pictures, and the crop used for evaluation.

Every random choice comes in from the caller as `DRAWS` numbers in [0, 1) per picture, so a batch can be
repeated exactly and no generator is shared between threads. The functions keep no state and release the GIL
inside OpenCV, torch and Pillow. OpenCV may use its own thread pool on large pictures; a caller that runs many
workers sets `cv2.setNumThreads(1)` and `torch.set_num_threads(1)`.

    index     use
    0 to 9    area of crop try 0 to 9
    10 to 19  aspect ratio of crop try 0 to 9
    20, 21    left and top of the crop
    22        horizontal flip
    23 + 3k   RandAugment operation k (0 to 3): which one
    24 + 3k   whether it is applied
    25 + 3k   its sign
    35, 36    centre of the cutout square, x and y

A step that is switched off leaves its numbers unread, so switching it does not change the others.

Sources: torchvision's `RandomResizedCrop` for the crop; `timm.data.auto_augment` for the operations, their
ranges and the probability 0.5 with which a chosen operation is applied (Cubuk et al., arXiv:1909.13719, apply
all of them); DeVries and Taylor, arXiv:1708.04552, for cutout; timm's evaluation transform for `center_crop`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

Pixels = npt.NDArray[Any]  # uint8 [height, width, 3]; OpenCV's stubs do not tell uint8 from float
Colour = tuple[int, int, int]

DRAWS = 37
_TRIES = 10
_LEFT, _TOP, _FLIP, _OPERATION, _CUTOUT = 20, 21, 22, 23, 35
_MAX_OPERATIONS = 4
_APPLY = 0.5

_RAMP = np.arange(256, dtype=np.float32)
_RAMP3 = np.repeat(np.arange(256, dtype=np.float64)[:, None], 3, axis=1)
# Pillow's ImageFilter.SMOOTH.
_SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], dtype=np.float32) / np.float32(13)
# Pillow cuts a blended value off where OpenCV rounds it. Taking away half a grey level first gives Pillow's
# result; a little less than half, so that whole numbers stay whole.
_CUT_OFF = -0.4995

# RandAugment operations. Each takes a picture, timm's level (magnitude / 10 with the drawn sign, which some
# ignore) and the fill colour, and returns a picture; none changes its input.

Operation = Callable[[Pixels, float, Colour], Pixels]


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

    timm picks bilinear or bicubic at random; only bilinear is used here. Where the picture ends, OpenCV
    blends into the fill colour over one pixel, while Pillow switches to it at once.
    """
    size, flags = (picture.shape[1], picture.shape[0]), cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(picture, np.array(((a, b, c), (d, e, f))), size, flags=flags, borderValue=fill)


def _rotate(picture: Pixels, level: float, fill: Colour) -> Pixels:
    # Counter-clockwise by level * 30 degrees about the centre of the picture.
    cos, sin = math.cos(math.radians(level * 30)), math.sin(math.radians(level * 30))
    x, y = (picture.shape[1] - 1) / 2, (picture.shape[0] - 1) / 2
    return _affine(picture, cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y, fill)


# Pillow counts positions from the corner of the first pixel and OpenCV from its centre, hence level * 0.15.
_OPERATIONS: dict[str, Operation] = {
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
OPERATIONS = tuple(_OPERATIONS)


@dataclass(frozen=True, slots=True)
class Augmentation:
    """How `augment` changes a picture; checked when made.

    Attributes:
        size: Side of the square output in pixels, at least 1.
        scale: Smallest and largest share of the picture's area that a crop takes, 0 < low <= high <= 1.
        ratio: Smallest and largest width / height of a crop, 0 < low <= high.
        flip: Probability of a horizontal flip.
        randaugment_ops: RandAugment operations per picture, 0 to 4, picked with replacement. Each is then
            applied with probability 0.5, as timm does.
        magnitude: RandAugment magnitude, 0 to 30. 10 is the full range of the published operations; beyond 10
            the arguments go on as timm's `rand-m<M>-inc1-mmax30` has them (timm stops at 10 without `mmax`).
        operations: Names of the operations to pick from; timm's increasing set.
        cutout: Side of the cutout square as a share of `size`, 0 to 1; 0 is off. Its centre lies anywhere in
            the picture, so part of it may fall outside.
        fill: RGB colour of cutout squares and of places that a geometric operation uncovers.

    Raises:
        ValueError: If a value is outside its range; the message names both.
    """

    size: int
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    randaugment_ops: int = 0
    magnitude: float = 0.0
    operations: tuple[str, ...] = OPERATIONS
    cutout: float = 0.0
    fill: Colour = (128, 128, 128)

    def __post_init__(self) -> None:
        unknown = [name for name in self.operations if name not in _OPERATIONS]
        # Written so that NaN fails.
        for field, legal, rule in (
            ("size", self.size >= 1, "at least 1"),
            ("scale", 0 < self.scale[0] <= self.scale[1] <= 1, "0 < low <= high <= 1"),
            ("ratio", 0 < self.ratio[0] <= self.ratio[1] < math.inf, "0 < low <= high"),
            ("flip", 0 <= self.flip <= 1, "0 to 1"),
            ("randaugment_ops", 0 <= self.randaugment_ops <= _MAX_OPERATIONS, f"0 to {_MAX_OPERATIONS}"),
            ("magnitude", 0 <= self.magnitude <= 30, "0 to 30"),
            ("operations", self.operations and not unknown, "one or more of " + ", ".join(_OPERATIONS)),
            ("cutout", 0 <= self.cutout <= 1, "0 to 1"),
            ("fill", len(self.fill) == 3 and all(0 <= v <= 255 for v in self.fill), "three of 0 to 255"),
        ):
            if not legal:
                raise ValueError(f"{field} is {getattr(self, field)!r}, must be {rule}")


def augment(image: Pixels, how: Augmentation, draws: npt.NDArray[np.float64], out: Pixels) -> None:
    """Crops, resizes, flips and distorts one picture at random, in this order.

    The crop is cut out and then resized, as torchvision does it: pixels beside the crop have no influence.

    Args:
        image: uint8 [height, width, 3] RGB, any size from 1 x 1; not changed.
        how: What to do.
        draws: float64 [DRAWS], each in [0, 1); see the module's table.
        out: uint8 [how.size, how.size, 3]; receives the result.

    Raises:
        ValueError: If `out` has another shape.
    """
    size = how.size
    if out.shape != (size, size, 3):
        raise ValueError(f"out has shape {out.shape}, must be ({size}, {size}, 3)")
    u: list[float] = draws.tolist()  # indexing a list is several times cheaper than indexing an array
    left, top, width, height = _crop_box(image.shape[1], image.shape[0], how, u)
    picture = resize(image[top : top + height, left : left + width], size, size)
    if u[_FLIP] < how.flip:
        picture = cv2.flip(picture, 1)
    level = how.magnitude / 10.0
    for at in range(_OPERATION, _OPERATION + 3 * how.randaugment_ops, 3):
        if u[at + 1] < _APPLY:
            name = how.operations[int(u[at] * len(how.operations))]
            picture = _OPERATIONS[name](picture, -level if u[at + 2] >= 0.5 else level, how.fill)
    np.copyto(out, picture)
    if how.cutout:
        side = round(how.cutout * size)
        x, y = int(u[_CUTOUT] * size) - side // 2, int(u[_CUTOUT + 1] * size) - side // 2
        out[max(y, 0) : max(y + side, 0), max(x, 0) : max(x + side, 0)] = how.fill


def single_threaded() -> None:
    """Keeps OpenCV and torch from opening threads of their own below the calling thread, which is one of many."""
    cv2.setNumThreads(1)
    _torch().set_num_threads(1)


def center_crop(image: Pixels, size: int, crop: float, out: Pixels) -> None:
    """Timm's evaluation transform: short side to floor(size / crop), then the central square.

    Follows torchvision's `Resize` (the long side is cut off to whole pixels) and `CenterCrop` (the offset is
    rounded half to even), which timm uses for square inputs.

    Args:
        image: uint8 [height, width, 3] RGB.
        size: Side of the output in pixels.
        crop: Share of the short side that is kept, above 0 and at most 1 (timm's `crop_pct`).
        out: uint8 [size, size, 3]; receives the result.

    Raises:
        ValueError: If `crop` is outside its range or `out` has another shape.
    """
    if not 0 < crop <= 1:
        raise ValueError(f"crop is {crop!r}, must be above 0 and at most 1")
    if out.shape != (size, size, 3):
        raise ValueError(f"out has shape {out.shape}, must be ({size}, {size}, 3)")
    height, width, _ = image.shape
    short = math.floor(size / crop)
    if width <= height:
        new_width, new_height = short, int(short * height / width)
    else:
        new_width, new_height = int(short * width / height), short
    left, top = round((new_width - size) / 2), round((new_height - size) / 2)
    if new_width * new_height <= 4 * size * size:
        # Resizing everything and throwing the margin away is faster than Pillow's resize of the box alone.
        np.copyto(out, resize(image, new_width, new_height)[top : top + size, left : left + size])
        return
    # A long strip, where the margin could be thousands of times the output. The box makes the same picture.
    x, y = width / new_width, height / new_height
    box = (left * x, top * y, min(width, (left + size) * x), min(height, (top + size) * y))
    strip = Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR, box=box)
    np.copyto(out, np.asarray(strip))


def resize(image: Pixels, width: int, height: int) -> Pixels:
    """Antialiased bilinear resize, as Pillow's `Image.resize((width, height), BILINEAR)`.

    Measured on one core, in microseconds: 28 x 28 to 32 x 32 takes 4.5 with OpenCV, 20 with torch and 26
    with Pillow, and OpenCV is 55 dB from Pillow, since enlarging needs no antialiasing. 480 x 400 to 224 x
    224 takes 240 with torch (76 dB from Pillow) and 1230 with Pillow; OpenCV's linear filter is not
    antialiased (36 dB). So enlarging goes to OpenCV and the rest to torch, or to Pillow without torch.

    Args:
        image: uint8 [h, w, 3], may be a view.
        width: Columns of the result, at least 1.
        height: Rows of the result, at least 1.

    Returns:
        uint8 [height, width, 3], a new array.
    """
    if image.shape[0] <= height and image.shape[1] <= width:
        return cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
    torch = _torch()
    if torch is None:
        return np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
    image = np.ascontiguousarray(image)
    if not image.flags.writeable:
        image = image.copy()  # torch warns when it wraps memory that it must not write
    planes = torch.from_numpy(image).permute(2, 0, 1)[None]  # a view, which torch knows as channels last
    resized = torch.nn.functional.interpolate(planes, size=(height, width), mode="bilinear", antialias=True)
    result: Pixels = np.ascontiguousarray(resized[0].permute(1, 2, 0).numpy())
    return result


@cache
def _torch() -> Any:
    # Imported at the first shrinking: it takes seconds, and torch comes with the `train` extra only.
    try:
        import torch
    except ImportError:
        return None
    return torch


def _crop_box(width: int, height: int, how: Augmentation, u: list[float]) -> tuple[int, int, int, int]:
    """Follows torchvision's `RandomResizedCrop.get_params`; returns left, top, width, height."""
    low, high = how.scale
    log_low, log_high = math.log(how.ratio[0]), math.log(how.ratio[1])
    for attempt in range(_TRIES):
        area = width * height * (low + (high - low) * u[attempt])
        aspect = math.exp(log_low + (log_high - log_low) * u[_TRIES + attempt])
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(u[_LEFT] * (width - w + 1)), int(u[_TOP] * (height - h + 1)), w, h
    # The largest central box with a permitted ratio; at least one pixel, which rounding does not promise.
    w, h = width, height
    if width / height < how.ratio[0]:
        h = max(1, round(width / how.ratio[0]))
    elif width / height > how.ratio[1]:
        w = max(1, round(height * how.ratio[1]))
    return (width - w) // 2, (height - h) // 2, w, h
