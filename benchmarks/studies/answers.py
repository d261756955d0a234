"""Soft labels that no teacher at rest gave, as generations of their own: to ask what it is that a student learns from.

    labels of generation 0 --another class for the most probable one--> truth, misplaced, random
    images of the usual student's manifest --teacher, with its noise on--> noisy

In the first three each image keeps its probabilities as numbers: only which class has the largest one is another.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pictures
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from curator import draws
from curator.generations.labels import import_labels
from curator.loading.loader import ManifestLoader, augmentation
from curator.networks.network import load
from curator.ranks import device_of
from curator.storage.store import Store

MANIFEST = "g0-student"
GENERATIONS = {"noisy": 10, "truth": 20, "misplaced": 30, "random": 40}

Ids = npt.NDArray[np.int64]
Probs = npt.NDArray[np.float32]


def give(store: Store, kind: str, shards: Path, seed: int) -> None:
    """Publishes the soft labels of a kind, if the store does not have them.

    Args:
        store: One with the usual student's manifest.
        kind: Name of the generation's model: noisy, truth, misplaced or random.
        shards: Folder with truth.parquet.
        seed: Of what is drawn.
    """
    if store.rows("select 1 from models where model = $m", m=kind):
        return
    ids, probs = _noisy(store, seed) if kind == "noisy" else _moved(store, kind, shards, seed)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "labels.parquet"
        values = pa.FixedSizeListArray.from_arrays(pa.array(probs.ravel()), len(pictures.CLASSES))
        pq.write_table(pa.table({"image_id": ids, "probs": values}), file)
        import_labels(store, str(file), GENERATIONS[kind], kind)


def _moved(store: Store, kind: str, shards: Path, seed: int) -> tuple[Ids, Probs]:
    """The teacher's probabilities with another class in the first place.

    truth: the true class. random: any class. misplaced: the true class where the teacher is right in one image, a
    wrong one where it is wrong, but the images that are wrong are drawn, so mistakes have nothing to do with pictures.
    """
    ids, probs = _given(store)
    top, true = probs.argmax(axis=1), _truth(store, shards, ids)
    drawn = draws.shuffle(draws.key(seed, "studies", kind), np.arange(len(ids)), len(ids))
    if kind == "truth":
        wanted = true
    elif kind == "random":
        wanted = drawn % len(pictures.CLASSES)
    else:
        wrong = (top != true)[drawn]
        apart = ((top - true) % len(pictures.CLASSES))[drawn]  # how far a mistake is from the truth, of the image drawn
        wanted = np.where(wrong, (true + apart) % len(pictures.CLASSES), true)
    rows = np.arange(len(ids))
    probs[rows, top], probs[rows, wanted] = probs[rows, wanted], probs[rows, top]
    return ids, probs


def _given(store: Store) -> tuple[Ids, Probs]:
    """Images [N] of the pool, in the order of their ids, with what the teacher gave them [N, C]."""
    rows = store.rows(
        "select image_id, top_classes, top_probs from labels where generation = 0 and split = 'unlabeled' order by 1"
    )
    probs = np.zeros((len(rows), len(pictures.CLASSES)), np.float32)
    for place, row in enumerate(rows):
        probs[place, row["top_classes"]] = row["top_probs"]
    return np.array([row["image_id"] for row in rows]), probs / probs.sum(axis=1, keepdims=True)


def _truth(store: Store, shards: Path, ids: Ids) -> npt.NDArray[np.int64]:
    """The true classes [N]."""
    number = {row["class_name"]: row["label"] for row in store.rows("select label, class_name from classes")}
    true = {name: number[of] for name, of in pictures.truth(shards).items()}
    names = {r["image_id"]: r["uri"] for r in store.rows("select image_id, uri from images where split = 'unlabeled'")}
    return np.array([true[names[i].rpartition("::")[2]] for i in ids.tolist()])


def _noisy(store: Store, seed: int) -> tuple[Ids, Probs]:
    """What the teacher says of pictures that are changed as in its training; its recipe has no other noise."""
    network, recipe, _ = load(store, "teacher")
    network.eval()
    device = device_of("auto")
    network.to(device)
    loader = ManifestLoader.open(
        store,
        MANIFEST,
        size=recipe.network.resolution,
        batch_size=256,
        augmentation=augmentation(recipe),
        pack=None,
        seed=draws.key(seed, "studies", "noisy") % 2**31,
    )
    seen: dict[int, Probs] = {}
    with torch.inference_mode():
        for batch in loader:
            answers = network(batch.images.to(device)).softmax(dim=1).cpu().numpy()
            seen |= dict(zip(batch.image_ids.tolist(), answers, strict=True))
    ids = np.array(sorted(seen))
    return ids, np.stack([seen[i] for i in ids.tolist()])
