import contextlib
import io
import itertools
import struct
import warnings
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
from PIL import Image, ImageCms, ImageDraw, ImageFile, ImageOps

from curator.pictures import decode as module
from curator.pictures.decode import Scan, UnreadableImage, decode, scan


def photograph(width: int, height: int, seed: int = 0) -> Image.Image:
    """Smooth colour noise, grain and a few shapes."""
    rng = np.random.default_rng(seed)
    coarse = rng.random((6, 8, 3)).astype(np.float32) * 255
    smooth = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    image = Image.fromarray(np.clip(smooth + rng.normal(0, 4, smooth.shape), 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for _ in range(4):
        x, y = int(rng.integers(width)), int(rng.integers(height))
        colour = tuple(int(v) for v in rng.integers(0, 256, 3))
        draw.ellipse((x, y, x + width // 3, y + height // 4), fill=colour)
    return image


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def as_timm(data: bytes) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))


def png(idat: list[bytes], width: int, height: int, kind: int, bits: int = 8, *, extra: bytes = b"") -> bytes:
    """A PNG of given compressed data; `kind` is its colour type, `extra` further chunks in front of the data."""
    head = struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        [chunk(b"IHDR", head), extra, *(chunk(b"IDAT", part) for part in idat), chunk(b"IEND", b"")]
    )


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def outcome(function: Callable[[bytes], np.ndarray], data: bytes) -> str | list[object]:
    """The pixels, or why there are none."""
    try:
        return function(data).tolist()
    except UnreadableImage as error:
        return str(error)


def orientation(value: int, kind: type = int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = kind(value)
    exif[0x010F] = "a camera"
    return exif


def turned(pixels: np.ndarray, value: int) -> np.ndarray:
    """A picture as an EXIF orientation wants it shown."""
    if value > 4:
        pixels = pixels.swapaxes(0, 1)
    if value in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels[::-1] if value in (3, 4, 7, 8) else pixels


PICTURE = photograph(90, 70)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "AVIF"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_equals_pillow(kind: str, mode: str) -> None:
    data = encode(PICTURE.convert(mode), kind)
    pixels = decode(data)
    assert pixels.shape == (70, 90, 3)
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    # Both use libjpeg-turbo; the tolerance is for builds that do not share a version.
    assert np.abs(pixels.astype(int) - as_timm(data)).max() <= (3 if kind == "JPEG" else 0)


@pytest.mark.parametrize(
    ("mode", "options"),
    [
        ("RGB", {"progressive": True}),
        ("RGB", {"subsampling": "4:4:4", "keep_rgb": True}),
        ("RGB", {"subsampling": "4:2:2"}),
        ("RGB", {"restart_marker_rows": 1}),
        ("RGB", {"icc_profile": bytes(3000)}),
        ("L", {"progressive": True}),
        ("CMYK", {}),
        ("CMYK", {"progressive": True}),
    ],
)
def test_jpeg_variants(mode: str, options: dict[str, object]) -> None:
    data = encode(PICTURE.convert(mode), "JPEG", quality=90, **options)
    assert np.abs(decode(data).astype(int) - as_timm(data)).max() <= 3


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (50, 1)])
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_smallest(size: tuple[int, int], kind: str) -> None:
    data = encode(PICTURE.resize(size), kind)
    assert decode(data).shape == (size[1], size[0], 3)
    assert scan(data)[:2] == size


@pytest.mark.parametrize("value", range(1, 9))
@pytest.mark.parametrize(
    ("kind", "mode"),
    [("JPEG", mode) for mode in ("RGB", "L", "CMYK")]
    + [("PNG", mode) for mode in ("RGB", "RGBA", "P", "I;16")]
    + [(kind, "RGB") for kind in ("TIFF", "WEBP", "AVIF")],
)
def test_exif_orientation(value: int, kind: str, mode: str) -> None:
    deep = Image.fromarray(np.asarray(PICTURE)[..., 0] * np.uint16(256))
    image = deep if mode == "I;16" else PICTURE.convert(mode)
    data = encode(image, kind, exif=orientation(value))
    pixels = decode(data)
    assert pixels.shape == ((70, 90, 3) if value < 5 else (90, 70, 3))
    assert pixels.flags.c_contiguous
    assert np.abs(pixels.astype(int) - turned(decode(encode(image, kind)), value)).max() <= 3
    if mode != "I;16":
        assert np.abs(pixels.astype(int) - as_timm(data)).max() <= 3
    assert scan(data)[:2] == (pixels.shape[1], pixels.shape[0])


def test_only_turned_jpegs_go_through_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    real = module._decode_with_pillow
    monkeypatch.setattr(module, "_decode_with_pillow", lambda data: calls.append(1) or real(data))
    decode(encode(PICTURE, "JPEG"))
    decode(encode(PICTURE, "JPEG", exif=orientation(1)))
    decode(encode(PICTURE.convert("L"), "JPEG", exif=orientation(1)))
    assert not calls
    decode(encode(PICTURE, "JPEG", exif=orientation(6)))
    assert len(calls) == 1


def test_only_odd_pngs_go_through_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    real = module._decode_with_pillow
    monkeypatch.setattr(module, "_decode_with_pillow", lambda data: calls.append(1) or real(data))
    noise = Image.fromarray(np.random.default_rng(2).integers(0, 256, (250, 300, 3), dtype=np.uint8))
    for image in (PICTURE, noise, PICTURE.resize((1, 1))):
        for mode in ("RGB", "L"):
            pixels = np.asarray(image.convert(mode))
            for level in (0, 1, 9):
                data = encode(image.convert(mode), "PNG", compress_level=level)
                np.testing.assert_array_equal(decode(data), as_timm(data))
                np.testing.assert_array_equal(decode(data + b"behind its end"), as_timm(data))
            written = cv2.imencode(".png", pixels if mode == "L" else pixels[..., ::-1])[1].tobytes()
            np.testing.assert_array_equal(decode(written), np.asarray(image.convert(mode).convert("RGB")))
    assert not calls
    plain = encode(PICTURE, "PNG")
    odd = [encode(PICTURE.convert(mode), "PNG") for mode in ("P", "RGBA", "LA", "1", "I;16")]
    odd += [encode(PICTURE, "PNG", exif=orientation(6)), encode(PICTURE, "PNG", transparency=(1, 2, 3))]
    odd += [plain[:33] + chunk(b"gAMA", struct.pack(">I", 10000)) + plain[33:]]
    odd += [encode(PICTURE, "PNG", icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())]
    for number, data in enumerate(odd, start=1):
        if number != 5:
            np.testing.assert_array_equal(decode(data), as_timm(data))
        else:
            decode(data)  # of 16 bits, which are scaled
        assert len(calls) == number


def test_a_damaged_png_is_what_pillow_says_of_it() -> None:
    data = encode(PICTURE.resize((9, 7)), "PNG")
    reasons = set()
    for at in range(len(data)):
        for damaged in (data[:at], data[:at] + bytes([data[at] ^ 0x14]) + data[at + 1 :]):
            if damaged:
                found = outcome(decode, damaged)
                assert found == outcome(module._decode_with_pillow, damaged), at
                reasons.add(found if isinstance(found, str) else "whole")
    assert len(reasons) > 4


def test_no_png_is_decoded_otherwise_than_by_pillow(capfd: pytest.CaptureFixture[str]) -> None:
    """Every filter, in one or several pieces, whole or with damage that the checksums do not show."""
    rng = np.random.default_rng(7)
    count = {str: 0, list: 0}
    for _ in range(1500):
        kind, (width, height) = int(rng.choice([0, 2])), rng.integers(1, 20, 2).tolist()
        row = width * (3 if kind else 1) + 1
        rows = rng.integers(0, 256, (height, row), dtype=np.uint8)
        rows[:, 0] = rng.integers(0, 5, height)
        how = int(rng.integers(8))
        if how == 1:
            rows[rng.integers(height), 0] = 5  # there are filters 0 to 4
        level, raw = int(rng.integers(0, 10)), rows.tobytes()
        raw = {2: raw[: int(rng.integers(len(raw)))], 3: raw + bytes(50)}.get(how, raw)
        squeezed = bytearray(zlib.compress(raw, level))
        if how == 4:
            squeezed[int(rng.integers(len(squeezed)))] ^= 1 << int(rng.integers(8))
        elif how == 5:
            del squeezed[int(rng.integers(len(squeezed))) :]
        elif how == 6:
            squeezed[-1] ^= 1  # the checksum of the raw data
        cuts = sorted([0, *rng.integers(0, len(squeezed) + 1, int(rng.integers(4))).tolist(), len(squeezed)])
        data = png([bytes(squeezed[a:b]) for a, b in itertools.pairwise(cuts)], width, height, kind)
        found = outcome(decode, data)
        assert found == outcome(module._decode_with_pillow, data)
        count[type(found)] += 1
    assert min(count.values()) > 300
    capfd.readouterr()  # libpng says what it thinks of them


def test_xmp_and_big_endian_orientation() -> None:
    xmp = encode(PICTURE, "JPEG", xmp=b'<x:xmpmeta><rdf tiff:Orientation="6"/></x:xmpmeta>')
    assert decode(xmp).shape == (90, 70, 3)
    big = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x08\0\0\0\0\0\0"
    assert decode(encode(PICTURE, "JPEG", exif=big)).shape == (90, 70, 3)
    upright = big.replace(b"\0\x08\0\0\0\0\0\0", b"\0\x01\0\0\0\0\0\0")
    assert decode(encode(PICTURE, "JPEG", exif=upright)).shape == (70, 90, 3)


def test_16_bit_grey_is_scaled() -> None:
    values = np.linspace(0, 65535, 60 * 80).astype(np.uint16).reshape(60, 80)
    expected = np.rint(values / 257).astype(np.uint8)
    big = Image.fromarray(values.astype(">u2"))  # I;16B
    for data in (
        encode(Image.fromarray(values), "PNG"),
        encode(Image.fromarray(values), "TIFF"),
        encode(big, "TIFF"),
        encode(Image.fromarray(values.astype(np.int32)), "TIFF"),
    ):
        pixels = decode(data)
        assert pixels.flags.c_contiguous
        for channel in range(3):
            np.testing.assert_array_equal(pixels[..., channel], expected)


@pytest.mark.parametrize(("channels", "kind"), [(3, 2), (2, 4)])
def test_16_bit_colour_loses_its_low_bytes(channels: int, kind: int) -> None:
    """RGB, and grey with transparency, as Pillow reads them."""
    values = np.random.default_rng(1).integers(0, 65536, (20, 30, channels)).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in values)  # filter 0: as they are
    data = png([zlib.compress(rows)], 30, 20, kind, 16)
    np.testing.assert_array_equal(decode(data), (values if channels == 3 else values[..., [0, 0, 0]]) >> 8)
    np.testing.assert_array_equal(decode(data), as_timm(data))


def test_pixels_without_a_range_are_refused() -> None:
    with pytest.raises(UnreadableImage, match="floating point"):
        decode(encode(Image.fromarray(np.ones((5, 5), np.float32)), "TIFF"))
    with pytest.raises(UnreadableImage, match="0 to 65535"):
        decode(encode(Image.fromarray(np.full((5, 5), 70000, np.int32)), "TIFF"))


def test_transparency_is_dropped() -> None:
    alpha = Image.linear_gradient("L").resize(PICTURE.size)
    rgba = PICTURE.copy()
    rgba.putalpha(alpha)
    np.testing.assert_array_equal(decode(encode(rgba, "PNG")), np.asarray(PICTURE))
    grey = PICTURE.convert("LA")
    grey.putalpha(alpha)
    np.testing.assert_array_equal(decode(encode(grey, "PNG"))[..., 0], np.asarray(PICTURE.convert("L")))
    palette = PICTURE.quantize(64)
    expected = np.asarray(palette.convert("RGB"))
    for transparency in (3, bytes(range(0, 256, 4)), None):
        options = {} if transparency is None else {"transparency": transparency}
        np.testing.assert_array_equal(decode(encode(palette, "PNG", **options)), expected)
    np.testing.assert_array_equal(decode(encode(palette, "GIF", transparency=5)), expected)
    np.testing.assert_array_equal(decode(encode(PICTURE.convert("1"), "PNG"))[..., 1] % 255, 0)
    for image in (PICTURE, PICTURE.convert("L")):
        keyed = encode(image, "PNG", transparency=image.getpixel((0, 0)))
        assert "transparency" in Image.open(io.BytesIO(keyed)).info
        np.testing.assert_array_equal(decode(keyed), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize(
    ("kind", "options"),
    [("GIF", {}), ("WEBP", {"lossless": True}), ("PNG", {}), ("PNG", {"default_image": True}), ("TIFF", {})],
)
def test_first_frame(kind: str, options: dict[str, object]) -> None:
    frames = [photograph(40, 30, seed) for seed in range(3)]
    data = encode(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert Image.open(io.BytesIO(data)).n_frames == 3
    np.testing.assert_array_equal(decode(data), as_timm(data))
    assert np.abs(decode(data).astype(int) - frames[0]).mean() <= 8  # the GIF has a palette


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "jpeg"])
@pytest.mark.parametrize("mode", ["RGB", "CMYK", "YCbCr", "LAB"])
def test_tiff_variants(mode: str, compression: str | None) -> None:
    if mode == "LAB":
        spaces = [ImageCms.createProfile(name) for name in ("sRGB", "LAB")]
        image = ImageCms.applyTransform(PICTURE, ImageCms.buildTransform(*spaces, "RGB", "LAB"))
    else:
        image = PICTURE.convert(mode)
    data = encode(image, "TIFF", compression=compression)
    np.testing.assert_array_equal(decode(data), as_timm(data))
    assert np.abs(decode(data).astype(int) - PICTURE).mean() <= 10


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file"),
        (b"some text, not an image\n" * 30, "not an image"),
        (b"\xff\xd8", "not an image"),
        (b"\xff\xd8\xff\xe0 nonsense", "truncated JPEG"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
        (bytes(1000), "not an image"),
    ],
)
def test_not_images(data: bytes, reason: str) -> None:
    for function in (decode, scan):
        with pytest.raises(UnreadableImage) as caught:
            function(data)
        assert str(caught.value) == reason


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"exif": orientation(6)}])
def test_no_cut_of_a_jpeg_passes(mode: str, options: dict[str, object]) -> None:
    data = encode(PICTURE.convert(mode), "JPEG", **options)
    for length in range(3, len(data), 7):
        with pytest.raises(UnreadableImage):
            decode(data[:length])
    for length in (len(data) - 2, len(data) - 1):
        with pytest.raises(UnreadableImage, match=r"^truncated JPEG$"):
            decode(data[:length])
    with pytest.raises(UnreadableImage, match=r"Corrupt JPEG data|Invalid progressive"):
        decode(data[: len(data) // 2] + b"\xff\xd9")  # an end marker hides the cut from Pillow


@pytest.mark.parametrize("kind", ["PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "AVIF"])
def test_a_cut_file_is_refused_or_whole(kind: str) -> None:
    """A file may end early only where no pixel is missing, as in the last chunk of a PNG."""
    data = encode(PICTURE, kind)
    whole = decode(data)
    for length in range(1, len(data), max(1, len(data) // 150)):
        try:
            pixels = decode(data[:length])
        except UnreadableImage:
            continue
        assert length > len(data) - 30
        np.testing.assert_array_equal(pixels, whole)


def test_damage_never_raises_anything_else() -> None:
    rng = np.random.default_rng(5)
    for kind in ("JPEG", "PNG", "GIF", "WEBP", "BMP", "PPM", "AVIF"):
        data = encode(PICTURE.resize((30, 20)), kind)
        for _ in range(60):
            damaged = bytearray(data)
            for at in rng.integers(0, len(data), 4):
                damaged[at] = rng.integers(256)
            with contextlib.suppress(UnreadableImage):
                assert decode(bytes(damaged)).dtype == np.uint8


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_decompression_bomb(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode(PICTURE, kind)
    for limit in (90 * 70 - 1, 1000):  # Pillow warns at the first and raises at the second
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(UnreadableImage, match="limit"):
            decode(data)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 90 * 70)
    assert decode(data).shape == (70, 90, 3)


def test_pillow_must_not_hide_truncation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(RuntimeError, match="LOAD_TRUNCATED_IMAGES"):
        decode(encode(PICTURE, "GIF"))


def test_threads_agree_with_one_thread() -> None:
    files = [encode(photograph(60, 50, seed), kind) for seed in range(8) for kind in ("JPEG", "PNG")]
    files.append(encode(PICTURE.quantize(64), "PNG", transparency=bytes(range(0, 256, 4))))
    alone = [scan(data) for data in files]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(scan, files * 5)) == alone * 5


def test_scan_hashes() -> None:
    data = encode(PICTURE, "PNG")
    result = scan(data)
    assert isinstance(result, Scan)
    assert result == scan(data)
    assert len(result.content_hash) == 32
    assert result.content_hash != scan(encode(PICTURE, "PNG", compress_level=1)).content_hash
    assert result.phash == scan(encode(PICTURE, "PNG", compress_level=1)).phash
    assert -(2**63) <= result.phash < 2**63


def test_phash_by_its_definition() -> None:
    """Bits from a plain DCT-II: row by row, the DC term first and most significant."""
    side = np.arange(32)
    basis = np.cos(np.pi * side[:, None] * (2 * side + 1) / 64) * np.where(side[:, None], 1, 2**-0.5) / 4
    picture = photograph(32, 32, 3).convert("L")
    low = (basis @ np.asarray(picture, np.float64) @ basis.T)[:8, :8].ravel()
    text = "".join("1" if value > np.median(low[1:]) else "0" for value in low)
    value = int(text, 2)
    assert scan(encode(picture, "PNG")).phash == (value - 2**64 if value >= 2**63 else value)


def bits_apart(a: int, b: int) -> int:
    return ((a ^ b) & (2**64 - 1)).bit_count()


def test_phash_survives_encoding_and_tells_pictures_apart() -> None:
    pictures = [photograph(200, 150, seed) for seed in range(12)]
    hashes = [scan(encode(picture, "PNG")).phash for picture in pictures]
    for picture, value in zip(pictures, hashes, strict=True):
        for other in (
            encode(picture, "JPEG", quality=50),
            encode(picture, "WEBP", quality=60),
            encode(picture.resize((140, 110)), "JPEG", quality=85),
        ):
            assert bits_apart(value, scan(other).phash) <= 6
    apart = [bits_apart(a, b) for i, a in enumerate(hashes) for b in hashes[:i]]
    assert min(apart) > 12
