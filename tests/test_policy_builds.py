"""Whole builds with each policy: the statement in the lineage, run again on the store, gives the manifest's rows."""

import datetime as dt
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import read_lineage

from curator import queries
from curator.curation import building, explanation, manifests, policies
from curator.curation.parameters import Parameters
from curator.errors import InputError
from curator.generations import softlabels
from curator.schema import IMAGES, REVIEWS
from curator.storage import additions
from curator.storage.store import Store

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
    additions.append(store, "images", pa.Table.from_pylist(images, IMAGES.schema))
    for generation in (0, 1):
        logits = rng.normal(size=(700, 5)) + 3 * (truth[:, None] == np.arange(5)) - 9 * (np.arange(5) == 4)
        logits[:, 4] = np.sort(logits, axis=1)[:, -2] - 0.1  # often second or third
        probs = np.round(np.exp(logits) / np.exp(logits).sum(1, keepdims=True), 2).astype(np.float32)
        probs[:, 4] = 1 - probs[:, :4].sum(1)
        summary = softlabels.summarize(np.maximum(probs, 0), 3)
        additions.append(store, "labels", softlabels.table(summary, ids, generation, f"m{generation}", splits))
    said = [("reject", None), ("accept", None), ("relabel", 4), ("relabel", 0)]
    reviews = [
        {"image_id": ids[i], "decision": said[i % 4][0], "new_label": said[i % 4][1], "reviewer": "x"}
        | {"decided_at": START + dt.timedelta(hours=i)}
        for i in range(40)
    ]
    additions.append(store, "reviews", pa.Table.from_pylist(reviews, REVIEWS.schema))
    return store


def stated(store: Store, built: manifests.Manifest) -> list[tuple[Any, ...]]:
    """What the statement in the lineage gives, with nothing but what is recorded beside it."""
    lineage = read_lineage(built.path)
    values = lineage["parameters"] | lineage["parameters"]["settings"]
    con = store.connect(lineage["tables"])
    manifests.read_earlier(store, con, Parameters(**lineage["parameters"]))
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
    return [written(building.build(pool, f"plain-{n}", given).path) for n, given in enumerate(OPTIONS)]


@pytest.mark.parametrize("name", [name for name in policies.names() if name != "images-of"])
def test_the_lineage_defines_the_rows(pool: Store, plain: list[list[tuple[Any, ...]]], name: str) -> None:
    built = [building.build(pool, f"{name}-{n}", {"policy": name} | given) for n, given in enumerate(OPTIONS)]
    for manifest in built:
        rows = written(manifest.path)
        assert rows == stated(pool, manifest)
        assert len({row[0] for row in rows}) == len(rows)
        assert manifest.lineage["parameters"]["settings"] == policies.load(name).defaults
    assert name == "top" or any(written(m.path) != rows for m, rows in zip(built, plain, strict=True)), (
        "the same as top"
    )


@pytest.mark.parametrize("options", [{"per_class": 250, "max_copies": 3}, {"fill": "none"}])
def test_images_of_another_manifest(pool: Store, options: dict[str, Any]) -> None:
    """The same images, classes, copies and weights, whatever the policy; the soft labels of another teacher."""
    name = "-".join(["first", *options])
    options = {"per_class": 40} | options
    first = building.build(pool, name, {"generation": 0, "policy": "soft-weight", "min_confidence": 0.4} | options)
    again = {"generation": 1, "policy": "images-of", "min_confidence": 0.0, "settings": {"manifest": name}}
    built = building.build(pool, f"{name}-again", again | options)
    assert written(built.path) == stated(pool, built)
    had, has = ({row[0]: row[1:] for row in written(m.path)} for m in (first, built))
    assert {i: (label, copies, weight) for i, (label, _, copies, weight) in had.items()} == {
        i: (label, copies, weight) for i, (label, _, copies, weight) in has.items()
    }
    assert had != has, "the confidences of both teachers are the same"
    # a confidence makes a target hard in the teacher's own class only
    auto = building.build(pool, f"{name}-auto", again | options | {"targets": "auto", "hard_from": 0.5})
    kinds = set()
    labels = {row["image_id"]: row["label"] for row in pool.rows("from labels where generation = 1")}
    for row in pq.read_table(auto.path, filters=[("source", "=", "pseudo")]).to_pylist():
        top = labels[row["image_id"]]
        kinds.add((row["confidence"] >= 0.5, top == row["label"], len(row["top_classes"]) == 1))
        assert row["top_classes"][0] == top
    assert kinds >= {(True, True, True), (True, False, False), (False, True, False)}
    assert {kind for kind in kinds if kind[2]} == {(True, True, True)}
    assert explanation.explain(pool, built.name, min(has)).is_in
    assert all(verdict.ok for verdict in manifests.check(pool, built.name))
    with pytest.raises(InputError, match="and none is named") as caught:
        building.build(pool, "unnamed", {"per_class": 9, "policy": "images-of"})
    assert "--set manifest=NAME, one of " in caught.value.mend
    with pytest.raises(InputError, match="there is no manifest 'firts'"):
        building.build(pool, "wrong", again | options | {"settings": {"manifest": "firts"}})


def test_a_policy_of_ones_own_may_read_another_manifest(pool: Store, tmp_path: Path) -> None:
    """For example what the last selection left out."""
    building.build(pool, "last", {"generation": 0, "per_class": 30})
    query = "select image_id, label, confidence, confidence as score from candidates anti join earlier using (image_id)"
    (tmp_path / "rest.sql").write_text(f"-- Parameter: $manifest = ''\n{query};\n", "utf-8")
    options = {"generation": 1, "per_class": 30, "policy": str(tmp_path / "rest.sql")}
    built = building.build(pool, "rest", options | {"settings": {"manifest": "last"}})
    last = {row[0] for row in written(pool.path / "manifests" / "last")}
    assert not last & {row[0] for row in written(built.path)}
    (tmp_path / "rest.sql").write_text(query, "utf-8")
    with pytest.raises(InputError, match="reads 'earlier'"):
        building.build(pool, "other", options)


SETTINGS: dict[str, dict[str, policies.Value]] = {
    "class-adaptive": {"threshold": 0.7},
    "stratified": {"bins": 3},
    "precision": {"precision": 0.6, "z": 1},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_change_the_rows_and_are_recorded(pool: Store, name: str) -> None:
    usual = building.build(pool, f"{name}-usual", {"policy": name, "per_class": 100})
    built = building.build(pool, f"{name}-set", {"policy": name, "per_class": 100, "settings": SETTINGS[name]})
    again = building.build(pool, f"{name}-again", {}, as_of=f"{name}-set")
    assert written(built.path) == stated(pool, built)
    assert written(built.path) != written(usual.path)
    assert again.sha256 == built.sha256


def test_a_policy_that_lets_nothing_through(pool: Store, tmp_path: Path) -> None:
    query = "select image_id, label, confidence, confidence as score from candidates where false"
    (tmp_path / "none.sql").write_text(query, "utf-8")
    with pytest.raises(InputError, match="nothing can be selected"):
        building.build(pool, "none", {"policy": str(tmp_path / "none.sql"), "per_class": 2})
    assert not (pool.path / "manifests" / "none").exists()
