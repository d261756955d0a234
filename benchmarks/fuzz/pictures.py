"""Pictures of all formats with changed bytes, and small files that say they are large."""

from __future__ import annotations

import functools
import io
import random
import struct
import zlib
from typing import Any

import numpy as np
from hypothesis import strategies as st
from PIL import Image

from curator.delivery import shards
from curator.pictures.decode import Box, UnreadableImage, decode, decode_crop, decode_small, scan

from .target import Target, mutate, often
from .world import World


def _read(world: World, data: bytes) -> None:
    try:
        seen = scan(data)
    except UnreadableImage:
        seen = None
    pixels = decode(data)  # raises if it cannot
    assert seen is not None, "decoded, but not scanned"
    assert pixels.shape == (seen.height, seen.width, 3)
    assert pixels.dtype == np.uint8
    draw = random.Random(len(data))

    def box(width: int, height: int) -> Box:
        left, top = draw.randrange(width), draw.randrange(height)
        return left, top, draw.randint(1, width - left), draw.randint(1, height - top)

    assert decode_crop(data, box).ndim == 3
    assert max(decode_small(data, 16).shape[:2]) >= min(16, *pixels.shape[:2])
    shards.encode(data, shards.Form.of(8))


def _saved(picture: Image.Image, form: str, **options: Any) -> bytes:
    out = io.BytesIO()
    picture.save(out, form, **options)
    return out.getvalue()


@functools.cache
def _seeds() -> list[bytes]:
    ramp = np.arange(24 * 20 * 3, dtype=np.uint32).reshape(20, 24, 3) * 7
    colour = Image.fromarray((ramp % 256).astype(np.uint8))
    grey, palette, clear = colour.convert("L"), colour.convert("P"), colour.convert("RGBA")
    deep = Image.fromarray((ramp[:, :, 0] * 99 % 65536).astype(np.uint16))
    exif = Image.Exif()
    exif[0x0112] = 6
    frames: dict[str, Any] = {"save_all": True, "append_images": [grey.convert("RGB")]}
    return [
        _saved(colour, "JPEG"),
        _saved(colour, "JPEG", progressive=True, subsampling=0, exif=exif),
        _saved(grey, "JPEG", restart_marker_blocks=2),
        _saved(colour.convert("CMYK"), "JPEG"),
        _saved(colour, "PNG"),
        _saved(grey, "PNG"),
        _saved(palette, "PNG", transparency=3),
        _saved(clear, "PNG", exif=exif),
        _saved(deep, "PNG"),
        _saved(colour, "PNG", **frames),
        _saved(colour.convert("1"), "PNG"),
        _saved(palette, "GIF", **frames),
        _saved(colour, "WEBP"),
        _saved(clear, "WEBP", lossless=True, exif=exif),
        _saved(colour, "WEBP", **frames),
        _saved(colour, "BMP"),
        _saved(palette, "BMP"),
        _saved(colour, "TIFF"),
        _saved(colour, "TIFF", compression="tiff_lzw"),
        _saved(colour, "TIFF", compression="tiff_adobe_deflate", exif=exif),
        _saved(colour, "TIFF", compression="jpeg"),
        _saved(colour.convert("1"), "TIFF", compression="group4"),
        _saved(deep, "TIFF"),
        _saved(Image.fromarray(ramp[:, :, 0].astype(np.float32)), "TIFF"),
        _saved(colour, "PPM"),
        _saved(deep, "PPM"),
        b"P3 2 2 9\n" + b"1 2 3 " * 4,
        _saved(colour, "AVIF"),
    ]


def _chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(width: int, height: int, bits: int, colour: int, interlaced: int, packed: bytes, between: bytes = b"") -> bytes:
    """A PNG with right checksums, whatever it says."""
    head = struct.pack(">IIBBBBB", width & 0xFFFFFFFF, height & 0xFFFFFFFF, bits, colour, 0, 0, interlaced)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", head) + between + _chunk(b"IDAT", packed) + _chunk(b"IEND", b"")


_SIDES = st.sampled_from([0, 1, 7, 300, 9000, 9460, 20_000, 65_535, 2**31 - 1, 2**31, 2**32 - 1])


@st.composite
def bomb(draw: st.DrawFn) -> bytes:
    """A small file that says that it is a large picture."""
    width, height = draw(_SIDES), draw(_SIDES)
    kind = draw(st.sampled_from(["png", "png", "gif", "bmp", "ppm", "tiff", "jpeg", "webp"]))
    if kind == "png":
        length = draw(st.sampled_from([0, 10, 10_000, 3_000_000]))
        between = draw(st.sampled_from([b"", b"iCCP", b"zTXt", b"PLTE", b"acTL", b"tRNS"]))
        body = b"a\0\0" + zlib.compress(b"\0" * length) if between else b""
        extra = _chunk(between, body) if between else b""
        bits, colour = draw(st.sampled_from([1, 2, 4, 8, 16, 3])), draw(st.sampled_from([0, 2, 3, 4, 6, 5]))
        packed = zlib.compress(b"\0" * length, 1)
        return png(width, height, bits, colour, draw(st.sampled_from([0, 1])), packed, extra)
    if kind == "ppm":
        return b"%s %d %d %d\n" % (
            draw(st.sampled_from([b"P1", b"P2", b"P4", b"P5", b"P6", b"Pf"])),
            width,
            height,
            255,
        )
    seeds = {
        "gif": _saved(Image.new("P", (4, 4)), "GIF"),
        "bmp": _saved(Image.new("RGB", (4, 4)), "BMP"),
        "jpeg": _saved(Image.new("RGB", (4, 4)), "JPEG"),
        "webp": _saved(Image.new("RGB", (4, 4)), "WEBP"),
    }
    if kind == "tiff":
        form = draw(st.sampled_from([None, "tiff_lzw", "tiff_adobe_deflate", "packbits"]))
        data = bytearray(_saved(Image.new("RGB", (4, 4)), "TIFF", compression=form))
        for tag, value in ((256, width), (257, height), (278, height)):
            at = data.find(struct.pack("<HH", tag, 3))
            if at >= 0:
                data[at : at + 12] = struct.pack("<HHII", tag, 4, 1, value & 0xFFFFFFFF)
        return bytes(data)
    data = bytearray(seeds[kind])
    sides = struct.pack("<HH", width & 0xFFFF, height & 0xFFFF)
    match kind:
        case "gif":
            at = data.find(b",", 13)
            data[6:10] = sides
            data[at + 5 : at + 9] = sides
        case "bmp":
            data[18:26] = struct.pack("<II", width, height)
        case "jpeg":
            at = data.find(b"\xff\xc0")
            data[at + 5 : at + 9] = struct.pack(">HH", height & 0xFFFF, width & 0xFFFF)
        case "webp":
            data[26:30] = struct.pack("<HH", width & 0x3FFF, height & 0x3FFF)
    return bytes(data)


def _checked(seed: int) -> bytes:
    """A PNG with changed chunks, whose checksums are right again."""
    rng, seeds = random.Random(seed), [each for each in _seeds() if each[1:4] == b"PNG"]
    data, at, out = rng.choice(seeds), 8, b"\x89PNG\r\n\x1a\n"
    while at + 8 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        name, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        if rng.random() < 0.4:
            body = mutate(rng, [body or b"\0"])
        if name == b"IDAT" and rng.random() < 0.5:
            body = zlib.compress(mutate(rng, [zlib.decompress(data[at + 8 : at + 8 + length]) or b"\0"]))
        out += _chunk(name, body) * rng.choice([0, 1, 1, 1, 1, 1, 1, 2])
        at += 12 + length
    return out


def _strategy() -> st.SearchStrategy[bytes]:
    return st.one_of(often(_seeds()), bomb(), st.integers(0, 2**64 - 1).map(_checked))


TARGETS = [Target("pictures", _seeds, _strategy, _read, 18_000, 5_000)]
