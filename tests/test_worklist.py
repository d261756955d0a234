"""The list of images worth a look: each reason on its own, the order by value, and who leaves the list."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from conftest import CLASSES, PROBS, Answer
from test_labels import URIS, write

from curator.curation import building
from curator.decisions.reviews import add_review
from curator.errors import InputError
from curator.generations import softlabels
from curator.generations.labels import import_labels
from curator.pictures.images import add_images
from curator.quality.worklist import summary, worklist
from curator.schema import DUPLICATES, HELD_OUT
from curator.storage import additions
from curator.storage.store import Store


def listed(store: Store, **options: Any) -> dict[str, dict[str, Any]]:
    """The rows by the image's letter, in their order."""
    return {row["uri"][-5]: row for row in worklist(store, **options).images}


def second(store: Store, folder: Path, **changed: tuple[float, ...]) -> None:
    """A second generation, in which some images have other probabilities."""
    probs = pa.array([list(row) for row in (PROBS | changed).values()], pa.list_(pa.float32()))
    import_labels(store, write(folder / "second.parquet", uri=URIS, probs=probs), 1, "second")


def test_the_rows_that_a_doubt_stands_for(store: Store) -> None:
    """Three cats of five, two dogs of three for four rows, one owl for four rows."""
    building.build(store, "m", {"per_class": 4})
    rows = listed(store)
    copies = {"a": 1, "b": 1, "c": 1, "d": 1, "e": 2, "f": 1, "i": 1, "g": 4}
    values = {letter: (1 - max(PROBS[letter])) * number for letter, number in copies.items()}
    doubts = {letter: row["value"] for letter, row in rows.items() if row["reason"] == "doubt"}
    assert doubts == pytest.approx(values, abs=1e-6)
    assert {letter: rows[letter]["copies"] for letter in copies} == copies
    assert [row["value"] for row in rows.values()] == sorted((row["value"] for row in rows.values()), reverse=True)
    assert next(iter(rows)) == "g"


def test_close_calls_of_short_classes(store: Store, ids: dict[str, int]) -> None:
    """Of images below the threshold, the class that has too few is worth a look, and the others are not."""
    building.build(store, "m", {"per_class": 4, "min_confidence": 0.5})  # leaves d, h and i out; cats are 3 of 4
    rows = {letter: row for letter, row in listed(store).items() if row["reason"] == "close call"}
    gains = {"d": 2, "h": 2, "i": 2}
    margins = {"d": 0.5 - 0.3, "h": 0.34 - 0.33, "i": 0.4 - 0.3}
    want = {letter: max(PROBS[letter]) * (1 - margins[letter]) * gains[letter] for letter in gains}
    assert {letter: row["value"] for letter, row in rows.items()} == pytest.approx(want, abs=1e-6)
    building.build(store, "n", {"per_class": 2, "min_confidence": 0.5})
    assert "d" not in listed(store)  # there are enough cats now


def test_flips(store: Store, tmp_path: Path) -> None:
    second(store, tmp_path, b=(0.1, 0.8, 0.1), g=(0.7, 0.1, 0.2))
    rows = listed(store)  # without a manifest
    assert list(rows) == ["b", "g"]
    assert rows["b"]["reason"] == "flip"
    assert rows["b"]["value"] == pytest.approx(0.5, abs=1e-6)
    assert rows["b"]["detail"] == "was cat (0.80)"
    assert rows["g"]["value"] == pytest.approx(0.6 / 1.3, abs=1e-6)
    building.build(store, "m", {"per_class": 6})
    rows = listed(store)
    assert rows["b"]["reason"] == "flip"
    assert rows["b"]["value"] == pytest.approx(0.5 * rows["b"]["copies"], abs=1e-6)


def test_a_short_list_begins_as_a_long_one(store: Store, tmp_path: Path) -> None:
    """What is found for one reason spares the next ones work, and nobody their place."""
    second(store, tmp_path, b=(0.1, 0.8, 0.1), g=(0.7, 0.1, 0.2))
    building.build(store, "m", {"per_class": 6, "min_confidence": 0.45})
    rows = worklist(store).images
    assert {row["reason"] for row in rows} == {"flip", "doubt", "close call"}
    for limit in range(1, len(rows)):
        assert worklist(store, limit).images == rows[:limit]
    for name in ("browse", "histograms"):  # what stands in for the labels where it is there
        shutil.rmtree(store.path / name)
    assert worklist(store).images == rows


def test_leaks_and_labels(store: Store, ids: dict[str, int], tmp_path: Path) -> None:
    uris = [f"lab/{name}.jpg" for name in "uvwxyz"]
    add_images(store, write(tmp_path / "lab.parquet", uri=uris, label=["cat", "dog"] * 3), "labeled", scan=False)
    known = {row["uri"]: row["image_id"] for row in store.rows("select uri, image_id from images")}
    probs = np.array([[0.9, 0.05, 0.05], [0.05, 0.9, 0.05]] * 3, np.float32)
    probs[0] = [0.04, 0.9, 0.06]  # u is given as a cat
    numbers = np.array([known[uri] for uri in uris])
    rows = softlabels.table(softlabels.summarize(probs, 3), numbers, 0, "m", ["labeled"] * 6)
    held = {field.name: rows[field.name] for field in HELD_OUT.schema if field.name in rows.column_names}
    held |= {"run": pa.array(["one"] * 6), "fold": pa.array([0] * 6, pa.int16())}
    additions.append(
        store, "held_out", pa.table([held[f.name].cast(f.type) for f in HELD_OUT.schema], schema=HELD_OUT.schema)
    )
    twin = {"image_id": ids["a"], "group_id": ids["a"], "nearest": 5, "kind": "phash", "distance": 4.0, "leak": True}
    twin |= {"holdout_twin": 5, "labeled_twin": False, "scan": "s"}
    additions.append(store, "duplicates", pa.Table.from_pylist([twin], DUPLICATES.schema))
    found = listed(store)
    assert list(found) == ["a", "u"]
    assert (found["a"]["reason"], found["a"]["value"]) == ("leak", 20)
    assert found["a"]["detail"] == "like the holdout image 5 (phash)"
    assert (found["u"]["reason"], found["u"]["class_name"], found["u"]["detail"]) == ("label", "cat", "rather dog")
    assert found["u"]["value"] == pytest.approx(2 * 0.96, abs=1e-2)
    assert summary(worklist(store)) == {"leak": 1, "label": 1}


def test_an_image_stands_there_once_with_its_best_reason(store: Store, ids: dict[str, int]) -> None:
    building.build(store, "m", {"per_class": 3})
    twin = {"image_id": ids["g"], "group_id": ids["g"], "nearest": 5, "kind": "bytes", "distance": 0.0, "leak": True}
    additions.append(store, "duplicates", pa.Table.from_pylist([twin], DUPLICATES.schema))
    rows = worklist(store).images
    assert len({row["image_id"] for row in rows}) == len(rows)
    assert (rows[0]["image_id"], rows[0]["reason"]) == (ids["g"], "leak")
    # however short the list: nobody is lost who would be among the first
    for limit in (1, 2, 5):
        assert worklist(store, limit).images == rows[:limit]


def test_decided_images_leave_and_skipped_ones_wait(store: Store, ids: dict[str, int], tmp_path: Path) -> None:
    building.build(store, "m", {"per_class": 4})
    for letter, decision in (("a", "accept"), ("e", "reject"), ("g", "skip")):
        add_review(store, ids[letter], decision)
    add_review(store, ids["f"], "relabel", "cat")
    left = listed(store)
    assert not {"a", "e", "f", "g"} & left.keys()
    assert {"b", "c", "d", "i"} <= left.keys()
    second(store, tmp_path)
    building.build(store, "n", {"per_class": 4})
    assert "g" in listed(store)  # another generation, another look
    assert not {"a", "e", "f"} & listed(store).keys()


def test_one_class(store: Store) -> None:
    building.build(store, "m", {"per_class": 4})
    assert set(listed(store, class_name="dog")) == {"e", "f", "i"}
    with pytest.raises(InputError, match="there is no class 'dgo'"):
        worklist(store, class_name="dgo")


def test_one_reason(store: Store, ids: dict[str, int]) -> None:
    """An image is listed for the reason that was asked for, also where it has a better one."""
    building.build(store, "m", {"per_class": 4})
    twin = {"image_id": ids["g"], "group_id": ids["g"], "nearest": 5, "kind": "bytes", "distance": 0.0, "leak": True}
    additions.append(store, "duplicates", pa.Table.from_pylist([twin], DUPLICATES.schema))
    assert set(listed(store, reason="leak")) == {"g"}
    doubts = listed(store, reason="doubt")
    assert {row["reason"] for row in doubts.values()} == {"doubt"}
    assert "g" in doubts
    assert listed(store, reason="label") == {}
    with pytest.raises(InputError, match="the reason 'dout' is unknown; did you mean 'doubt'"):
        worklist(store, reason="dout")


def test_only_looking(store: Store, tmp_path: Path) -> None:
    """Who must not write gets the list without a comparison that is missing, and is told."""
    assert worklist(store, compare=False).compared  # there is nothing before the first generation
    second(store, tmp_path, b=(0.1, 0.8, 0.1))
    assert worklist(store, compare=False).compared
    for name in ("drift", "changes"):
        shutil.rmtree(store.path / name)
    found = worklist(store, compare=False)
    assert (found.compared, found.images) == (False, [])
    assert not (store.path / "drift").exists()
    found = worklist(store)
    assert (found.compared, summary(found)) == (True, {"flip": 1})


def test_command(store: Store, ids: dict[str, int], curator: Callable[..., Answer]) -> None:
    building.build(store, "m", {"per_class": 4})
    answer = curator("quality", "queue", "--limit", 3, "--json", "--store", store.path)
    assert answer.code == 0, answer.err
    found = answer.json
    assert (found["generation"], found["manifest"], found["reasons"]) == (0, "m", {"doubt": 3})
    assert len(found["images"]) == 3
    assert found["images"][0]["image_id"] == ids["g"]
    assert set(CLASSES) >= {row["class_name"] for row in found["images"]}
    assert "3 images to look at (manifest m): 3 doubt" in curator(
        "quality", "queue", "--limit", 3, "--store", store.path
    ).out  # fmt: skip
    only = curator("quality", "queue", "--reason", "doubt", "--json", "--store", store.path).json
    assert {row["reason"] for row in only["images"]} == {"doubt"}
    assert curator("quality", "queue", "--reason", "dout", "--store", store.path).code == 2


def test_no_labels_yet(tmp_path: Path, curator: Callable[..., Answer]) -> None:
    Store.create(tmp_path / "empty", CLASSES)
    answer = curator("quality", "queue", "--store", tmp_path / "empty")
    assert answer.code == 2
    assert "no generation has soft labels yet" in answer.err
