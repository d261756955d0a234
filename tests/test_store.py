"""The store: made whole or not at all, found again after a move, old versions readable, commits that race or meet."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import CLASSES, Answer

from curator.decisions import reviews
from curator.errors import InputError, StoreError
from curator.generations.labels import import_labels
from curator.names import check_name
from curator.pictures.images import add_images
from curator.pictures.reading import read_bytes
from curator.schema import CLASSES as CLASS_TABLE
from curator.schema import TABLES
from curator.storage import additions, delta
from curator.storage.delta import CommitRaced, paths_of
from curator.storage.store import Look, Store

Run = Callable[..., Answer]
TABLE_FOLDERS = {"images", "labels", "reviews", "model_table", "metrics", "classes", "manifest_table"}


def listing(path: Path, *uris: str) -> str:
    pq.write_table(pa.table({"uri": list(uris)}), path)
    return str(path)


def test_a_new_store_is_whole_and_empty(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "deep" / "down" / "s")
    assert {entry.name for entry in store.path.iterdir()} == TABLE_FOLDERS | {"store.json"}
    assert [entry.name for entry in (tmp_path / "deep" / "down").iterdir()] == ["s"]
    for name in TABLES:
        assert store.rows(f"select count(*) as n from {name}") == [{"n": 0}]
    assert store.classes() == []
    assert store.root == tmp_path / "deep" / "down"


def test_a_view_of_a_table_without_rows_has_the_types_of_its_files(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "s")
    con = store.connect()
    for name, table in TABLES.items():
        empty = con.table(f"stored_{name}")
        pq.write_table(table.schema.empty_table(), tmp_path / f"{name}.parquet")
        file = con.read_parquet(str(tmp_path / f"{name}.parquet"))
        assert (empty.columns, empty.types) == (file.columns, file.types)
        assert empty.fetchall() == []


def test_a_question_to_a_store_without_rows_loads_no_pandas(tmp_path: Path) -> None:
    Store.create(tmp_path / "s")
    pytest.importorskip("pandas")  # what is not installed is not loaded
    program = """if True:
    import sys
    from curator.storage.store import Store
    assert Store(sys.argv[1]).rows("select count(*) as n from labels join images using (image_id)") == [{"n": 0}]
    print("pandas" in sys.modules)
    """
    done = subprocess.run([sys.executable, "-c", program, tmp_path / "s"], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.returncode) == ("False\n", 0), done.stderr


def test_init_again_finds_the_same_store(tmp_path: Path, curator: Run) -> None:
    file = tmp_path / "classes.txt"
    file.write_text("cat\n\n  dog \r\n\n")
    for _ in range(2):
        done = curator("init", "--classes", file, "--store", tmp_path / "s", "--json")
        assert (done.code, done.json["classes"]) == (0, 2)
    assert curator("init", "--store", tmp_path / "s").code == 0
    assert Store(tmp_path / "s").classes() == ["cat", "dog"]
    file.write_text("dog\ncat\n")
    other = curator("init", "--classes", file, "--store", tmp_path / "s")
    assert other.code == 2
    assert "has other classes (cat, dog)" in other.err
    assert curator("init", "--root", tmp_path / "else", "--store", tmp_path / "s").code == 2
    assert Store(tmp_path / "s").classes() == ["cat", "dog"]


def test_classes_may_come_later(tmp_path: Path) -> None:
    Store.create(tmp_path / "s")
    assert Store.create(tmp_path / "s", ["b", "a"]).classes() == ["b", "a"]
    assert Store.create(tmp_path / "s", ["b", "a"]).classes() == ["b", "a"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("cat\ndog\ncat\n", "the class 'cat' appears twice, as number 1 and number 3"),
        ("", "there are no class names"),
        ("\n \n", "there are no class names"),
        ("\n".join(map(str, range(2**15 + 1))), "32769 classes are more than the 32768"),
        (None, "cannot be read"),
    ],
)
def test_a_class_file_that_cannot_be_used_leaves_no_store(
    tmp_path: Path, curator: Run, text: str | None, said: str
) -> None:
    if text is not None:
        (tmp_path / "classes.txt").write_text(text)
    done = curator("init", "--classes", tmp_path / "classes.txt", "--store", tmp_path / "s")
    assert done.code == 2
    assert said in done.err
    assert "mend:" in done.err
    assert not (tmp_path / "s").exists()


def test_a_class_file_that_is_not_text(tmp_path: Path, curator: Run) -> None:
    (tmp_path / "classes.txt").write_bytes(b"\xff\xfe\x00cat")
    done = curator("init", "--classes", tmp_path / "classes.txt", "--store", tmp_path / "s")
    assert (done.code, "one name a line" in done.err) == (2, True)


def test_what_is_there_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("x")
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "full", tmp_path / "file"):
        with pytest.raises(StoreError, match="exists and is not a store"):
            Store.create(path)
    assert (tmp_path / "full" / "thesis.txt").read_text() == "x"
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for path in (Path(), Path("../here")):
        with pytest.raises(StoreError, match="the current folder"):
            Store.create(path)
    assert not any((tmp_path / "here").iterdir())
    for make in (Store.create, Store):
        with pytest.raises(StoreError, match="is a URL"):
            make(Path("s3://bucket/store"))
    assert not any((tmp_path / "here").iterdir())


def test_an_empty_folder_or_a_link_to_one_becomes_the_store(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    Store.create(tmp_path / "link", ["a"])
    assert (tmp_path / "link").is_symlink()
    assert Store(tmp_path / "empty").classes() == ["a"]


@pytest.mark.parametrize("name", ["a b", "störe", "100%", "a#1", 'q"x', "{a}", "-s", "it's"])
def test_a_store_at_a_path_with_odd_characters(tmp_path: Path, name: str) -> None:
    store = Store.create(tmp_path / name / "s", ["a"])
    assert add_images(store, listing(tmp_path / "l.parquet", "x.jpg"), "unlabeled", scan=False).added == 1
    reviews.add_review(store, store.rows("select image_id from images")[0]["image_id"], "accept")
    assert store.rows("select (select count(*) from images) i, (select count(*) from reviews) r") == [{"i": 1, "r": 1}]
    assert store.classes() == ["a"]


@pytest.mark.parametrize("name", ["a[1]", "what?", "a*", "a|b", "50%25", "a\nb", "b\\c", os.fsdecode(b"\xff")])
def test_a_path_that_delta_or_duckdb_cannot_read_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(StoreError, match="cannot lie at"):
        Store.create(tmp_path / name / "s")
    assert not any(tmp_path.iterdir())


@pytest.mark.long
def test_init_killed_at_any_time_leaves_a_store_or_none(tmp_path: Path) -> None:
    """Killed later and later, until one init ends by itself; each leaves a whole store or none."""
    program = (
        "import sys; from curator.storage.store import Store; print(flush=True); Store.create(sys.argv[1], ['a', 'b'])"
    )
    killed = 0
    for attempt in range(40):
        path = tmp_path / f"s{attempt}"
        made = subprocess.Popen([sys.executable, "-c", program, path], stdout=subprocess.PIPE)
        assert made.stdout is not None
        made.stdout.readline()
        time.sleep(0.05 * attempt)
        made.kill()
        made.stdout.close()
        if made.wait() == 0:
            assert Store(path).classes() == ["a", "b"]
            break
        killed += 1
        if path.exists():
            assert Store(path).classes() == ["a", "b"]
        if attempt % 4 == 0:
            assert Store.create(path, ["a", "b"]).classes() == ["a", "b"]
    else:
        pytest.fail("no init was fast enough")
    assert killed >= 2


def test_two_inits_at_once_make_one_store(tmp_path: Path) -> None:
    program = Path(sys.executable).with_name("curator")
    (tmp_path / "c.txt").write_text("a\nb\n")
    both = [subprocess.Popen([program, "init", "--classes", "c.txt", "--quiet"], cwd=tmp_path) for _ in range(3)]
    assert [made.wait() for made in both] == [0, 0, 0]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["c.txt", "store"]
    assert Store(tmp_path / "store").classes() == ["a", "b"]


def test_missing_and_damaged_stores_say_the_mend(tmp_path: Path, curator: Run) -> None:
    gone = curator("manifests", "--store", tmp_path / "no where")
    assert (gone.code, f"mend: curator init --store '{tmp_path}/no where'" in gone.err) == (2, True)
    path = Store.create(tmp_path / "s").path
    good = json.loads((path / "store.json").read_text())
    for text, said in (
        ("{", "is damaged"),
        ("[]", "is damaged"),
        ('{"format": 2}', "'root' is missing"),
        (json.dumps(good | {"root": 5}), "is damaged"),
        (json.dumps(good | {"format": 1, "shards": 9}), "has format 1; this version of curator reads format 2"),
    ):
        (path / "store.json").write_text(text)
        done = curator("manifests", "--store", path)
        assert (done.code, said in done.err, "mend:" in done.err) == (2, True, True), (text, done.err)


@pytest.mark.parametrize("damage", ["no log", "no first commit", "half a commit", "no table", "no data", "short data"])
def test_a_damaged_table_is_named_with_the_mend(store: Store, curator: Run, damage: str) -> None:
    log = store.path / "images" / "_delta_log"
    data = [Path(path) for path in paths_of(store.delta("images"))]
    if damage == "no log":
        shutil.rmtree(log)
    elif damage == "no first commit":
        (log / f"{0:020}.json").unlink()
    elif damage == "half a commit":
        os.truncate(log / f"{1:020}.json", 50)
    elif damage == "no table":
        shutil.rmtree(store.path / "images")
    elif damage == "no data":
        data[0].unlink()
    else:
        os.truncate(data[0], 100)
    for command in (["sql", "select * from images"], ["build-manifest", "--per-class", "1"]):
        done = curator(*command, "--store", store.path)
        assert done.code == 2
        assert "the table 'images'" in done.err
        assert f"mend: restore {store.path / 'images'} from a backup" in done.err


def test_data_damaged_in_the_middle(store: Store, tmp_path: Path, curator: Run) -> None:
    [data] = paths_of(store.delta("images"))
    for seed in range(6):
        with Path(data).open("r+b") as file:
            file.seek(4)
            file.write(random.Random(seed).randbytes(400))
        for command in (["sql", "select * from images"], ["add-images", tmp_path / "pool.parquet", "--no-scan"]):
            split = ["--split", "unlabeled"] if "--no-scan" in command else []
            done = curator(*command, *split, "--store", store.path)
            assert done.code == 2
            assert "a file of the store is damaged" in done.err


def test_an_empty_commit_does_not_hide_rows(store: Store, curator: Run) -> None:
    """What a machine that lost its power can leave: Delta itself takes it for a commit of nothing."""
    commit = store.path / "images" / "_delta_log" / f"{1:020}.json"
    commit.write_text("")
    done = curator("sql", "select count(*) from images", "--store", store.path)
    assert (done.code, f"mend: rm {commit}" in done.err) == (2, True)
    commit.unlink()
    assert store.rows("select count(*) as n from images") == [{"n": 0}]


def test_root_and_moves(tmp_path: Path, curator: Run) -> None:
    (tmp_path / "all" / "data" / "pool").mkdir(parents=True)
    (tmp_path / "all" / "data" / "pool" / "a.jpg").write_bytes(b"picture")
    done = curator("init", "--root", tmp_path / "all" / "data", "--store", tmp_path / "all" / "meta" / "s", "--json")
    assert done.json["root"] == str(tmp_path / "all" / "data")
    store = Store(tmp_path / "all" / "meta" / "s")
    assert add_images(store, str(tmp_path / "all/data/pool"), "unlabeled", scan=False).added == 1
    (tmp_path / "all").rename(tmp_path / "moved")
    moved = Store(tmp_path / "moved" / "meta" / "s")
    assert moved.rows("select uri from images") == [{"uri": "pool/a.jpg"}]
    assert read_bytes(moved.root, "pool/a.jpg", None, None, None) == b"picture"
    again = add_images(moved, str(tmp_path / "moved/data/pool"), "unlabeled", scan=False)
    assert (again.added, again.already_present) == (0, 1)


def test_old_versions_stay_readable(store: Store, tmp_path: Path) -> None:
    before = store.versions()
    con = store.connect()
    add_images(store, listing(tmp_path / "more.parquet", "pool/z.jpg"), "unlabeled", scan=False)
    assert con.execute("select count(*) from images").fetchall() == [(9,)]
    con.close()
    assert store.rows("select count(*) as n from images", before) == [{"n": 9}]
    assert store.rows("select count(*) as n from images", {"images": 0}) == [{"n": 0}]
    assert store.rows("select count(*) as n from images") == [{"n": 10}]
    with pytest.raises(StoreError, match="the table 'images'"):
        store.rows("select 1 from images", {"images": 99})


def test_what_is_committed_between_two_looks_leaves_no_label_without_its_image(store: Store, tmp_path: Path) -> None:
    added = 0

    class Slow(Store):
        def _look(self, table: str, version: int | None) -> Look:
            nonlocal added
            look = super()._look(table, version)
            if table in {"images", "labels", "reviews"}:  # meanwhile, in another process
                uri, added = f"pool/late-{added}.jpg", added + 1
                add_images(store, listing(tmp_path / "late.parquet", uri), "unlabeled", scan=False)
                labels = pa.table({"uri": [uri], "probs": [[0.8, 0.1, 0.1]]})
                pq.write_table(labels, tmp_path / "labels.parquet")
                import_labels(store, str(tmp_path / "labels.parquet"), 0, "outside")
                image = store.rows("select image_id from images where uri = $uri", uri=uri)[0]["image_id"]
                reviews.add_review(store, image, "accept")
            return look

    loose = "select count(*) as n from {} left join images as i using (image_id) where i.image_id is null"
    slow = Slow(store.path)
    for table in ("labels", "reviews"):
        before = added
        assert slow.rows(loose.format(f"stored_{table}")) == [{"n": 0}]
        assert added == before + 2
    with closing(slow.connect()) as con:
        assert [con.sql(loose.format(table)).fetchall() for table in ("labels", "reviews")] == [[(0,)]] * 2
    assert [row["n"] for row in store.rows("select count(*) as n from labels")] == [9 + added]


def test_a_claim_that_lost_the_race_changes_nothing(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "s")
    table, late = store.delta("classes"), store.delta("classes")
    for name, at in (("cat", table), ("dog", late)):
        file = store.path / "classes" / f"{name}.parquet"
        pq.write_table(pa.table({"label": [0], "class_name": [name]}).cast(CLASS_TABLE.schema), file)
        if at is table:
            delta.publish(store.place, at, [file], "the classes")
            continue
        with pytest.raises(CommitRaced, match="another process published the classes"):
            delta.publish(store.place, at, [file], "the classes")
    assert store.classes() == ["cat"]
    assert store.versions()["classes"] == 1
    # from the newest state the same claim may be made again
    delta.publish(store.place, store.delta("classes"), [store.path / "classes" / "dog.parquet"], "the classes")


def test_a_commit_whose_answer_was_lost_is_found(tmp_path: Path) -> None:
    """It is made once more, which fails against the first: the files are in the table, and stay there."""
    store = Store.create(tmp_path / "s")
    first, again = store.delta("classes"), store.delta("classes")
    file = store.path / "classes" / "its own.parquet"
    pq.write_table(pa.table({"label": [0], "class_name": ["cat"]}).cast(CLASS_TABLE.schema), file)
    delta.publish(store.place, first, [file], "the classes")
    delta.publish(store.place, again, [file], "the classes")
    assert store.classes() == ["cat"]
    assert store.versions()["classes"] == 1


def test_classes_are_defined_once(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "s")
    store.define_classes(["a", "b"])
    store.define_classes(["a", "b"])
    with pytest.raises(CommitRaced, match=r"other classes by now \(a, b\)"):
        store.define_classes(["a"])
    assert len(list((store.path / "classes").glob("*.parquet"))) == 1


@pytest.mark.parametrize("name", ["", "a/b", "-a", ".a", "a b", "images", "Images", "stored_labels", "a" * 101, "a\n"])
def test_names_that_cannot_be_a_folder_and_a_view(name: str) -> None:
    with pytest.raises(InputError, match="cannot be the name of a manifest"):
        check_name("manifest", name)
    check_name("manifest", "g0-5.2_x")


def test_a_process_that_holds_a_connection_locks_nobody_out(store: Store) -> None:
    program = (
        "import sys, time; from curator.storage.store import Store; c = Store(sys.argv[1]).connect(); print(flush=True)"
    )
    holding = subprocess.Popen([sys.executable, "-c", program + "; time.sleep(60)", store.path], stdout=subprocess.PIPE)
    assert holding.stdout is not None
    holding.stdout.readline()
    additions.append(store, "reviews", TABLES["reviews"].schema.empty_table())
    assert store.classes() == CLASSES
    holding.send_signal(signal.SIGKILL)
    holding.stdout.close()
    holding.wait()
    assert store.classes() == CLASSES
