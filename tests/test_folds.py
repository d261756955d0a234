"""Folds: who is in which, what is trained without whom, what is stored, and how a stopped run goes on."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import Answer
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import OWN, Watched, picture, world, write

from curator import queries
from curator.decisions.reviews import add_review
from curator.errors import InputError
from curator.generations.held_out import import_held_out
from curator.loading.rows import Fold, Rows, labeled_rows
from curator.pictures.images import add_images
from curator.runs import folds
from curator.storage.store import Store

SHORT = [*OWN, "schedule.steps=4"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return world(tmp_path_factory.mktemp("made"), labeled=5, pool=0, holdout=1)


def run(store: Store, *changes: str, count: int = 3, **options: object) -> folds.Folded:
    return folds.run(store, str(store.root / "recipe.toml"), count, "r", changes=[*SHORT, *changes], **options)  # type: ignore[arg-type]


def labels(store: Store) -> list[dict[str, object]]:
    return store.rows("select * from held_out order by image_id")


def test_each_image_is_labeled_by_a_model_without_it(store: Store) -> None:
    shutil.rmtree(store.path / "held_out", ignore_errors=True)  # a store that is older than the table
    done = run(store)
    assert (done.images, done.trained, done.unknown, done.failed) == (15, 3, 0, 0)
    with closing(store.connect()) as con:
        dealt = labeled_rows(con, Fold("r", 0, 3, 0))
    expected = dict(zip(dealt["image_id"].to_pylist(), dealt["fold"].to_pylist(), strict=True))
    assert {row["image_id"]: row["fold"] for row in labels(store)} == expected
    for number in range(3):
        part = Fold("r", number, 3, 0)
        left = Rows.labeled(store, fold=part)
        ids = left.read(np.arange(len(left))).image_id.tolist()
        assert sorted(ids) == sorted(key for key, fold in expected.items() if fold != number)
        assert left.name != Rows.labeled(store).name


def test_no_model_is_registered_and_no_weights_stay(store: Store) -> None:
    run(store)
    assert store.rows("select * from models") == []
    assert [place.name for place in (store.path / "folds" / "r").iterdir()] == ["run.json"]
    assert json.loads((store.path / "folds" / "r" / "run.json").read_text())["folds"] == 3


def test_what_is_done_is_not_done_again(store: Store) -> None:
    run(store)
    before, files = labels(store), store.files("held_out")
    assert run(store).trained == 0
    assert (labels(store), store.files("held_out")) == (before, files)
    for changed in ({"seed": 1}, {"count": 4}):
        with pytest.raises(InputError, match="begun with another"):
            run(store, **changed)
    with pytest.raises(InputError, match="another recipe"):
        run(store, "seed=3")
    add_images(store, str(write(store.root / "more" / "bar" / "x.png", picture(0, 99)).parent.parent), "labeled")
    with pytest.raises(InputError, match="another labeled images"):
        run(store)


def test_a_stopped_run_goes_on(store: Store, made: Store, tmp_path: Path) -> None:
    shutil.copytree(made.root, tmp_path / "whole")
    whole = Store(tmp_path / "whole" / "store")
    run(whole)
    Watched.seen.clear()
    Watched.stop_at = 6  # the second step of the second fold
    with pytest.raises(KeyboardInterrupt):
        run(store, checkpoint_seconds=0)
    assert {row["fold"] for row in labels(store)} == {0}
    assert (store.path / "folds" / "r" / "1" / "checkpoint-000000001").is_dir()
    Watched.seen.clear()
    Watched.stop_at = -1
    assert run(store).trained == 2
    assert sum(training for training, _ in Watched.seen) == 3 + 4  # one step of eight was kept
    assert labels(store) == labels(whole)


@pytest.mark.long
def test_a_run_keeps_to_the_reviews_that_it_began_with(store: Store, made: Store, tmp_path: Path) -> None:
    shutil.copytree(made.root, tmp_path / "whole")
    whole = Store(tmp_path / "whole" / "store")
    known = {row["uri"]: row["image_id"] for row in store.rows("select uri, image_id from images")}
    for each in (store, whole):
        add_review(each, known["labeled/bar/0.png"], "reject")
    run(whole)
    assert known["labeled/bar/0.png"] not in {row["image_id"] for row in labels(whole)}
    Watched.seen.clear()
    Watched.stop_at = 6
    with pytest.raises(KeyboardInterrupt):
        run(store, checkpoint_seconds=0)
    Watched.stop_at = -1
    add_review(store, known["labeled/bar/0.png"], "skip")
    add_review(store, known["labeled/bar/1.png"], "relabel", "disc")
    done = run(store)
    assert (done.trained, done.images) == (2, 14)
    assert labels(store) == labels(whole)
    # another run takes them as they are now
    folds.run(store, str(store.root / "recipe.toml"), 3, "later", changes=SHORT)
    assert store.rows("select count(*) as n from held_out where run = 'later'")[0]["n"] == 15
    with closing(store.connect()) as con:
        rows = labeled_rows(con).to_pylist()
    changed = {row["image_id"]: (row["label"], row["source"]) for row in rows}
    assert changed[known["labeled/bar/1.png"]] == (1, "review")
    assert changed[known["labeled/bar/2.png"]] == (0, "labeled")


def test_labels_that_were_imported_are_no_run_to_go_on_with(store: Store, tmp_path: Path) -> None:
    uri = store.rows("select uri from images where split = 'labeled' order by uri limit 1")[0]["uri"]
    probs = pa.array([[0.2, 0.3, 0.5]], pa.list_(pa.float32()))
    pq.write_table(pa.table({"uri": [uri], "probs": probs}), tmp_path / "r.parquet")
    import_held_out(store, str(tmp_path / "r.parquet"))
    with pytest.raises(InputError, match="the run of folds 'r' were not made here"):
        run(store)
    folds.run(store, str(store.root / "recipe.toml"), 2, "own", changes=SHORT)
    with pytest.raises(InputError, match="there is a run of folds 'own'"):
        import_held_out(store, str(tmp_path / "r.parquet"), "own")


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 30)), min_size=1, max_size=60),
    st.integers(2, 5),
    st.integers(0, 3),
)
def test_classes_are_dealt_out_evenly_and_twins_stay_together(
    images: list[tuple[int, int]], count: int, seed: int
) -> None:
    """Each image: its class, and the picture it shows; pictures from 20 on were never scanned."""
    con = duckdb.connect()
    table = pa.table(
        {
            "image_id": range(len(images)),
            "label": pa.array([label for label, _ in images], pa.int32()),
            "content_hash": [f"h{shows}" if shows < 20 else None for _, shows in images],
        }
    )
    con.register("stored_images", table)
    con.register("labeled", table.select(["image_id", "label"]))
    query = queries.text("folds")
    dealt = {row["image_id"]: row["fold"] for row in queries.rows(con, query, folds=count, seed=seed)}
    assert sorted(dealt) == list(range(len(images)))
    assert set(dealt.values()) <= set(range(count))
    shown: dict[object, set[int]] = {}
    classes: dict[object, int] = {}
    for number, (label, shows) in enumerate(images):
        key = shows if shows < 20 else -number - 1
        shown.setdefault(key, set()).add(dealt[number])
        classes[key] = min(label, classes.get(key, label))
    assert all(len(places) == 1 for places in shown.values())
    for label in set(classes.values()):
        sizes = Counter(min(shown[key]) for key, its in classes.items() if its == label)
        assert max(sizes.values()) - min(sizes.get(fold, 0) for fold in range(count)) <= 1
    con.unregister("labeled")
    con.register("labeled", table.select(["image_id", "label"]).take(list(range(len(images)))[::-1]))
    again = {row["image_id"]: row["fold"] for row in queries.rows(con, query, folds=count, seed=seed)}
    assert again == dealt


def test_what_cannot_be_cut(store: Store) -> None:
    for count, what in ((1, "into 1 folds"), (101, "into 101 folds"), (16, "would be empty")):
        with pytest.raises(InputError, match=what):
            run(store, count=count)


def test_the_only_picture_of_a_class(store: Store, tmp_path: Path) -> None:
    other = Store.create(tmp_path / "other", ("bar", "disc", "square"), root=store.root)
    for name, numbers in (("bar", range(5)), ("disc", range(1))):
        for number in numbers:
            write(tmp_path / "few" / name / f"{number}.png", picture(("bar", "disc").index(name), number))
    add_images(other, str(tmp_path / "few"), "labeled")
    (tmp_path / "recipe.toml").write_text((store.root / "recipe.toml").read_text())
    done = folds.run(other, str(tmp_path / "recipe.toml"), 2, changes=SHORT)
    assert (done.run, done.images, done.unknown) == ("recipe-2", 6, 1)


def test_the_command(store: Store, curator: Callable[..., Answer]) -> None:
    options = ("--recipe", store.root / "recipe.toml", "--folds", 2, "--store", store.path)
    changes = [word for change in SHORT for word in ("--set", change)]
    answer = curator("quality", "folds", *options, *changes, "--json")
    assert answer.code == 0, answer.err
    assert {"run", "folds", "images", "trained"} <= answer.json.keys()
    assert (answer.json["run"], answer.json["images"]) == ("recipe-2", 15)
    text = curator("quality", "folds", *options, *changes)
    assert "2 folds, 0 of them now, 15 images labeled" in text.out
    shown = curator("quality", "issues", "--store", store.path, "--json")
    assert (shown.code, shown.json["images"]) == (0, 15)
