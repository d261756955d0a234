"""A store in a bucket: made once, written by many at once and by writers that are killed; nothing lost or half."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from bucket import SECRET, Server, upload
from conftest import CLASSES, PROBS, Answer
from pictures import wait_for

from curator.curation import manifests
from curator.errors import CuratorError, InputError, StoreError
from curator.generations.labels import import_labels
from curator.pictures.images import add_images
from curator.storage import bucket as buckets
from curator.storage.bucket import Bucket
from curator.storage.store import Store

pytestmark = pytest.mark.long

Run = Callable[..., Answer]
COMMITS = "_delta_log/0"


@pytest.fixture
def there(made_once: Path, bucket: str) -> Store:
    """The fixture store, copied into a bucket as it is."""
    return Store(upload(made_once / "store", f"{bucket}/store"))


def listing(path: Path, *uris: str) -> str:
    pq.write_table(pa.table({"uri": list(uris)}), path)
    return str(path)


def probabilities(path: Path, letters: str) -> str:
    probs = pa.array([list(PROBS[letter]) for letter in letters], pa.list_(pa.float32()))
    pq.write_table(pa.table({"uri": [f"pool/{letter}.jpg" for letter in letters], "probs": probs}), path)
    return str(path)


def test_the_same_store_in_a_folder_and_in_a_bucket(
    store: Store,
    there: Store,
    curator: Run,
) -> None:
    """Views, manifests and their hashes are the same, whichever of the two they are made in."""
    query = "select * from images join labels using (image_id) order by all"
    assert there.rows(query) == store.rows(query)
    built = [
        curator("build-manifest", "a", "--per-class", 2, "--json", "--store", s.place).json for s in (store, there)
    ]
    assert built[0]["sha256"] == built[1]["sha256"]
    assert built[1]["path"].startswith(f"{there.place}/manifests/a/")
    assert there.rows("select count(*) as n from manifests") == [{"n": 1}]
    checked = curator("check", "--store", there.place)
    assert (checked.code, checked.out) == (0, "a: ok, 9 checks\n")
    again = curator("build-manifest", "a", "--per-class", 2, "--json", "--store", there.place)
    assert again.json == built[1]
    query = "select image_id, copies from a order by image_id"
    shown = [curator("sql", query, "--store", each.place).out for each in (store, there)]
    assert shown[0] == shown[1] != ""


def test_made_once(bucket: str, curator: Run, tmp_path: Path) -> None:
    url = f"{bucket}/store"
    (tmp_path / "classes.txt").write_text("cat\ndog\nowl\n", "utf-8")
    none = curator("sql", "select 1", "--store", url)
    assert none.code == 2
    assert f"there is no store at '{url}'\n  mend: curator init --store {url}" in none.err
    for _ in range(2):
        made = curator("init", "--store", url, "--classes", tmp_path / "classes.txt")
        assert (made.code, made.err) == (0, "")
    assert Store(url).classes() == CLASSES
    assert str(Store(url).root) == bucket
    other = curator("init", "--store", url, "--root", "s3://elsewhere/pictures")
    assert other.code == 2
    assert f"has another root ({bucket})" in other.err
    Bucket(bucket).put("mine/data.csv", b"1,2")
    strange = curator("init", "--store", f"{bucket}/mine")
    assert strange.code == 2
    assert "lies something that is no store" in strange.err
    assert [name for name, _ in Bucket(bucket).list("mine")] == ["mine/data.csv"]


def test_an_init_that_was_killed_is_finished_by_the_next(bucket: str) -> None:
    url = f"{bucket}/store"
    Store.create(url, CLASSES)
    Bucket(url).remove(["store.json", *(name for name, _ in Bucket(url).list("labels"))])
    with pytest.raises(StoreError, match="there is no store"):
        Store(url)
    assert Store.create(url, CLASSES).classes() == CLASSES
    assert Store(url).rows("select count(*) as n from labels") == [{"n": 0}]


def test_a_server_without_conditional_writes_is_refused(
    bucket: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    put = Bucket.put
    monkeypatch.setattr(Bucket, "put", lambda self, name, data, new=False: put(self, name, data))
    with pytest.raises(StoreError, match="If-None-Match"):
        Store.create(f"{bucket}/store")
    assert list(Bucket(bucket).list()) == []


def test_commits_of_four_at_once_lose_nothing(there: Store, tmp_path: Path) -> None:
    """Of images, which are made again where they lost; half of the images are in two imports."""
    files = [
        listing(tmp_path / f"{n}.parquet", *(f"more/{i}.jpg" for i in range(20 * n, 20 * n + 40))) for n in range(4)
    ]
    code = (
        "import sys; from curator.storage.store import Store; from curator.pictures.images import add_images\n"
        "for part in sys.argv[2:]: add_images(Store(sys.argv[1]), part, 'unlabeled', scan=False)"
    )
    order = [[files[n], files[(n + 1) % 4]] for n in range(4)]
    processes = [subprocess.Popen([sys.executable, "-c", code, str(there.place), *parts]) for parts in order]
    assert [process.wait() for process in processes] == [0, 0, 0, 0]
    found = Store(str(there.place)).rows("select count(*) as n, count(distinct uri) as different from images")
    assert found == [{"n": 109, "different": 109}]


def test_of_two_that_publish_a_generation_one_wins(there: Store, tmp_path: Path) -> None:
    files = [probabilities(tmp_path / f"{n}.parquet", letters) for n, letters in enumerate(("abcdefghi", "ihgfedcba"))]

    def take(file: str) -> str:
        try:
            import_labels(Store(str(there.place)), file, 1, "second")
        except CuratorError as error:
            return str(error)
        return "done"

    with ThreadPoolExecutor(2) as pool:
        said = sorted(pool.map(take, files), key=len)
    assert said[0] == "done"
    if said[1] != "done":  # else the second came so late that it saw what was there
        assert "at the same time" in said[1]
        assert "run the same command again" in said[1]
    assert there.rows("select count(*) as n, count(distinct image_id) as d from labels where generation = 1") == [
        {"n": 9, "d": 9}
    ]


@pytest.mark.parametrize("table", ["images", "labels", "reviews", "manifest_table"])
def test_a_commit_whose_answer_is_lost(
    there: Store,
    server: Server,
    table: str,
    curator: Run,
    tmp_path: Path,
) -> None:
    """It is sent again and refused, because it is there already; its rows and files stay."""
    image_id = there.rows("select image_id from images limit 1")[0]["image_id"]
    commands = {
        "images": ("add-images", listing(tmp_path / "l.parquet", "z/1.jpg"), "--split", "unlabeled", "--no-scan"),
        "labels": ("import-labels", probabilities(tmp_path / "p.parquet", "abc"), "--generation", 1, "--model", "two"),
        "reviews": ("review", "--image-id", image_id, "--decision", "reject"),
        "manifest_table": ("build-manifest", "a", "--per-class", 2),
    }
    server.breaks({"method": "PUT", "match": f"/{table}/{COMMITS}", "kind": "lost", "times": 1})
    before = {name: len(there.rows(f"select * from {name}")) for name in ("images", "labels", "reviews", "manifests")}
    done = curator(*commands[table], "--store", there.place)
    assert done.code == 0, done.err
    view = {"manifest_table": "manifests"}.get(table, table)
    grown = {"images": 1, "labels": 3, "reviews": 1, "manifests": 1}[view]
    assert len(there.rows(f"select * from {view}")) == before[view] + grown
    assert curator("check", "--store", there.place).code == 0


def test_of_two_manifests_of_a_name_one_is_published(
    there: Store,
    server: Server,
    process: Run,
    curator: Run,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """The slower one's files do not come in the way of the faster one's."""
    server.breaks({"method": "PUT", "match": f"/manifest_table/{COMMITS}", "kind": "held", "times": 1})
    before = len(server.requests())
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(process, "build-manifest", "a", "--per-class", 1, "--store", there.place)
        while not any(request.fault for request in server.requests(before)):
            assert not slow.done(), slow.result().err
            time.sleep(0.05)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another machine"))
        fast = curator("build-manifest", "a", "--per-class", 2, "--json", "--store", there.place)
        server.breaks()
        late = slow.result()
    assert (fast.code, late.code) == (0, 2), late.err
    assert "another process published manifest a at the same time" in late.err
    assert [row["sha256"] for row in there.rows("select sha256 from manifests")] == [fast.json["sha256"]]
    assert curator("check", "a", "--store", there.place).code == 0


@pytest.mark.parametrize("command", ["add-images", "import-labels", "build-manifest"])
def test_a_writer_that_is_killed_before_its_commit_leaves_nothing_to_see(
    there: Store,
    server: Server,
    command: str,
    curator: Run,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """Its files are in the bucket, and the same command, given again on another machine, is as if it were new."""
    images, labels = listing(tmp_path / "l.parquet", "z/1.jpg"), probabilities(tmp_path / "p.parquet", "abc")
    table, view, arguments = {
        "add-images": ("images", "images", [images, "--split=unlabeled", "--no-scan"]),
        "import-labels": ("labels", "labels", [labels, "--generation=1", "--model=two"]),
        "build-manifest": ("manifest_table", "manifests", ["a", "--per-class=2"]),
    }[command]  # fmt: skip
    versions, rows = there.versions(), there.rows(f"select * from {view} order by all")
    server.breaks({"method": "PUT", "match": f"/{table}/{COMMITS}", "kind": "dead", "times": 100, "seconds": 60})
    before = len(server.requests())
    words = [command, *arguments, "--store", str(there.place)]
    process = subprocess.Popen(
        [Path(sys.executable).with_name("curator"), *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    wait_for(lambda: any(request.fault for request in server.requests(before)), process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    server.breaks()
    put = [
        request for request in server.requests(before) if request.method == "PUT" and "_delta_log" not in request.path
    ]
    assert put  # what it wrote is there, and nobody sees it; of an import, its model's name was claimed first
    claimed = {"models": versions["models"] + 1} if command == "import-labels" else {}
    assert there.versions() == versions | claimed
    assert there.rows(f"select * from {view} order by all") == rows
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another machine"))
    done = curator(*words)
    assert done.code == 0, done.err
    assert len(Store(str(there.place)).rows(f"select * from {view}")) > len(rows)
    assert curator("check", "--store", there.place).code == 0


def test_a_bucket_that_cannot_be_read_is_not_a_damaged_store(
    there: Store,
    server: Server,
    process: Run,
    curator: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url = there.place
    monkeypatch.setattr(buckets, "_patience_s", 0.3)
    for match in ("labels/g000", "labels/_delta_log"):
        server.breaks({"method": "GET", "match": match, "kind": "503", "times": 10_000})
        wrong = curator("build-manifest", "a", "--per-class", 2, "--store", url)
        assert wrong.code == 2
        assert "cannot be used" in wrong.err
        assert "AWS_ENDPOINT_URL" in wrong.err
        for said in ("damaged", "backup", "Traceback"):
            assert said not in wrong.err
    server.breaks()
    # a file of a table that is gone is damage, though
    for path in there.files("labels"):
        there.place.bucket.remove([path.removeprefix(f"{url}/")])  # type: ignore[attr-defined]
    monkeypatch.setenv("XDG_CACHE_HOME", str(Path(os.environ["XDG_CACHE_HOME"]) / "another"))
    gone = process("sql", "select count(distinct label) from labels", "--timeout", 20, "--store", url)
    assert gone.code == 2
    assert "labels" in gone.err
    assert "from a backup" in gone.err
    assert len(gone.err.splitlines()) == 2


def test_urls_with_secrets_are_refused_and_not_repeated(curator: Run) -> None:
    for url in (f"s3://user:{SECRET}@bucket/store", f"s3://bucket/store?token={SECRET}"):
        for command in (("init",), ("sql", "select 1"), ("add-images", url, "--split", "unlabeled")):
            done = curator(*command, "--store", url)
            assert done.code == 2
            assert SECRET not in done.err + done.out
            assert "credentials come from the environment" in done.err


def test_repeated_requests_are_told(there: Store, server: Server, process: Run) -> None:
    server.breaks({"method": "GET", "match": "labels/g000", "kind": "503", "times": 3})
    done = process("build-manifest", "a", "--per-class", 2, "--store", there.place)
    assert done.code == 0
    assert "3 requests to the bucket were made again" in done.err


def test_rows_do_not_say_where_they_were_made(there: Store, curator: Run) -> None:
    """A lineage that names the machine or its credentials would be another one on each."""
    assert curator("build-manifest", "a", "--per-class", 2, "--store", there.place).code == 0
    lineage = json.dumps(manifests.find(there, "a").lineage)
    for said in (SECRET, "testing", str(there.path), "127.0.0.1"):
        assert said not in lineage


def test_a_listing_and_labels_by_url(there: Store, tmp_path: Path) -> None:
    place = Bucket(str(there.root))
    place.put("lists/more.csv", b"uri,label\nseen/1.jpg,cat\nseen/2.jpg,owl\n")
    added = add_images(there, f"{place}/lists/more.csv", "labeled", scan=False)
    assert added.added == 2
    with pytest.raises(InputError, match="there is no object"):
        add_images(there, f"{place}/lists/none.csv", "labeled", scan=False)
