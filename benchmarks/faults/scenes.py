"""The store that commands are killed in, and the commands: each with much of it to lose and several commits to make.

    WORK/photos/{labeled,holdout}/CLASS/*.png, first/*.png, second/*.png
    WORK/base/store: images of all but second, labels of generation 0, 40 reviews, the manifest "first", the model
                     "student" of generation 1

A copy of base beside it, of the same depth, has the same root.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from contents import Contents
from processes import Ended

CLASSES = ("bar", "disc", "square")
COLOURS = ((40, 200, 60), (230, 60, 50), (60, 80, 220))
COUNTS = {"labeled": 24, "holdout": 12, "first": 96, "second": 160}
RECIPE = """\
title = "a small network"

[network]
architecture = "test_resnet"
resolution = 16
test_crop = 1.0

[noise]
crop_scale = [0.6, 1.0]
drop_path = 0.1
randaugment_ops = 2
randaugment_magnitude = 9

[schedule]
steps = 8
labeled_batch = 6
pseudo_ratio = 2

[optimizer]
learning_rate = 3e-3

[average]
decay = 0.9

[evaluation]
every = 3
keep = "best"
"""


class Scene(NamedTuple):
    """A command that is killed.

    Attributes:
        name: What it is called in the table.
        arguments: Of the program; {work} stands for the folder of all.
        smaller: Makes the command's portions smaller in its process, so that a small store has several of them.
        finished: How a run says that there is nothing left to do, where it does so by an error.
        goes_on: Whether a run that finishes said so of all work that the killed one had kept.
        twice: Whether a run that was killed behind its commit leaves its rows a second time: each review is a row.
    """

    name: str
    arguments: str
    smaller: Callable[[], None] = lambda: None
    finished: str | None = None
    goes_on: Callable[[Contents, Contents, Ended], bool] = lambda base, left, ended: True
    twice: bool = False


def make_pictures(work: Path) -> None:
    """The picture folders, recipe, labels and decisions."""
    for split, (part, count) in enumerate(COUNTS.items()):
        for i in range(count):
            label = i % len(CLASSES)
            folder = work / "photos" / part / (CLASSES[label] if split < 2 else "")
            folder.mkdir(parents=True, exist_ok=True)
            rng = np.random.default_rng((split, i))
            image = rng.integers(90, 150, (24, 24, 3)).astype(np.uint8)
            x, y = (int(v) for v in rng.integers(8, 16, 2))
            cv2.rectangle(image, (x - 5, y - 3 - label), (x + 5, y + 3 + label), COLOURS[label], -1)
            cv2.imwrite(str(folder / f"{i:04}.png"), image)
    (work / "recipe.toml").write_text(RECIPE, "utf-8")


def make_store(work: Path) -> None:
    """The store that all commands begin with."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from curator.curation import building
    from curator.decisions import reviews
    from curator.generations.labels import import_labels
    from curator.pictures.images import add_images
    from curator.runs.training import train
    from curator.storage.store import Store

    store = Store.create(work / "base" / "store", root=work / "photos")
    for part, split in (("labeled", "labeled"), ("holdout", "holdout"), ("first", "unlabeled")):
        add_images(store, str(work / "photos" / part), split)
    pool = store.rows("select uri, image_id from images where split = 'unlabeled' order by uri")
    rng = np.random.default_rng(0)
    for generation in (0, 2):
        probs = rng.dirichlet(np.ones(3) * 0.3, len(pool)).astype(np.float32).tolist()
        table = {"uri": [row["uri"] for row in pool], "probs": pa.array(probs, pa.list_(pa.float32()))}
        pq.write_table(pa.table(table), work / f"labels-{generation}.parquet")
    import_labels(store, str(work / "labels-0.parquet"), 0, "outside")
    # one more, and the table's files are put together
    for row in pool[:40]:
        reviews.record(store, row["image_id"], 0, "accept" if row["image_id"] % 2 else "reject", None, "earlier")
    building.build(store, "first", {"per_class": 30, "min_confidence": 0.4})
    train(store, str(work / "recipe.toml"), "first", "student", threads=1)
    with (work / "decisions.csv").open("w", newline="") as file:
        rows = [("uri", "decision", "new_label")]
        rows += [
            (row["uri"], ("accept", "reject", "relabel")[i % 3], ("", "", "disc")[i % 3]) for i, row in enumerate(pool)
        ]
        csv.writer(file).writerows(rows)
    (work / "image").write_text(str(pool[7]["image_id"]))


def _added(base: Contents, left: Contents, ended: Ended) -> bool:
    return json.loads(ended.out)["already_present"] == len(left.raw["images"]) - len(base.raw["images"])


def _labeled(base: Contents, left: Contents, ended: Ended) -> bool:
    done = json.loads(ended.out)
    return done["resumed"] + done["already_labeled"] >= left.staged + len(left.raw["labels"]) - len(base.raw["labels"])


def _packed(base: Contents, left: Contents, ended: Ended) -> bool:
    return json.loads(ended.out)["already_packed"] == len(left.raw["packed"])


def _trained(base: Contents, left: Contents, ended: Ended) -> bool:
    return left.checkpoint < 0 or f"going on at step {left.checkpoint} of" in ended.err


def _small_images() -> None:
    from curator.pictures import images

    images._CHUNK = 32


def _small_labels() -> None:
    from curator.teachers import labeling

    labeling._CHUNK = 16


def _small_imports() -> None:
    from curator.generations import label_file, labels

    label_file._BATCH, labels._PART_ROWS = 16, 32


def _small_training() -> None:
    from curator.runs import training

    training.train = partial(training.train, checkpoint_seconds=0.0)


SCENES = (
    Scene("add-images", "add-images {work}/photos/second --split unlabeled", _small_images, goes_on=_added),
    Scene(
        "label",
        "label --model student --engine torch --threads 1 --batch-size 16 --part-seconds 0",
        _small_labels,
        goes_on=_labeled,
    ),
    Scene(
        "import-labels",
        "import-labels {work}/labels-2.parquet --generation 2 --model other",
        _small_imports,
        "this generation has labeled already",
    ),
    Scene("build-manifest", "build-manifest second --generation 0 --per-class 25 --min-confidence 0.4"),
    Scene(
        "review",
        "review --image-id {image} --decision relabel --new-label disc --reviewer me",
        twice=True,
    ),
    Scene("review --from FILE", "review --from {work}/decisions.csv --reviewer me", twice=True),
    Scene("pack", "pack first --size 16 --shard-rows 25", goes_on=_packed),
    Scene(
        "train",
        "train --recipe {work}/recipe.toml --manifest first --name late --threads 1 --resume",
        _small_training,
        "exists and is finished",
        _trained,
    ),
)  # fmt: skip


if __name__ == "__main__":
    make_pictures(Path(sys.argv[1]))
    make_store(Path(sys.argv[1]))
