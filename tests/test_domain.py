"""Sources and images from elsewhere."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from conftest import Answer
from test_labels import write

from curator.decisions.reviews import add_review
from curator.generations.labels import import_labels
from curator.pictures.images import add_images
from curator.quality.domain import domain
from curator.schema import EMBEDDINGS
from curator.storage import additions
from curator.storage.store import Store

SURE, UNSURE = (0.97, 0.02, 0.01), (0.35, 0.33, 0.32)
# path, split, probabilities
IMAGES = (
    [(f"web/sharp/{i}.jpg", "unlabeled", SURE) for i in range(30)]
    + [(f"web/odd/{i}.jpg", "unlabeled", UNSURE if i < 6 else SURE) for i in range(10)]
    + [(f"/mnt/scans/a/{i}.jpg", "unlabeled", UNSURE) for i in range(8)]
    + [("alone.jpg", "unlabeled", SURE)]
    + [(f"val/{i}.jpg", "holdout", UNSURE if i == 0 else (0.8, 0.1, 0.1)) for i in range(40)]
)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("domain")
    store = Store.create(folder / "store", ["cat", "dog", "owl"])
    for split in ("unlabeled", "holdout"):
        uris = [uri for uri, of, _ in IMAGES if of == split]
        label = {} if split == "unlabeled" else {"label": ["cat"] * len(uris)}
        add_images(store, write(folder / f"{split}.parquet", uri=uris, **label), split, scan=False)
    probs = pa.array([list(row) for *_, row in IMAGES], pa.list_(pa.float32()))
    import_labels(store, write(folder / "p.parquet", uri=[uri for uri, *_ in IMAGES], probs=probs), 0, "outside")
    return store


def test_sources(mixed: Store) -> None:
    found = domain(mixed, min_confidence=0.4)
    assert found.usual_of == "holdout"
    assert found.usual == pytest.approx(-(0.8 * np.log(0.8) + 0.2 * np.log(0.1)), abs=1e-5)
    rows = [(row["source"], row["images"], row["low_confidence"], row["high_entropy"]) for row in found.sources]
    assert rows == [("/mnt", 8, 1, 1), ("web", 40, 0.15, 0.15), ("", 1, 0, 0)]
    deeper = {row["source"]: row["high_entropy"] for row in domain(mixed, depth=2).sources}
    assert deeper == {"/mnt/scans": 1, "web/odd": 0.6, "web/sharp": 0, "": 0}
    assert len({row["day"] for row in found.sources}) == 1


def test_images_like_no_class(mixed: Store) -> None:
    found = domain(mixed, limit=14).images
    assert {row["uri"] for row in found} == {uri for uri, split, p in IMAGES if p == UNSURE and split == "unlabeled"}
    assert all(0.99 < row["strangeness"] <= 1 for row in found)


def test_without_a_holdout(store: Store) -> None:
    found = domain(store)
    assert found.usual_of.startswith("half")
    assert found.usual == pytest.approx(np.log(3) / 2)
    assert found.far == []


def test_far_from_every_class(mixed: Store, tmp_path: Path) -> None:
    """Of the weights that the model has now: others of its name, and other models, say something else of all images."""
    store = Store(shutil.copytree(mixed.path, tmp_path / "store"))
    uris = [f"lab/{i}.jpg" for i in range(4)]
    labels = ["cat", "cat", "dog", "dog"]
    add_images(store, write(tmp_path / "l.parquet", uri=uris, label=labels), "labeled", scan=False)
    images = store.rows("select image_id, uri, split, class_name from images")
    axes = {"cat": [127, 0, 5], "dog": [0, 127, 5]}
    vectors, others = [], []
    for row in images:
        far = row["uri"] in ("alone.jpg", "web/odd/3.jpg")
        vector = [0, 10, 127] if far else axes[row["class_name"] or "cat"]
        vectors.append({"image_id": row["image_id"], "model": "outside", "weights_hash": "", "vector": bytes(vector)})
        turned = bytes([127, 3, 1] if far else [0, 3, 127])
        others.append({"image_id": row["image_id"], "model": "outside", "weights_hash": "old", "vector": turned})
        others.append({"image_id": row["image_id"], "model": "another", "weights_hash": "", "vector": turned})
    additions.append(store, "embeddings", pa.Table.from_pylist(vectors, EMBEDDINGS.schema))
    found = domain(store, limit=3).far
    assert {row["uri"] for row in found[:2]} == {"alone.jpg", "web/odd/3.jpg"}
    assert found[0]["cosine"] < 0.3
    assert found[2]["cosine"] > 0.99
    additions.append(store, "embeddings", pa.Table.from_pylist(others, EMBEDDINGS.schema))
    assert domain(store, limit=3).far == found
    # a class is what people left it
    known = {row["uri"]: row["image_id"] for row in images}
    for uri in ("lab/0.jpg", "lab/1.jpg"):
        add_review(store, known[uri], "reject")
    nearest = domain(store, limit=len(IMAGES)).far
    assert max(row["cosine"] for row in nearest) < 0.2


@pytest.mark.parametrize("command", ["domain", "calibration"])
@pytest.mark.parametrize("least", ["nan", "-0.1", "1.1"])
def test_what_is_no_confidence(mixed: Store, curator: Callable[..., Answer], command: str, least: str) -> None:
    done = curator("quality", command, "--min-confidence", least, "--store", mixed.path)
    assert (done.code, "is not in [0, 1]" in done.err) == (2, True), done.err


def test_command(mixed: Store, curator: Callable[..., Answer]) -> None:
    answer = curator("quality", "domain", "--json", "--store", mixed.path)
    assert answer.code == 0, answer.err
    assert [row["source"] for row in answer.json["sources"]] == ["/mnt", "web", ""]
    text = curator("quality", "domain", "--store", mixed.path).out
    assert "/mnt" in text
    assert "holdout" in text
