"""The test files: JPEGs like ImageNet's, made from real photographs, and small PNGs.

    photographs (packages) --window at a random zoom, flip, resize, noise--> picture --quality for a drawn size--> JPEG

    python benchmarks/loader/pictures.py PACKAGES OUTPUT [COUNT]

Writes OUTPUT/jpeg/cNN/NNNNN.jpg, a folder for each class, and OUTPUT/png28, png32 and png64 of the same form, and
prints what was made as JSON. The same packages give the same files.
"""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import matplotlib
import numpy as np
import sklearn

PACKAGES = ("foolbox==3.3.4", "scikit-image==0.26.0")
DEBIAN = "mate-backgrounds"  # twelve large ones; left out where apt-get is not there
CLASSES = 12
SMALL = (28, 32, 64)
SMALL_COUNT = 4000
_WANTED_BYTES = 117_000  # mean; smooth pictures stay below theirs at any quality, which makes it 110,000
QUALITIES = (30, 40, 50, 60, 66, 72, 77, 81, 84, 87, 89, 91, 93, 95, 97, 98)
_LEAST_WINDOW = 330  # short side of a window in pixels of the photograph: less would be blurred by enlarging
_LEAST_SHARE = 0.5  # of the short side: the largest photographs are soft at full size
_NOISE = 6.0  # grey levels, standard deviation: what a camera adds and shrinking or blurring took away


def main() -> None:
    packages, output = Path(sys.argv[1]), Path(sys.argv[2])
    count = int(sys.argv[3]) if len(sys.argv) > 3 else 2000
    print(json.dumps(make(packages, output, count)))


def download(packages: Path) -> None:
    """Gets the Debian package and unpacks it beside the others; nothing is installed."""
    folder = packages / "debian"
    folder.mkdir(parents=True)
    try:
        subprocess.run(["apt-get", "download", "-qq", DEBIAN], cwd=folder, check=True, capture_output=True)
        for file in folder.glob("*.deb"):
            subprocess.run(["dpkg-deb", "-x", file.name, "."], cwd=folder, check=True)
            file.unlink()
    except (OSError, subprocess.CalledProcessError):
        print(f"without the photographs of the Debian package {DEBIAN}: apt-get does not have it", file=sys.stderr)


def photographs(packages: Path) -> list[Path]:
    """The files, each a different colour photograph."""
    skimage = ("astronaut.png", "chelsea.png", "coffee.png", "motorcycle_left.png", "rocket.jpg")
    found = [
        *sorted((packages / "foolbox" / "data").glob("imagenet_*.jpg")),
        *(packages / "skimage" / "data" / name for name in skimage),
        *sorted((Path(sklearn.__file__).parent / "datasets" / "images").glob("*.jpg")),
        Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg",
        *sorted((packages / "debian").glob("usr/share/backgrounds/mate/nature/*.jpg")),
    ]
    missing = [file.name for file in found if not file.is_file()]
    if missing:
        sys.exit(f"not in {packages}: {', '.join(missing)}")
    return found


def make(packages: Path, output: Path, count: int) -> dict[str, object]:
    """Makes the files, photograph after photograph in turn, and says how many and how large."""
    files = photographs(packages)
    pixels = [cv2.imread(str(file), cv2.IMREAD_COLOR) for file in files]
    for number in range(CLASSES):
        for kind in ("jpeg", *(f"png{size}" for size in SMALL)):
            (output / kind / f"c{number:02d}").mkdir(parents=True, exist_ok=True)
    cv2.setNumThreads(1)
    with ThreadPoolExecutor(2) as pool:
        made = list(pool.map(lambda number: jpeg(pixels, number, output), range(count)))
        for size in SMALL:
            list(pool.map(lambda number, size=size: small(pixels, number, size, output), range(SMALL_COUNT)))
    sizes, qualities, widths, heights = map(np.array, zip(*made, strict=True))
    return {
        "photographs": len(files),
        "pictures": count,
        "mean_kb": round(float(sizes.mean()) / 1000, 1),
        "kb_quartiles": [round(float(q) / 1000) for q in np.quantile(sizes, [0.25, 0.5, 0.75])],
        "quality_quartiles": [int(q) for q in np.quantile(qualities, [0.25, 0.5, 0.75])],
        "mean_width": round(float(widths.mean())),
        "mean_height": round(float(heights.mean())),
        "small": SMALL_COUNT,
    }


def jpeg(pixels: list[np.ndarray], number: int, output: Path) -> tuple[int, int, int, int]:
    """Writes one picture; returns bytes, quality, width and height."""
    rng = np.random.default_rng([1, number])
    short, aspect = int(np.clip(rng.normal(390, 20), 330, 470)), rng.uniform(1.1, 1.5)
    width, height = (round(short * aspect), short) if rng.random() < 0.8 else (short, round(short * aspect))
    picture = window(pixels[number % len(pixels)], width, height, rng)
    noise = rng.standard_normal((height, width, 1), np.float32) * _NOISE
    picture = np.clip(picture + noise + 0.5, 0, 255).astype(np.uint8)
    wanted = _WANTED_BYTES * rng.lognormal(-(0.3**2) / 2, 0.3)
    low, high = 0, len(QUALITIES) - 1
    while low < high:  # the lowest quality that gives so many bytes, or the highest of all
        middle = (low + high) // 2
        low, high = (low, middle) if len(encoded(picture, QUALITIES[middle])) >= wanted else (middle + 1, high)
    data = encoded(picture, QUALITIES[low])
    if low and abs(len(data) - wanted) > abs(len(below := encoded(picture, QUALITIES[low - 1])) - wanted):
        low, data = low - 1, below
    (output / "jpeg" / f"c{number % CLASSES:02d}" / f"{number:05d}.jpg").write_bytes(data)
    return len(data), QUALITIES[low], width, height


def small(pixels: list[np.ndarray], number: int, size: int, output: Path) -> None:
    """Writes one small picture."""
    rng = np.random.default_rng([size, number])
    picture = window(pixels[number % len(pixels)], size, size, rng)
    file = output / f"png{size}" / f"c{number % CLASSES:02d}" / f"{number:05d}.png"
    file.write_bytes(cv2.imencode(".png", picture)[1].tobytes())


def window(photograph: np.ndarray, width: int, height: int, rng: np.random.Generator) -> np.ndarray:
    """A random part of the photograph with this ratio, flipped or not, at this size."""
    tall, wide, _ = photograph.shape
    scale = min(wide / width, tall / height)  # of the largest part
    least = min(1.0, max(_LEAST_SHARE, _LEAST_WINDOW / (scale * min(width, height))))
    scale *= np.exp(rng.uniform(np.log(least), 0))
    w, h = min(wide, round(width * scale)), min(tall, round(height * scale))
    left, top = rng.integers(0, wide - w + 1), rng.integers(0, tall - h + 1)
    part = photograph[top : top + h, left : left + w]
    part = part[:, ::-1] if rng.random() < 0.5 else part
    how = cv2.INTER_AREA if w > width else cv2.INTER_CUBIC
    return cv2.resize(np.ascontiguousarray(part), (width, height), interpolation=how)


def encoded(picture: np.ndarray, quality: int) -> bytes:
    # 4:2:0 and not progressive, which is what OpenCV writes unless told otherwise
    return cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()


if __name__ == "__main__":
    main()
