"""A look at two pictures: copies of each kind are told from other pictures, and what a scan does with the verdicts."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import sklearn
from conftest import Answer
from PIL import Image
from test_duplicates import FLIP, jpeg, scene
from test_images import tree

from curator.pictures.decode import scan
from curator.pictures.images import add_images
from curator.repeats import confirmation, duplicates, likeness, neighbors
from curator.repeats.duplicates import Rule, find, last_scan
from curator.repeats.likeness import Thumbnail, are_copies, thumbnail
from curator.rounds import demo
from curator.storage.store import Store

Run = Callable[..., Answer]
Change = Callable[[Image.Image, np.random.Generator], Image.Image]


def cropped(share: float) -> Change:
    def change(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
        lost = [round(length * share) for length in picture.size]
        left, top = (int(rng.integers(0, most + 1)) for most in lost)
        return picture.crop((left, top, left + picture.width - lost[0], top + picture.height - lost[1]))

    return change


def recoloured(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    changed = np.asarray(picture) * rng.uniform(0.8, 1.2, 3) + rng.uniform(-20, 20)
    return Image.fromarray(np.clip(changed, 0, 255).astype(np.uint8))


def squeezed(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    return picture.crop((0, 0, round(picture.width * 0.88), picture.height)).resize((224, 224))


CHANGES: dict[str, Change] = {
    "re-encoded": lambda picture, rng: picture,
    "half": lambda picture, rng: picture.resize((picture.width // 2, picture.height // 2)),
    "crop5": cropped(0.05),
    "crop10": cropped(0.10),
    "crop20": cropped(0.20),
    "flip": lambda picture, rng: picture.transpose(FLIP),
    "colour": recoloured,
    "grey": lambda picture, rng: picture.convert("L").convert("RGB"),
    "another shape": squeezed,
    "several": lambda picture, rng: cropped(0.10)(recoloured(picture.transpose(FLIP), rng), rng),
}
CROPS = ("crop5", "crop10", "crop20", "several")


@pytest.fixture(scope="module")
def photographs() -> list[Image.Image]:
    """Twelve different pictures: windows of two photographs."""
    windows = []
    for file in sorted((Path(sklearn.__file__).parent / "datasets" / "images").glob("*.jpg")):
        with Image.open(file) as whole:
            across, down = whole.width // 3, whole.height // 2
            boxes = [(x * across, y * down, (x + 1) * across, (y + 1) * down) for y in range(2) for x in range(3)]
            windows += [whole.convert("RGB").crop(box) for box in boxes]
    assert len(windows) == 12
    return windows


@pytest.mark.parametrize("kind", CHANGES)
def test_copies_of_photographs(photographs: list[Image.Image], kind: str) -> None:
    found = []
    for number, picture in enumerate(photographs):
        copy = CHANGES[kind](picture, np.random.default_rng(number))
        one, other = thumbnail(jpeg(picture)), thumbnail(jpeg(copy, 50))
        flipped = kind in ("flip", "several")
        found.append(are_copies(one, other))
        found.append(are_copies(other, one, flipped))
        if kind in ("flip", "re-encoded"):
            assert not are_copies(one, other, not flipped), number
    # one window shows hardly more than a blurred ground, and which part of it a crop shows cannot always be told
    assert sum(found) >= (22 if kind in CROPS else 24)


def test_different_photographs(photographs: list[Image.Image]) -> None:
    """Windows of one photograph, side by side and mirrored, are no copies."""
    seen = [thumbnail(jpeg(picture)) for picture in photographs]
    assert not any(are_copies(one, other) for one, other in combinations(seen, 2))


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.long
def test_digits_of_one_class() -> None:
    """Two hands' ones and sevens are close by their hashes; a copy of either is closer."""
    images, labels = demo._digits()
    for digit in (1, 7):
        some = images[labels == digit][:25]
        seen = [thumbnail(png(pixels)) for pixels in some]
        assert not any(are_copies(one, other) for one, other in combinations(seen, 2)), digit
        assert all(are_copies(one, thumbnail(jpeg(Image.fromarray(p), 50))) for one, p in zip(seen, some, strict=True))


def sky(seed: int) -> Image.Image:
    """A gradient with a soft cloud of two grey levels."""
    rng = np.random.default_rng(seed)
    cloud = np.asarray(Image.fromarray(rng.uniform(-2, 2, (7, 9)).astype(np.float32)).resize((240, 180)))
    level = np.linspace(150, 190, 180)[:, None] + cloud
    return Image.fromarray(np.repeat(level.astype(np.uint8)[..., None], 3, axis=2))


def test_pictures_with_little_detail_must_agree_closely() -> None:
    skies = [sky(seed) for seed in range(8)]
    seen = [thumbnail(jpeg(picture)) for picture in skies]
    assert np.corrcoef(seen[0].ravel(), seen[1].ravel())[0, 1] > 0.9
    assert not any(are_copies(one, other) for one, other in combinations(seen, 2))
    for one, picture in zip(seen, skies, strict=True):
        assert are_copies(one, thumbnail(jpeg(picture, 75)))
        assert are_copies(one, thumbnail(jpeg(picture.resize((120, 90)))))
    flat = thumbnail(jpeg(Image.new("RGB", (60, 60), (90, 90, 90))))
    assert not are_copies(flat, seen[0])


@pytest.fixture(scope="module")
def crowd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a store: 20 hand-written ones in the holdout, 40 in the pool, and copies of five of the former."""
    root = tmp_path_factory.mktemp("crowd")
    images, labels = demo._digits()
    ones = images[labels == 1]
    held = {f"holdout/1/{n}.png": png(ones[n]) for n in range(20)}
    pool = {f"pool/{n}.png": png(ones[n]) for n in range(20, 60)}
    pool |= {f"pool/copy-{n}.jpg": jpeg(Image.fromarray(ones[n]), 70) for n in range(5)}
    tree(root, held | pool)
    store = Store.create(root / "store")
    add_images(store, str(root / "holdout"), "holdout")
    add_images(store, str(root / "pool"), "unlabeled")
    return root


@pytest.fixture
def ones(crowd: Path, tmp_path: Path) -> Store:
    shutil.copytree(crowd, tmp_path, dirs_exist_ok=True)
    return Store(tmp_path / "store")


def leaks(store: Store) -> dict[str, str]:
    rows = store.rows(
        "select i.uri, h.uri as holdout from duplicates as d join images as i on i.image_id = d.image_id"
        " join images as h on h.image_id = d.holdout_twin where leak"
    )
    return {row["uri"]: row["holdout"] for row in rows}


COPIES = {f"pool/copy-{n}.jpg": f"holdout/1/{n}.png" for n in range(5)}


def test_simple_pictures_are_no_leaks_for_being_near(ones: Store, curator: Run) -> None:
    before = find(ones, Rule(confirm=False))
    assert before.leaks > 25
    assert (before.scan.compared, before.scan.cleared) == (0, 0)
    done = find(ones)
    assert leaks(ones) == COPIES
    assert done.scan.compared - done.scan.rejected == 5
    # ten images have a twin now; each that had one by its hash had candidates, and the others of these were cleared
    assert (done.duplicates, done.leaks, done.scan.cleared) == (10, 5, before.duplicates - 10)
    said = curator("quality", "leaks", "--store", ones.path)
    assert said.code == 1
    assert f"looked at {done.scan.compared} pairs of pictures near each other: {done.scan.rejected} are no" in said.out
    document = curator("quality", "leaks", "--no-confirm", "--json", "--store", ones.path).json
    assert (document["leaks"], document["confirm"], document["rejected"]) == (before.leaks, False, 0)
    assert "no picture was looked at" in curator("quality", "leaks", "--no-confirm", "--store", ones.path).out


def test_all_pairs_near_each_other_are_looked_at(ones: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against all pairs of hashes, counted one by one."""
    hashes = [row["phash"] for row in ones.rows("select phash from images")]
    flip = int(neighbors.MIRROR)
    near = [
        min(((a ^ b ^ turned) % 2**64).bit_count() for turned in (0, flip)) <= duplicates.DISTANCE
        for a, b in combinations(hashes, 2)
    ]
    monkeypatch.setattr(duplicates, "NEAREST", 100)
    assert find(ones, dry_run=True).scan.compared == sum(near)


def test_only_the_nearest_are_looked_at(ones: Store, monkeypatch: pytest.MonkeyPatch, curator: Run) -> None:
    every = find(ones, dry_run=True).scan
    assert every.compared > 200
    monkeypatch.setattr(duplicates, "NEAREST", 2)
    found = find(ones)
    # two of the holdout and two of the pool, for each image, by its hash
    assert 0 < found.scan.compared <= 65 * 4
    assert found.scan.compared < every.compared
    assert 0 < found.scan.crowded <= 65
    assert leaks(ones) == COPIES
    assert (
        f"{found.scan.crowded} images have more than 2 others" in curator("quality", "leaks", "--store", ones.path).out
    )


@pytest.mark.long
def test_a_bounded_number_of_pictures_is_held(ones: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = find(ones, dry_run=True)
    read: list[int] = []

    def counted(data: bytes) -> Thumbnail:
        read.append(len(data))
        return thumbnail(data)

    monkeypatch.setattr(likeness, "thumbnail", counted)
    assert find(ones, dry_run=True).leaks == whole.leaks
    assert len(read) <= 65  # each picture once
    once = len(read)
    monkeypatch.setattr(confirmation, "BATCH", 7)
    monkeypatch.setattr(confirmation, "_KEPT", 10)
    again = find(ones, dry_run=True)
    assert len(read) - once > once  # some again, because few are kept
    assert (again.leaks, again.scan.compared, again.scan.rejected) == (
        whole.leaks,
        whole.scan.compared,
        whole.scan.rejected,
    )


def test_a_picture_that_cannot_be_read_stays_a_leak(ones: Store, curator: Run) -> None:
    gone, cut = ones.root / "holdout/1/3.png", ones.root / "pool/copy-4.jpg"
    kept = gone.read_bytes(), cut.read_bytes()
    gone.unlink()
    cut.write_bytes(kept[1][:-200])
    done = find(ones)
    assert done.scan.unconfirmed > 0
    assert {row["uri"]: row["problem"] for row in done.scan.problems} == {
        "holdout/1/3.png": "No such file or directory",
        "pool/copy-4.jpg": "truncated JPEG",
    }
    found = leaks(ones)
    assert found.items() >= {k: v for k, v in COPIES.items() if k[10] in "012"}.items()
    assert {"pool/copy-3.jpg", "pool/copy-4.jpg"} <= found.keys()
    assert set(found) - set(COPIES), "all that is near the missing picture stays"
    said = curator("quality", "duplicates", "--store", ones.path).out
    assert f"{done.scan.unconfirmed} pairs count as copies unseen" in said
    assert "holdout/1/3.png: No such file" in said
    gone.write_bytes(kept[0])
    cut.write_bytes(kept[1])
    assert leaks(ones) == found  # what the newest scan said
    assert find(ones).leaks == 5  # looked at again, although no table changed


def test_same_bytes_need_no_look(tmp_path: Path) -> None:
    data = jpeg(scene(1))
    files = {f"{n}.jpg": data for n in range(5)} | {"other.jpg": jpeg(scene(1), 60)}
    store = Store.create(tmp_path / "store")
    add_images(store, tree(tmp_path / "pool", files), "unlabeled")
    found = find(store)
    assert (found.scan.compared, found.scan.rejected, found.duplicates, found.groups) == (1, 0, 6, 1)
    kinds = {row["uri"]: row["kind"] for row in store.rows("select uri, kind from duplicates")}
    assert kinds == {"pool/other.jpg": "phash"} | {f"pool/{n}.jpg": "bytes" for n in range(5)}
    shutil.rmtree(tmp_path / "pool")
    assert find(store, Rule(distance=0), dry_run=True).duplicates >= 5


def test_a_scan_of_an_earlier_version_looked_at_nothing(ones: Store) -> None:
    find(ones)
    (file,) = ones.files("duplicates")
    table = pq.read_table(file)
    stated = json.loads(table.schema.metadata[b"curator.scan"])
    assert stated["rule"].pop("confirm") is True
    for name in ("compared", "rejected", "cleared", "unconfirmed", "crowded", "problems"):
        del stated[name]
    pq.write_table(table.replace_schema_metadata({b"curator.scan": json.dumps(stated).encode()}), file)
    earlier = last_scan(ones)
    assert earlier is not None
    assert (earlier.rule.confirm, earlier.compared, list(earlier.problems)) == (False, 0, [])
    assert find(ones).scan.compared > 0  # not taken for this scan


def test_hashes_of_mirrored_copies_say_so(photographs: list[Image.Image]) -> None:
    """A mirror pair is looked at mirrored alone: the kinds of pairs are those of the pictures."""
    one, other = (scan(jpeg(p)).phash for p in (photographs[0], photographs[0].transpose(FLIP)))
    assert ((one ^ other) % 2**64).bit_count() > duplicates.DISTANCE
    assert ((one ^ other ^ int(neighbors.MIRROR)) % 2**64).bit_count() <= duplicates.DISTANCE
