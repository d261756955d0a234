"""The situation of a store: what each state says is to be done next, and the overview page that shows it."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from streamlit.testing.v1 import AppTest

from curator import queries
from curator.curation import building
from curator.pictures.images import add_images
from curator.serving.situation import Situation, situation
from curator.storage.store import ABSENT, Store


def look(store: Store) -> Situation:
    with store.connect() as con:
        scanned = store.versions()["duplicates"] != ABSENT
        return situation(Path("store"), scanned, lambda query: queries.rows(con, query))


def commands(found: Situation) -> list[str]:
    return [" ".join(step.command.split()[:3]) for step in found.steps]


def test_an_empty_store_needs_images_of_each_split(tmp_path: Path) -> None:
    found = look(Store.create(tmp_path / "store", ["cat", "dog"]))
    assert [step.command.split("--split ")[1].split()[0] for step in found.steps] == ["labeled", "unlabeled", "holdout"]
    assert found.extent["classes"] == 2


def test_labels_without_a_manifest_ask_for_one(store: Store) -> None:
    found = look(store)
    assert found.generations == [
        {
            "generation": 0,
            "model": "outside",
            "has_weights": False,
            "pool": 9,
            "confidence": pytest.approx((0.9 + 0.8 + 0.8 + 0.5 + 0.7 + 0.6 + 0.6 + 0.34 + 0.4) / 9),
            "confident": 1.0,
            "holdout": 0,
            "top1": None,
            "manifests": 0,
        }
    ]
    assert commands(found)[-1] == "curator build-manifest --per-class"
    assert any("no holdout" in step.what for step in found.steps)


def test_a_manifest_asks_for_a_student(store: Store) -> None:
    building.build(store, "m", {"per_class": 2})
    assert look(store).steps[-1].command == "curator train --recipe RECIPE --manifest m"


def test_images_that_came_later_are_to_be_labeled(store: Store, tmp_path: Path) -> None:
    pq.write_table(pa.table({"uri": ["pool/late.jpg"]}), tmp_path / "late.parquet")
    add_images(store, str(tmp_path / "late.parquet"), "unlabeled", scan=False)
    (step,) = [step for step in look(store).steps if "has not labeled" in step.what]
    assert step.what == "Generation 0 has not labeled 1 image of the pool."
    assert step.command == "curator import-labels FILE --generation 0 --model outside"


def test_commands_name_a_store_elsewhere(store: Store) -> None:
    with store.connect() as con:
        found = situation("/data/my store", False, lambda query: queries.rows(con, query))
    assert all(step.command.endswith("--store '/data/my store'") for step in found.steps)


def test_the_page_shows_generations_and_steps(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    building.build(store, "m", {"per_class": 2})
    monkeypatch.setenv("CURATOR_STORE", str(store.path))

    def page() -> None:
        from curator.app import overview

        overview.show()

    shown = AppTest.from_function(page, default_timeout=20).run()
    assert not shown.exception
    assert [(metric.label, metric.value) for metric in shown.metric][:2] == [("Pool", "9"), ("Labeled", "0")]
    assert list(shown.dataframe[0].value["model"]) == ["outside"]
    assert any("--manifest m" in block.value for block in shown.code)
