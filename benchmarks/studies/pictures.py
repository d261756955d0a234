"""Fashion-MNIST as tar shards: few labeled images, the rest as pool, and images to judge by.

    IDX files --split, drawn from the seed--> labeled.tar, pool.tar, holdout.tar (+ truth.parquet, outside the store)

Trials judge by a validation part of the training set, which no run ever trains on; only a report judges by the test
set.
"""

from __future__ import annotations

import argparse
import gzip
import io
import tarfile
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from curator import draws

# Where Debian's package dataset-fashion-mnist puts them.
FOLDER = Path("/usr/share/datasets/fashion-mnist")
CLASSES = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle-boot")
VALIDATION = 500  # images of each class

Pictures = tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]


def read(folder: Path, part: str) -> Pictures:
    """The pictures uint8 [N, 28, 28] and labels uint8 [N] of a part, "train" or "t10k".

    Raises:
        SystemExit: The files are missing, or are no IDX files of that form.
    """
    found = []
    for kind, magic in (("images-idx3", 2051), ("labels-idx1", 2049)):
        file = folder / f"{part}-{kind}-ubyte.gz"
        if not file.is_file():
            raise SystemExit(f"{file} is missing\nmend: apt-get install dataset-fashion-mnist, or --data FOLDER")
        data = gzip.decompress(file.read_bytes())
        if int.from_bytes(data[:4], "big") != magic:
            raise SystemExit(f"{file} is no IDX file of {kind}\nmend: --data FOLDER with the files of Fashion-MNIST")
        axes = data[3]
        shape = [int.from_bytes(data[4 + 4 * axis : 8 + 4 * axis], "big") for axis in range(axes)]
        found.append(np.frombuffer(data, np.uint8, offset=4 + 4 * axes).reshape(shape))
    return found[0], found[1]


def write(data: Path, folder: Path, labeled: int, seed: int, tune: bool, imbalance: float = 1.0) -> None:
    """Writes the shards of one run.

    Args:
        data: Folder of the IDX files.
        folder: Made anew.
        labeled: Labeled images of each class.
        seed: Of the draw of the labeled images; the validation part is the same for every seed.
        tune: Whether to judge by the validation part rather than by the test set.
        imbalance: Images in the pool of the first class for each of the last; those between fall geometrically.
    """
    images, labels = read(data, "train")
    split: dict[str, list[npt.NDArray[np.int64]]] = {"validation": [], "labeled": [], "pool": []}
    for label in range(len(CLASSES)):
        order = _shuffled(np.flatnonzero(labels == label), 0, "validation", label)
        split["validation"].append(order[:VALIDATION])
        order = _shuffled(order[VALIDATION:], seed, "labeled", label)
        split["labeled"].append(order[:labeled])
        pool = order[labeled:]
        split["pool"].append(pool[: round(len(pool) * imbalance ** (-label / (len(CLASSES) - 1)))])
    chosen = {name: np.sort(np.concatenate(parts)) for name, parts in split.items()}
    folder.mkdir(parents=True)
    _shard(folder / "labeled.tar", images, labels, chosen["labeled"], named=True)
    _shard(folder / "pool.tar", images, labels, chosen["pool"], named=False)
    if tune:
        _shard(folder / "holdout.tar", images, labels, chosen["validation"], named=True)
    else:
        images, test = read(data, "t10k")
        _shard(folder / "holdout.tar", images, test, np.arange(len(test)), named=True)
    names = [f"{i:05d}.png" for i in chosen["pool"].tolist()]
    truth = [CLASSES[label] for label in labels[chosen["pool"]]]
    pq.write_table(pa.table({"name": names, "truth": truth}), folder / "truth.parquet")


def truth(folder: Path) -> dict[str, str]:
    """The true class of each picture of the pool, by its name in the shard."""
    table = pq.read_table(folder / "truth.parquet").to_pydict()
    return dict(zip(table["name"], table["truth"], strict=True))


def _shuffled(members: npt.NDArray[np.int64], seed: int, *names: str | int) -> npt.NDArray[np.int64]:
    return members[draws.shuffle(draws.key(seed, "fashion", *names), np.arange(len(members)), len(members))]


def _shard(
    file: Path,
    images: npt.NDArray[np.uint8],
    labels: npt.NDArray[np.uint8],
    chosen: npt.NDArray[np.int64],
    named: bool,
) -> None:
    """Writes pictures, under the name of their class only where it may be known."""
    with tarfile.open(file, "w") as shard:
        for i in chosen.tolist():
            picture = cv2.imencode(".png", images[i])[1].tobytes()
            about = tarfile.TarInfo(f"{CLASSES[labels[i]]}/{i:05d}.png" if named else f"{i:05d}.png")
            about.size = len(picture)
            shard.addfile(about, io.BytesIO(picture))


if __name__ == "__main__":
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("folder", type=Path, help="new folder for the shards")
    asked.add_argument("--data", type=Path, default=FOLDER, help="folder of the IDX files")
    asked.add_argument("--labeled", type=int, default=50, help="labeled images of each class")
    asked.add_argument("--seed", type=int, default=0)
    asked.add_argument("--tune", action="store_true", help="judge by a validation part of the training set")
    given = asked.parse_args()
    write(given.data, given.folder, given.labeled, given.seed, given.tune)
