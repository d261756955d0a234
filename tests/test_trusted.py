"""Decisions on labeled and holdout images: what training, evaluation and calibration make of them."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import Answer
from pictures import CLASSES, folders, picture, teach, weights_hash, write

from curator.decisions.reviews import add_review
from curator.delivery import packing
from curator.delivery.shards import Form
from curator.errors import InputError
from curator.loading.loader import ManifestLoader
from curator.loading.rows import Rows
from curator.measures.evaluation import evaluate_network
from curator.measures.robustness import evaluate
from curator.networks.network import load
from curator.pictures.images import add_images
from curator.storage.store import Store

# Of four pictures of each class, one bar is given as a disc, and one disc as a square.
WRONG = {"labeled/bar/0.png": "disc", "labeled/disc/1.png": "square"}


def listed(root: Path, name: str, labels: dict[str, str]) -> Store:
    """A store beside the pictures, its labeled images given as they are listed."""
    store = Store.create(root / name, CLASSES)
    file = root / f"{name}.parquet"
    pq.write_table(pa.table({"uri": [*labels], "label": [*labels.values()]}), file)
    add_images(store, str(file), "labeled")
    add_images(store, str(root / "holdout"), "holdout")
    return store


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folders(tmp_path, labeled=4, pool=0, holdout=2)
    return tmp_path


def truth() -> dict[str, str]:
    return {f"labeled/{name}/{i}.png": name for name in CLASSES for i in range(4)}


@pytest.fixture
def wrong(root: Path) -> Store:
    return listed(root, "store", truth() | WRONG)


def ids(store: Store) -> dict[str, int]:
    return {row["uri"]: row["image_id"] for row in store.rows("select uri, image_id from images")}


def read(store: Store) -> dict[str, int]:
    """What the trainer reads: the class of each labeled image, by its uri."""
    rows = Rows.labeled(store)
    part = rows.read(np.arange(len(rows)))
    assert (part.probs == 1).all()
    return {place.uri: int(label) for place, label in zip(part.places, part.classes[:, 0], strict=True)}


def test_from_suspects_to_a_training(wrong: Store, root: Path, curator: Callable[..., Answer]) -> None:
    """One image gets its class back, another is thrown out: training is as if it had been so from the beginning."""
    where = ("--store", wrong.path)
    true = truth()
    probs = [[0.9 if name == true[uri] else 0.05 for name in CLASSES] for uri in true]
    file = root / "mine.parquet"
    pq.write_table(pa.table({"uri": [*true], "probs": pa.array(probs, pa.list_(pa.float32()))}), file)
    assert curator("quality", "folds", "--from", file, *where).code == 0
    sheet = root / "suspects.csv"
    assert curator("quality", "issues", "--csv", sheet, *where).code == 0
    with sheet.open(newline="") as text:
        rows = [*csv.DictReader(text)]
    assert {row["uri"] for row in rows} == WRONG.keys()
    for row in rows:
        decided = ("relabel", "bar") if row["uri"] == "labeled/bar/0.png" else ("reject", "")
        row["decision"], row["new_label"] = decided
    with sheet.open("w", newline="") as text:
        lines = csv.DictWriter(text, rows[0].keys())
        lines.writeheader()
        lines.writerows(rows)
    assert curator("review", "--from", sheet, "--json", *where).json["recorded"] == 2
    after = curator("quality", "issues", "--json", *where).json
    assert (after["images"], after["suspects"], after["decided"], after["noise"], after["unjudged"]) == (11, 0, 2, 0, 0)

    known = {uri: name for uri, name in true.items() if uri != "labeled/disc/1.png"}
    assert read(wrong) == {uri: CLASSES.index(name) for uri, name in known.items()}
    arguments = ("train", "--recipe", root / "recipe.toml", "--name", "decided", "--set", "schedule.steps=6")
    answer = curator(*arguments, *where)
    assert answer.code == 0, answer.err
    assert "reviews of labeled images: 1 count for another class, 1 are left out" in answer.err
    right = listed(root, "other", known)
    teach(right, "schedule.steps=6", name="decided")
    assert weights_hash(wrong, "decided") == weights_hash(right, "decided")
    metrics = json.loads(wrong.rows("select metrics from models")[0]["metrics"])
    assert metrics["versions"] == {"reviews": wrong.versions()["reviews"]} != {"reviews": 0}


def test_each_decision_and_what_takes_it_back(wrong: Store) -> None:
    before, known = read(wrong), ids(wrong)
    bar, disc = known["labeled/bar/0.png"], known["labeled/disc/1.png"]
    add_review(wrong, bar, "accept")
    assert read(wrong) == before
    add_review(wrong, bar, "relabel", "square")
    add_review(wrong, bar, "relabel", "bar")  # the latest counts
    add_review(wrong, disc, "reject")
    assert read(wrong) == {
        uri: label for uri, label in (before | {"labeled/bar/0.png": 0}).items() if "disc/1" not in uri
    }
    rows = Rows.labeled(wrong)
    assert (rows.relabeled, rows.rejected) == (1, 1)
    assert packing.pack(wrong, None, Form(None), dry_run=True).images == 11
    for image_id in (bar, disc):
        add_review(wrong, image_id, "skip")
    assert read(wrong) == before
    assert wrong.rows("select distinct class_name from images where image_id = $i", i=bar) == [{"class_name": "disc"}]


def test_a_loader_of_ones_own_reads_them(wrong: Store) -> None:
    add_review(wrong, ids(wrong)["labeled/bar/0.png"], "relabel", "bar")
    loader = ManifestLoader.open(wrong, None, size=16, batch_size=12)
    (batch,) = [*loader]
    target = dict(zip(batch.image_ids.tolist(), batch.targets.argmax(axis=1).tolist(), strict=True))
    assert target[ids(wrong)["labeled/bar/0.png"]] == 0


def test_a_loaders_state_is_of_the_reviews_that_it_read(wrong: Store) -> None:
    def opened(**options: Any) -> ManifestLoader:
        return ManifestLoader.open(wrong, None, size=16, batch_size=4, **options)

    whole = [batch.image_ids.tolist() for batch in opened()]
    loader = opened()
    next(iter(loader))
    state = loader.state_dict()
    add_review(wrong, ids(wrong)["labeled/disc/1.png"], "reject")
    with pytest.raises(InputError, match=r"other labeled images.*\n.*reviews=0"):
        opened().load_state_dict(state)
    late = opened(reviews=state["reviews"])
    late.load_state_dict(state)
    assert [batch.image_ids.tolist() for batch in late] == whole[1:]


def test_nothing_is_left(wrong: Store) -> None:
    for uri, image_id in ids(wrong).items():
        if uri.startswith("labeled/"):
            add_review(wrong, image_id, "reject")
    with pytest.raises(InputError, match="no labeled images to train on"):
        Rows.labeled(wrong)


def test_a_rejected_holdout_image_still_protects(wrong: Store, root: Path) -> None:
    """It counts no more where models are measured, and is trained on no more than before."""
    write(root / "more" / "bar" / "twin.png", picture(0, 1000))
    add_images(wrong, str(root / "more"), "labeled")
    assert "more/bar/twin.png" not in read(wrong)
    add_review(wrong, ids(wrong)["holdout/bar/0.png"], "reject")
    assert "more/bar/twin.png" not in read(wrong)


def test_decisions_on_the_holdout(wrong: Store, root: Path) -> None:
    """As a store in which these images had been added so."""
    teach(wrong, "schedule.steps=6")
    before = evaluate(wrong, "teacher").clean
    known = ids(wrong)
    add_review(wrong, known["holdout/bar/0.png"], "relabel", "square")
    add_review(wrong, known["holdout/disc/1.png"], "reject")
    add_review(wrong, known["holdout/disc/0.png"], "accept")
    after = evaluate(wrong, "teacher").clean
    assert (before.images, after.images) == (6, 5)
    write(root / "again" / "square" / "bar0.png", picture(0, 1000))
    for name, i in (("bar", 1), ("disc", 0), ("square", 0), ("square", 1)):
        write(root / "again" / name / f"{i}.png", picture(CLASSES.index(name), 1000 + i))
    other = Store.create(root / "other", CLASSES)
    add_images(other, str(root / "again"), "holdout")

    network, recipe, _ = load(wrong, "teacher")
    expected = evaluate_network(other, network, recipe, "teacher", 0)
    assert (after.top1, after.top5, after.images) == (expected.top1, expected.top5, expected.images)
    assert after.ece == pytest.approx(expected.ece, abs=1e-6)
