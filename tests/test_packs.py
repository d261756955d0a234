"""Packs: real pictures of many kinds, packed, and read back with other tools."""

import hashlib
import io
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import deltalake
import numpy as np
import pytest
from conftest import Answer
from hypothesis import given
from hypothesis import strategies as st
from packed import KINDS, SMALL, contents, files, picture, world
from PIL import Image

from curator.delivery import packing, packs
from curator.delivery.shards import Form, encode
from curator.pictures.decode import decode
from curator.schema import PACKED
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


# What is packed


def test_pictures_of_every_kind(store: Store) -> None:
    done = packing.pack(store, "a", SMALL)
    assert done[:5] == ("32-q90", str(store.path / "packs/32-q90"), len(KINDS) + 3, 0, 0)
    assert (done.total, done.problems) == (len(KINDS) + 3, [])
    found = contents(store, "32-q90")
    assert found.keys() == {f"pool/{name}" for name in KINDS} | {f"labeled/{name}/0.jpg" for name in "xyz"}
    assert done.bytes == sum(map(len, found.values()))
    for name, data in KINDS.items():
        original, packed = decode(data), decode(found[f"pool/{name}"])
        height, width, _ = original.shape
        if min(width, height) <= 32:
            assert found[f"pool/{name}"] == data  # nothing to gain
            continue
        assert min(packed.shape[:2]) == 32
        assert packed.shape[0] / packed.shape[1] == pytest.approx(height / width, abs=0.03)
        smaller = Image.fromarray(original).resize((packed.shape[1], packed.shape[0]), Image.Resampling.BILINEAR)
        assert np.abs(np.asarray(smaller, float) - packed).mean() < 6, name
        with Image.open(io.BytesIO(found[f"pool/{name}"])) as image:
            assert image.format == "JPEG"
            assert image.layer[0][1:3] == (2, 2)  # 4:2:0
            assert not image.getexif()  # the turn is in the pixels
    assert decode(found["pool/turned.jpg"]).shape == (43, 32, 3)


def test_the_rows_say_what_other_tools_find(store: Store) -> None:
    packing.pack(store, "b", SMALL, shard_rows=7)
    rows = store.rows("select * from packed")
    assert len(rows) == len(KINDS) + 4 + 3
    hashes = {row["image_id"]: row for row in store.rows("select image_id, content_hash, split from images")}
    members = 0
    for file in sorted((store.path / "packs" / "32-q90").iterdir()):
        here = {row["image_id"]: row for row in rows if row["shard"] == f"packs/32-q90/{file.name}"}
        assert 0 < len(here) <= 7
        with tarfile.open(file) as tar:
            for member in tar:
                row = here.pop(int(member.name.split(".")[0]))
                data = tar.extractfile(member).read()
                assert (member.offset_data, member.size) == (row["byte_offset"], row["byte_length"])
                assert hashlib.blake2b(data, digest_size=16).hexdigest() == row["content_hash"]
                assert decode(data).shape == (row["height"], row["width"], 3)
                assert row["source_hash"] == hashes[row["image_id"]]["content_hash"]
                assert hashes[row["image_id"]]["split"] != "holdout"
                assert (member.mtime, member.uid, member.mode) == (0, 0, 0o644)
                members += 1
        assert not here
    assert members == len(rows)
    assert deltalake.DeltaTable(str(store.path / "packed")).to_pyarrow_table().schema.names == PACKED.schema.names


def test_original_bytes_in_the_order_of_their_place(store: Store) -> None:
    done = packing.pack(store, "b", Form(None))
    assert done.bytes == done.source_bytes
    found = contents(store, "original")
    for name, data in KINDS.items():
        assert found[f"pool/{name}"] == data
    with tarfile.open(store.path / "packs" / "original" / "000000.tar") as tar:
        ids = [int(name.split(".")[0]) for name in tar.getnames()]
        assert {Path(name).suffix for name in tar.getnames()} == {".jpg", ".JPEG", ".png"}
    uris = {row["image_id"]: row["uri"] for row in store.rows("select image_id, uri from images")}
    in_shard = [uri for uri in (uris[i] for i in ids) if "::" in uri]
    assert [uris[i] for i in ids] == in_shard + sorted(set(found) - set(in_shard))
    assert in_shard == [f"s.tar::{i}.jpg" for i in range(4)]


def test_without_a_manifest_the_labeled_split_alone(store: Store) -> None:
    assert packing.pack(store).total == 3
    assert contents(store, "256-q90").keys() == {f"labeled/{name}/0.jpg" for name in "xyz"}


def test_the_same_bytes_again(store: Store, made: Path, tmp_path: Path) -> None:
    shutil.copytree(made, tmp_path / "other")
    other = Store(tmp_path / "other" / "store")
    for each in (store, other):
        packing.pack(each, "b", SMALL, shard_rows=7)
    tars = [{name: digest for name, digest in files(each).items() if name.endswith(".tar")} for each in (store, other)]
    assert tars[0] == tars[1]
    assert len(tars[0]) == 3


@given(
    seed=st.integers(0, 99), width=st.integers(1, 90), height=st.integers(1, 90), size=st.integers(1, 64),
    quality=st.integers(1, 100),
)  # fmt: skip
def test_the_rule_of_sizes(seed: int, width: int, height: int, size: int, quality: int) -> None:
    source = picture(seed, width, height, kind="PNG")
    data, wide, high = encode(source, Form(size, quality))
    assert decode(data).shape == (high, wide, 3)
    if min(width, height) <= size:
        assert data == source
        return
    assert min(wide, high) == size
    assert max(wide, high) == round(max(width, height) * size / min(width, height))
    assert (data, wide, high) == encode(source, Form(size, quality))


def test_a_picture_too_long_for_a_jpeg_stays_as_it_is() -> None:
    source = picture(0, 140_000, 2, kind="PNG")
    assert encode(source, Form(1))[0] is source


def test_files_of_a_size(store: Store) -> None:
    packing.pack(store, "b", Form(None), shard_bytes=16_000)
    tars = sorted((store.path / "packs" / "original").iterdir())
    assert len(tars) > 2
    for file in tars:
        with tarfile.open(file) as tar:
            assert file.stat().st_size <= 16_000 or len(tar.getnames()) == 1
    assert packs.index(store, "original").num_rows == 16


# Again, and more


def test_a_second_manifest_adds_what_is_new(store: Store) -> None:
    first = packing.pack(store, "a", SMALL)
    before = files(store)
    again = packing.pack(store, "a", SMALL)
    assert (again.images, again.already_packed, again.bytes) == (0, first.total, 0)
    assert files(store) == before
    more = packing.pack(store, "b", SMALL)
    assert (more.images, more.already_packed, more.total) == (4, first.total, first.total + 4)
    assert before.items() <= files(store).items()
    assert store.rows("select count(*) as n, count(distinct image_id) as d from packed") == [{"n": 16, "d": 16}]
    packing.pack(store, "a", Form(None))  # another pack holds them once more
    assert store.rows("select pack, count(*)::INT as n from packed group by all order by all") == [
        {"pack": "32-q90", "n": 16},
        {"pack": "original", "n": 12},
    ]


def test_dry_run_writes_nothing(store: Store, curator: Run) -> None:
    before = sorted(store.path.rglob("*"))
    done = curator("pack", "b", "--size", 32, "--dry-run", "--json", "--store", store.path)
    known = sum(map(len, KINDS.values()))
    assert (done.code, done.json["images"], done.json["bytes"], done.json["already_packed"]) == (0, 16, None, 0)
    assert done.json["source_bytes"] > known
    assert sorted(store.path.rglob("*")) == before


def test_a_store_older_than_the_table(store: Store, curator: Run) -> None:
    shutil.rmtree(store.path / "packed", ignore_errors=True)
    assert store.rows("select * from packed") == []
    assert packs.fitting(store, 1) is None
    assert packs.index(store, "original").num_rows == 0
    curator("pack", "a", "--dry-run", "--store", store.path)
    assert not (store.path / "packed").exists()
    assert packing.pack(store, "a", SMALL).images == 12
    assert packs.index(store, "32-q90").num_rows == 12
    assert not list(store.path.glob(".packed*"))


# What the loader asks


def test_index_is_sorted_and_holds_one_pack(store: Store) -> None:
    packing.pack(store, "a", SMALL, shard_rows=3)
    packing.pack(store, "b", Form(None))
    found = packs.index(store, "32-q90")
    assert found.schema.names == ["image_id", "shard", "byte_offset", "byte_length"]
    ids = found["image_id"].to_pylist()
    assert ids == sorted(row["image_id"] for row in store.rows("select image_id from packed where pack = '32-q90'"))
    assert set(found["shard"].to_pylist()) == {f"packs/32-q90/{i:06}.tar" for i in range(4)}
    assert {column.num_chunks for column in found.columns} == {1}
    assert packs.index(store, "nothing").num_rows == 0


def test_fitting(store: Store) -> None:
    assert packs.fitting(store, 1) is None
    packing.pack(store, None, Form(24))
    assert packs.fitting(store, 25) is None
    packing.pack(store, None, Form(None))
    for form in (Form(32, 80), Form(32, 95), Form(100, 90)):
        packing.pack(store, None, form)
    wanted = {1: "24-q90", 24: "24-q90", 25: "32-q95", 32: "32-q95", 33: "100-q90", 101: "original"}
    assert {size: packs.fitting(store, size) for size in wanted} == wanted
    shutil.rmtree(store.path / "packs" / "24-q90")  # someone needed the space
    assert packs.fitting(store, 24) == "32-q95"
