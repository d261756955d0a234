"""The test files: distinct pictures made from photographs, and copies of them changed in one way each.

    photographs, cut-outs on photographs, disjoint windows of large photographs --> distinct/NNNN.jpg
        the first of them --re-encoded, halved, cropped, mirrored, recoloured--> copies/KIND/NNNN.jpg

    python benchmarks/duplicates/pictures.py PACKAGES OUTPUT [DISTINCT] [COPIED]

The same packages give the same files. Crops of n % lose n % of the width and of the height, at a drawn place.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import simplejpeg
import sklearn
from PIL import Image

PACKAGES = ("foolbox==3.3.4", "scikit-image==0.26.0")
DEBIAN = ("gcompris-qt-data", "gnome-backgrounds", "mate-backgrounds", "tuxpaint-stamps-default")
# Of GCompris, the resource files with photographs; explore_monuments has those of categorization once more.
_GCOMPRIS = (
    "categorization", "erase", "details", "paintings", "babyshapes", "clickgame", "explore_farm_animals",
    "explore_world_animals", "explore_world_music",
)  # fmt: skip
_DRAWN = ("cartoon", "symbols", "flags", "shapes", "roadsigns", "hanukkah")  # stamps that are no photographs
_LEAST, _SHORT = 180, 360  # short side in pixels: of what is taken, and of what is written
_WINDOWS = 8  # of one photograph, at most

Pixels = np.ndarray


def main() -> None:
    packages, output, *numbers = sys.argv[1:]
    make(Path(packages), Path(output), *map(int, numbers))


def download(packages: Path) -> None:
    """Gets the Debian packages and unpacks them beside the others; nothing is installed."""
    folder = packages / "debian"
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["apt-get", "download", "-qq", *DEBIAN], cwd=folder, check=True, capture_output=True)
    for file in folder.glob("*.deb"):
        subprocess.run(["dpkg-deb", "-x", file.name, "."], cwd=folder, check=True)
        file.unlink()


def photographs(packages: Path) -> Iterator[Pixels]:
    """The pictures as RGBA."""
    share = packages / "debian" / "usr" / "share"
    files = [
        *sorted((packages / "foolbox" / "data").glob("imagenet_*.jpg")),
        *sorted((Path(sklearn.__file__).parent / "datasets" / "images").glob("*.jpg")),
        *(packages / "skimage" / "data" / f"{name}.png" for name in ("astronaut", "chelsea", "coffee")),
        *sorted(share.glob("backgrounds/mate/nature/*.jpg")),
        *sorted(share.glob("backgrounds/gnome/*-l.webp")),
        *(
            file
            for file in sorted((share / "tuxpaint" / "stamps").rglob("*.png"))
            if not any(word in str(file.relative_to(share)) for word in _DRAWN)
        ),
    ]
    for name in _GCOMPRIS:
        for file in sorted(share.rglob(f"{name}.rcc")):
            files += [io.BytesIO(data) for data in inside(file.read_bytes())]
    for file in files:
        with Image.open(file) as image:
            if min(image.size) >= _LEAST:
                yield np.asarray(image.convert("RGBA"))


def inside(resources: bytes) -> Iterator[bytes]:
    """The WebP files of a Qt resource file, which holds them as they are."""
    at = resources.find(b"RIFF")
    while at >= 0:
        length = int.from_bytes(resources[at + 4 : at + 8], "little") + 8
        if resources[at + 8 : at + 12] == b"WEBP" and length > 8000:
            yield resources[at : at + length]
        at = resources.find(b"RIFF", at + 4)


def distinct(packages: Path) -> list[tuple[Pixels, int]]:
    """Pictures RGB of which none is a copy of another one, with the number of their scene; whole photographs first."""
    whole: list[tuple[Pixels, int]] = []
    cut_out: list[tuple[Pixels, int]] = []
    for scene, picture in enumerate(photographs(packages)):
        is_whole = (picture[..., 3] > 128).mean() > 0.97
        (whole if is_whole else cut_out).append((picture, scene))
    rng = np.random.default_rng(0)
    large = [(picture, scene) for picture, scene in whole if min(picture.shape[:2]) >= 2 * _LEAST * 1.5]
    made = [(picture[..., :3], scene) for picture, scene in whole]
    grounds = [large[rng.integers(len(large))][0] for _ in cut_out]
    made += [(on(shortened(cut), ground, rng), scene) for (cut, scene), ground in zip(cut_out, grounds, strict=True)]
    made += [(window, scene) for picture, scene in large for window in windows_of(picture)]
    return [(np.ascontiguousarray(shortened(picture)), scene) for picture, scene in made]


def shortened(picture: Pixels) -> Pixels:
    height, width = picture.shape[:2]
    scale = _SHORT / min(height, width)
    if scale >= 1:
        return picture
    return cv2.resize(picture, (round(width * scale), round(height * scale)), interpolation=cv2.INTER_AREA)


def on(picture: Pixels, ground: Pixels, rng: np.random.Generator) -> Pixels:
    """A cut-out before a part of a photograph."""
    height, width = picture.shape[:2]
    side = int(min(ground.shape[:2]) * rng.uniform(0.3, 0.7))
    top, left = (rng.integers(0, length - side + 1) for length in ground.shape[:2])
    part = cv2.resize(ground[top : top + side, left : left + side, :3], (width, height), interpolation=cv2.INTER_AREA)
    share = picture[..., 3:] / 255
    return (picture[..., :3] * share + part * (1 - share)).astype(np.uint8)


def windows_of(picture: Pixels) -> list[Pixels]:
    """Parts that do not overlap."""
    rows, columns = (max(1, int(length / (_LEAST * 1.5))) for length in picture.shape[:2])
    rows, columns = min(rows, 2), min(columns, 4)
    height, width = picture.shape[0] // rows, picture.shape[1] // columns
    parts = [
        picture[r * height : (r + 1) * height, c * width : (c + 1) * width, :3]
        for r in range(rows)
        for c in range(columns)
    ]
    return parts[:_WINDOWS]


def encoded(picture: Pixels, quality: int = 92) -> bytes:
    return simplejpeg.encode_jpeg(np.ascontiguousarray(picture), quality, colorsubsampling="420")


def cropped(picture: Pixels, share: float, rng: np.random.Generator) -> Pixels:
    height, width = picture.shape[:2]
    lost = round(height * share), round(width * share)
    top, left = rng.integers(0, lost[0] + 1), rng.integers(0, lost[1] + 1)
    return picture[top : top + height - lost[0], left : left + width - lost[1]]


def recoloured(picture: Pixels, rng: np.random.Generator) -> Pixels:
    """Each channel times 0.8 to 1.2, and all brighter or darker by up to 20 levels."""
    changed = picture * rng.uniform(0.8, 1.2, 3) + rng.uniform(-20, 20)
    return np.clip(changed, 0, 255).astype(np.uint8)


def grey(picture: Pixels) -> Pixels:
    return cv2.cvtColor(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)


def halved(picture: Pixels) -> Pixels:
    return cv2.resize(picture, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)


KINDS: dict[str, Callable[[Pixels, np.random.Generator], bytes]] = {
    "q50": lambda picture, rng: encoded(picture, 50),
    "half": lambda picture, rng: encoded(halved(picture)),
    "crop5": lambda picture, rng: encoded(cropped(picture, 0.05, rng)),
    "crop10": lambda picture, rng: encoded(cropped(picture, 0.10, rng)),
    "crop20": lambda picture, rng: encoded(cropped(picture, 0.20, rng)),
    "flip": lambda picture, rng: encoded(picture[:, ::-1]),
    "colour": lambda picture, rng: encoded(recoloured(picture, rng)),
    "grey": lambda picture, rng: encoded(grey(picture)),
}


def make(packages: Path, output: Path, count: int = 1000, copied: int = 150) -> None:
    """Writes the files."""
    made = distinct(packages)[:count]
    pictures, scenes = zip(*made, strict=True)
    (output / "distinct" / "x").mkdir(parents=True)
    for number, picture in enumerate(pictures):
        (output / "distinct" / "x" / f"{number:04d}.jpg").write_bytes(encoded(picture))
    (output / "scenes.json").write_text(json.dumps(scenes))
    for place, (kind, change) in enumerate(KINDS.items()):
        (output / "copies" / kind).mkdir(parents=True)
        for number, picture in enumerate(pictures[:copied]):
            data = change(picture, np.random.default_rng([place, number]))
            (output / "copies" / kind / f"{number:04d}.jpg").write_bytes(data)


if __name__ == "__main__":
    main()
