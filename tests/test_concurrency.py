"""Several processes at once, and processes that are killed: nobody ever sees half of anything."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import CLASSES, read_lineage
from test_labels import ROWS, URIS, generation, write
from test_manifests import files_of

from curator.curation import building, manifests
from curator.generations import label_file, labels, softlabels
from curator.generations.labels import import_labels
from curator.pictures.images import add_images
from curator.schema import IMAGES
from curator.storage import additions
from curator.storage.delta import CommitRaced
from curator.storage.store import Store

PROGRAM = Path(sys.executable).with_name("curator")


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store of 150,000 labeled images of three classes, so that several threads and batches are at work."""
    store = Store.create(tmp_path_factory.mktemp("large") / "store", CLASSES)
    n = 150_000
    rng = np.random.default_rng(0)
    first = (0.4 + 0.6 * rng.random(n)).round(3).astype(np.float32)
    probs = np.stack([first, 1 - first, np.zeros(n, np.float32)], axis=1)
    probs = np.take_along_axis(probs, rng.permuted(np.tile([0, 1, 2], (n, 1)), axis=1), axis=1)
    columns = {"image_id": range(n), "uri": [f"pool/{i}.jpg" for i in range(n)], "split": ["unlabeled"] * n}
    columns |= {"status": ["ok"] * n}
    images = pa.table([pa.array(columns.get(f.name, pa.nulls(n)), f.type) for f in IMAGES.schema], schema=IMAGES.schema)
    additions.append(store, "images", images)
    for part in np.array_split(np.arange(n), 5):
        summary = softlabels.summarize(probs[part], 20)
        additions.append(store, "labels", softlabels.table(summary, part, 0, "outside", ["unlabeled"] * len(part)))
    return store


# Imports


def test_a_generation_becomes_visible_in_one_commit(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parts of two batches each: a reader sees none of the generation or all of it, never a part."""
    monkeypatch.setattr(label_file, "_BATCH", 100)
    monkeypatch.setattr(labels, "_PART_ROWS", 200)
    n = 4000
    uris = [f"more/{i}.jpg" for i in range(n)]
    add_images(store, write(tmp_path / "l.parquet", uri=uris), "unlabeled", scan=False)
    file = write(tmp_path / "f.parquet", uri=uris, probs=[[0.5, 0.25, 0.25]] * n)
    version = store.versions()["labels"]
    seen: list[int] = []
    stop = threading.Event()

    def poll() -> None:
        while not stop.is_set():
            seen.append(store.rows("select count(*) as n from labels where generation = 1")[0]["n"])

    reader = threading.Thread(target=poll)
    reader.start()
    try:
        import_labels(store, file, 1, "second")
    finally:
        stop.set()
        reader.join()
    assert set(seen) <= {0, n}
    assert 0 in seen
    assert len(list((store.path / "labels" / "g001-second-outside").iterdir())) == n // 200
    assert store.versions()["labels"] == version + 1
    assert store.rows("select count(*) as n from labels where generation = 1") == [{"n": n}]


@pytest.mark.long
def test_two_imports_at_once_label_no_image_twice(store: Store, tmp_path: Path) -> None:
    n = 20_000
    uris = [f"more/{i}.jpg" for i in range(n)]
    add_images(store, write(tmp_path / "l.parquet", uri=uris), "unlabeled", scan=False)
    file = write(tmp_path / "f.parquet", uri=uris, probs=[[0.5, 0.25, 0.25]] * n)
    program = [PROGRAM, "import-labels", file, "--store", store.path]
    runs = [
        subprocess.Popen([*program, "--generation", "1", "--model", "second"], stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    errors = [run.communicate()[1] for run in runs]
    codes = sorted(run.returncode for run in runs)
    assert codes == [0, 2], errors
    lost = next(error for run, error in zip(runs, errors, strict=True) if run.returncode)
    assert "at the same time" in lost or "labeled already" in lost
    assert "Traceback" not in lost
    counted = store.rows("select count(*) as n, count(distinct image_id) as images from labels where generation = 1")
    assert counted == [{"n": n, "images": n}]
    assert store.rows("select count(*) as n from models where model = 'second'") == [{"n": 1}]
    left = {Path(uri).name for uri in store.delta("labels").file_uris()}
    assert {path.name for path in (store.path / "labels").rglob("*.parquet")} == left


def test_of_two_imports_from_one_state_the_later_leaves_nothing(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The race at its narrowest: the second import commits between the first one's look and its commit."""
    file = write(tmp_path / "f.parquet", uri=URIS, probs=ROWS)
    publish = labels.publish

    def late(*arguments: Any) -> None:
        monkeypatch.setattr(labels, "publish", publish)
        import_labels(store, file, 1, "rival")
        publish(*arguments)

    monkeypatch.setattr(labels, "publish", late)
    with pytest.raises(CommitRaced, match="generation 1 at the same time"):
        import_labels(store, file, 1, "second")
    assert {row["model"] for row in generation(store, 1).values()} == {"rival"}
    # of the later one its name is left, which was claimed for one generation before there were labels
    models = [row["model"] for row in store.rows("select model from models order by all")]
    assert models == ["outside", "rival", "second"]
    assert not list((store.path / "labels").rglob("*second*"))


def test_a_killed_import_leaves_nothing_visible(store: Store, tmp_path: Path) -> None:
    n = 50_000
    uris = [f"more/{i}.jpg" for i in range(n)]
    add_images(store, write(tmp_path / "l.parquet", uri=uris), "unlabeled", scan=False)
    file = write(tmp_path / "f.parquet", uri=uris, probs=[[0.5, 0.25, 0.25]] * n)
    program = [PROGRAM, "import-labels", file, "--store", store.path]
    for number in range(1, 10):  # a run that was done before the kill came proves nothing
        run = subprocess.Popen(
            [*program, "--generation", str(number), "--model", f"m{number}"], stdout=subprocess.DEVNULL
        )
        while not list((store.path / "labels").glob(".import-*/*")) and run.poll() is None:
            time.sleep(0.002)
        run.kill()
        if run.wait() == -9:
            break
    assert run.returncode == -9
    assert generation(store, number) == {}
    assert import_labels(store, file, number, f"m{number}").images == n


# Builds


class Threads(Store):
    """A store whose queries run on a given number of threads."""

    number = 1

    def connect(self, *arguments: Any, **options: Any) -> duckdb.DuckDBPyConnection:
        con = super().connect(*arguments, **options)
        con.execute(f"set threads = {self.number}")
        return con


def test_the_number_of_threads_changes_no_byte(large: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several files of several batches each."""
    monkeypatch.setattr(building, "_BATCH", 16_384)
    monkeypatch.setattr(building, "_FILE_ROWS", 2 * 16_384)
    store = Threads(large.path)
    built = []
    for Threads.number in (1, 2, 7):
        built.append(building.build(store, f"t{Threads.number}", {"per_class": 60_000, "min_confidence": 0.5}))
    assert len({manifest.sha256 for manifest in built}) == 1
    assert len(files_of(built[0].path)) > 4
    assert files_of(built[0].path) == files_of(built[1].path) == files_of(built[2].path)
    table = pq.read_table(built[0].path, columns=["label", "confidence", "image_id"])
    keys = list(
        zip(
            table["label"].to_pylist(),
            (-table["confidence"].to_numpy()).tolist(),
            table["image_id"].to_pylist(),
            strict=True,
        )
    )
    assert keys == sorted(keys)
    assert len(keys) == built[0].unique_images


def check_all_published(store: Store) -> None:
    """Every manifest in the table is whole on the disk."""
    for row in manifests.published(store):
        table = pq.read_table(store.path / row["path"])
        assert table.num_rows == row["unique_images"]
        assert read_lineage(store.path / row["path"])


@pytest.mark.long
def test_a_killed_build_leaves_nothing_visible(large: Store) -> None:
    command = [PROGRAM, "build-manifest", "k", "--per-class", "60000", "--store", large.path, "--quiet"]
    began = time.monotonic()
    want = building.build(large, "undisturbed", {"per_class": 60_000})
    seconds = time.monotonic() - began + 0.5
    rng = random.Random(0)
    killed = 0
    for _ in range(8):
        run = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        time.sleep(rng.uniform(0.2, seconds))
        run.kill()
        killed += run.wait() == -9
        check_all_published(large)
    assert killed
    assert subprocess.run(command, stdout=subprocess.DEVNULL).returncode == 0
    found = manifests.find(large, "k")
    assert found.sha256 == want.sha256
    assert files_of(found.path) == files_of(want.path)


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_build_leaves_nothing_behind(large: Store, tmp_path: Path, number: signal.Signals) -> None:
    """Ctrl-C, and the SIGTERM of a batch system, at moments from the start of the work to its end."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    command = [PROGRAM, "build-manifest", "stopped", "--per-class", "60000", "--store", large.path, "--quiet"]
    codes = []
    for tenths in (0, 3, 6, 10):
        run = subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"TMPDIR": str(temporary)},
        )
        while not list(temporary.glob("curator-selection-*")) and run.poll() is None:
            time.sleep(0.01)
        time.sleep(tenths / 10)
        run.send_signal(number)
        told = run.communicate()[1]
        codes.append(run.returncode)
        assert run.returncode in (0, 130, -number), told  # the last: Python itself was ending
        assert "Traceback" not in told
        assert list(temporary.glob("curator-selection-*")) == []
        assert [path.name for path in (large.path / "manifests").glob(".*stopped*")] == []
    assert 130 in codes


def test_a_build_that_died_before_its_commit_is_built_over(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The narrowest moment: the files are in place, and the row is not."""

    def dies(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(additions, "claim", dies)
        with pytest.raises(KeyboardInterrupt):
            building.build(store, "m", {"per_class": 3})
    assert (store.path / "manifests" / "m").exists()
    assert manifests.published(store) == []
    built = building.build(store, "m", {"per_class": 2})
    assert pq.read_table(built.path).num_rows == built.unique_images == 5
    assert [path.name for path in built.path.parent.iterdir()] == ["m"]


def test_an_error_leaves_no_files_behind(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    before = files_of(store.path)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq.ParquetWriter, "write_table", full)
    with pytest.raises(OSError, match="No space left"):
        building.build(store, "m", {"per_class": 3})
    assert files_of(store.path) == before


@pytest.mark.long
@pytest.mark.parametrize("seeds", [(0, 0, 0), (0, 1, 2)])
def test_builds_of_one_name_at_once_publish_one(large: Store, seeds: tuple[int, ...]) -> None:
    name = f"at-once-{sum(seeds)}"
    command = [PROGRAM, "build-manifest", name, "--per-class", "30000", "--store", large.path, "--quiet"]
    runs = [
        subprocess.Popen([*command, "--seed", str(seed)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        for seed in seeds
    ]
    errors = [run.communicate()[1] for run in runs]
    lost = [error for run, error in zip(runs, errors, strict=True) if run.returncode]
    assert len(lost) == len(set(seeds)) - 1, errors
    assert all(f"the manifest '{name}' exists" in error for error in lost)
    rows = [row for row in manifests.published(large) if row["name"] == name]
    assert len(rows) == 1
    assert json.loads((large.path / rows[0]["path"] / "_lineage.json").read_text())["sha256"] == rows[0]["sha256"]
    check_all_published(large)


def test_a_build_waits_for_another_that_is_publishing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The race at its narrowest: a rival comes between the moment the files are in place and the commit."""
    claim = additions.claim
    rivals: list[subprocess.Popen[bytes]] = []

    def late(*arguments: Any) -> None:
        command = [PROGRAM, "build-manifest", "m", "--per-class", "3", "--store", store.path, "--quiet"]
        rivals.append(subprocess.Popen(command, stdout=subprocess.DEVNULL))
        while not list((store.path / "manifests").glob(".m-*/_lineage.json")) and rivals[0].poll() is None:
            time.sleep(0.01)
        time.sleep(0.3)
        claim(*arguments)

    monkeypatch.setattr(additions, "claim", late)
    built = building.build(store, "m", {"per_class": 3})
    assert rivals[0].wait() == 0
    assert [row["sha256"] for row in manifests.published(store)] == [built.sha256]
    assert [path.name for path in built.path.parent.iterdir()] == ["m"]
