"""Pictures and tables of a bucket: many requests under way, the answers of a folder, and an end when asked."""

from __future__ import annotations

import datetime as dt
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from bucket import Server, upload
from conftest import CLASSES
from pictures import wait_for

from curator import queries
from curator.curation.building import build
from curator.delivery import packing
from curator.delivery.exports import export
from curator.delivery.shards import Form
from curator.errors import InputError
from curator.generations.labels import import_labels
from curator.loading.loader import ManifestLoader
from curator.loading.timm_reader import ManifestReader
from curator.networks import inference
from curator.pictures.decode import UnreadableImage
from curator.pictures.images import add_images
from curator.pictures.reading import Reader
from curator.pictures.thumbnails import Thumbnails
from curator.repeats.confirmation import look
from curator.schema import REVIEWS, TABLES
from curator.storage import additions
from curator.storage.bucket import AT_ONCE
from curator.storage.store import ABSENT, Store

SLOW = {"method": "GET", "match": "pictures/.*jpg", "kind": "slow", "seconds": 0.2, "times": 10**6}
NAMES = [f"pictures/{number:02}.jpg" for number in range(40)]
MISSING = 7
NOW = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
ROWS = [{"uri": name, "shard": None, "byte_offset": None, "byte_length": None} for name in NAMES]


class Twins(NamedTuple):
    """Two stores on this machine with the manifest "m" of the same pictures: those of a folder, and of a bucket."""

    near: Store
    far: Store


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty pictures, of which one is gone, and a store with a manifest of all of them; to be copied."""
    path = tmp_path_factory.mktemp("forty")
    (path / "pictures").mkdir()
    rng = np.random.default_rng(0)
    for number, name in enumerate(NAMES):
        if number != MISSING:
            coarse = rng.integers(0, 256, (4, 6, 3), dtype=np.uint8)
            cv2.imwrite(str(path / name), cv2.resize(coarse, (48, 32), interpolation=cv2.INTER_CUBIC))
    store = Store.create(path / "store", CLASSES)
    probs = np.full((40, 3), 0.05, np.float32) + 0.85 * np.eye(3, dtype=np.float32)[np.arange(40) % 3]
    pq.write_table(pa.table({"uri": NAMES, "probs": list(probs)}), path / "pool.parquet")
    add_images(store, str(path / "pool.parquet"), "unlabeled", scan=False)
    import_labels(store, str(path / "pool.parquet"), 0, "outside")
    build(store, "m", {"per_class": 14, "fill": "none"})
    return path


@pytest.fixture
def twins(folder: Path, bucket: str, tmp_path: Path) -> Twins:
    shutil.copytree(folder, tmp_path / "near")
    shutil.copytree(folder / "store", tmp_path / "far")
    upload(folder / "pictures", f"{bucket}/pictures")
    stated = tmp_path / "far" / "store.json"
    stated.write_text(json.dumps(json.loads(stated.read_text()) | {"root": bucket}))
    return Twins(Store(tmp_path / "near" / "store"), Store(tmp_path / "far"))


@pytest.fixture
def there(folder: Path, bucket: str) -> Store:
    """The store, in the bucket itself."""
    return Store(upload(folder / "store", f"{bucket}/store"))


@pytest.fixture
def slow(server: Server) -> Server:
    """The server, which takes its time for each picture."""
    server.breaks(SLOW)
    return server


def asked(server: Server, since: int) -> tuple[int, int]:
    """How many pictures were asked for since then, and the most requests that were under way at once."""
    found = [request for request in server.requests(since) if request.path.endswith(".jpg")]
    return len(found), max((request.going for request in found), default=0)


@pytest.mark.long
def test_a_scan_is_the_same_and_asks_for_all_at_once(folder: Path, bucket: str, slow: Server, tmp_path: Path) -> None:
    near = Store.create(tmp_path / "near", root=folder / "pictures")
    far = Store.create(tmp_path / "far", root=f"{bucket}/pictures")
    upload(folder / "pictures", f"{bucket}/pictures")
    since = len(slow.requests())
    seen = []
    for store, source in ((near, str(folder / "pictures")), (far, f"{bucket}/pictures")):
        added = add_images(store, source, "unlabeled")
        assert (added.added, added.unreadable) == (39, 0)
        seen.append(store.rows("select uri, width, height, content_hash, phash, status from images order by uri"))
    assert seen[0] == seen[1]
    count, most = asked(slow, since)
    assert (count, most > 20) == (39, True)


def test_batches_are_the_same_and_a_second_pass_asks_for_nothing(twins: Twins, slow: Server) -> None:
    since = len(slow.requests())
    near, far = (
        ManifestLoader.open(store, "m", size=16, batch_size=8, threads=2, cache_bytes=0, max_failures=0.1)
        for store in twins
    )
    for number in range(2):
        for ours, theirs in zip(far, near, strict=True):
            assert np.array_equal(ours.image_ids, theirs.image_ids)
            assert np.array_equal(ours.images, theirs.images)
            assert np.array_equal(ours.targets, theirs.targets)
        assert list(far.statistics.failures) == list(near.statistics.failures)
        count, most = asked(slow, since)
        assert count == 40 + number  # the missing one is asked for again
        assert most > 20


def test_pictures_for_a_network_are_the_same(twins: Twins, slow: Server) -> None:
    since = len(slow.requests())
    network = SimpleNamespace(test_resolution=16)
    recipe: Any = SimpleNamespace(network=network, test_crop=1.0)
    answers = []
    for store in twins:
        with closing(store.connect()) as con:
            tables = list(queries.batches(con, "select * from images order by uri", 20))
        answers.append(list(inference.decoded(recipe, store.root, tables, threads=2)))
    for ours, theirs in zip(*answers, strict=True):
        assert ours.rows["image_id"].equals(theirs.rows["image_id"])
        assert np.array_equal(ours.pixels, theirs.pixels)
        assert ours.good.tolist() == theirs.good.tolist()
    assert answers[1][0].failed == {MISSING: "No such object"}
    assert asked(slow, since)[0] == 40
    assert asked(slow, since)[1] > 20


@pytest.mark.long
def test_packs_exports_thumbnails_and_looks_are_the_same_and_ask_for_many(
    twins: Twins, slow: Server, tmp_path: Path
) -> None:
    def packed(store: Store) -> bytes:
        made = packing.pack(store, "m", Form(16))
        assert (made.images, made.unreadable) == (39, 1)
        return (store.path / "packs" / made.pack / "000000.tar").read_bytes()

    def exported(store: Store) -> bytes:
        place = tmp_path / f"{store.path.parent.name}-export"
        export(store, "m", "webdataset", place)
        return b"".join(file.read_bytes() for file in sorted(place.glob("*.tar")))

    def shown(store: Store) -> list[bytes]:
        return [small.jpeg for small in Thumbnails(store.root, 10**6).of(ROWS, 32)]

    def looked_at(store: Store) -> tuple[pa.Table, int, int]:
        pairs = pa.table({
            "node": range(0, 40, 2), "other": range(1, 40, 2), "kind": ["hash"] * 20,
            "distance": pa.array([0.0] * 20, pa.float32()), "here": ROWS[::2], "there": ROWS[1::2],
        })  # fmt: skip
        looked = look([pairs], 20, store.root)
        return looked.kept, looked.compared, looked.unconfirmed

    for work in (packed, exported, shown, looked_at):
        shutil.rmtree(os.environ["XDG_CACHE_HOME"], ignore_errors=True)  # what was read before
        since = len(slow.requests())
        assert work(twins.near) == work(twins.far)
        count, most = asked(slow, since)
        assert (count, most > 20) == (40, True), work.__name__


def test_what_is_not_taken_is_bounded_and_any_order_will_do(twins: Twins, server: Server) -> None:
    """With room for one byte, each thread reads one picture at most; who waits for another one gets it."""
    places = [tuple(row.values()) for row in ROWS if row["uri"] != NAMES[MISSING]] * 3
    since = len(server.requests())
    with Reader(twins.far.root, held=1) as reader, reader.ask(places) as pictures:
        time.sleep(1)
        assert 0 < asked(server, since)[0] <= AT_ONCE
        taken = [pictures.take(number) for number in reversed(range(len(places)))]
    with Reader(twins.near.root) as reader, reader.ask(places) as pictures:
        assert taken[::-1] == [pictures.take(number) for number in range(len(places))]


def test_room_comes_back_however_a_picture_ends(twins: Twins) -> None:
    places = [tuple(row.values()) for row in ROWS]
    reader = Reader(twins.far.root, held=10**6)
    with reader:
        with reader.ask(places, kept={0, 1}) as pictures:
            for number in range(20):
                if number == MISSING:
                    with pytest.raises(UnreadableImage, match="No such object"):
                        pictures.take(number)
                else:
                    pictures.take(number)
        deadline = time.monotonic() + 10
        while reader.room < 10**6 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert reader.room == 10**6


@pytest.mark.long
def test_ctrl_c_ends_while_the_bucket_refuses(twins: Twins, server: Server, tmp_path: Path) -> None:
    """A request that is refused is made again for a minute; nobody waits for that who wants to stop."""
    server.breaks(SLOW | {"kind": "503"})
    since = len(server.requests())
    export = [sys.executable, "-m", "curator", "export", "m", tmp_path / "out", "--format", "webdataset"]
    process = subprocess.Popen([*export, "--store", twins.far.path], stderr=subprocess.PIPE, text=True)
    wait_for(lambda: asked(server, since)[0] > 40, process)
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    assert "stopped" in process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert time.monotonic() - began < 10
    assert not (tmp_path / "out").exists()


def test_a_store_is_opened_by_few_requests_many_at_once(there: Store, server: Server) -> None:
    server.breaks(SLOW | {"match": "", "seconds": 0.1})
    since = len(server.requests())
    versions = there.versions()
    looked = server.requests(since)
    assert max(request.going for request in looked) > 4
    since += len(looked)
    there.connect(versions).close()  # what was seen at these versions is not looked at again
    tables = {request.path.split("/")[3] for request in server.requests(since) if "_delta_log" in request.path}
    assert tables.isdisjoint({"images", "labels", "reviews", "classes", "metrics", "model_table", "manifest_table"})
    since = len(server.requests())
    assert there.versions() == versions
    # two looks at the store, and two requests of each of them for each of the seven tables that there are
    assert len(server.requests(since)) <= 2 * (1 + 2 * 7)


@pytest.mark.long
def test_a_version_has_its_own_files_whatever_was_seen_since(there: Store) -> None:
    other = Store(there.place.absolute)
    files = {there.versions()["reviews"]: there.files("reviews")}
    for number in range(3):
        row = {"image_id": number, "generation": 0, "decision": "accept", "reviewer": "r", "decided_at": NOW}
        additions.append(other, "reviews", pa.Table.from_pylist([row], REVIEWS.schema))
        version = there.versions()["reviews"]
        assert version not in files
        files[version] = there.files("reviews")
        assert there.files("reviews") == other.files("reviews")
    assert [len(found) for found in files.values()] == [0, 1, 2, 3]
    for version, found in [*files.items()] * 2:
        assert there.files("reviews", version) == found
        with closing(there.connect({"reviews": version})) as con:
            assert con.sql("select count(*) from stored_reviews").fetchall() == [(len(found),)]
    assert there.files("reviews") == files[max(files)]
    assert there.files("packed") == there.files("packed", ABSENT) == []
    additions.make(other, "packed")
    assert there.every_version()["packed"] == 0


def test_what_the_later_table_names_is_there_in_the_earlier(there: Store, server: Server) -> None:
    """The first look at labels takes a second; meanwhile an image comes, and then its label."""
    other = Store(there.place.absolute)
    before = other.versions()
    with ThreadPoolExecutor(1) as pool:
        since = len(server.requests())
        server.breaks(SLOW | {"match": "labels/_delta_log/_last_checkpoint", "seconds": 2, "times": 1})
        look = pool.submit(there.versions)
        while not any(request.fault for request in server.requests(since)):
            time.sleep(0.01)
        time.sleep(0.5)  # the others were seen
        for table in ("images", "labels"):
            with closing(other.connect()) as con:
                row = con.sql(f"select * from stored_{table} limit 1").to_arrow_table()
            additions.append(other, table, row.cast(TABLES[table].schema))
        seen = look.result()
    assert seen["labels"] == before["labels"] + 1
    assert seen["images"] == before["images"] + 1


@pytest.mark.long
def test_a_forked_worker_is_refused_and_a_new_one_reads(twins: Twins) -> None:
    from torch.utils.data import DataLoader

    reader = ManifestReader(twins.far, "m")
    workers = DataLoader(Numbers(reader), num_workers=1, multiprocessing_context="fork", timeout=20)
    first = next(number for number in range(40) if NAMES[MISSING] != reader.filename(number))
    reader[first][0].close()
    with pytest.raises(InputError, match="a process that was forked cannot read from a bucket"):
        list(workers)
    there = pickle.loads(pickle.dumps(reader))  # as a worker gets it that is started anew
    assert there[first][0].getvalue() == reader[first][0].getvalue()


class Numbers:
    """How many bytes each picture has."""

    def __init__(self, reader: ManifestReader) -> None:
        self.reader = reader

    def __len__(self) -> int:
        return len(self.reader)

    def __getitem__(self, number: int) -> int:
        return len(self.reader[number][0].getvalue())
