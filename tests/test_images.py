"""Adding images: ids, splits, classes, what a scan finds, imports that are killed or meet, and names of any kind."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import Answer
from PIL import Image

from curator.errors import InputError, StoreError
from curator.pictures.images import add_images
from curator.pictures.reading import read_bytes
from curator.storage.store import Store

Run = Callable[..., Answer]
# Chunks of a few images, set from outside: the program has no option for it.
SMALL_CHUNKS = """
import sys
import curator.pictures.images
from curator.storage.store import Store
assert curator.pictures.images._CHUNK > 300
curator.pictures.images._CHUNK = 10
print(flush=True)
print(curator.pictures.images.add_images(Store(sys.argv[1]), sys.argv[2], "unlabeled").added)
"""


def picture(
    seed: int = 0, size: tuple[int, int] = (40, 30), kind: str = "JPEG", mode: str = "RGB", **more: Any
) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, kind, **more)
    return buffer.getvalue()


def tree(root: Path, files: dict[str, bytes]) -> str:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return str(root)


def listing(path: Path, **columns: Any) -> str:
    pq.write_table(pa.table(columns), path)
    return str(path)


def ids(store: Store) -> dict[str, int]:
    return {row["uri"]: row["image_id"] for row in store.rows("select uri, image_id from images")}


@pytest.fixture
def empty(tmp_path: Path) -> Store:
    return Store.create(tmp_path / "s")


# Ids


def test_ids_depend_on_the_uri_alone(tmp_path: Path) -> None:
    uris = [f"p/{i}.jpg" for i in range(50)]
    found = []
    for name, order in (("a", uris), ("b", uris[::-1]), ("c", uris[10:] + uris[:10])):
        store = Store.create(tmp_path / name)
        for part in (order[:7], order[:20], order[20:]):
            add_images(store, listing(tmp_path / "l.parquet", uri=part), "unlabeled", scan=False)
        found.append(ids(store))
    assert found[0] == found[1] == found[2]
    number = int.from_bytes(hashlib.md5(b"p/0.jpg").digest()[8:], "little")
    assert found[0]["p/0.jpg"] == number >> 1  # other tools can compute an id
    assert len(set(found[0].values())) == 50
    assert min(found[0].values()) >= 0


def test_ids_that_collide_are_moved_and_kept(tmp_path: Path, empty: Store) -> None:
    """Three bits for seven images; each later import must find the ids of the ones before."""
    before: dict[str, int] = {}
    for last in (3, 5, 7):
        file = listing(tmp_path / "l.parquet", uri=[f"{i}.jpg" for i in range(last)])
        add_images(empty, file, "unlabeled", scan=False, id_mask=7)
        now = ids(empty)
        assert len(set(now.values())) == len(now) == last
        assert set(now.values()) <= set(range(8))
        assert now | before == now
        before = now
    again = add_images(empty, file, "unlabeled", scan=False, id_mask=7)
    assert (again.added, again.already_present, ids(empty)) == (0, 7, before)


# One image, one split, one label


def test_the_same_folder_twice_and_with_more(tmp_path: Path, empty: Store) -> None:
    folder = tree(tmp_path / "pool", {f"{i}.jpg": picture(i) for i in range(4)})
    assert add_images(empty, folder, "unlabeled")[:4] == (4, 0, 0, 4)
    versions = empty.versions()
    assert add_images(empty, folder, "unlabeled")[:4] == (0, 4, 0, 4)
    assert empty.versions() == versions
    tree(tmp_path / "pool", {"9.jpg": picture(9)})
    assert add_images(empty, folder, "unlabeled")[:4] == (1, 4, 0, 5)


def test_an_image_has_one_split(tmp_path: Path, empty: Store) -> None:
    add_images(empty, listing(tmp_path / "l.parquet", uri=["a", "b"]), "unlabeled", scan=False)
    before = empty.versions()
    for split in ("holdout", "labeled"):
        file = listing(tmp_path / "m.parquet", uri=["new", "b"], label=[0, 0])
        with pytest.raises(InputError, match=f"as 'unlabeled', and cannot be '{split}' too: b") as error:
            add_images(empty, file, split, scan=False)
        assert "was --split unlabeled meant?" in error.value.mend
    assert empty.versions() == before
    assert empty.classes() == []


def test_a_trusted_label_does_not_change(tmp_path: Path, empty: Store) -> None:
    add_images(empty, listing(tmp_path / "l.parquet", uri=["a", "b"], label=["x", "y"]), "labeled", scan=False)
    with pytest.raises(InputError, match="with another label: b"):
        add_images(empty, listing(tmp_path / "l.parquet", uri=["a", "b"], label=["x", "x"]), "labeled", scan=False)
    assert empty.rows("select class_name from images order by uri") == [{"class_name": "x"}, {"class_name": "y"}]


def test_holdout_bytes_in_the_pool_are_leaks(tmp_path: Path, empty: Store, curator: Run) -> None:
    tree(tmp_path / "holdout", {"c/1.jpg": picture(1), "c/2.jpg": picture(2)})
    pool = tree(tmp_path / "pool", {"copy.jpg": picture(1), "also.jpg": picture(1), "other.jpg": picture(3)})
    add_images(empty, str(tmp_path / "holdout"), "holdout")
    done = add_images(empty, pool, "unlabeled")
    assert (done.added, done.leaks) == (3, 2)
    again = curator("add-images", pool, "--split", "unlabeled", "--store", empty.path)
    assert "2 images outside the holdout have the same bytes as a holdout image; they are left out" in again.out


# Classes


def test_the_first_labeled_import_defines_the_classes_sorted(tmp_path: Path, empty: Store) -> None:
    add_images(empty, tree(tmp_path / "a", {"dog/1.jpg": b"1", "cat/1.jpg": b"2"}), "labeled", scan=False)
    assert empty.classes() == ["cat", "dog"]
    other = tree(tmp_path / "b", {"cat/1.jpg": b"1", "dgo/2.jpg": b"2"})
    with pytest.raises(InputError, match=r"the class 'dgo' is not one of the store's 2 classes .*did you mean 'dog'"):
        add_images(empty, other, "labeled", scan=False)
    assert len(ids(empty)) == 2
    assert add_images(empty, tree(tmp_path / "c", {"dog/9.jpg": b"9"}), "holdout", scan=False).added == 1
    rows = empty.rows("select uri, label, class_name from images where split = 'holdout'")
    assert rows == [{"uri": "c/dog/9.jpg", "label": 1, "class_name": "dog"}]


def test_labels_from_a_file(tmp_path: Path, empty: Store) -> None:
    folder = tree(tmp_path / "d", {f"x/{i}.jpg": b"1" for i in range(4)})
    names = listing(tmp_path / "l.parquet", uri=["d/x/0.jpg", "x/1.jpg", "x/2.jpg"], label=["b", "a", "b"])
    with pytest.raises(InputError, match=r"labeled images without a label: d/x/3.jpg"):
        add_images(empty, folder, "labeled", names, scan=False)
    assert empty.classes() == []
    (tmp_path / "l.csv").write_text("uri,label\nd/x/0.jpg,b\nx/1.jpg,a\nx/2.jpg,b\nx/3.jpg,a\nx/4.jpg,c\n")
    add_images(empty, folder, "labeled", str(tmp_path / "l.csv"), scan=False)
    assert [row["class_name"] for row in empty.rows("select class_name from images order by uri")] == list("baba")
    twice = listing(tmp_path / "l.parquet", uri=["x/1.jpg", "x/1.jpg"], label=["a", "b"])
    with pytest.raises(InputError, match=r"twice with different labels: x/1.jpg"):
        add_images(empty, folder, "labeled", twice, scan=False)


def test_numbers_in_a_text_file_are_names_where_there_are_such_names(tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_text("uri,label\na,10\nb,2\n")
    for classes, wanted in (
        (["2", "10"], ["10", "2"]),
        ([f"c{i}" for i in range(11)], ["c10", "c2"]),
        (None, ["10", "2"]),
    ):
        store = Store.create(tmp_path / f"s{len(classes or [])}", classes)
        add_images(store, str(tmp_path / "l.csv"), "labeled", scan=False)
        assert [row["class_name"] for row in store.rows("select class_name from images order by uri")] == wanted
    assert store.classes() == [str(i) for i in range(11)]


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"uri": ["a", "a"], "label": ["x", "y"]}, "twice with different labels or splits: a"),
        ({"uri": ["a", "b"], "label": ["x", None]}, "labeled images without a label: b"),
        ({"uri": ["a", "b"], "label": [0, 5]}, "the class number 5 is outside 0 to 1"),
        ({"uri": ["a", "b"], "label": [0, -1]}, "the class number -1 is outside 0 to 1"),
        ({"uri": ["a"]}, "labeled images without a label: a"),
    ],
)
def test_listings_that_do_not_fit(tmp_path: Path, columns: dict[str, Any], said: str) -> None:
    store = Store.create(tmp_path / "s", ["x", "y"])
    with pytest.raises(InputError, match=said):
        add_images(store, listing(tmp_path / "l.parquet", **columns), "labeled", scan=False)
    assert ids(store) == {}
    folders = tree(tmp_path / "d", {"x/1.jpg": b"1"})
    assert add_images(store, folders, "labeled", scan=False).added == 1
    with pytest.raises(InputError, match="a listing has no class folders"):
        add_images(store, listing(tmp_path / "l.parquet", **columns), "labeled", "folder", scan=False)


def test_numbers_that_are_names_of_other_classes(tmp_path: Path, empty: Store) -> None:
    """Folders 0 to 11 sort as text, so class "10" is number 2: a number in a column of numbers could be either."""
    add_images(empty, tree(tmp_path / "d", {f"{i}/1.jpg": b"" for i in range(12)}), "labeled", scan=False)
    assert empty.classes()[:4] == ["0", "1", "10", "11"]
    file = listing(tmp_path / "l.parquet", uri=["h0", "h2"], label=[0, 2])
    with pytest.raises(
        InputError, match="label 2 may be the class '2', which is number 4, or the number of the class '10'"
    ):
        add_images(empty, file, "holdout", scan=False)
    assert empty.rows("from images where split = 'holdout'") == []
    assert (
        add_images(empty, listing(tmp_path / "a.parquet", uri=["h0", "h1"], label=[0, 1]), "holdout", scan=False)[0]
        == 2
    )
    named = listing(tmp_path / "n.parquet", uri=["h2"], class_name=["2"])
    assert add_images(empty, named, "holdout", scan=False)[0] == 1
    (tmp_path / "l.csv").write_text("uri,label\nh10,10\n")  # of a text file a name stands before a number
    assert add_images(empty, str(tmp_path / "l.csv"), "holdout", scan=False)[0] == 1
    rows = empty.rows("select uri, class_name from images where split = 'holdout'")
    assert all(row["uri"] == f"h{row['class_name']}" for row in rows)


def test_repeats_and_labels_of_the_pool(tmp_path: Path, empty: Store) -> None:
    file = listing(tmp_path / "l.parquet", uri=["a", "b", "a"], label=["x", "y", "x"], split=["unlabeled"] * 3)
    done = add_images(empty, file, None, scan=False)
    assert (done.added, done.already_present, done.repeated, done.total) == (2, 0, 1, 3)
    assert empty.rows("select distinct label, class_name from images") == [{"label": None, "class_name": None}]
    assert empty.classes() == []


# What a scan finds


def test_what_a_scan_finds(tmp_path: Path, empty: Store) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6
    good = {
        "cmyk.jpg": (picture(1, mode="CMYK"), (40, 30)),
        "deep.png": (picture(2, kind="PNG", mode="I;16"), (40, 30)),
        "one.png": (picture(3, (1, 1), "PNG"), (1, 1)),
        "palette.gif": (picture(4, kind="GIF", mode="P"), (40, 30)),
        "turned.jpg": (picture(5, exif=turned.tobytes()), (30, 40)),
        "wrong.jpg": (picture(6, kind="PNG"), (40, 30)),  # a PNG by its content
    }
    bad = {"cut.jpg": picture(7)[:600], "empty.jpg": b"", "text.jpg": b"hello there", "zeros.png": b"\0" * 999}
    folder = tree(tmp_path / "d", {name: data for name, (data, _) in good.items()} | bad)
    os.mkfifo(tmp_path / "d" / "pipe.jpg")
    (tmp_path / "d" / "gone.jpg").symlink_to("nowhere")
    done = add_images(empty, folder, "unlabeled")
    assert (done.added, done.unreadable, done.total) == (12, 6, 12)
    problems = {problem["uri"].removeprefix("d/"): problem["problem"] for problem in done.problems}
    assert problems == {
        "cut.jpg": "truncated JPEG",
        "empty.jpg": "empty file",
        "text.jpg": "not an image",
        "zeros.png": "not an image",
        "pipe.jpg": "not a regular file",
        "gone.jpg": "No such file or directory",
    }
    for row in empty.rows("select * from images"):
        name = row["uri"].removeprefix("d/")
        if name in good:
            data, size = good[name]
            assert (row["status"], (row["width"], row["height"]), row["problem"]) == ("ok", size, None), name
            assert row["content_hash"] == hashlib.blake2b(data, digest_size=16).hexdigest()
            assert (row["byte_length"], row["phash"] is not None, row["shard"]) == (len(data), True, None)
        else:
            seen = [row[key] for key in ("status", "width", "height", "content_hash", "phash", "problem")]
            assert seen == ["unreadable", None, None, None, None, problems[name]]


def test_listings_name_files_that_are_missing_or_odd(tmp_path: Path, empty: Store) -> None:
    (tmp_path / "here.jpg").write_bytes(picture())
    (tmp_path / "a.tar").write_bytes(picture())
    size = len(picture())
    rows = [("here.jpg", None, None, None), ("gone.jpg", None, None, None), ("zero\0.jpg", None, None, None)]
    rows += [("x", "a.tar", 0, size), ("y", "a.tar", 1, size), ("z", "a.tar", -1, 5), ("w", "a.tar", 0, None)]
    rows += [("/dev/zero", None, None, None), (".", None, None, None)]
    names = ("uri", "shard", "byte_offset", "byte_length")
    file = listing(tmp_path / "l.parquet", **dict(zip(names, map(list, zip(*rows, strict=True)), strict=True)))
    done = add_images(empty, file, "unlabeled")
    assert (done.added, done.unreadable) == (9, 7)
    assert {row["uri"] for row in empty.rows("select uri from images where status = 'ok'")} == {"here.jpg", "x"}
    problems = {problem["uri"]: problem["problem"] for problem in done.problems}
    assert problems["y"] == problems["z"] == "its byte range is not inside the shard"
    assert problems["/dev/zero"] == problems["."] == "not a regular file"


def test_without_a_scan_nothing_is_opened(tmp_path: Path, empty: Store, curator: Run) -> None:
    file = listing(tmp_path / "l.parquet", uri=["nowhere/1.jpg", "nowhere/2.jpg"])
    done = curator("add-images", file, "--split", "unlabeled", "--no-scan", "--store", empty.path, "--json")
    assert (done.code, done.json["added"], done.json["unreadable"]) == (0, 2, 0)
    rows = empty.rows("select distinct status, width, content_hash, problem from images")
    assert rows == [{"status": "unscanned", "width": None, "content_hash": None, "problem": None}]


def test_pictures_in_shards_are_scanned(tmp_path: Path, empty: Store) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, data in (("c/1.jpg", picture(1)), ("c/2.jpg", picture(2)[:500])):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    done = add_images(empty, str(tmp_path / "*.tar"), "labeled")
    assert done.problems == [{"uri": "a.tar::c/2.jpg", "problem": "truncated JPEG"}]
    row = empty.rows("select uri, shard, byte_offset, byte_length from images where status = 'ok'")[0]
    assert read_bytes(empty.root, **row) == picture(1)


def test_many_broken_files_are_all_counted(tmp_path: Path, empty: Store, curator: Run) -> None:
    folder = tree(tmp_path / "d", {f"{i:02}.jpg": b"text" for i in range(25)})
    done = curator("add-images", folder, "--split", "unlabeled", "--store", empty.path)
    assert "25 cannot be read" in done.out
    assert "d/19.jpg: not an image" in done.out
    assert "and 5 more" in done.out


# Killed


def test_killed_and_run_again_each_image_is_there_once(tmp_path: Path, empty: Store) -> None:
    folder = tree(tmp_path / "pool", {f"{i:03}.jpg": picture(i, (300, 200)) for i in range(300)})
    counts = []
    for _ in range(4):
        running = subprocess.Popen([sys.executable, "-c", SMALL_CHUNKS, empty.path, folder], stdout=subprocess.PIPE)
        assert running.stdout is not None
        running.stdout.readline()
        seen = len(ids(empty))
        end = time.monotonic() + 20
        while len(ids(empty)) == seen and time.monotonic() < end:
            time.sleep(0.01)
        running.kill()
        running.stdout.close()
        running.wait()
        counts.append(len(ids(empty)))
        assert counts[-1] % 10 == 0
    assert 0 < counts[0] < 300, counts
    done = add_images(empty, folder, "unlabeled")
    assert (done.added, done.already_present, done.unreadable) == (300 - counts[-1], counts[-1], 0)
    found = empty.rows("select count(*) as n, count(distinct uri) as u, count(distinct content_hash) as h from images")
    assert found == [{"n": 300, "u": 300, "h": 300}]


# Names


def test_hostile_names(tmp_path: Path, empty: Store, curator: Run) -> None:
    names = ["a b.jpg", "it's.jpg", 'say "x".jpg', "日本 ü.jpg", "new\nline.jpg", "-rf.jpg", "100%20.jpg", "tab\t.jpg"]
    names += ["a'; drop table images; --.jpg", "$HOME.jpg", "\x1b[31mred.jpg", "*.jpg", "a::b.jpg", "b#1.jpg"]
    folder = tree(tmp_path / "-odd dir;", {name: picture(i) for i, name in enumerate(names)} | {"bad\n.jpg": b""})
    done = curator("add-images", folder, "--split", "unlabeled", "--store", empty.path)
    assert done.code == 0
    assert "\x1b" not in done.out
    assert "  -odd dir;/bad\\n.jpg: empty file\n" in done.out
    assert set(ids(empty)) == {f"-odd dir;/{name}" for name in [*names, "bad\n.jpg"]}
    for row in empty.rows("select uri, shard, byte_offset, byte_length from images where status = 'ok'"):
        assert read_bytes(empty.root, **row) == picture(names.index(row["uri"].removeprefix("-odd dir;/")))
    assert add_images(empty, folder, "unlabeled").added == 0


def test_class_names_of_any_kind(tmp_path: Path, empty: Store) -> None:
    names = ["a'b", "null", "nan", "1", "01", "日本", "a,b", 'q"q', " lead"]
    add_images(empty, tree(tmp_path / "d", {f"{name}/1.jpg": b"" for name in names}), "labeled", scan=False)
    assert empty.classes() == sorted(names)
    rows = empty.rows("select uri, class_name from images")
    assert all(row["uri"] == f"d/{row['class_name']}/1.jpg" for row in rows)


# Files that are away


def test_a_listing_of_files_that_are_not_there_adds_nothing(tmp_path: Path, empty: Store, curator: Run) -> None:
    tree(tmp_path / "pool", {"a.jpg": picture(1), "b.jpg": picture(2), "bad.jpg": b""})
    file = listing(tmp_path / "l.parquet", uri=["a.jpg", "b.jpg"])
    done = curator("add-images", file, "--split", "unlabeled", "--base", "poool", "--store", empty.path)
    assert done.code == 2
    assert "no file is there of the first 2" in done.err
    assert "--base" in done.err
    assert ids(empty) == {}
    assert add_images(empty, file, "unlabeled", base="pool")[:3] == (2, 0, 0)
    # a broken picture is there; and beside known images one that is away is counted
    assert add_images(empty, listing(tmp_path / "l.parquet", uri=["pool/bad.jpg"]), "unlabeled").unreadable == 1
    more = listing(tmp_path / "l.parquet", uri=["pool/a.jpg", "pool/gone.jpg", "pool/bad.jpg"])
    done = curator("add-images", more, "--split", "unlabeled", "--store", empty.path)
    assert "1 cannot be read and will not" in done.out
    assert add_images(empty, more, "unlabeled").known_unreadable == 2


def test_known_images_without_a_scan_are_counted(tmp_path: Path, empty: Store, curator: Run) -> None:
    folder = tree(tmp_path / "pool", {"a.jpg": picture(1), "b.jpg": picture(2)})
    add_images(empty, folder, "unlabeled", scan=False)
    done = curator("add-images", folder, "--split", "unlabeled", "--store", empty.path)
    assert "of those, 2 were added without a scan" in done.out


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.EMFILE, errno.ENOMEM])
def test_a_disk_that_fails_stops_the_scan(
    tmp_path: Path, empty: Store, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    folder = tree(tmp_path / "pool", {"a.jpg": picture(1), "b.jpg": picture(2), "c.jpg": b""})
    opened = os.open

    def failing(path: Any, *rest: Any) -> int:
        if str(path).endswith("b.jpg"):
            raise OSError(number, os.strerror(number))
        return opened(path, *rest)

    monkeypatch.setattr("curator.pictures.images._CHUNK", 1)
    with monkeypatch.context() as patched:
        patched.setattr(os, "open", failing)
        with pytest.raises(StoreError, match=r"b\.jpg' cannot be read now"):
            add_images(empty, folder, "unlabeled")
    assert len(ids(empty)) == 1  # the chunk before it stays
    assert add_images(empty, folder, "unlabeled")[:3] == (2, 1, 1)


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_label_and_class_name_mean_one_class(tmp_path: Path, kind: str) -> None:
    store = Store.create(tmp_path / "s", ["x", "y"])
    for label, said in ((1, "b.*1, 'x'"), (0, None)):
        if kind == "csv":
            (tmp_path / "l.csv").write_text(f"uri,label,class_name\na,1,y\nb,{label},x\n")
        else:
            listing(tmp_path / "l.parquet", uri=["a", "b"], label=[1, label], class_name=["y", "x"])
        if said:
            with pytest.raises(InputError, match=said):
                add_images(store, str(tmp_path / f"l.{kind}"), "labeled", scan=False)
            assert ids(store) == {}
        else:
            add_images(store, str(tmp_path / f"l.{kind}"), "labeled", scan=False)
    assert store.rows("select class_name from images order by uri") == [{"class_name": "y"}, {"class_name": "x"}]
    (tmp_path / "l.csv").write_text("uri,label,class_name\nc,x,y\n")
    with pytest.raises(InputError, match="name different classes for: c"):
        add_images(store, str(tmp_path / "l.csv"), "labeled", scan=False)
