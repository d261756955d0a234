"""Labeling: the network's own probabilities, every image exactly once whatever stops a run, one commit at the end."""

import json
import random
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import timm
import torch
from conftest import Answer
from pictures import NOISY, on_a_small_disk, picture, start, teach, wait_for, world, write
from safetensors.torch import load_file

from curator.errors import CuratorError, InputError, StoreError
from curator.networks import engines, inference, network
from curator.noise.augment import center_crop
from curator.pictures.decode import decode
from curator.pictures.images import add_images
from curator.storage.store import Store
from curator.teachers import labeling
from curator.teachers.labeling import label

SLOW = ["network.architecture=pictures:Slow", "schedule.steps=3"]
POOL = 30
RUN = """
    import sys
    from curator.teachers.labeling import label
    from curator.storage.store import Store
    label(Store(sys.argv[1]), "teacher", batch_size=2, threads=1, part_seconds=0)
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A world with a teacher that takes as long as one likes: 6 labeled, 90 pool and 3 holdout images."""
    store = world(tmp_path_factory.mktemp("made"), labeled=2, pool=POOL, holdout=1)
    teach(store, *SLOW)
    return store


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A world with a timm network trained under noise."""
    store = world(tmp_path_factory.mktemp("learned"), labeled=4, pool=5, holdout=2)
    teach(store, *NOISY, "network.test_crop=0.8")
    return store


def parts(store: Store) -> list[Path]:
    return sorted((store.path / "labels").glob("g*/part-*.parquet"))


def check_whole(store: Store, images: int = 9 + 3 * POOL) -> None:
    """Every image has exactly one label, as many as there are images, and nothing else lies about."""
    rows = store.rows("select image_id, split from labels order by 1")
    assert rows == store.rows("select image_id, split from images where status = 'ok' order by 1")
    assert len(rows) == images
    assert sorted(Path(uri).name for uri in store.delta("labels").file_uris()) == [part.name for part in parts(store)]
    assert not list((store.path / "labels").rglob("*.unfinished"))


def plain(store: Store, uris: list[str]) -> np.ndarray:
    """Probabilities [N, 3], one image at a time, by timm's own network with the file's weights."""
    body = timm.create_model("test_resnet", num_classes=3)
    state = load_file(store.path / "models" / "teacher" / "weights.safetensors")
    body.load_state_dict({name.removeprefix("body."): tensor for name, tensor in state.items()})
    body.eval()
    out = np.empty((16, 16, 3), np.uint8)
    answers = []
    for uri in uris:
        center_crop(decode((store.root / uri).read_bytes()), 16, 0.8, out)
        pixels = (torch.from_numpy(out.copy()).permute(2, 0, 1).float() / 255 - 0.5) / 0.5
        with torch.inference_mode():
            answers.append(torch.softmax(body(pixels[None])[0].double(), 0).numpy())
    return np.array(answers)


@pytest.mark.parametrize(("batch_size", "threads"), [(64, 2), (1, 1), (7, 3)])
def test_labels_are_the_networks_probabilities(learned: Store, tmp_path: Path, batch_size: int, threads: int) -> None:
    shutil.copytree(learned.root, tmp_path / "copy")
    store = Store(tmp_path / "copy" / "store")
    done = label(store, "teacher", batch_size=batch_size, threads=threads)
    assert (done.generation, done.images, done.failed, done.already_labeled) == (0, 33, 0, 0)
    rows = store.rows("select l.*, i.uri from labels as l join images as i using (image_id) order by uri")
    probs = plain(store, [row["uri"] for row in rows])
    assert len(rows) == 33
    for row, p in zip(rows, probs, strict=True):
        order = np.argsort(-p)
        assert (row["label"], row["top_classes"]) == (order[0], order.tolist())
        assert row["confidence"] == pytest.approx(p[order[0]], abs=1e-5)
        assert row["margin"] == pytest.approx(p[order[0]] - p[order[1]], abs=2e-5)
        assert row["entropy"] == pytest.approx(-(p * np.log(p)).sum(), abs=1e-4)
        assert row["top_probs"] == pytest.approx(p[order], rel=2**-6)
        assert (row["generation"], row["model"], row["tail"]) == (0, "teacher", 0)


def test_chunks_and_batches_change_nothing(learned: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for number, chunk in enumerate((1, 8, 1024)):
        shutil.copytree(learned.root, tmp_path / str(number))
        store = Store(tmp_path / str(number) / "store")
        gone = store.rows("select uri from images where split = 'unlabeled' order by uri")[3]["uri"]
        (store.root / gone).unlink()
        monkeypatch.setattr(labeling, "_CHUNK", chunk)
        done = label(store, "teacher", batch_size=3, engine="torch")
        assert (done.images, done.problems) == (32, [f"{gone}: No such file or directory"])
        found.append(store.rows("select * from labels order by image_id"))
    assert found[0] == found[1] == found[2]


def test_batches_are_computed_at_once_where_the_engine_wants_it(learned: Store) -> None:
    loaded, recipe, _ = network.load(learned, "teacher")
    con = learned.connect()
    try:
        table = con.sql("select uri, shard, byte_offset, byte_length from stored_images order by uri").to_arrow_table()
    finally:
        con.close()
    pieces = [table.slice(i, 4) for i in range(0, 32, 4)]
    wanted = [answer.probs for answer in inference.predict(loaded, recipe, learned.root, pieces)]

    class Pair(engines.Torch):
        at_once, both = 2, threading.Barrier(2)

        def __call__(self, images: np.ndarray) -> np.ndarray:
            self.both.wait(60)  # breaks where a batch is alone
            return super().__call__(images)

    found = [answer.probs for answer in inference.predict(loaded, recipe, learned.root, pieces, engine=Pair(loaded))]
    np.testing.assert_array_equal(np.concatenate(found), np.concatenate(wanted))


def test_predictions_come_in_order_and_name_what_cannot_be_read(learned: Store) -> None:
    loaded, recipe, _ = network.load(learned, "teacher")
    con = learned.connect()
    try:
        query = "select uri, shard, byte_offset, byte_length from stored_images order by uri"
        table = con.sql(query).to_arrow_table()
    finally:
        con.close()
    uris = table["uri"].to_pylist()
    broken = table.set_column(0, "uri", [["nowhere.png" if i == 2 else uri for i, uri in enumerate(uris)]])
    for threads in (1, 3):
        pieces = [broken.slice(i, 5) for i in range(0, 33, 5)]
        answers = list(inference.predict(loaded, recipe, learned.root, pieces, threads))
        assert [answer.rows["uri"].to_pylist() for answer in answers] == [piece["uri"].to_pylist() for piece in pieces]
        assert answers[0].failed == {2: "No such file or directory"}
        assert answers[0].good.tolist() == [0, 1, 3, 4]
        assert not any(answer.failed for answer in answers[1:])
        found = np.concatenate([answer.probs for answer in answers])
        assert found == pytest.approx(plain(learned, [uri for i, uri in enumerate(uris) if i != 2]), abs=1e-5)


@pytest.mark.long
def test_killed_at_any_moment(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLOW_SECONDS", "0.02")
    before = store.delta("labels").version()
    random.seed(0)
    # the last kill comes when all is written, around the commit
    for after in (1, 20, 50):
        with start(RUN, store.path) as process:
            wait_for(lambda after=after: len(parts(store)) >= after, process)
            if after < 50:
                assert not store.rows("select 1 from labels")
            if after == 1:
                with pytest.raises(StoreError, match="another run is labeling with 'teacher'"):
                    label(store, "teacher")
            time.sleep(random.random() * 0.03)
            process.send_signal(signal.SIGKILL)
            process.wait()
        written = len(parts(store))
    monkeypatch.setenv("SLOW_SECONDS", "0")
    if store.delta("labels").version() == before:
        done = label(store, "teacher")
        assert done.images == 99
        assert done.resumed == sum(pq.read_metadata(part).num_rows for part in parts(store)[:written])
        assert 0 < done.resumed <= 99
    assert store.delta("labels").version() == before + 1
    check_whole(store)
    assert label(store, "teacher").images == 0
    assert store.delta("labels").version() == before + 1


def test_ctrl_c_keeps_the_work(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLOW_SECONDS", "0.05")
    code = """
        import sys
        from curator import cli
        sys.exit(cli.run(["label", "--model", "teacher", "--batch-size", "2", "--store", sys.argv[1]]))
    """
    with start(code, store.path) as process:
        wait_for(lambda: bool(list((store.path / "labels").glob("g*"))), process)
        time.sleep(0.6)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate()
    assert process.returncode == 130, err
    assert out == ""
    assert "Traceback" not in err
    assert err.endswith("stopped; what was committed is kept; the same command, given again, finishes\n")
    assert parts(store)  # a part takes 30 s, so these were written on the way out, one for each split that was begun
    assert not store.rows("select 1 from labels")
    monkeypatch.setenv("SLOW_SECONDS", "0")
    done = label(store, "teacher")
    assert 0 < done.resumed < done.images == 99
    check_whole(store)


def test_only_new_images_are_labeled_again(store: Store, curator: Callable[..., Answer]) -> None:
    answer = curator("label", "--model", "teacher", "--store", store.path, "--json")
    assert answer.code == 0
    assert answer.json.keys() >= {"generation", "images", "images_per_second"}
    assert (answer.json["generation"], answer.json["images"], answer.json["already_labeled"]) == (0, 99, 0)
    for i in range(5):
        write(store.root / "pool" / f"new{i}.png", picture(0, 5000 + i))
    add_images(store, str(store.root / "pool"), "unlabeled")
    answer = curator("label", "--model", "teacher", "--store", store.path)
    assert answer.code == 0
    assert answer.out.startswith("generation 0: 5 images labeled by 'teacher'")
    assert "99 were labeled before" in answer.out
    check_whole(store, 104)


def test_splits(store: Store, curator: Callable[..., Answer]) -> None:
    assert label(store, "teacher", ["holdout"]).images == 3
    arguments = ["label", "--model", "teacher", "--store", store.path]
    answer = curator(*arguments, "--split", "unlabeled", "--split", "holdout", "--json")
    assert (answer.json["images"], answer.json["already_labeled"]) == (90, 3)
    assert label(store, "teacher", ["unlabeled"]).already_labeled == 90
    assert label(store, "teacher").images == 6
    check_whole(store)
    answer = curator(*arguments, "--split", "unlabelled")
    assert answer.code == 2
    assert "the split 'unlabelled' is unknown; did you mean 'unlabeled'?" in answer.err
    answer = curator(*arguments, "--batch-size", "0")
    assert answer.code == 2
    assert "not at least 1" in answer.err
    assert curator(*arguments, "--threads", "-1").code == 2


def test_broken_images_are_named_and_left_out(store: Store, curator: Callable[..., Answer]) -> None:
    file = store.root / "pool" / "0004.png"
    file.write_bytes(file.read_bytes()[:100])
    (store.root / "pool" / "0005.png").unlink()
    arguments = ["label", "--model", "teacher", "--store", store.path]
    answer = curator(*arguments, "--json")
    assert answer.code == 0
    assert (answer.json["images"], answer.json["failed"]) == (97, 2)
    first, second = sorted(answer.json["problems"])
    assert first.startswith("pool/0004.png: ")
    assert second == "pool/0005.png: No such file or directory"
    rows = store.rows("select uri from images where image_id not in (select image_id from labels) order by 1")
    assert [row["uri"] for row in rows] == ["pool/0004.png", "pool/0005.png"]
    answer = curator(*arguments)  # nothing else is left, and that is no error
    assert answer.code == 0
    assert "2 images could not be read and have no label:" in answer.out
    write(file, picture(1, 2001))
    assert label(store, "teacher").images == 1


def test_all_images_broken(store: Store, curator: Callable[..., Answer]) -> None:
    for folder in ("pool", "labeled", "holdout"):
        shutil.rmtree(store.root / folder)
    answer = curator("label", "--model", "teacher", "--store", store.path)
    assert answer.code == 2
    assert "error: none of the 99 images can be read: " in answer.err
    assert not store.rows("select 1 from labels")


def test_images_that_the_scan_could_not_read_are_not_tried(store: Store) -> None:
    (store.root / "pool" / "bad.png").write_bytes(b"no picture")
    assert add_images(store, str(store.root / "pool"), "unlabeled").unreadable == 1
    assert label(store, "teacher").failed == 0
    check_whole(store)


def test_a_generation_has_one_teacher(store: Store, curator: Callable[..., Answer]) -> None:
    label(store, "teacher", ["holdout"])
    teach(store, *SLOW, "seed=1", name="rival")
    answer = curator("label", "--model", "rival", "--store", store.path)
    assert answer.code == 2
    assert "generation 0 was labeled by the model 'teacher'" in answer.err
    assert store.rows("select distinct model from labels") == [{"model": "teacher"}]


def test_of_two_teachers_at_once_one_wins(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    teach(store, *SLOW, "seed=1", name="rival")
    monkeypatch.setenv("SLOW_SECONDS", "0.01")
    errors: list[CuratorError] = []

    def run(model: str) -> None:
        try:
            label(store, model, batch_size=8)
        except CuratorError as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(model,)) for model in ("teacher", "rival")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(errors) == 1
    assert len(store.rows("select distinct model from labels")) == 1
    assert len(store.rows("select image_id from labels")) == 99


def test_a_network_that_gives_nan(store: Store) -> None:
    loaded, recipe, _ = network.load(store, "teacher")
    with torch.no_grad():
        loaded.body.head.bias[0] = float("nan")
    con = store.connect()
    try:
        table = con.sql("select * from stored_images order by uri").to_arrow_table()
    finally:
        con.close()
    with pytest.raises(CuratorError, match=r"the network gives NaN for 99 of 99 images, e\.g\. holdout/bar/0\.png"):
        list(inference.predict(loaded, recipe, store.root, [table]))


def test_unknown_models(store: Store) -> None:
    with pytest.raises(InputError, match="there is no model 'techer'"):
        label(store, "techer")


@pytest.mark.long
def test_a_full_disk(store: Store) -> None:
    """With room for more and more pages, a run fails at one place after the other; no work is lost or doubled."""
    code = """
        import json, shutil, sys
        from pathlib import Path
        from curator import cli
        from curator.teachers.labeling import label
        from curator.storage.store import Store
        disk = Path(sys.argv[1])
        shutil.copytree(sys.argv[2], disk / "world")
        store, filler = Store(disk / "world" / "store"), disk / "filler"
        arguments = ["label", "--model", "teacher", "--store", str(store.path), "--json"]
        codes = []

        def room(pages):
            filler.unlink(missing_ok=True)
            filler.write_bytes(bytes(max(0, shutil.disk_usage(disk).free - 4096 * pages)))

        room(10)
        try:
            label(store, "teacher", batch_size=2, part_seconds=0)
        except Exception as error:
            codes.append(type(cli._mendable(error)).__name__)
        kept = list((store.path / "labels").glob("g*/part-*.parquet"))
        for pages in range(12):
            room(pages)
            codes.append(cli.run(arguments))
            if codes[-1] == 0:
                break
        filler.unlink()
        if codes[-1]:
            codes.append(cli.run(arguments))
        rows = store.rows("select count(*) as n, count(distinct image_id) as d from labels")[0]
        print(json.dumps([codes, len(kept), rows["n"], rows["d"]]), file=sys.stderr)
    """
    done = on_a_small_disk("20m", code, store.root)
    *said, result = done.stderr.splitlines()
    codes, kept, rows, different = json.loads(result)
    assert codes[0] == "DiskFull"
    assert kept > 0
    assert codes[1] == 2
    assert codes[-1] == 0
    assert set(codes[1:-1]) == {2}
    assert rows == different == 99
    message = "error: the disk is full; everything that was finished before is kept"
    assert said.count(message) == len(codes) - 2, done.stderr
    assert "Traceback" not in done.stderr
    document = json.loads(done.stdout)
    assert document["resumed"] >= 2 * kept
    assert document["images"] == 99
