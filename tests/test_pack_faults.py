"""Packing that goes wrong: pictures that cannot be read, wrong options, killed and racing runs, damaged files."""

import hashlib
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import Answer
from packed import KINDS, SMALL, contents, picture, world, write
from pictures import start, wait_for

from curator.delivery import packing, packs, shards
from curator.delivery.shards import Form
from curator.errors import InputError, StoreError
from curator.lock import alone
from curator.pictures.images import add_images
from curator.storage.store import Store

Run = Callable[..., Answer]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("packs")
    world(root)
    return root


@pytest.fixture
def store(made: Path, tmp_path: Path) -> Store:
    """A copy that a test may spoil."""
    shutil.copytree(made, tmp_path / "world")
    return Store(tmp_path / "world" / "store")


def flip(file: Path, at: int) -> None:
    data = bytearray(file.read_bytes())
    data[at] ^= 1
    file.write_bytes(data)


# Pictures that cannot be packed


@pytest.mark.long
def test_changed_broken_and_missing_pictures_are_named(store: Store, curator: Run) -> None:
    pool = store.root / "pool"
    (pool / "plain.jpg").write_bytes(KINDS["grey.jpg"])
    (pool / "some.png").unlink()
    broken = picture(9)[:-200]
    write(store.root / "labeled" / "x", {"broken.jpg": broken})
    pq.write_table(pa.table({"uri": ["labeled/x/broken.jpg"], "label": ["x"]}), store.root / "more.parquet")
    add_images(store, str(store.root / "more.parquet"), "labeled", scan=False)
    for extra in ([], ["--original"]):
        done = curator("pack", "a", "--json", *extra, "--store", store.path)
        assert done.code == 0
        assert (done.json["images"], done.json["unreadable"], done.json["total"]) == (10, 3, 13)
        assert {problem["uri"]: problem["problem"] for problem in done.json["problems"]} == {
            "pool/plain.jpg": "its bytes are not those that were scanned",
            "pool/some.png": "No such file or directory",
            "labeled/x/broken.jpg": "truncated JPEG",
        }
    text = curator("pack", "a", "--store", store.path).out
    assert "3 cannot be read and are not in it:\n  labeled/x/broken.jpg: truncated JPEG" in text
    (pool / "plain.jpg").write_bytes(KINDS["plain.jpg"])  # brought back
    assert curator("pack", "a", "--json", "--store", store.path).json["images"] == 1


def test_where_nothing_can_be_read(store: Store, curator: Run) -> None:
    shutil.rmtree(store.root / "labeled")
    done = curator("pack", "--store", store.path)
    assert (done.code, "none of the 3 images can be read" in done.err, "mend: bring" in done.err) == (2, True, True)
    assert not (store.path / "packs" / "256-q90").exists()


def test_a_holdout_image_is_not_packed(store: Store) -> None:
    write(store.root / "holdout" / "x", {"late.jpg": KINDS["plain.jpg"]})
    add_images(store, str(store.root / "holdout"), "holdout")
    with pytest.raises(InputError, match="in the holdout, or show an image of it, by now: pool/plain"):
        packing.pack(store, "a", SMALL)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--size", 0], "no picture has a short side of 0 px"),
        (["--size", 70_000], "no picture has a short side of 70000 px"),
        (["--quality", 101], "a JPEG cannot have the quality 101"),
        (["--quality", 0], "a JPEG cannot have the quality 0"),
        (["--original", "--size", 9], "takes no --size or --quality"),
        (["--shard-rows", 0], "less than one row or byte"),
        (["aa"], "there is no manifest 'aa'; did you mean 'a'?"),
        (["--verify"], "there is no pack '256-q90'"),
        (["a", "--verify"], "there is no pack 'a'"),
        (["256-q90", "--verify", "--size", 9], "--verify takes a pack by its name or by its settings"),
    ],
)
def test_options_that_cannot_be(store: Store, curator: Run, arguments: list[Any], said: str) -> None:
    done = curator("pack", *arguments, "--store", store.path)
    assert (done.code, said in done.err, "mend: " in done.err) == (2, True, True), done.err
    assert not (store.path / "packs").exists()


def test_nothing_to_pack(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "s", ["x"])
    with pytest.raises(InputError, match="no images to pack"):
        packing.pack(store)


# Killed, raced, damaged


def test_killed_and_gone_on(store: Store) -> None:
    """kill -9 in the middle of a shard: what was published stays, the leftover goes, nothing is packed twice."""
    write(store.root / "labeled" / "y", {f"more-{i}.jpg": picture(1000 + i, 60, 50) for i in range(60)})
    add_images(store, str(store.root / "labeled"), "labeled", scan=False)
    code = """
        import sys, time
        from curator.delivery import packing, shards
        from curator.storage.store import Store
        add = shards.Shard.add
        shards.Shard.add = lambda *arguments: (time.sleep(0.01), add(*arguments))
        packing.pack(Store(sys.argv[1]), None, shards.Form(None), shard_rows=20)
    """
    folder = store.path / "packs" / "original"
    with start(code, store.path) as process:
        wait_for((folder / "000001.tar.unfinished").exists, process)
        with pytest.raises(StoreError, match="another run is packing 'original'"):
            packing.pack(store, None, Form(None))
        process.kill()
        assert process.wait() == -9
    assert sorted(file.name for file in folder.iterdir()) == ["000000.tar", "000001.tar.unfinished"]
    first = hashlib.sha256((folder / "000000.tar").read_bytes()).hexdigest()
    shutil.copy(folder / "000000.tar", folder / "000001.tar")  # as if it was killed before the commit
    done = packing.pack(store, None, Form(None), shard_rows=20)
    assert (done.images, done.already_packed) == (43, 20)
    assert sorted(file.name for file in folder.iterdir()) == [f"00000{i}.tar" for i in range(4)]
    assert hashlib.sha256((folder / "000000.tar").read_bytes()).hexdigest() == first
    assert len(contents(store, "original")) == 63
    assert packs.verify(store, "original").damaged == 0


def test_ctrl_c_leaves_whole_shards(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    added = packing.Shard.add

    def add(shard: packing.Shard, found: packing.Picture) -> None:
        if shard.path.endswith("1.tar") and len(shard.rows) == 2:
            raise KeyboardInterrupt
        added(shard, found)

    monkeypatch.setattr(packing.Shard, "add", add)
    with pytest.raises(KeyboardInterrupt):
        packing.pack(store, "b", SMALL, shard_rows=5)
    assert [file.name for file in (store.path / "packs" / "32-q90").iterdir()] == ["000000.tar"]
    assert packs.index(store, "32-q90").num_rows == 5
    monkeypatch.undo()
    assert packing.pack(store, "b", SMALL).images == 11


def test_a_disk_that_keeps_other_bytes(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was written is read back before it counts."""
    read = shards.read_bytes
    monkeypatch.setattr(
        shards,
        "read_bytes",
        lambda root, *place: read(root, *place)[::-1] if root == store.path else read(root, *place),
    )
    with pytest.raises(StoreError, match="does not hold what was just written to it"):
        packing.pack(store, "a", SMALL)
    assert not (store.path / "packs" / "32-q90").exists()
    assert store.rows("select * from packed") == []


def test_two_packs_at_once_may_be_different_ones(store: Store) -> None:
    forms = [Form(32), Form(24), Form(None)]
    threads = [
        threading.Thread(target=packing.pack, args=(store, "b", form), kwargs={"shard_rows": 3}) for form in forms
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [packs.index(store, form.name).num_rows for form in forms] == [16, 16, 16]


def test_a_folder_in_use(store: Store, curator: Run) -> None:
    with alone(store.path / "packs" / "256-q90", "packing '256-q90'"):
        done = curator("pack", "--store", store.path)
    assert (done.code, "another run is packing '256-q90'" in done.err) == (2, True)


@pytest.mark.parametrize("where", ["picture", "header", "cut", "gone"])
def test_verify_finds_damage_and_says_what_mends_it(store: Store, curator: Run, where: str) -> None:
    packing.pack(store, "b", SMALL, shard_rows=6)
    fine = curator("pack", "--size", 32, "--verify", "--store", store.path)
    assert (fine.code, "32-q90: 16 images in 3 files, nothing damaged" in fine.out) == (0, True)
    before = contents(store, "32-q90")
    file = store.path / "packs" / "32-q90" / "000001.tar"
    rows = store.rows("select * from packed where shard like '%1.tar' order by byte_offset")
    if where == "picture":
        flip(file, rows[3]["byte_offset"] + 30)
    elif where == "header":
        flip(file, rows[3]["byte_offset"] - 510)
    elif where == "cut":
        file.write_bytes(file.read_bytes()[: rows[3]["byte_offset"] + 5])
    else:
        file.unlink()
    done = curator("pack", "32-q90", "--verify", "--json", "--store", store.path)
    assert (done.code, done.json["images"], done.json["shards"]) == (1, 16, 3)
    assert done.json["damaged_shards"] == ["packs/32-q90/000001.tar"]
    assert done.json["damaged"] >= 1
    if where == "picture":
        assert done.json["problems"] == [
            {
                "image_id": rows[3]["image_id"],
                "shard": "packs/32-q90/000001.tar",
                "problem": "its bytes are not those that were packed",
            }
        ]
    if where in ("cut", "gone"):  # readers go to the originals
        assert contents(store, "32-q90").items() < before.items()
        assert packs.index(store, "32-q90").num_rows == 10
    # what the message proposes works
    assert f"mend: rm -rf {file}; then" in done.err
    file.unlink(missing_ok=True)
    mended = packing.pack(store, "b", SMALL)
    assert (mended.images, mended.already_packed) == (6, 10)
    assert contents(store, "32-q90") == before
    assert not file.exists()  # its name is not used again
    assert packs.verify(store, "32-q90").damaged == 0
