"""Training rows by number: what a row says, the order of a pass, and where the records lie."""

import datetime as dt
import hashlib
import json
import pickle
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import Answer
from hypothesis import given
from hypothesis import strategies as st
from pictures import CLASSES, judged, teach, world

from curator.curation import manifests
from curator.delivery import packing
from curator.delivery.shards import Form
from curator.errors import InputError
from curator.loading.rows import Rows
from curator.pictures.decode import decode
from curator.pictures.images import add_images
from curator.pictures.reading import read_bytes
from curator.schema import DUPLICATES
from curator.storage import additions
from curator.storage.store import Store

IMAGES, MANIFEST = 15, "m"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return judged(tmp_path_factory.mktemp("made"))


def table(store: Store, name: str = MANIFEST) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = pq.read_table(store.path / "manifests" / name).to_pylist()
    return rows


def ids_of(rows: Rows) -> list[int]:
    return rows.read(np.arange(len(rows))).image_id.tolist()


def test_a_row_says_what_the_manifest_says(made: Store) -> None:
    for name, kept in ((MANIFEST, 3), ("hard", 1)):
        rows = Rows.manifest(made, name)
        part = rows.read(np.arange(len(rows)))
        assert part.classes.shape == (13, kept)
        for i, row in enumerate(table(made, name)):
            assert part.image_id[i] == row["image_id"]
            assert part.places[i] == (row["uri"], None, None, None)  # a whole file
            assert (part.weight[i], part.tail[i]) == (row["weight"], row["tail"])
            length = len(row["top_classes"])  # type: ignore[arg-type]
            assert part.classes[i, :length].tolist() == row["top_classes"]
            assert part.probs[i, :length].tolist() == row["top_probs"]
            assert (part.classes[i, length:] == -1).all()
        backward = rows.read(np.array([5, 0, 5]))
        assert backward.image_id.tolist() == part.image_id[[5, 0, 5]].tolist()
        assert backward.places == [part.places[i] for i in (5, 0, 5)]


@given(st.lists(st.integers(1, 9), min_size=1, max_size=40), st.integers(0, 99))
def test_a_pass_holds_each_row_as_often_as_it_has_copies(copies: list[int], seed: int) -> None:
    starts = [i for i, each in enumerate(copies) if i == 0 or each != copies[i - 1]]
    before = np.cumsum([0, *copies])
    runs = np.array([(i, before[i], copies[i]) for i in starts])
    length = sum(copies)
    rows = Rows("any", np.empty(len(copies)), b"", [], runs, length)
    for number in (0, 3):
        chosen = rows.at(np.arange(length * number, length * (number + 1)), seed)
        assert np.bincount(chosen, minlength=len(copies)).tolist() == copies
    positions = np.random.default_rng(seed).integers(0, 5 * length, 20)
    assert rows.at(positions, seed).tolist() == [int(rows.at(positions[i : i + 1], seed)[0]) for i in range(20)]


def test_the_rows_are_laid_out_once_and_again_when_they_are_gone(store: Store) -> None:
    shutil.rmtree(store.path / "rows", ignore_errors=True)
    first = Rows.manifest(store, MANIFEST)
    (folder,) = (store.path / "rows").iterdir()
    sha256 = store.rows("select sha256 from manifests where name = 'm'")[0]["sha256"]
    assert folder.name == sha256
    made = {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.iterdir()}
    assert sorted(made) == ["about.json", "records", "runs.npy", "uris"]
    expected = first.read(np.arange(13))
    Rows.manifest(store, MANIFEST)
    assert {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.iterdir()} == made

    (folder / "about.json").write_text("{", "utf-8")  # damaged: made again, with the same bytes
    (folder.parent / ".unfinished-x").mkdir()
    Rows.manifest(store, MANIFEST)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {k: v for k, (_, v) in made.items()}
    assert [path.name for path in (store.path / "rows").iterdir()] == [sha256]

    about = json.loads((folder / "about.json").read_text("utf-8"))
    for spoil in (
        lambda: (folder / "about.json").write_text(json.dumps(about | {"format": 0}), "utf-8"),
        lambda: (folder / "records").write_bytes(made["records"][1][:-1]),
    ):
        spoil()
        Rows.manifest(store, MANIFEST)
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == {k: v for k, (_, v) in made.items()}
    shutil.rmtree(folder.parent)
    again = Rows.manifest(store, MANIFEST).read(np.arange(13))
    assert again.places == expected.places
    assert again.image_id.tolist() == expected.image_id.tolist() == first.read(np.arange(13)).image_id.tolist()


def test_a_manifest_that_was_built_opens_at_once(store: Store, curator: Callable[..., Answer]) -> None:
    shutil.rmtree(store.path / "rows", ignore_errors=True)
    assert curator("build-manifest", "fresh", "--per-class", 3, "--store", store.path).code == 0
    (laid,) = (store.path / "rows").iterdir()
    before = laid.stat()
    assert len(Rows.manifest(store, "fresh")) == manifests.find(store, "fresh").unique_images
    assert laid.stat() == before


def test_every_row_counts_as_often_as_its_copies_in_one_pass(made: Store) -> None:
    copies = {row["image_id"]: row["copies"] for row in table(made)}
    assert sum(copies.values()) == 36  # type: ignore[arg-type]
    assert sorted(copies.values()) == [1] * 6 + [2] * 3 + [4] * 3 + [12]  # type: ignore[type-var]
    rows = Rows.manifest(made, MANIFEST)
    passes = [rows.at(np.arange(36 * i, 36 * (i + 1)), seed=0) for i in range(3)]
    for chosen in passes:
        assert Counter(rows.read(chosen).image_id.tolist()) == copies
    assert len({tuple(chosen) for chosen in passes}) == 3  # each pass has its own order
    assert not np.array_equal(passes[0], rows.at(np.arange(36), seed=1))


def test_twins_of_the_holdout_and_unreadable_images_never_appear(store: Store) -> None:
    twin = store.root / "labeled" / "bar" / "9.png"
    shutil.copy(store.root / "holdout" / "bar" / "0.png", twin)
    (store.root / "labeled" / "bar" / "8.png").write_bytes(b"\x89PNG no picture")
    done = add_images(store, str(store.root / "labeled"), "labeled")
    assert (done.added, done.unreadable, done.leaks) == (2, 1, 1)
    ids = {row["uri"]: row["image_id"] for row in store.rows("select image_id, uri from images")}
    rows = Rows.labeled(store)
    assert len(rows) == IMAGES
    assert {ids["labeled/bar/9.png"], ids["labeled/bar/8.png"]}.isdisjoint(ids_of(rows))
    assert ids["labeled/bar/0.png"] in ids_of(rows)


def test_a_manifest_with_an_image_that_came_into_the_holdout_later_is_refused(store: Store) -> None:
    uri = next(row["uri"] for row in table(store) if row["label"] == 2)
    shutil.copy(store.root / str(uri), store.root / "holdout" / "square" / "9.png")
    assert add_images(store, str(store.root / "holdout"), "holdout").leaks == 1
    with pytest.raises(InputError, match=f"1 images of the manifest 'm' are in the holdout, or show .* by now: {uri}"):
        Rows.manifest(store, MANIFEST)


def test_a_manifest_with_an_image_near_one_of_the_holdout_is_refused(store: Store) -> None:
    """As `check`, `export` and `pack` refuse it."""
    (row, *_) = table(store)
    found = {"image_id": row["image_id"], "group_id": row["image_id"], "kind": "phash", "distance": 2.0, "leak": True}
    found |= {"labeled_twin": False, "scan": "s", "found_at": dt.datetime.now(dt.UTC)}
    additions.append(store, "duplicates", pa.Table.from_pylist([found], DUPLICATES.schema))
    with pytest.raises(InputError, match="or show an image of it, by now"):
        Rows.manifest(store, MANIFEST)


def test_a_manifest_whose_files_are_gone_or_damaged(store: Store) -> None:
    folder = store.path / "manifests" / MANIFEST
    file = folder / "part-00000.parquet"
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(InputError, match="the files of the manifest 'm' cannot be read") as caught:
        Rows.manifest(store, MANIFEST)
    assert "--as-of m" in caught.value.mend
    shutil.rmtree(folder)
    with pytest.raises(InputError, match="the files of the manifest 'm' cannot be read"):
        teach(store, manifest=MANIFEST)
    with pytest.raises(InputError, match="there is no manifest 'mm'"):
        Rows.manifest(store, "mm")


def test_nothing_to_train_on(tmp_path: Path) -> None:
    store = world(tmp_path, labeled=1, pool=1, holdout=1)
    empty = Store.create(tmp_path / "empty", CLASSES)
    assert len(Rows.labeled(store)) == 3
    with pytest.raises(InputError, match="there are no labeled images to train on"):
        Rows.labeled(empty)


def test_rows_of_a_pack_say_where_the_packed_picture_is(store: Store) -> None:
    shutil.rmtree(store.path / "rows", ignore_errors=True)
    small = Form(16, 90)
    packing.pack(store, None, small)  # the labeled split alone
    before = Rows.manifest(store, MANIFEST, small.name)
    assert (Rows.labeled(store, small.name).packed, before.packed) == (IMAGES, 0)
    assert before.read(np.arange(13)).places == Rows.manifest(store, MANIFEST).read(np.arange(13)).places
    packing.pack(store, MANIFEST, small, shard_rows=5)
    rows = Rows.manifest(store, MANIFEST, small.name)
    part = rows.read(np.arange(13))
    assert rows.packed == 13
    assert len({place.shard for place in part.places}) == 3
    for image_id, place in zip(part.image_id.tolist(), part.places, strict=True):
        packed = store.rows("select * from packed where image_id = $id", id=image_id)[0]
        data = read_bytes(store.root, *place)
        assert hashlib.blake2b(data, digest_size=16).hexdigest() == packed["content_hash"]
        assert decode(data).shape == (16, 16, 3)
    # a file of the pack that is gone: its rows are read from the originals
    (store.path / part.places[0].shard).unlink()  # type: ignore[operator]
    less = Rows.manifest(store, MANIFEST, small.name)
    assert less.packed == 13 - sum(place.shard == part.places[0].shard for place in part.places)
    assert [read_bytes(store.root, *place) for place in less.read(np.arange(13)).places]
    assert len([*(store.path / "rows").iterdir()]) == 4  # without it, and three states; they may be in use


def test_a_store_that_was_moved(store: Store) -> None:
    shutil.rmtree(store.path / "rows", ignore_errors=True)
    small = Form(16, 90)
    packing.pack(store, MANIFEST, small)
    before = [read_bytes(store.root, *p) for p in Rows.manifest(store, MANIFEST, small.name).read(np.arange(13)).places]
    moved = store.path.rename(store.path.with_name("elsewhere"))
    rows = Rows.manifest(Store(moved), MANIFEST, small.name)
    assert [read_bytes(store.root, *place) for place in rows.read(np.arange(13)).places] == before
    assert len([*(moved / "rows").iterdir()]) == 1


def test_damage_of_the_right_size_is_told(store: Store) -> None:
    shutil.rmtree(store.path / "rows", ignore_errors=True)
    Rows.manifest(store, MANIFEST)
    (folder,) = (store.path / "rows").iterdir()
    for name, data in (("records", bytes(400)), ("uris", b"\xff" * 100)):
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: len(whole)] + whole[len(data) :])
        with pytest.raises(InputError, match="are damaged\n  mend: delete the folder rows"):
            Rows.manifest(store, MANIFEST).read(np.arange(13))
        (folder / name).write_bytes(whole)
    runs = (folder / "runs.npy").read_bytes()
    (folder / "runs.npy").write_bytes(bytes(len(runs)))
    assert len(Rows.manifest(store, MANIFEST).read(np.arange(13)).places) == 13  # laid out again


def test_a_reader_elsewhere_opens_the_files_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(store.path.parent)
    rows = pickle.dumps(Rows.manifest(Store("store"), MANIFEST))
    monkeypatch.chdir("/")
    assert pickle.loads(rows).read(np.arange(13)).places == Rows.manifest(store, MANIFEST).read(np.arange(13)).places
