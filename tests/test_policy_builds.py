"""Whole builds with each policy: the statement in the lineage, run again on the store, gives the manifest's rows."""

import datetime as dt
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import read_lineage

from curator import manifests, policies, queries, softlabels
from curator.errors import InputError
from curator.schema import IMAGES, REVIEWS
from curator.store import Store

CLASSES = ["ant", "bee", "cow", "dog", "eel"]
START = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
# Classes of very different size, one of them never ranks first.
SHARES = np.array([0.55, 0.25, 0.15, 0.05])


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """500 pool images and 200 holdout images, twins, reviews and two generations; many confidences are equal."""
    store = Store.create(tmp_path_factory.mktemp("policies") / "store", CLASSES)
    rng = np.random.default_rng(11)
    ids = np.unique(rng.integers(0, 2**62, 700)).tolist()
    splits = ["unlabeled"] * 500 + ["holdout"] * 200
    truth = rng.choice(4, 700, p=SHARES)
    images = [
        {"image_id": i, "uri": f"{i}.jpg", "split": split, "status": "ok", "added_at": START}
        | {"content_hash": f"{rng.integers(5000)}", "label": int(label) if split == "holdout" else None}
        for i, split, label in zip(ids, splits, truth, strict=True)
    ]
    store.append("images", pa.Table.from_pylist(images, IMAGES.schema))
    for generation in (0, 1):
        logits = rng.normal(size=(700, 5)) + 3 * (truth[:, None] == np.arange(5)) - 9 * (np.arange(5) == 4)
        logits[:, 4] = np.sort(logits, axis=1)[:, -2] - 0.1  # often second or third
        probs = np.round(np.exp(logits) / np.exp(logits).sum(1, keepdims=True), 2).astype(np.float32)
        probs[:, 4] = 1 - probs[:, :4].sum(1)
        summary = softlabels.summarize(np.maximum(probs, 0), 3)
        store.append("labels", softlabels.table(summary, ids, generation, f"m{generation}", splits))
    said = [("reject", None), ("accept", None), ("relabel", 4), ("relabel", 0)]
    reviews = [
        {"image_id": ids[i], "decision": said[i % 4][0], "new_label": said[i % 4][1], "reviewer": "x"}
        | {"decided_at": START + dt.timedelta(hours=i)}
        for i in range(40)
    ]
    store.append("reviews", pa.Table.from_pylist(reviews, REVIEWS.schema))
    return store


def stated(store: Store, built: manifests.Manifest) -> list[tuple[Any, ...]]:
    """What the statement in the lineage gives, with nothing but what is recorded beside it."""
    lineage = read_lineage(built.path)
    values = lineage["parameters"] | lineage["parameters"]["settings"]
    con = store.connect(lineage["tables"])
    try:
        rows = queries.rows(con, lineage["sql"], **values)
    finally:
        con.close()
    rows.sort(key=lambda row: (row["label"], -row["score"], row["image_id"]))
    return [(r["image_id"], r["label"], r["confidence"], r["copies"], r["weight"]) for r in rows]


def written(path: Path) -> list[tuple[Any, ...]]:
    table = pq.read_table(path, columns=["image_id", "label", "confidence", "copies", "weight"])
    return list(zip(*(column.to_pylist() for column in table.columns), strict=True))


OPTIONS: list[dict[str, Any]] = [
    {"per_class": 20, "seed": 3},
    {"per_class": 150, "generation": 0, "max_copies": 4, "where": "margin > 0.02", "min_confidence": 0.45},
]


@pytest.fixture(scope="module")
def plain(pool: Store) -> list[list[tuple[Any, ...]]]:
    """The rows without a policy."""
    return [written(manifests.build(pool, f"plain-{n}", given).path) for n, given in enumerate(OPTIONS)]


@pytest.mark.parametrize("name", policies.names())
def test_the_lineage_defines_the_rows(pool: Store, plain: list[list[tuple[Any, ...]]], name: str) -> None:
    built = [manifests.build(pool, f"{name}-{n}", {"policy": name} | given) for n, given in enumerate(OPTIONS)]
    for manifest in built:
        rows = written(manifest.path)
        assert rows == stated(pool, manifest)
        assert len({row[0] for row in rows}) == len(rows)
        assert manifest.lineage["parameters"]["settings"] == policies.load(name).defaults
    assert name == "top" or any(written(m.path) != rows for m, rows in zip(built, plain, strict=True)), (
        "the same as top"
    )


SETTINGS: dict[str, dict[str, policies.Value]] = {
    "class-adaptive": {"threshold": 0.7},
    "stratified": {"bins": 3},
    "precision": {"precision": 0.6, "z": 1},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_change_the_rows_and_are_recorded(pool: Store, name: str) -> None:
    usual = manifests.build(pool, f"{name}-usual", {"policy": name, "per_class": 100})
    built = manifests.build(pool, f"{name}-set", {"policy": name, "per_class": 100, "settings": SETTINGS[name]})
    again = manifests.build(pool, f"{name}-again", {}, as_of=f"{name}-set")
    assert written(built.path) == stated(pool, built)
    assert written(built.path) != written(usual.path)
    assert again.sha256 == built.sha256


def test_a_policy_that_lets_nothing_through(pool: Store) -> None:
    with pytest.raises(InputError, match="nothing can be selected"):
        manifests.build(pool, "none", {"policy": "threshold", "per_class": 2, "settings": {"threshold": 2}})
    assert not (pool.path / "manifests" / "none").exists()
