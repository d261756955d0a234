"""Shards: pictures encoded for training, one after the other in tar files that are read back before they count.

    bytes of an original -+-> decoded -> short side to S px -> JPEG of quality Q -+-> member of a tar file
                          +-> as they are (--original, or at most S px already) --+   -> synced -> read back, compared

The same bytes and the same form give the same member, and the same members in the same order the same file.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import tarfile
from collections.abc import Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any, NamedTuple

import simplejpeg

from curator.delivery.samples import ending_of
from curator.errors import InputError, StoreError
from curator.pictures.decode import UnreadableImage, decode
from curator.pictures.reading import read_bytes

SIZE = 256
QUALITY = 90
_LARGEST = 65_500  # px, of a side of a JPEG that libjpeg writes


class Form(NamedTuple):
    """What a pack makes of a picture.

    Attributes:
        size: Pixels of the short side; None keeps the bytes of the original.
        quality: Of the JPEG, 1 to 100.
    """

    size: int | None
    quality: int = QUALITY

    @classmethod
    def of(cls, size: int | None = None, quality: int | None = None, original: bool = False) -> Form:
        """The form that options ask for, SIZE and QUALITY where they say nothing.

        Raises:
            InputError: An option is out of its range, or has no meaning beside another.
        """
        if original and (size is not None or quality is not None):
            raise InputError(
                "--original keeps the bytes as they are, and takes no --size or --quality",
                "leave --original out, or the others",
            )
        size, quality = SIZE if size is None else size, QUALITY if quality is None else quality
        if not 1 <= size <= _LARGEST:
            raise InputError(
                f"no picture has a short side of {size} px", f"--size {SIZE}, or another from 1 to {_LARGEST}"
            )
        if not 1 <= quality <= 100:
            raise InputError(
                f"a JPEG cannot have the quality {quality}", f"--quality {QUALITY}, or another from 1 to 100"
            )
        return cls(None if original else size, quality)

    @classmethod
    def named(cls, name: str) -> Form:
        """The form of the pack of that name."""
        found = re.fullmatch(r"(\d+)-q(\d+)", name)
        return cls(int(found[1]), int(found[2])) if found else cls(None)

    @property
    def name(self) -> str:
        """The name of the pack, e.g. "256-q90", or "original"."""
        return "original" if self.size is None else f"{self.size}-q{self.quality}"


class Picture(NamedTuple):
    """A picture on its way into a shard.

    Attributes:
        image_id: The image.
        ending: Of its file name, e.g. ".jpg".
        data: The bytes to write.
        width: Its columns in pixels, after EXIF orientation.
        height: Its rows in pixels.
        source_hash: blake2b-128 of the original's bytes, hex.
        source_bytes: How many these were.
    """

    image_id: int
    ending: str
    data: bytes
    width: int
    height: int
    source_hash: str
    source_bytes: int


def prepare(source: bytes, row: dict[str, Any], form: Form) -> Picture:
    """Makes of an original what the pack holds.

    Args:
        source: The bytes of the original.
        row: image_id, uri, and content_hash or None.
        form: What to make of it.

    Raises:
        UnreadableImage: It cannot be decoded, or has other bytes than when it was scanned.
    """
    source_hash = _hash(source)
    if row["content_hash"] not in (None, source_hash):
        raise UnreadableImage("its bytes are not those that were scanned")
    data, width, height = encode(source, form)
    ending = ending_of(row["uri"], source) if data is source else ".jpg"
    return Picture(row["image_id"], ending, data, width, height, source_hash, len(source))


def encode(source: bytes, form: Form) -> tuple[bytes, int, int]:
    """The bytes that a pack holds of a picture, their width and their height in pixels.

    Args:
        source: The bytes of the original.
        form: What to make of it. A picture whose short side is no longer than its size keeps its bytes: a second
            lossy step would cost and gain nothing.

    Raises:
        UnreadableImage: The original cannot be decoded.
    """
    from curator.noise.augment import resize

    pixels = decode(source)
    height, width, _ = pixels.shape
    short = min(width, height)
    if form.size is None or short <= form.size or max(width, height) * form.size > _LARGEST * short:
        return source, width, height
    width, height = round(width * form.size / short), round(height * form.size / short)
    smaller = resize(pixels, width, height)
    data: bytes = simplejpeg.encode_jpeg(smaller, form.quality, "RGB", "420", fastdct=False)
    return data, width, height


class Shard:
    """A tar file that is being written; it has its name when it is whole, and another until then.

    Args:
        store: The folder of the store.
        path: Where the file will be, relative to the store.

    Attributes:
        rows: A row of the table `packed` for each picture, without the pack's name and the time.
    """

    def __init__(self, store: Path, path: str) -> None:
        self.store, self.path = store, path
        self.file = store / f"{path}.unfinished"
        self.rows: list[dict[str, Any]] = []
        self._out = self.file.open("wb")
        self._tar = tarfile.open(fileobj=self._out, mode="w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115 - finish()

    def has_room(self, picture: Picture, most_rows: int, most_bytes: int) -> bool:
        """Whether the file may take a picture more; an empty one takes any."""
        around = 4 * tarfile.BLOCKSIZE + tarfile.RECORDSIZE  # header, last block, and the end of the file
        fits = self._tar.offset + len(picture.data) + around <= most_bytes
        return not self.rows or (len(self.rows) < most_rows and fits)

    def add(self, picture: Picture) -> None:
        """Writes a picture as a member IMAGE_ID.ENDING."""
        member = tarfile.TarInfo(f"{picture.image_id:019}{picture.ending}")  # time 0, owner 0, mode 644
        member.size = len(picture.data)
        self.rows.append(
            {
                "image_id": picture.image_id,
                "shard": self.path,
                "byte_offset": self._tar.offset + tarfile.BLOCKSIZE,
                "byte_length": len(picture.data),
                "width": picture.width,
                "height": picture.height,
                "content_hash": _hash(picture.data),
                "source_hash": picture.source_hash,
            }
        )
        self._tar.addfile(member, io.BytesIO(picture.data))

    def finish(self, pool: Executor) -> None:
        """Syncs the file, reads it back, and gives it its name.

        Args:
            pool: Threads that decode.

        Raises:
            StoreError: It does not hold what was written.
        """
        self._tar.close()
        self._out.flush()
        os.fsync(self._out.fileno())
        if hasattr(os, "posix_fadvise"):  # so that the disk is read, not the memory that the bytes were written from
            os.posix_fadvise(self._out.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        self._out.close()
        wrong = damage(self.store, f"{self.path}.unfinished", self.rows, pool)
        if wrong:
            raise StoreError(
                f"{self.file} does not hold what was just written to it ({wrong[0]['problem']})",
                "check the disk, and run the same command again",
            )
        self.file.rename(self.store / self.path)
        folder = os.open(self.file.parent, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)

    def abandon(self) -> None:
        """Removes the file, unless it is finished."""
        self._out.close()
        self.file.unlink(missing_ok=True)


def damage(store: Path, shard: str, rows: Sequence[dict[str, Any]], pool: Executor) -> list[dict[str, Any]]:
    """What is wrong with a shard: image_id (None for the file itself), shard and problem of each finding.

    Args:
        store: The folder of the store.
        shard: The tar file, relative to it.
        rows: All its rows of the table `packed`.
        pool: Threads that decode.
    """
    problems = zip(
        [row["image_id"] for row in rows], pool.map(lambda row: _problem(store, shard, row), rows), strict=True
    )
    found = [{"image_id": image_id, "shard": shard, "problem": problem} for image_id, problem in problems if problem]
    try:
        with tarfile.open(store / shard, "r:") as tar:
            members = {(member.name.split(".")[0], member.offset_data, member.size) for member in tar}
    except (tarfile.TarError, OSError) as error:
        return [*found, {"image_id": None, "shard": shard, "problem": f"cannot be read as a tar file ({error})"}]
    if members != {(f"{row['image_id']:019}", row["byte_offset"], row["byte_length"]) for row in rows}:
        found.append({"image_id": None, "shard": shard, "problem": "its headers name other members than the store"})
    return found


def _problem(store: Path, shard: str, row: dict[str, Any]) -> str | None:
    try:
        data = read_bytes(store, shard, shard, row["byte_offset"], row["byte_length"])
        if _hash(data) != row["content_hash"]:
            return "its bytes are not those that were packed"
        height, width, _ = decode(data).shape
    except UnreadableImage as error:
        return str(error)
    if (width, height) != (row["width"], row["height"]):
        return f"it is {width} x {height} px, not {row['width']} x {row['height']}"
    return None


def _hash(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()
