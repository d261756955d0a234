"""A small world of real pictures for the tests of training and labeling: three classes of coloured shapes as PNG files.

ROOT/labeled/CLASS/0.png ...   ROOT/pool/0000.png ...   ROOT/holdout/CLASS/0.png ...   ROOT/store   ROOT/recipe.toml
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import nn

from curator.curation import building
from curator.generations.labels import import_labels
from curator.pictures.images import add_images
from curator.runs.training import Trained, train
from curator.storage.store import Store
from curator.teachers import labeling

# The cores are the test machine's: threads that wait for each other are slow, and one thread always adds up alike.
torch.set_num_threads(1)

CLASSES = ("bar", "disc", "square")
OWN = ["network.architecture=pictures:Watched"]
COLOURS = ((40, 200, 60), (230, 60, 50), (60, 80, 220))
RECIPE = """\
title = "a network for tests"
max_failures = 0.2

[network]
architecture = "test_resnet"
resolution = 16
test_crop = 1.0

[noise]
crop_scale = [0.6, 1.0]
flip = 0.5

[schedule]
steps = 20
labeled_batch = 6
pseudo_ratio = 2
decay = "constant"

[optimizer]
learning_rate = 3e-3

[loss]
label_smoothing = 0.1

[average]
decay = 0.9
"""
# Noise of every kind, for tests of what is switched on where.
NOISY = ["noise.dropout=0.3", "noise.drop_path=0.3", "noise.randaugment_ops=2", "noise.randaugment_magnitude=9"]


class Slow(nn.Module):
    """A network that takes SLOW_SECONDS for a batch; as timm is left out, its processes start fast."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        time.sleep(float(os.environ.get("SLOW_SECONDS", "0")))
        return self.head(torch.relu(self.conv(x)).mean(dim=(2, 3)))


class Alone(Slow):
    """Computes each picture by itself, so that no other in its batch changes a bit, and notes it in the file SEEN.

    What has one colour is no picture but the trial of a network that was just loaded.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        answers = torch.cat([Slow.forward(self, picture) for picture in x.split(1)])
        if "SEEN" in os.environ:
            pictures = [picture.numpy() for picture in x if picture.std() > 0]
            notes = "".join(hashlib.md5(picture.tobytes()).hexdigest() + "\n" for picture in pictures)
            with Path(os.environ["SEEN"]).open("a") as file:
                file.write(notes)
        return answers


class Watched(nn.Module):
    """A small network that notes how it is used, and can be told to stop at a training step as Ctrl-C does."""

    seen: list[tuple[bool, int]] = []  # training mode, zeros of the dropout
    stop_at = -1

    def __init__(self, num_classes: int, drop_rate: float = 0.0, drop_path_rate: float = 0.0) -> None:
        from timm.layers import DropPath

        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.drop, self.path, self.head = nn.Dropout(drop_rate), DropPath(drop_path_rate), nn.Linear(8, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        zeros = int((self.drop(torch.ones(50)) == 0).sum() + (self.path(torch.ones(50, 1)) == 0).sum())
        Watched.seen.append((self.training, zeros))
        if self.training and sum(training for training, *_ in Watched.seen) == Watched.stop_at:
            raise KeyboardInterrupt
        return self.head(self.drop(self.path(torch.relu(self.norm(self.conv(x))).mean(dim=(2, 3)))))


def picture(label: int, number: int, size: int = 20) -> np.ndarray:
    """uint8 [size, size, 3], RGB: a shape of the class somewhere on grey noise; the number is the seed."""
    rng = np.random.default_rng((label, number))
    image = rng.integers(90, 150, (size, size, 3)).astype(np.uint8)
    x, y = (int(v) for v in rng.integers(size // 3, size - size // 3, 2))
    r, colour = size // 4, COLOURS[label]
    if label == 0:
        cv2.rectangle(image, (0, y - 2), (size, y + 1), colour, -1)
    elif label == 1:
        cv2.circle(image, (x, y), r, colour, -1)
    else:
        cv2.rectangle(image, (x - r, y - r), (x + r, y + r), colour, -1)
    return image


def write(path: Path, image: np.ndarray) -> Path:
    """Writes an RGB picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image[:, :, ::-1])
    return path


def folders(root: Path, labeled: int = 6, pool: int = 8, holdout: int = 4) -> None:
    """The picture folders and the recipe; the counts are images of each class."""
    for label, name in enumerate(CLASSES):
        for i in range(labeled):
            write(root / "labeled" / name / f"{i}.png", picture(label, i))
        for i in range(holdout):
            write(root / "holdout" / name / f"{i}.png", picture(label, 1000 + i))
        for i in range(pool):
            write(root / "pool" / f"{len(CLASSES) * i + label:04d}.png", picture(label, 2000 + i))
    (root / "recipe.toml").write_text(RECIPE, "utf-8")


def world(root: Path, labeled: int = 6, pool: int = 8, holdout: int = 4) -> Store:
    """The folders and a store with all their pictures."""
    root.mkdir(parents=True, exist_ok=True)
    folders(root, labeled, pool, holdout)
    store = Store.create(root / "store")
    add_images(store, str(root / "labeled"), "labeled")
    if pool:
        add_images(store, str(root / "pool"), "unlabeled")
    if holdout:
        add_images(store, str(root / "holdout"), "holdout")
    return store


def teach(store: Store, *changes: str, name: str = "teacher", **options: Any) -> Trained:
    """Trains by the recipe beside the store."""
    return train(store, str(store.root / "recipe.toml"), name=name, changes=list(changes), **options)


def taught(root: Path) -> Store:
    """A world with a teacher, its labels and the manifest "m"."""
    store = world(root, labeled=4, pool=4, holdout=2)
    teach(store)
    labeling.label(store, "teacher")
    building.build(store, "m", {"per_class": 6, "min_confidence": 0.1})
    return store


def judged(root: Path) -> Store:
    """A world whose pool is labeled from outside: 9 images for class 0, 3 for class 1, one for class 2.

    It has 15 labeled images and the manifests "m" and "hard", with 12 rows of each class.
    """
    store = world(root, labeled=5, pool=5, holdout=1)
    uris = [row["uri"] for row in store.rows("select uri from images where split = 'unlabeled' order by uri")]
    probs = []
    for i in range(13):
        label = 0 if i < 9 else 1 if i < 12 else 2
        rest = np.random.default_rng(i).dirichlet(np.ones(3)) * (0.5 - 0.02 * i)
        rest[label] += 1 - rest.sum()
        probs.append(rest.astype(np.float32).tolist())
    column = pa.array(probs, pa.list_(pa.float32()))
    pq.write_table(pa.table({"uri": uris[:13], "probs": column}), root / "probs.parquet")
    import_labels(store, str(root / "probs.parquet"), 0, "outside")
    building.build(store, "m", {"per_class": 12, "min_confidence": 0.3})
    building.build(store, "hard", {"per_class": 12, "min_confidence": 0.3, "targets": "hard"})
    return store


def weights_hash(store: Store, model: str) -> str:
    """The sha256 of a registered model's weights file."""
    return str(store.rows("select weights_hash from models where model = $m", m=model)[0]["weights_hash"])


@contextmanager
def start(code: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """A process of its own that runs Python code with `sys.argv[1:]` as given; it is killed when the test goes on."""
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=_environment(),
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def _environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent)}


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 120.0) -> None:
    """Waits until something is so, or fails with what the process said."""
    until = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None or condition(), process.communicate()
        assert time.monotonic() < until, "waited too long"
        time.sleep(0.005)


def on_a_small_disk(size: str, code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Runs Python code in a process of its own that finds an empty disk of that size mounted at `sys.argv[1]`."""
    mount = 'mount -t tmpfs -o size="$1" tmpfs "$2" && shift && exec "$0" -c "$2" "$1" "${@:3}"'
    with tempfile.TemporaryDirectory() as place:
        inside = ["bash", "-c", mount, sys.executable, size, place, textwrap.dedent(code), *map(str, arguments)]
        own = ["unshare", "--map-root-user", "--mount"]
        if subprocess.run([*own, "true"], capture_output=True).returncode:
            own = ["unshare", "--mount"]  # already root, where users may not have a namespace of their own
        return subprocess.run([*own, *inside], capture_output=True, text=True, env=_environment())
