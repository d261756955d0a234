"""Images that repeat each other: the pairs against all pairs, what a scan keeps, and what the commands say."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import Answer
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from test_images import tree

from curator import queries
from curator.errors import InputError
from curator.pictures.images import add_images
from curator.repeats import duplicates, neighbors
from curator.repeats.duplicates import Rule, find, last_scan
from curator.storage.delta import CommitRaced
from curator.storage.store import ABSENT, Store

Run = Callable[..., Answer]


def scene(seed: int, width: int = 160, height: int = 120) -> Image.Image:
    """A picture with structure at all scales, unlike those of other seeds."""
    rng = np.random.default_rng(seed)
    pixels = np.zeros((height, width, 3))
    for size in (3, 5, 9, 17):
        layer = Image.fromarray(rng.integers(0, 255, (size, size, 3), np.uint8))
        pixels += np.asarray(layer.resize((width, height), Image.Resampling.BICUBIC), float) / 4
    return Image.fromarray(pixels.astype(np.uint8))


def jpeg(picture: Image.Image, quality: int = 92) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


FLIP = Image.Transpose.FLIP_LEFT_RIGHT


@pytest.fixture(scope="module")
def photographed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a store: the holdout 0 to 3, labeled 10 to 11, a pool of others and of copies."""
    root = tmp_path_factory.mktemp("twins")
    store = Store.create(root / "store")
    held = {f"holdout/x/{seed}.jpg": jpeg(scene(seed)) for seed in range(4)}
    labeled = {f"labeled/x/{seed}.jpg": jpeg(scene(seed)) for seed in (10, 11)}
    pool = {f"pool/{seed}.jpg": jpeg(scene(seed)) for seed in range(20, 26)}
    pool |= {
        "pool/bytes-0.jpg": jpeg(scene(0)),
        "pool/q50-1.jpg": jpeg(scene(1), 50),
        "pool/mirror-2.jpg": jpeg(scene(2).transpose(FLIP)),
        "pool/half-10.jpg": jpeg(scene(10).resize((80, 60))),
        "pool/half-20.jpg": jpeg(scene(20).resize((80, 60))),
        "pool/grey-20.jpg": jpeg(scene(20).convert("L")),
        "pool/plain-a.png": png(90),
        "pool/plain-b.png": png(200),
    }
    tree(root, held | labeled | pool)
    for split in ("holdout", "labeled", "pool"):
        add_images(store, str(root / split), "unlabeled" if split == "pool" else split)
    return root


def png(level: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 40), (level,) * 3).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def twins(photographed: Path, tmp_path: Path) -> Store:
    shutil.copytree(photographed, tmp_path, dirs_exist_ok=True)
    return Store(tmp_path / "store")


def all_pairs(hashes: np.ndarray, distance: int, mirrored: bool) -> set[tuple[int, int, float]]:
    flip = int("01" * 32, 2) if mirrored else 0
    apart = [[(int(a) ^ int(b) ^ flip).bit_count() for b in hashes] for a in hashes]
    n = len(hashes)
    return {(i, j, float(apart[i][j])) for i in range(n) for j in range(i + 1, n) if apart[i][j] <= distance}


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.sets(st.integers(0, 63), max_size=14)), min_size=1, max_size=40),
    st.integers(0, 20),
    st.booleans(),
)
def test_pairs_of_hashes_are_those_of_all_pairs(
    drawn: list[tuple[int, set[int]]], distance: int, mirrored: bool
) -> None:
    seeds = [0x5A3C_9F01_77E2_B486, 0x0F0F_3355_A1B2_C3D4, 0xF96A_CA54_22B7_E1D3, 2**64 - 1]
    hashes = np.unique(np.array([seeds[s] ^ sum(1 << bit for bit in bits) for s, bits in drawn], np.uint64))
    found = neighbors.close_hashes(hashes, distance, mirrored)
    pairs = list(zip(found.left.tolist(), found.right.tolist(), found.distance.tolist(), strict=True))
    assert len(pairs) == len(set(pairs))
    assert set(pairs) == all_pairs(hashes, distance, mirrored)


@pytest.mark.parametrize("count", [1, 1000, 10**6, 10**9])
@pytest.mark.parametrize("distance", [0, 1, 7, 10, 32])
def test_the_bands_miss_no_pair(count: int, distance: int) -> None:
    bands = neighbors._bands(count, distance)
    assert sum(band.width for band in bands) == 64
    assert [band.first for band in bands[1:]] == [band.first + band.width for band in bands[:-1]]
    # one difference more than the errors in every band is more than the distance
    assert sum(band.errors + 1 for band in bands) > distance


def test_pairs_in_many_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    hashes = np.unique(rng.integers(0, 2**16, 300).astype(np.uint64))  # all of them in one bucket of most bands
    whole = neighbors.close_hashes(hashes, 4)
    monkeypatch.setattr(neighbors, "_CANDIDATES", 7)
    pieces = neighbors.close_hashes(hashes, 4)
    assert len(whole.left)
    assert all(np.array_equal(a, b) for a, b in zip(whole, pieces, strict=True))
    assert set(zip(*(c.tolist() for c in whole), strict=True)) == all_pairs(hashes, 4, False)


def test_too_many_pairs_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbors, "MOST_PAIRS", 10)
    with pytest.raises(InputError, match="within 8 bits"):
        neighbors.close_hashes(np.arange(2000, dtype=np.uint64), 8)


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)).filter(lambda link: link[0] != link[1]), max_size=40))
def test_groups_are_the_connected_ones(links: list[tuple[int, int]]) -> None:
    near: dict[int, set[int]] = {}
    for a, b in links:
        near.setdefault(a, set()).add(b)
        near.setdefault(b, set()).add(a)
    wanted = {}
    for start in near:
        reached, edge = {start}, {start}
        while edge:
            edge = {b for a in edge for b in near[a]} - reached
            reached |= edge
        wanted[start] = min(reached)
    a, b = (np.array([link[i] for link in links], np.int64) for i in (0, 1))
    found = duplicates.groups(a, b)
    assert dict(zip(found["image_id"].to_pylist(), found["group_id"].to_pylist(), strict=True)) == wanted


def test_a_mirrored_hash_is_near_the_one_derived() -> None:
    from curator.pictures.decode import scan

    apart, strangers = [], []
    for seed in range(40):
        one, other = (scan(jpeg(p)).phash for p in (scene(seed), scene(seed).transpose(FLIP)))
        apart.append((one ^ other ^ int(neighbors.MIRROR)).bit_count())
        strangers.append(((scan(jpeg(scene(seed + 1))).phash ^ one ^ int(neighbors.MIRROR)) % 2**64).bit_count())
    assert np.mean(np.array(apart) <= 10) > 0.9
    assert min(strangers) > 10


@pytest.mark.parametrize("size", [(1200, 900), (300, 500), (100, 70), (40, 30), (1000, 20)])
def test_a_large_jpeg_is_hashed_at_a_smaller_scale(size: tuple[int, int]) -> None:
    from curator.pictures.decode import UnreadableImage, decode, scan

    data = jpeg(scene(3).resize(size, Image.Resampling.BICUBIC))
    buffer = io.BytesIO()
    Image.fromarray(decode(data)).save(buffer, "PNG")
    small, full = scan(data), scan(buffer.getvalue())
    assert (small.width, small.height) == size
    assert ((small.phash ^ full.phash) % 2**64).bit_count() <= 4
    for cut in (0.3, 0.9, 0.999):
        with pytest.raises(UnreadableImage):
            scan(data[: int(len(data) * cut)])


def test_what_a_scan_finds(twins: Store) -> None:
    found = find(twins)
    rows = {row["uri"]: row for row in twins.rows("select * from duplicates")}
    uris = {row["image_id"]: row["uri"] for row in twins.rows("select image_id, uri from images")}
    twin = {uri: (row["kind"], uris[row["nearest"]]) for uri, row in rows.items()}
    assert twin["pool/bytes-0.jpg"] == ("bytes", "holdout/x/0.jpg")
    assert twin["pool/q50-1.jpg"] == ("phash", "holdout/x/1.jpg")
    assert twin["pool/mirror-2.jpg"] == ("mirror", "holdout/x/2.jpg")
    assert twin["pool/half-10.jpg"] == ("phash", "labeled/x/10.jpg")
    assert twin["labeled/x/10.jpg"] == ("phash", "pool/half-10.jpg")
    leaks = {uri: uris[row["holdout_twin"]] for uri, row in rows.items() if row["leak"]}
    assert leaks == {
        "pool/bytes-0.jpg": "holdout/x/0.jpg",
        "pool/q50-1.jpg": "holdout/x/1.jpg",
        "pool/mirror-2.jpg": "holdout/x/2.jpg",
    }
    assert {uri for uri, row in rows.items() if row["labeled_twin"]} == {"pool/half-10.jpg"}
    three = {"pool/20.jpg", "pool/half-20.jpg", "pool/grey-20.jpg"}
    assert {uri for uri, row in rows.items() if row["group_id"] == rows["pool/20.jpg"]["group_id"]} == three
    assert rows["pool/20.jpg"]["group_id"] == min(rows[uri]["image_id"] for uri in three)
    assert rows.keys() == {*three, *leaks, *leaks.values(), "pool/half-10.jpg", "labeled/x/10.jpg"}
    # a holdout image is no link: each is alone on its side
    assert all(rows[uri]["group_id"] == rows[uri]["image_id"] for uri in {*leaks, *leaks.values()})
    assert (found.duplicates, found.groups, found.spare, found.leaks, found.labeled_twins) == (11, 2, 3, 3, 1)
    assert (found.scan.images, found.scan.checked, found.scan.plain, found.scan.not_checked) == (20, 20, 2, 0)
    assert {row["kind"]: row["leaks"] for row in found.kinds} == {"bytes": 1, "phash": 1, "mirror": 1}
    assert [row["leak"] for row in found.examples[:4]] == [True] * 3 + [False]


def test_a_scan_replaces_the_one_before(twins: Store, tmp_path: Path) -> None:
    first = find(twins)
    assert find(twins).scan == first.scan  # taken from the table
    assert last_scan(twins) == first.scan
    version = twins.versions()["duplicates"]
    strict = find(twins, Rule(distance=0))
    assert strict.scan.scan != first.scan.scan
    assert 0 < strict.duplicates < first.duplicates
    assert twins.rows("select count(*) as n, count(distinct scan) as scans from duplicates") == [
        {"n": strict.duplicates, "scans": 1}
    ]
    # the earlier scan is still there for who reads the earlier version
    assert last_scan(twins, version) == first.scan
    query = f"select count(*) as n from ({queries.text('duplicates')})"
    assert twins.rows(query, {"duplicates": version}) == [{"n": first.duplicates}]
    add_images(twins, tree(tmp_path / "more", {"20.jpg": jpeg(scene(20), 60)}), "unlabeled")
    assert find(twins).duplicates == first.duplicates + 1


def test_a_scan_that_finds_nothing_is_one(store: Store) -> None:
    """The fixture store's images were never scanned."""
    assert last_scan(store) is None
    assert find(store, dry_run=True).written is False
    assert last_scan(store) is None
    found = find(store)
    assert (found.duplicates, found.scan.checked, found.scan.not_checked) == (0, 0, 9)
    assert last_scan(store) == found.scan


def test_embeddings_of_a_model_that_cannot_have_any(store: Store) -> None:
    with pytest.raises(InputError, match="there is no model 'outsid'; did you mean 'outside'") as told:
        find(store, Rule(model="outsid"), dry_run=True)
    assert told.value.mend == "the models are outside"
    with pytest.raises(InputError, match="'outside': it was named by an import and has no weights") as told:
        find(store, Rule(model="outside"), dry_run=True)
    assert "curator label" not in told.value.mend


def test_a_store_without_the_table(twins: Store, curator: Run) -> None:
    shutil.rmtree(twins.path / "duplicates", ignore_errors=True)
    assert twins.versions()["duplicates"] == ABSENT
    assert twins.rows("select * from duplicates") == []
    assert curator("quality", "duplicates", "--dry-run", "--json", "--store", twins.path).json["duplicates"] == 11
    assert not (twins.path / "duplicates").exists()
    old = twins.versions()
    find(twins)
    assert twins.rows("select count(*) as n from duplicates", old) == [{"n": 0}]
    assert twins.rows("select count(*) as n from duplicates") == [{"n": 11}]


def test_of_two_scans_at_once_one_is_kept(twins: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = duplicates._keep

    def late(*arguments: object) -> None:
        monkeypatch.setattr(duplicates, "_keep", inner)
        find(twins, Rule(distance=2))
        inner(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(duplicates, "_keep", late)
    with pytest.raises(CommitRaced):
        find(twins)
    scan = last_scan(twins)
    assert scan is not None
    assert scan.rule.distance == 2
    assert len(list((twins.path / "duplicates").glob("*.parquet"))) == 1


def test_many_images_with_one_hash(tmp_path: Path) -> None:
    data = jpeg(scene(1))
    again = jpeg(scene(1), 91)
    files = {f"{i:03d}.jpg": data for i in range(60)} | {f"q{i}.jpg": again for i in range(3)}
    store = Store.create(tmp_path / "store")
    add_images(store, tree(tmp_path / "pool", files), "unlabeled")
    found = find(store)
    assert (found.duplicates, found.groups, found.spare) == (63, 1, 62)
    assert store.rows("select count(*) as n from duplicates where nearest = image_id") == [{"n": 0}]


def test_the_commands(twins: Store, curator: Run) -> None:
    done = curator("quality", "duplicates", "--store", twins.path)
    assert done.code == 0
    assert done.out.startswith("11 of 20 images repeat another one; they form 2 groups\n3 outside the holdout show")
    assert "2 images are too plain" in done.out
    document = curator("quality", "duplicates", "--json", "--store", twins.path).json
    keys = (
        "scan images checked not_checked unreadable plain embedded compared rejected cleared unconfirmed crowded"
        " problems distance model cosine confirm duplicates groups spare leaks labeled_twins kinds examples written"
    )
    assert list(document) == keys.split()
    leaks = curator("quality", "leaks", "--store", twins.path)
    assert leaks.code == 1
    assert "3 images outside the holdout show a holdout image" in leaks.out
    assert "pool/half-10.jpg" not in leaks.out
    assert curator("quality", "leaks", "--json", "--store", twins.path).json["leaks"] == 3
    assert curator("quality", "duplicates", "--distance", 33, "--store", twins.path).code == 2
    assert curator("quality", "duplicates", "--cosine", 0.9, "--store", twins.path).code == 2
    nobody = curator("quality", "duplicates", "--embeddings", "nobody", "--store", twins.path)
    assert nobody.code == 2
    assert "there is no model 'nobody'" in nobody.err


def test_no_leaks(store: Store, curator: Run) -> None:
    done = curator("quality", "leaks", "--store", store.path)
    assert done.code == 0
    assert "not checked: 9 images were never scanned" in done.out
