"""The whole route in a bucket: pictures, labels, manifests and models; stopped on one machine, finished on another."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bucket import SECRET, Server, upload
from conftest import Answer
from pictures import CLASSES, OWN, Watched, picture, wait_for, weights_hash, write

from curator.delivery import packing, packs
from curator.delivery.shards import Form
from curator.errors import StoreError
from curator.networks import checkpoints, inference, network
from curator.pictures.images import add_images
from curator.runs.training import train
from curator.storage import additions
from curator.storage.bucket import Bucket
from curator.storage.delta import CommitRaced
from curator.storage.store import Store
from curator.teachers import labeling
from curator.teachers.labeling import label

pytestmark = pytest.mark.long

Run = Callable[..., Answer]


@pytest.fixture
def store(taught_once: Store, bucket: str) -> Store:
    """A world with a teacher, its labels and a manifest, copied into a bucket as it is."""
    return Store(f"{upload(taught_once.root, bucket)}/store")


@pytest.fixture
def recipe(taught_once: Store) -> str:
    return str(taught_once.root / "recipe.toml")


def objects(store: Store, folder: str) -> list[str]:
    return [name for name, _ in Bucket(str(store.place)).list(folder)]


def test_a_source_in_a_bucket_is_that_of_a_folder(bucket: str, tmp_path: Path, curator: Run) -> None:
    """A folder, a listing and shards: the same rows, but for the order in which they come."""
    for number in range(6):
        write(tmp_path / "photos" / CLASSES[number % 3] / f"{number} ü.png", picture(number % 3, number))
    (tmp_path / "photos" / "note.txt").write_text("no picture", "utf-8")
    (tmp_path / "photos" / ".hidden").mkdir()
    write(tmp_path / "photos" / ".hidden" / "x.png", picture(0, 0))
    write(tmp_path / "broken.png", picture(0, 0)).write_bytes(b"no picture")
    write(tmp_path / "photos" / "bar" / "broken.png", picture(0, 0)).write_bytes(b"no picture")
    for number in range(2):
        subprocess.run(["tar", "-cf", f"../shard-{number}.tar", "."], cwd=tmp_path / "photos", check=True)
    places = {"here": str(tmp_path), "there": upload(tmp_path, bucket)}
    found = {}
    for where, place in places.items():
        made = Store.create(f"{place}/store")
        assert add_images(made, f"{place}/photos", "labeled").unreadable == 1
        assert add_images(made, f"{place}/shard-*.tar", "unlabeled").added == 14
        found[where] = made.rows("select * exclude (added_at) from stored_images order by uri")
    assert len(found["here"]) == 21
    assert found["there"] == found["here"]
    none = curator("add-images", f"{bucket}/none-*.tar", "--split", "unlabeled", "--store", f"{bucket}/store")
    assert none.code == 2
    assert "there is no shard" in none.err


def test_pictures_in_a_bucket_and_the_store_here(bucket: str, tmp_path: Path) -> None:
    write(tmp_path / "photos" / "a.png", picture(0, 0))
    upload(tmp_path / "photos", f"{bucket}/photos")
    store = Store.create(tmp_path / "store")
    add_images(store, f"{bucket}/photos", "unlabeled")
    assert store.rows("select uri, status, width from images") == [
        {"uri": f"{bucket}/photos/a.png", "status": "ok", "width": 20}
    ]


def test_a_picture_that_is_missing_is_named_and_a_bucket_that_breaks_is_not_its_fault(
    store: Store,
    server: Server,
    bucket: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    Bucket(bucket).put("lost/list.csv", b"uri\nlost/1.png\nlost/2.png\n")
    write(tmp_path / "1.png", picture(0, 0))
    Bucket(bucket).put("lost/1.png", tmp_path / "1.png")
    server.breaks({"method": "GET", "match": "lost/1.png", "kind": "503", "times": 2})
    done = add_images(store, f"{bucket}/lost/list.csv", "unlabeled")
    assert (done.added, done.problems) == (2, [{"uri": "lost/2.png", "problem": "No such object"}])
    Bucket(bucket).put("lost/more.csv", b"uri\nlost/3.png\n")
    monkeypatch.setattr("curator.storage.bucket._patience_s", 0.2)
    server.breaks({"method": "GET", "match": "lost/3.png", "kind": "503", "times": 1000})
    with pytest.raises(Exception, match="cannot be used"):
        add_images(store, f"{bucket}/lost/more.csv", "unlabeled")
    assert store.rows("select count(*) as n from images where uri = 'lost/3.png'") == [{"n": 0}]


def test_a_student_is_trained_alike_stopped_here_and_finished_elsewhere(
    taught_once: Store,
    store: Store,
    recipe: str,
    server: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    here = Store(shutil.copytree(taught_once.root, tmp_path / "here") / "store")
    train(here, recipe, "m", "student", changes=OWN)
    train(store, recipe, "m", "student", changes=OWN)
    assert weights_hash(store, "student") == weights_hash(here, "student")
    Watched.seen.clear()
    before = len(server.requests())
    Watched.stop_at = 13
    with pytest.raises(KeyboardInterrupt):
        train(store, recipe, "m", "again", changes=OWN, checkpoint_seconds=0)
    Watched.stop_at = -1
    assert any("checkpoint-" in name for name in objects(store, "models/again"))
    assert not [r.path for r in server.requests(before) if r.path.endswith(".png")]  # they were kept
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another machine"))
    elsewhere = Store(str(store.place))
    assert not checkpoints.steps(elsewhere.path / "models" / "again")
    train(elsewhere, recipe, "m", "again", changes=OWN, resume=True)
    assert weights_hash(elsewhere, "again") == weights_hash(here, "student")
    (weights,) = objects(store, "models/again")
    assert weights == f"models/again/{weights_hash(store, 'again')[:12]}/weights.safetensors"


def test_labels_that_were_not_published_are_published_elsewhere(
    store: Store,
    server: Server,
    recipe: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    train(store, recipe, name="second", manifest="m")
    server.breaks({"method": "PUT", "match": "/labels/_delta_log/0", "kind": "dead", "times": 100, "seconds": 60})
    before = len(server.requests())
    words = [Path(sys.executable).with_name("curator"), "label", "--model", "second", "--store", str(store.place)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: any(request.fault for request in server.requests(before)), process)
    process.kill()
    process.communicate()
    server.breaks()
    total = store.rows("select count(*) as n from images where status <> 'unreadable'")[0]["n"]
    assert store.rows("select count(*) as n from labels where generation = 1") == [{"n": 0}]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another machine"))
    done = label(Store(str(store.place)), "second")
    assert (done.images, done.resumed, done.images_per_second) == (total, total, 0.0)
    assert store.rows("select count(*) as n from labels where generation = 1") == [{"n": total}]


def test_two_machines_that_label_alike(
    store: Store, recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both do the work, one publishes; what the other one wrote is never counted, and goes with its next run."""
    train(store, recipe, name="second", manifest="m")
    home = os.environ["XDG_CACHE_HOME"]

    def late(*arguments: Any) -> Any:
        monkeypatch.setattr(labeling, "predict", inference.predict)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another machine"))
        assert label(Store(str(store.place)), "second").images > 0
        monkeypatch.setenv("XDG_CACHE_HOME", home)
        return inference.predict(*arguments)

    monkeypatch.setattr(labeling, "predict", late)  # after the run looked what was there
    with pytest.raises(CommitRaced, match="published generation 1 at the same time"):
        label(store, "second")
    counts = "select count(*) as n, count(distinct image_id) as different from labels where generation = 1"
    total = store.rows("select count(*) as n from images where status <> 'unreadable'")[0]["n"]
    assert store.rows(counts) == [{"n": total, "different": total}]
    assert label(store, "second").images == 0
    assert store.rows(counts) == [{"n": total, "different": total}]
    named = {path.rpartition("/")[2] for path in store.files("labels") if "g001" in path}
    assert {name.rpartition("/")[2] for name in objects(store, "labels") if "/g001" in name} == named


def test_no_command_writes_the_secret_down(store: Store, process: Run, recipe: str, tmp_path: Path) -> None:
    commands = [
        ("train", "--recipe", recipe, "--manifest", "m", "--name", "student", "--tensorboard", tmp_path / "tb"),
        ("label", "--model", "student"),
        ("build-manifest", "--per-class", "5", "--min-confidence", "0.1"),
        ("pack", "m", "--size", "16"),
        ("report", "m", "--output", tmp_path / "report.html"),
        ("sql", "select * from models", "--format", "csv"),
    ]
    for words in commands:
        done = process(*words, "--store", store.place)
        assert done.code in (0, 1), (words, done.err)
        assert SECRET not in done.out + done.err, words
    assert len(objects(store, "manifests")) >= 4
    for name in objects(store, ""):
        assert SECRET.encode() not in Bucket(str(store.place)).read(name), name
    for file in tmp_path.rglob("*"):
        assert not file.is_file() or SECRET.encode() not in file.read_bytes(), file


def elsewhere(store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, work: Callable[[Store], object]) -> None:
    """Does something on another machine, which has kept nothing."""
    with monkeypatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path / "another machine"))
        work(Store(str(store.place)))


def test_what_two_machines_label_and_neither_publishes_is_published_once(
    store: Store, recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(store, recipe, name="second", manifest="m")

    def stopped(*arguments: object) -> None:
        raise KeyboardInterrupt

    def other(there: Store) -> None:
        with pytest.raises(KeyboardInterrupt):
            label(there, "second")

    def late(*arguments: Any) -> Any:
        monkeypatch.setattr(labeling, "predict", inference.predict)
        elsewhere(store, monkeypatch, tmp_path, other)
        return inference.predict(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(labeling, "publish", stopped)
        monkeypatch.setattr(labeling, "predict", late)
        with pytest.raises(KeyboardInterrupt):
            label(store, "second")
    total = store.rows("select count(*) as n from images where status <> 'unreadable'")[0]["n"]
    assert label(store, "second").images == total
    counts = "select count(*) as n, count(distinct image_id) as different from labels where generation = 1"
    assert store.rows(counts) == [{"n": total, "different": total}]


def test_two_machines_that_train_one_name(
    store: Store, recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One is registered, with its own weights; the other one's stay beside them, named by nothing."""
    claim = additions.claim

    def late(*arguments: Any) -> None:
        monkeypatch.setattr(additions, "claim", claim)
        elsewhere(store, monkeypatch, tmp_path, lambda there: train(there, recipe, name="twice", changes=["seed=1"]))
        claim(*arguments)

    monkeypatch.setattr(additions, "claim", late)
    with pytest.raises(CommitRaced, match="published model twice at the same time"):
        train(store, recipe, name="twice")
    assert store.rows("select count(*) as n from models where model = 'twice'") == [{"n": 1}]
    assert network.load(store, "twice")[2]["model"] == "twice"


def test_two_machines_that_pack_one_form(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has shards of its own."""
    missing = packing._missing

    def late(*arguments: Any) -> Any:
        monkeypatch.setattr(packing, "_missing", missing)
        elsewhere(store, monkeypatch, tmp_path, lambda there: packing.pack(there, "m", Form.of(16)))
        return missing(*arguments)

    monkeypatch.setattr(packing, "_missing", late)
    done = packing.pack(store, "m", Form.of(16))
    checked = packs.verify(store, done.pack)
    assert (checked.damaged, checked.shards) == (0, 2)
    found = packs.index(store, done.pack)
    assert set(found["image_id"].to_pylist()) == {row["image_id"] for row in store.rows("select image_id from packed")}


def test_what_a_killed_init_leaves_is_in_nobodys_way(bucket: str) -> None:
    Bucket(bucket).put("store/.probe-0123", b"1")
    Store.create(f"{bucket}/store", ["a"])
    assert not [name for name, _ in Bucket(bucket).list("store") if "probe" in name]
    Bucket(bucket).put("other/sales/_delta_log/00000000000000000000.json", b"{}")
    with pytest.raises(StoreError, match="lies something that is no store"):
        Store.create(f"{bucket}/other")


def test_pictures_of_a_folder_in_a_store_in_a_bucket(bucket: str, tmp_path: Path) -> None:
    write(tmp_path / "photos" / "a.png", picture(0, 0))
    store = Store.create(f"{bucket}/store")
    assert add_images(store, str(tmp_path / "photos"), "unlabeled").unreadable == 0
    copy = pickle.loads(pickle.dumps(store))
    assert copy.rows("select uri, status from images") == [{"uri": f"{tmp_path}/photos/a.png", "status": "ok"}]


def test_a_uri_that_nothing_reads_is_the_pictures_own_fault(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("uri\nhttp://host/x.png\n", "utf-8")
    done = add_images(Store.create(tmp_path / "store"), str(tmp_path / "list.csv"), "unlabeled")
    assert (done.added, done.unreadable) == (1, 1)
