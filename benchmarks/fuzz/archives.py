"""Tar shards: members that point elsewhere, lie about their size, are no files, or are cut off."""

from __future__ import annotations

import functools
import io
import tarfile
from typing import Any

import cv2
import numpy as np
from hypothesis import strategies as st

from curator.pictures import sources
from curator.pictures.decode import UnreadableImage, scan
from curator.pictures.reading import read_bytes

from .target import Target, mutated, odd_text
from .world import World

_PICTURE = cv2.imencode(".png", np.zeros((4, 4, 3), np.uint8))[1].tobytes()
_TYPES = [tarfile.REGTYPE, tarfile.AREGTYPE, *(bytes([c]) for c in b"1234567SDVLKxgXNA\xff\0")]
_SIZES = ["", "0", "7", "77777777777", "-1", "99", "nan", "11\0junk", "\x80\0\0\0\0\0\0\0\0\0\1\0", "\xff" * 12]
_SIZES += ["\x80" + "\xff" * 11, "\x80\0\0\0\x7f" + "\xff" * 7, "\x80\0\0\0\0\0\0\1\0\0\0\0"]
_PAX = ["path", "size", "linkpath", "mtime", "uid", "hdrcharset", "charset", "comment", "GNU.sparse.major"]
_PAX += ["GNU.sparse.minor", "GNU.sparse.map", "GNU.sparse.size", "GNU.sparse.name", "GNU.sparse.realsize"]
_PAX += ["GNU.sparse.numblocks", "GNU.sparse.offset", "GNU.sparse.numbytes"]
_NAMES = [
    "cat/1.png",
    "../1.png",
    "/etc/1.png",
    "cat/../../../1.png",
    "./cat/1.png",
    "cat/1.png/",
    "::.png",
    "a::b.png",
]


def _read(world: World, data: bytes) -> None:
    file = world.given / "shard.tar"
    file.write_bytes(data)
    for labels in (False, True):
        for batch in sources.read(str(file), "labeled", labels, world.given):
            for row in batch.to_pylist()[:20]:
                assert row["shard"] == "shard.tar", row
                try:
                    read = read_bytes(world.given, row["uri"], row["shard"], row["byte_offset"], row["byte_length"])
                    assert len(read) == row["byte_length"]
                    scan(read)
                except UnreadableImage:
                    continue


@functools.cache
def _seeds() -> list[bytes]:
    found = []
    for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w", format=form) as tar:
            long = "cat/" + "x" * (90 if form == tarfile.USTAR_FORMAT else 300) + ".png"
            for name in ("cat/1.png", "dog/\u00fc.png", long):
                info = tarfile.TarInfo(name)
                info.size = len(_PICTURE)
                tar.addfile(info, io.BytesIO(_PICTURE))
            link = tarfile.TarInfo("cat/link.png")
            link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
            tar.addfile(link)
        found.append(out.getvalue()[: out.tell() // 512 * 512])
    return found


def header(name: bytes, size: bytes, kind: bytes, link: bytes = b"", magic: bytes = b"ustar\x0000") -> bytes:
    """A header with a right checksum, whatever it says."""
    block = bytearray(512)
    block[:100] = name[:100].ljust(100, b"\0")
    block[100:136] = b"0000644\0" + b"0000000\0" * 2 + size[:12].ljust(12, b"\0")
    block[136:148] = b"00000000000\0"
    block[156:157] = kind[:1]
    block[157:257] = link[:100].ljust(100, b"\0")
    block[257:265] = magic.ljust(8, b"\0")
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 512)


@st.composite
def made(draw: st.DrawFn) -> bytes:
    """An archive of drawn headers, whose checksums are right."""
    parts = []
    for _ in range(draw(st.integers(1, 5))):
        name = draw(st.sampled_from(_NAMES) | odd_text().map(lambda t: f"cat/{t}.png")).encode("utf-8", "surrogatepass")
        kind = draw(st.sampled_from([b"0", b"0", *_TYPES]))
        body: Any = _PICTURE
        if kind in b"xgX" and kind:
            body = b""
            for key, value in draw(st.lists(st.tuples(st.sampled_from(_PAX), odd_text()), max_size=4)):
                record = f"{key}={value}\n".encode("utf-8", "surrogatepass")
                length = draw(st.sampled_from([None, None, None, b"0", b"-5", b"99999999", b"x", b""]))
                whole = len(record) + 1 + len(str(len(record) + 4))
                body += (b"%d" % whole if length is None else length) + b" " + record
        right = b"%011o" % len(body)
        size = draw(st.sampled_from([right, right, right, *(s.encode("latin1") for s in _SIZES)]))
        link = draw(st.sampled_from([b"", b"cat/1.png", b"/etc/hostname", b"../../x"]))
        magic = draw(st.sampled_from([b"ustar\x0000", b"ustar  \0", b"\0" * 8, b"garbage!"]))
        parts.append(header(name, size, kind, link, magic) + _padded(body))
    archive = b"".join(parts) * draw(st.sampled_from([1, 1, 1, 300]))
    return archive + draw(st.sampled_from([b"\0" * 1024, b"\0" * 10240, b"", b"\0" * 512, b"junk"]))


TARGETS = [Target("tar shards", _seeds, lambda: mutated(_seeds()) | made(), _read, 6000, 12_000)]
