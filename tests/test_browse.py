"""The tables that a publication makes for the app: the sorted labels, and their histograms."""

from collections import Counter
from pathlib import Path

import deltalake
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import PROBS

from curator.generations import browse
from curator.generations.labels import import_labels
from curator.pictures.images import add_images
from curator.storage.store import Store

URIS = [f"pool/{name}.jpg" for name in PROBS]


def give(store: Store, folder: Path, generation: int, uris: list[str], probs: list[tuple[float, ...]]) -> None:
    """Imports labels."""
    column = pa.array([list(p) for p in probs], pa.list_(pa.float32()))
    pq.write_table(pa.table({"uri": uris, "probs": column}), folder / "probs.parquet")
    import_labels(store, str(folder / "probs.parquet"), generation, f"model{generation}" if generation else "outside")


def sorted_labels(store: Store) -> list[dict]:
    return store.rows(
        "select l.image_id, l.generation, l.split, l.label, confidence, margin, entropy, uri, shard, byte_offset,"
        " byte_length from labels as l join images as i using (image_id)"
        " order by l.generation, l.split, l.label, confidence, l.image_id"
    )


def kept(store: Store) -> list[dict]:
    """The rows of the table in the order in which its files hold them, the earliest generation first."""
    found = [
        {name: value for name, value in row.items() if name != "basis"}
        for file in store.files("browse")
        for row in pq.read_table(file, partitioning=None).to_pylist()
    ]
    return sorted(found, key=lambda row: row["generation"])


def check(store: Store) -> None:
    assert kept(store) == sorted_labels(store)
    counted = Counter(
        (row["generation"], row["split"], row["label"], min(round(row["confidence"] * 1_000_000) // 20_000, 49))
        for row in store.rows("select * from labels")
    )
    rows = store.rows("select * from histograms")
    assert {(row["generation"], row["split"], row["label"], row["step"]): row["images"] for row in rows} == counted


def test_made_with_the_labels(store: Store, tmp_path: Path) -> None:
    check(store)
    give(store, tmp_path, 1, URIS, [(0.02, 0.0, 0.98), *list(PROBS.values())[1:]])
    check(store)
    assert store.rows("select max(step) as step from histograms")[0]["step"] == 49


def test_labels_that_come_later(store: Store, tmp_path: Path) -> None:
    pq.write_table(pa.table({"uri": ["pool/j.jpg"], "label": ["dog"]}), tmp_path / "more.parquet")
    add_images(store, str(tmp_path / "more.parquet"), "holdout", scan=False)
    give(store, tmp_path, 0, ["pool/j.jpg"], [(0.0, 1.0, 0.0)])
    check(store)
    assert len(store.files("browse")) == 1


def test_a_kill_between_the_two_tables(store: Store) -> None:
    store.delta("histograms").delete("generation = 0")  # as if `browse` alone had been committed
    assert browse.keep(store, 0) == 9
    check(store)


def test_nothing_is_made_twice(store: Store) -> None:
    before = store.every_version()
    browse.keep(store, 0)
    assert store.every_version() == before


def test_tables_that_another_tool_merged(store: Store, tmp_path: Path) -> None:
    give(store, tmp_path, 1, URIS, list(PROBS.values()))
    for name in ("browse", "histograms"):
        deltalake.DeltaTable(str(store.path / name)).optimize.compact()
    pq.write_table(pa.table({"uri": ["pool/j.jpg"]}), tmp_path / "more.parquet")
    add_images(store, str(tmp_path / "more.parquet"), "unlabeled", scan=False)
    give(store, tmp_path, 1, ["pool/j.jpg"], [(1.0, 0.0, 0.0)])
    assert {row["generation"] for row in kept(store)} == {1}  # the other one comes back when it is asked for
    browse.keep(store, 0)
    check(store)


def test_a_failure_does_not_take_the_labels_back(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, curator
) -> None:
    def full(*arguments: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(browse, "keep", full)
    give(store, tmp_path, 1, URIS, list(PROBS.values()))
    monkeypatch.undo()
    assert store.rows("select count(*) as n from labels where generation = 1")[0]["n"] == 9
    assert {row["generation"] for row in kept(store)} == {0}
    assert curator("index", "--store", store.path).code == 0
    check(store)
