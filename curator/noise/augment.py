"""Random crops, flips, RandAugment and cutout on uint8 pictures, and the crop used for evaluation.

    size of a picture --crop_box--> box, the pixels in it --distort--> out        training; `augment` is both
    picture --center_crop--> out                                                  evaluation

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
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from curator.noise import randaugment
from curator.noise.randaugment import Colour, Pixels

Draws = Sequence[float] | npt.NDArray[np.float64]

DRAWS = 37
_TRIES = 10
_LEFT, _TOP, _FLIP, _OPERATION, _CUTOUT = 20, 21, 22, 23, 35
_MAX_OPERATIONS = 4
_APPLY = 0.5

# Names of the RandAugment operations.
OPERATIONS = tuple(randaugment.OPERATIONS)


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
        unknown = [name for name in self.operations if name not in OPERATIONS]
        # Written so that NaN fails.
        for field, legal, rule in (
            ("size", self.size >= 1, "at least 1"),
            ("scale", 0 < self.scale[0] <= self.scale[1] <= 1, "0 < low <= high <= 1"),
            ("ratio", 0 < self.ratio[0] <= self.ratio[1] < math.inf, "0 < low <= high"),
            ("flip", 0 <= self.flip <= 1, "0 to 1"),
            ("randaugment_ops", 0 <= self.randaugment_ops <= _MAX_OPERATIONS, f"0 to {_MAX_OPERATIONS}"),
            ("magnitude", 0 <= self.magnitude <= 30, "0 to 30"),
            ("operations", self.operations and not unknown, "one or more of " + ", ".join(OPERATIONS)),
            ("cutout", 0 <= self.cutout <= 1, "0 to 1"),
            ("fill", len(self.fill) == 3 and all(0 <= v <= 255 for v in self.fill), "three of 0 to 255"),
        ):
            if not legal:
                raise ValueError(f"{field} is {getattr(self, field)!r}, must be {rule}")


class CentreCrop(NamedTuple):
    """No noise: what `center_crop` makes of a picture.

    Attributes:
        size: Side of the square output in pixels.
        share: Share of the short side that is kept, above 0 and at most 1.
    """

    size: int
    share: float


def augment(image: Pixels, how: Augmentation, draws: Draws, out: Pixels) -> None:
    """Crops, resizes, flips and distorts one picture at random, in this order: `crop_box`, then `distort`.

    The crop is cut out and then resized, as torchvision does it: pixels beside the crop have no influence.

    Args:
        image: uint8 [height, width, 3] RGB, any size from 1 x 1; not changed.
        how: What to do.
        draws: DRAWS numbers in [0, 1); see the module's table. A list, such as a row of `uniforms.tolist()`, is
            read faster than an array and gives the same result.
        out: uint8 [how.size, how.size, 3], C-contiguous; receives the result.

    Raises:
        ValueError: If `out` has another shape.
    """
    left, top, width, height = crop_box(image.shape[1], image.shape[0], how, draws)
    distort(image[top : top + height, left : left + width], how, draws, out)


def crop_box(width: int, height: int, how: Augmentation, draws: Draws) -> tuple[int, int, int, int]:
    """The random crop of a picture, before a pixel of it is known; torchvision's `RandomResizedCrop.get_params`.

    Args:
        width: Columns of the picture, at least 1.
        height: Rows of the picture, at least 1.
        how: What to do; `scale` and `ratio` are read.
        draws: As for `augment`; numbers 0 to 21 are read.

    Returns:
        Left, top, width and height in pixels; inside the picture and at least 1 x 1.
    """
    low, high = how.scale
    log_low, log_high = math.log(how.ratio[0]), math.log(how.ratio[1])
    for attempt in range(_TRIES):
        area = width * height * (low + (high - low) * draws[attempt])
        aspect = math.exp(log_low + (log_high - log_low) * draws[_TRIES + attempt])
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(draws[_LEFT] * (width - w + 1)), int(draws[_TOP] * (height - h + 1)), w, h
    # The largest central box with a permitted ratio; at least one pixel, which rounding does not promise.
    w, h = width, height
    if width / height < how.ratio[0]:
        h = max(1, round(width / how.ratio[0]))
    elif width / height > how.ratio[1]:
        w = max(1, round(height * how.ratio[1]))
    return (width - w) // 2, (height - h) // 2, w, h


def distort(crop: Pixels, how: Augmentation, draws: Draws, out: Pixels) -> None:
    """Resizes a crop to the output, flips it, and applies RandAugment and cutout.

    Args:
        crop: uint8 [h, w, 3] RGB, the pixels of `crop_box`, may be a view; not changed.
        how: What to do.
        draws: The same numbers that `crop_box` was given; those from 22 on are read.
        out: uint8 [how.size, how.size, 3], C-contiguous; receives the result.

    Raises:
        ValueError: If `out` has another shape.
    """
    size = how.size
    if out.shape != (size, size, 3):
        raise ValueError(f"out has shape {out.shape}, must be ({size}, {size}, 3)")
    picture = crop if crop.shape == out.shape else resize(crop, size, size)
    if draws[_FLIP] < how.flip:
        cv2.flip(picture, 1, dst=out)
        picture = out
    level = how.magnitude / 10.0
    for at in range(_OPERATION, _OPERATION + 3 * how.randaugment_ops, 3):
        if draws[at + 1] < _APPLY:
            name = how.operations[int(draws[at] * len(how.operations))]
            picture = randaugment.OPERATIONS[name](picture, -level if draws[at + 2] >= 0.5 else level, how.fill)
    if picture is not out:
        np.copyto(out, picture)
    if how.cutout:
        side = round(how.cutout * size)
        x, y = int(draws[_CUTOUT] * size) - side // 2, int(draws[_CUTOUT + 1] * size) - side // 2
        out[max(y, 0) : max(y + side, 0), max(x, 0) : max(x + side, 0)] = how.fill


def single_threaded() -> None:
    """Keeps OpenCV and torch from opening threads of their own below the calling thread, which is one of many."""
    cv2.setNumThreads(1)
    torch = _torch()
    if torch is not None:
        torch.set_num_threads(1)


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

    Measured on one core, in microseconds: 28 x 28 to 32 x 32 takes 4 with OpenCV, 14 with torch and 27 with
    Pillow, and OpenCV is 54 dB from Pillow, since enlarging needs no antialiasing. 300 x 250 to 224 x 224
    takes 126 with torch (74 dB) and 663 with Pillow; OpenCV's linear filter (83) is not antialiased (36 dB),
    and its area filter (570) is another one (43 dB). So enlarging goes to OpenCV and the rest to torch, or to
    Pillow without torch. No value differs from Pillow's by more than 1 (benchmarks/results/fidelity.md).

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
    # By these strides torch takes the picture as "channels last" and returns one. Where the batch axis is put in
    # after the transposition, or has stride 0, it converts both ways, at twice the cost of the resize.
    planes = torch.from_numpy(image.reshape(1, *image.shape).transpose(0, 3, 1, 2))
    resized = torch.nn.functional.interpolate(planes, size=(height, width), mode="bilinear", antialias=True)
    result: Pixels = np.ascontiguousarray(resized.numpy()[0].transpose(1, 2, 0))  # a view, and no copy
    return result


@cache
def _torch() -> Any:
    # Imported at the first shrinking: it takes seconds, and torch comes with the `train` extra only.
    try:
        import torch
    except ImportError:
        return None
    return torch
