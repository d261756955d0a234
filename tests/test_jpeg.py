"""JPEGs of every kind; `decode_crop` against `decode`, with the C module `_jpeg` where it was built and without."""

import contextlib
import struct
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType

import numpy as np
import pytest
import simplejpeg
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from test_decode import PICTURE, as_timm, encode, orientation, photograph

from curator.pictures import decode as module
from curator.pictures.decode import Box, UnreadableImage, decode, decode_crop

LAYOUTS = ["440", "411"] + [
    {"subsampling": chroma, "quality": 90} | more
    for chroma in ("4:4:4", "4:2:2", "4:2:0", "keep_rgb", "grey")
    for more in ({}, {"progressive": True}, {"restart_marker_blocks": 3}, {"quality": 3})
]


def jpeg(image: Image.Image, layout: str | dict[str, object]) -> bytes:
    """An ordinary JPEG: one that is not turned and has one or three components."""
    if isinstance(layout, str):
        return simplejpeg.encode_jpeg(np.asarray(image), 90, "RGB", layout)
    chroma, options = layout["subsampling"], layout
    if chroma in ("grey", "keep_rgb"):
        options = {name: value for name, value in layout.items() if name != "subsampling"}
        options["keep_rgb"] = chroma == "keep_rgb"
    return encode(image.convert("L") if chroma == "grey" else image, "JPEG", **options)


def tall_chroma() -> bytes:
    """A 4:4:1 JPEG: one of 4:1:1 with its blocks stacked instead of side by side."""
    data = bytearray(simplejpeg.encode_jpeg(np.asarray(photograph(64, 16)), 90, "RGB", "411"))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", 64, 16)
    assert data[frame + 11] == 0x41
    data[frame + 11] = 0x14
    return bytes(data)


def crop(data: bytes, box: Box | tuple[float, ...], size: tuple[int, int] | None = None) -> np.ndarray:
    """`decode_crop` of a box, or of one given by four shares; it must ask once, and for that size."""
    asked = []

    def choose(width: int, height: int) -> Box:
        asked.append((width, height))
        return box if isinstance(box[0], int) else inside(width, height, box)

    pixels = decode_crop(data, choose)
    assert len(asked) == 1
    assert size is None or asked == [size]
    return pixels


def inside(width: int, height: int, shares: tuple[float, ...]) -> Box:
    w, h = 1 + int(shares[2] * (width - 1)), 1 + int(shares[3] * (height - 1))
    return int(shares[0] * (width - w)), int(shares[1] * (height - h)), w, h


def cut(pixels: np.ndarray, box: Box) -> np.ndarray:
    left, top, width, height = box
    return pixels[top : top + height, left : left + width]


def test_jpeg_of_an_unusual_layout() -> None:
    np.testing.assert_array_equal(decode(tall_chroma()), as_timm(tall_chroma()))


def test_four_inks_with_and_without_the_adobe_marker() -> None:
    inks = PICTURE.convert("CMYK")
    marked = encode(inks, "JPEG", quality=95)
    start = marked.index(b"\xff\xee")
    bare = marked[:start] + marked[start + 2 + int.from_bytes(marked[start + 2 : start + 4], "big") :]
    mixed = simplejpeg.encode_jpeg(np.ascontiguousarray(255 - np.asarray(inks)), 95, "CMYK", "444")
    assert simplejpeg.decode_jpeg_header(mixed)[2] == "YCCK"
    for data in (marked, bare, mixed):
        assert np.abs(decode(data).astype(int) - as_timm(data)).max() <= 3
        assert np.abs(decode(data).astype(int) - PICTURE).mean() <= 4
    np.testing.assert_array_equal(decode(bare), decode(marked))


@pytest.fixture
def built() -> ModuleType:
    reason = "curator._jpeg was not built: no C compiler or no libjpeg headers"
    return pytest.importorskip("curator._jpeg", reason=reason, exc_type=ImportError)


@pytest.fixture(params=["with _jpeg", "without"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "without":
        monkeypatch.setattr(module, "_jpeg", None)
    else:
        request.getfixturevalue("built")
    return request.param


share = st.floats(0, 1)


@given(
    width=st.integers(1, 150),
    height=st.integers(1, 150),
    layout=st.sampled_from(LAYOUTS),
    shares=st.lists(st.tuples(share, share, share, share), min_size=1, max_size=6),
)
@example(width=1, height=1, layout="411", shares=[(0.0, 0.0, 1.0, 1.0)])
@example(width=97, height=83, layout=LAYOUTS[11], shares=[(0.0, 0.0, 1.0, 1.0), (0.5, 0.5, 0.0, 0.0)])
@settings(max_examples=300, deadline=None)
def test_equals_decode_and_cut(
    width: int, height: int, layout: str | dict[str, object], shares: list[tuple[float, ...]]
) -> None:
    data = jpeg(photograph(width, height), layout)
    whole = decode(data)
    for part in shares:
        expected = cut(whole, inside(width, height, part))
        np.testing.assert_array_equal(crop(data, part, (width, height)), expected)


OTHERS = {
    "four inks": encode(PICTURE.convert("CMYK"), "JPEG"),
    "four inks, progressive": encode(PICTURE.convert("CMYK"), "JPEG", progressive=True),
    "bytes after the end": encode(PICTURE, "JPEG") + b"\0\0",
    "4:4:1": tall_chroma(),
    "alpha": encode(PICTURE.convert("RGBA"), "PNG"),
    "16 bit": encode(Image.fromarray(np.arange(6300, dtype=np.uint16).reshape(70, 90) * 10), "PNG"),
} | {kind: encode(PICTURE, kind) for kind in ("PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "AVIF")}
TURNED = {f"turned {value}": encode(PICTURE, "JPEG", exif=orientation(value)) for value in range(2, 9)}
ORDINARY = {str(layout): jpeg(PICTURE, layout) for layout in LAYOUTS}


@pytest.mark.parametrize("name", [*OTHERS, *TURNED, *ORDINARY])
def test_every_kind_of_file(name: str, way: str) -> None:
    data = (OTHERS | TURNED | ORDINARY)[name]
    whole = decode(data)
    height, width, _ = whole.shape
    rng = np.random.default_rng(4)
    for part in [(0.0, 0.0, 1.0, 1.0), (1.0, 1.0, 0.0, 0.0), *rng.random((8, 4)).tolist()]:
        pixels = crop(data, part, (width, height))
        np.testing.assert_array_equal(pixels, cut(whole, inside(width, height, part)))
        assert pixels.dtype == np.uint8


def test_ordinary_jpegs_are_not_decoded_whole(built: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "decode", lambda data: pytest.fail("decoded whole"))
    for data in ORDINARY.values():
        assert crop(data, (70, 50, 11, 13), (90, 70)).shape == (13, 11, 3)


@pytest.mark.parametrize("chroma", ["4:4:4", "4:2:0"])
def test_progressive_without_its_last_scans(chroma: str, way: str) -> None:
    """libjpeg guesses what is missing from neighbouring blocks, and `decode` takes that for whole."""
    data = encode(PICTURE, "JPEG", progressive=True, subsampling=chroma)
    at = data.rindex(b"\xff\xda")
    for _ in range(6):
        early = data[:at] + b"\xff\xd9"
        box = (3, 5, 60, 50)
        np.testing.assert_array_equal(crop(early, box), cut(decode(early), box))
        at = data.rindex(b"\xff\xda", 0, at)


@pytest.mark.parametrize("box", [(0, 0, 90, 70), (10, 2, 40, 9), (60, 60, 1, 1)])
@pytest.mark.parametrize(
    "data",
    [jpeg(PICTURE, LAYOUTS[10]), jpeg(PICTURE, LAYOUTS[11]), TURNED["turned 6"], OTHERS["four inks"], OTHERS["PNG"]],
    ids=["baseline", "progressive", "turned", "four inks", "PNG"],
)
def test_a_cut_file_is_refused_or_whole(data: bytes, box: Box, way: str) -> None:
    expected = cut(decode(data), box)
    lengths = [*range(0, len(data), 11), len(data) - 2, len(data) - 1]
    for length in lengths:
        with contextlib.suppress(UnreadableImage):
            np.testing.assert_array_equal(crop(data[:length], box), expected)
            assert data.startswith(b"\x89PNG")
            assert length > len(data) - 20
    with pytest.raises(UnreadableImage):
        crop(data[: len(data) // 2] + b"\xff\xd9", (0, 0, *decode(data).shape[1::-1]))


def test_damage_inside_the_part_is_refused(way: str) -> None:
    """Eight rows of blocks; a piece of the fifth is gone, and the marker after it tells."""
    data = jpeg(photograph(120, 64), {"subsampling": "4:4:4", "restart_marker_rows": 1})
    fifth = data.index(b"\xff\xd3") + 2
    damaged = data[: fifth + 9] + data[fifth + 60 :]
    assert damaged.index(b"\xff\xd4") > fifth
    for box in ((0, 0, 120, 64), (0, 32, 120, 8), (40, 35, 3, 1), (50, 50, 30, 10), (119, 63, 1, 1)):
        with pytest.raises(UnreadableImage, match="Corrupt JPEG data"):
            crop(damaged, box)
    with pytest.raises(UnreadableImage, match="extraneous bytes"):
        crop(data[:-2] + bytes(20) + data[-2:], (5, 60, 20, 4))  # noticed only where the last row is read
    above = (7, 3, 100, 21)
    if way == "without":
        with pytest.raises(UnreadableImage, match="Corrupt JPEG data"):
            crop(damaged, above)
    else:  # what lies below is not read
        np.testing.assert_array_equal(crop(damaged, above), cut(decode(data), above))


def test_damage_never_raises_anything_else(way: str) -> None:
    """And where `decode` sees no fault, neither does `decode_crop`: the pixels are the same."""
    rng = np.random.default_rng(6)
    files = [jpeg(photograph(37, 26, seed), layout) for seed, layout in enumerate(LAYOUTS)] + [tall_chroma()]
    whole = passed = 0
    for trial in range(1500):
        data = bytearray(files[trial % len(files)])
        for at in rng.integers(2, len(data), rng.integers(1, 4)):
            data[at] = rng.integers(256)
        if trial % 4 == 0:
            data[rng.integers(2, len(data)) :] = b"\xff\xd9"
        part, pixels = tuple(rng.random(4).tolist()), None
        with contextlib.suppress(UnreadableImage):
            pixels = crop(bytes(data), part)
            passed += 1
        with contextlib.suppress(UnreadableImage):
            expected = decode(bytes(data))
            whole += 1
            assert pixels is not None
            np.testing.assert_array_equal(pixels, cut(expected, inside(*expected.shape[1::-1], part)))
    assert 0 < whole <= passed < 1500


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_decompression_bomb(kind: str, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode(PICTURE, kind)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 90 * 70 - 1)
    with pytest.raises(UnreadableImage, match="limit"):
        decode_crop(data, lambda width, height: pytest.fail("asked for a box"))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 90 * 70)
    assert crop(data, (1, 2, 3, 4)).shape == (4, 3, 3)


def test_threads_agree_with_one_thread(way: str) -> None:
    files = [jpeg(photograph(80, 60, seed), layout) for seed, layout in enumerate(LAYOUTS)] * 5
    parts = [tuple(part) for part in np.random.default_rng(7).random((len(files), 4)).tolist()]
    expected = [crop(data, part).tobytes() for data, part in zip(files, parts, strict=True)]
    with ThreadPoolExecutor(4) as pool:
        assert [pixels.tobytes() for pixels in pool.map(crop, files, parts)] == expected


@pytest.mark.parametrize(
    "box",
    [
        *((0, 0, 0, 5), (0, 0, 5, 0), (-1, 0, 5, 5), (0, -1, 5, 5), (0, 0, -5, -5), (86, 0, 5, 5), (0, 66, 5, 5)),
        *((0, 0, 91, 1), (0, 0, 1, 71), (90, 70, 1, 1), (2**32 - 4, 0, 5, 5), (0, 2**32 - 1, 1, 1)),
        (0, 0, 2**31, 2**31),
    ],
)
def test_a_box_that_is_not_inside(box: Box, built: ModuleType) -> None:
    size = max(0, box[2] * box[3] * 3)
    out = bytearray(b"\x07" * (size if size < 10**6 else 75))
    with pytest.raises(ValueError, match=r"box is not inside|another size than the box"):
        built.crop(encode(PICTURE, "JPEG"), *box, out)
    assert set(out) <= {7}


@pytest.mark.parametrize(
    ("out", "error"),
    [
        (bytearray(74), ValueError),
        (bytearray(76), ValueError),
        (bytearray(), ValueError),
        (bytes(75), TypeError),
        (None, TypeError),
        (np.zeros((5, 10, 3), np.uint8)[:, ::2], TypeError),
        (np.broadcast_to(np.uint8(0), (5, 5, 3)), TypeError),
    ],
    ids=["short", "long", "empty", "read-only", "nothing", "every second", "one byte"],
)
def test_a_buffer_that_does_not_fit(out: object, error: type[Exception], built: ModuleType) -> None:
    with pytest.raises(error):
        built.crop(encode(PICTURE, "JPEG"), 0, 0, 5, 5, out)


@pytest.mark.parametrize(
    "data", [b"", b"\xff\xd8\xff\xd9", b"nonsense", *(OTHERS[name] for name in ("PNG", "four inks"))], ids=range(5)
)
def test_what_the_module_cannot_read(data: bytes, built: ModuleType) -> None:
    with pytest.raises(ValueError, match=r"."):
        built.crop(data, 0, 0, 5, 5, bytearray(75))


def test_nothing_is_written_beside_the_buffer(built: ModuleType) -> None:
    for layout in LAYOUTS:
        around = np.full(4000, 7, np.uint8)
        built.crop(jpeg(PICTURE, layout), 69, 50, 21, 20, around[1000:2260])
        np.testing.assert_array_equal(around[1000:2260].reshape(20, 21, 3), decode(jpeg(PICTURE, layout))[50:, 69:])
        assert (around[:1000] == 7).all()
        assert (around[2260:] == 7).all()
