"""What `show` says of a manifest, and of one image: the first rule that keeps it out, or its rank and its copies."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import PROBS, Answer

from curator.curation import account, building, explanation, manifests
from curator.decisions.reviews import add_review
from curator.errors import InputError
from curator.generations.labels import import_labels
from curator.pictures.images import add_images
from curator.storage.store import Store


@pytest.fixture
def full(store: Store, ids: dict[str, int], tmp_path: Path) -> Store:
    """The fixture store with an image for every rule.

    j is unreadable, k without a label, l labeled, m a holdout image; b has the bytes of m; c is rejected, g is a dog.
    """
    rows = {"j": "unlabeled", "k": "unlabeled", "l": "labeled", "m": "holdout"}
    table = {"uri": list(rows), "split": list(rows.values()), "label": [None, None, "cat", "cat"]}
    pq.write_table(pa.table(table), tmp_path / "more.parquet")
    add_images(store, str(tmp_path / "more.parquet"), None, scan=False)
    images = store.delta("images")
    images.update(updates={"content_hash": "'same'", "status": "'ok'"}, predicate="uri in ('m', 'pool/b.jpg')")
    store.delta("images").update(updates={"status": "'unreadable'"}, predicate="uri = 'j'")
    add_review(store, ids["c"], "reject")
    add_review(store, ids["g"], "relabel", "dog")
    return store


def reasons(store: Store, name: str) -> dict[str, explanation.Explanation]:
    """The explanation of each image of the store, by its letter."""
    found = store.rows("select image_id, uri from images")
    return {row["uri"].removeprefix("pool/")[0]: explanation.explain(store, name, row["image_id"]) for row in found}


def test_the_rule_that_decided_is_named(full: Store) -> None:
    options = {"per_class": 2, "where": "uri <> 'pool/a.jpg'", "min_confidence": 0.35, "policy": "threshold"}
    building.build(full, "m", options | {"settings": {"threshold": 0.45}})
    found = reasons(full, "m")
    wanted = {
        "a": "--where does not let it through: uri <> 'pool/a.jpg'",
        "b": "an image of the holdout has the same bytes",
        "c": "a reviewer rejected it",
        "d": "it counts 2 times as cat: it is number 1 of the 1 images that the policy threshold lets into the class, "
        "and the first 1 are kept",
        "e": "it counts once as dog: it is number 1 of the 3 images that the policy threshold lets into the class, and "
        "the first 2 are kept",
        "f": "it is number 3 of the 3 images that the policy threshold lets into the class dog, and the first 2 are "
        "kept; the least confident of them has 0.6, this one 0.6 (of equals the lower image_id comes first)",
        "g": "it counts once as dog, a class that a reviewer gave: it is number 2 of the 3 images that the policy "
        "threshold lets into the class, and the first 2 are kept",
        "h": "its confidence 0.34 is not above 0.35",
        "i": "the policy threshold does not let it through; its confidence is 0.4",
        "j": "it cannot be read",
        "k": "the teacher of generation 0 has not labeled it",
        "l": "it is in the labeled split, and only the unlabeled pool is selected from",
        "m": "it is in the holdout split, and only the unlabeled pool is selected from",
    }
    ids = {row["uri"][5]: row["image_id"] for row in full.rows("select * from images where uri like 'pool/%'")}
    if ids["f"] < ids["g"]:  # of equals the lower image_id comes first
        wanted["f"], wanted["g"] = wanted["g"].replace(", a class that a reviewer gave", ""), wanted["f"]
    assert {letter: said.reason for letter, said in found.items()} == wanted
    kept = set(pq.read_table(full.path / "manifests" / "m")["image_id"].to_pylist())
    assert {said.image_id for said in found.values() if said.is_in} == kept


def test_every_image_has_the_rank_that_the_manifest_gave_it(store: Store) -> None:
    built = building.build(store, "m", {"per_class": 2})
    rows = pq.read_table(built.path).to_pylist()
    found = reasons(store, "m")
    for said in found.values():
        row = next((row for row in rows if row["image_id"] == said.image_id), None)
        assert said.is_in == (row is not None)
        assert said.facts["copies"] == (row["copies"] if row else 0)
        best = [other for other in rows if other["label"] == (row or {}).get("label")]
        if row:
            assert said.facts["rank"] == best.index(row) + 1
        else:
            assert said.facts["rank"] > 2
    assert {letter: said.facts["rank"] for letter, said in found.items() if letter in "adhefig"} == {
        **{"a": 1, "d": 4, "h": 5, "e": 1, "f": 2, "i": 3, "g": 1},
    }


def test_an_explanation_is_as_of_the_manifest(store: Store, ids: dict[str, int], tmp_path: Path) -> None:
    building.build(store, "m", {"per_class": 2})
    add_review(store, ids["a"], "reject")
    pq.write_table(pa.table({"uri": ["later.jpg"]}), tmp_path / "later.parquet")
    add_images(store, str(tmp_path / "later.parquet"), "unlabeled", scan=False)
    assert explanation.explain(store, "m", ids["a"]).is_in
    later = store.rows("select image_id from images where uri = 'later.jpg'")[0]["image_id"]
    said = explanation.explain(store, "m", later)
    assert (said.is_in, said.facts) == (False, {})
    assert "added to the store after the version" in said.reason
    with pytest.raises(InputError, match="there is no image 5"):
        explanation.explain(store, "m", 5)


def test_show_an_image(store: Store, ids: dict[str, int], curator: Callable[..., Answer]) -> None:
    at = ("--store", store.path)
    curator("build-manifest", "m", "--per-class", 2, *at)
    answer = curator("show", "m", "--image-id", ids["d"], *at, "--json")
    assert answer.code == 0
    assert answer.json | {"reason": ""} == {
        **{"name": "m", "image_id": ids["d"], "in": False, "reason": "", "uri": "pool/d.jpg", "split": "unlabeled"},
        **{"status": "unscanned", "confidence": 0.5, "is_labeled": True, "passes_where": True, "is_above": True},
        **{
            "decision": None,
            "is_accepted": False,
            "is_twin": False,
            "is_leak": False,
            "is_candidate": True,
            "is_eligible": True,
            "score": 0.5,
            "rank": 4,
            "of_class": 5,
        },
        **{"teacher_class": "cat", "new_class": None, "class": "cat", "kept_of_class": 2, "copies": 0, "weight": None},
        "cut_off": float(np.float32(0.8)),
    }
    text = curator("show", "m", "--image-id", ids["d"], *at).out
    assert text.startswith(
        f"image {ids['d']} is not in m: it is number 4 of the 5 images that the policy top lets into"
    )
    assert curator("show", "m", "--image-id", 5, *at).code == 2
    assert curator("show", "m", "--image-id", -5, *at).code == 2


# The whole manifest


def test_precision_is_estimated_on_the_holdout(store: Store, tmp_path: Path, curator: Callable[..., Answer]) -> None:
    """Of the holdout, cat at 0.9 and 0.8 is right, cat at 0.6 below the cut-off; dog is wrong; nothing is an owl."""
    truth = {"h1": "cat", "h2": "cat", "h3": "dog", "h4": "owl"}
    held = {"h1": (0.9, 0.1, 0), "h2": (0.8, 0.2, 0), "h3": (0.6, 0.4, 0), "h4": (0.1, 0.8, 0.1)}
    pq.write_table(pa.table({"uri": list(truth), "label": list(truth.values())}), tmp_path / "held.parquet")
    add_images(store, str(tmp_path / "held.parquet"), "holdout", scan=False)
    probs = {f"pool/{name}.jpg": p for name, p in PROBS.items()} | held
    table = pa.table({"uri": list(probs), "probs": [list(map(float, p)) for p in probs.values()]})
    pq.write_table(table, tmp_path / "all.parquet")
    import_labels(store, str(tmp_path / "all.parquet"), 1, "second")
    built = building.build(store, "m", {"per_class": 3})
    got = [(c["class_name"], c["holdout_seen"], c["holdout_right"], c["precision"]) for c in account.classes(built)]
    assert got == [("cat", 2, 2, 1.0), ("dog", 1, 0, 0.0), ("owl", 0, 0, None)]
    assert account.precision(built) == (2, 3)
    text = curator("show", "m", "--store", store.path).out
    assert (
        "of 3 holdout images at or above the cut-off of their class 66.7% are labeled rightly (20.8% to 93.9%)" in text
    )


def test_warnings(store: Store, ids: dict[str, int], curator: Callable[..., Answer]) -> None:
    add_review(store, ids["g"], "reject")
    shown = curator("build-manifest", "m", "--per-class", 40, "--store", store.path).out
    assert (
        "2 classes have fewer images to choose from than the quota of 40, and copies fill them up: dog, cat." in shown
    )
    assert "1 class has no image to choose from, so no row: owl." in shown
    assert "1 class repeats an image more than 10 times: dog (14)." in shown
    command = ("build-manifest", "n", "--per-class", 40, "--max-copies", 10, "--store", store.path, "--json")
    capped = curator(*command).json
    assert not [text for text in capped["warnings"] if "repeats" in text]
    assert [text for text in capped["warnings"] if "no image counts more than 10 times" in text]


def test_options_that_are_not_default(store: Store, curator: Callable[..., Answer]) -> None:
    options = ("--policy", "threshold", "--set", "threshold=0.5", "--targets", "auto", "--hard-from", 0.7)
    curator("build-manifest", "m", "--per-class", 2, *options, "--store", store.path)
    assert account.options(manifests.find(store, "m")) == {
        "per-class": 2,
        "policy": "threshold",
        "targets": "auto",
        "hard-from": 0.7,
        "settings": '{"threshold": 0.5}',
    }


def test_auto_targets_are_hard_from_a_confidence_on(store: Store) -> None:
    built = building.build(store, "m", {"per_class": 9, "targets": "auto", "hard_from": 0.7})
    for row in pq.read_table(built.path).to_pylist():
        hard = row["confidence"] >= np.float32(0.7)
        assert (len(row["top_classes"]), row["tail"]) == ((1, 0.0) if hard else (3, 0.0))
        assert (row["top_probs"] == [1.0]) == hard
    assert sum(len(row["top_classes"]) == 1 for row in pq.read_table(built.path).to_pylist()) == 4


def test_a_confidence_for_hard_targets_that_changes_nothing_is_said(
    store: Store, curator: Callable[..., Answer]
) -> None:
    build = ("build-manifest", "--per-class", 2, "--hard-from", 0.7, "--store", store.path)
    assert "with --targets soft no row depends on --hard-from" in curator(*build, "soft").err
    assert "--hard-from" not in curator(*build, "auto", "--targets", "auto").err
    assert "--hard-from" not in curator(*build, "again", "--as-of", "auto").err
