"""Small pictures: from files and shards, no larger than asked for, kept within a limit, or a reason why not."""

import io
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
import simplejpeg
from PIL import Image

from curator.pictures.decode import UnreadableImage, decode, decode_small
from curator.pictures.thumbnails import Thumbnails, thumbnail


def photo(width: int, height: int) -> np.ndarray:
    """A picture without fine detail, so that sizes can be compared."""
    rng = np.random.default_rng(3)
    return cv2.resize(rng.integers(0, 255, (6, 8, 3)).astype(np.uint8), (width, height), interpolation=cv2.INTER_CUBIC)


def row(uri: str, shard: str | None = None, first: int | None = None, length: int | None = None) -> dict:
    return {"uri": uri, "shard": shard, "byte_offset": first, "byte_length": length}


@pytest.mark.parametrize(("width", "height"), [(640, 480), (333, 1000), (1000, 160), (30, 20), (5000, 1)])
def test_decoded_small(width: int, height: int) -> None:
    data = simplejpeg.encode_jpeg(photo(width, height), quality=95)
    whole, small = decode(data), decode_small(data, 96)
    assert max(small.shape) >= min(96, max(whole.shape))
    assert small.size <= whole.size
    expected = cv2.resize(whole, small.shape[1::-1], interpolation=cv2.INTER_AREA)
    assert np.abs(small.astype(int) - expected.astype(int)).mean() < 4
    if max(width, height) <= 96:
        assert np.array_equal(small, whole)


def test_damage_is_seen_at_a_small_scale_too() -> None:
    data = simplejpeg.encode_jpeg(photo(640, 480), quality=95)
    with pytest.raises(UnreadableImage, match="truncated"):
        decode_small(data[: len(data) // 2], 96)


def test_turned_as_the_camera_says(tmp_path: Path) -> None:
    file = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    Image.fromarray(photo(400, 200)).save(file, "JPEG", exif=exif)
    (tmp_path / "a.jpg").write_bytes(file.getvalue())
    made = simplejpeg.decode_jpeg(thumbnail(tmp_path, row("a.jpg"), 100).jpeg)
    assert made.shape == (100, 50, 3)


def test_from_files_and_shards(tmp_path: Path) -> None:
    data = simplejpeg.encode_jpeg(photo(300, 200))
    Image.fromarray(photo(300, 200)).save(tmp_path / "a.png")
    (tmp_path / "b.tar").write_bytes(b"x" * 512 + data + b"y" * 100)
    found = Thumbnails(tmp_path, 2**20).of([row("a.png"), row("b.tar::b.jpg", "b.tar", 512, len(data))], 90)
    for made in found:
        assert not made.problem
        assert simplejpeg.decode_jpeg(made.jpeg).shape == (60, 90, 3)


def test_a_small_picture_keeps_its_size(tmp_path: Path) -> None:
    Image.fromarray(photo(20, 28)).save(tmp_path / "a.png")
    assert simplejpeg.decode_jpeg(thumbnail(tmp_path, row("a.png"), 96).jpeg).shape == (28, 20, 3)


def test_what_cannot_be_shown_says_why(tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("no picture")
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "folder.jpg").mkdir()
    names = ["gone.jpg", "text.jpg", "empty.jpg", "folder.jpg", "a\0b.jpg", "../" * 40 + "etc/passwd", "x" * 5000]
    keep = Thumbnails(tmp_path, 2**20)
    found = keep.of([row(name) for name in names] + [row("b.tar::c", "gone.tar", 5, -1)], 96)
    assert all(not made.jpeg and made.problem for made in found)
    assert found[0].problem == os.strerror(2)
    assert keep.bytes == 0
    Image.fromarray(photo(20, 20)).save(tmp_path / "gone.jpg")  # what was missing is looked for again
    assert keep.of([row("gone.jpg")], 96)[0].jpeg


def test_kept_within_the_limit(tmp_path: Path) -> None:
    rows = []
    for number in range(12):
        Image.fromarray(photo(90, 60)).save(tmp_path / f"{number}.png")
        rows.append(row(f"{number}.png"))
    one = Thumbnails(tmp_path, 2**20)
    one.of(rows[:1], 90)
    keep = Thumbnails(tmp_path, 4 * one.bytes + one.bytes // 2)
    keep.of(rows[:4], 90)
    for file in tmp_path.iterdir():
        file.unlink()
    assert all(made.jpeg for made in keep.of(rows[:4], 90))  # kept: the files are gone
    Image.fromarray(photo(90, 60)).save(tmp_path / "9.png")
    keep.of([rows[0]], 90)
    keep.of([rows[9]], 90)  # the one that was not asked for longest goes: 1
    assert [bool(made.jpeg) for made in keep.of([rows[n] for n in (0, 1, 2, 3, 9)], 90)] == [
        True,
        False,
        True,
        True,
        True,
    ]
    assert keep.bytes <= keep.limit


def test_many_threads_make_the_same(tmp_path: Path) -> None:
    rows = []
    for number in range(30):
        Image.fromarray(photo(60 + number, 60)).save(tmp_path / f"{number}.png")
        rows.append(row(f"{number}.png"))
    keep = Thumbnails(tmp_path, 20_000)
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda _: keep.of(rows, 48), range(12)))
    assert all(answer == answers[0] for answer in answers)
    assert 0 < keep.bytes <= keep.limit
