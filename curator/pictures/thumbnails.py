"""Small pictures of images, for the report and the app: made many at a time, and kept within a stated number of bytes.

rows (uri, shard, byte range) -> bytes -> pixels, at a smaller scale where the format can -> JPEG of at most N pixels
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import cv2
import numpy as np
import simplejpeg

from curator.pictures.decode import UnreadableImage, decode_small
from curator.pictures.reading import Asked, Reader, Where, place_of
from curator.storage.roots import Root

_QUALITY = 85
# What a kept thumbnail costs beside its bytes: the key, the tuple and the place in the dictionary.
_OVERHEAD = 600


class Thumbnail(NamedTuple):
    """A small picture.

    Attributes:
        jpeg: The picture as a JPEG file; empty if the image cannot be read.
        problem: Why it cannot.
    """

    jpeg: bytes
    problem: str = ""


def thumbnail(root: Root, row: Mapping[str, Any], side: int) -> Thumbnail:
    """Makes the small picture of an image.

    Args:
        root: The folder that relative uris start from.
        row: The image: uri, shard, byte_offset, byte_length.
        side: Most pixels of width and height; a smaller picture keeps its size.
    """
    with Reader(root) as reader:
        return _made(reader.ask([place_of(row)]), side, 0)


class Thumbnails:
    """Small pictures that are made once, for all threads of a process.

    Args:
        root: The folder that relative uris start from.
        limit: Most bytes that are kept; the pictures that were not asked for longest go first.
    """

    def __init__(self, root: Root, limit: int) -> None:
        self.root, self.limit = root, limit
        self.bytes = 0
        self._kept: OrderedDict[tuple[Where, int], Thumbnail] = OrderedDict()
        self._turn = threading.Lock()
        self._reader = Reader(root)
        self._pool = ThreadPoolExecutor((os.cpu_count() or 1) + 1, "thumbnail")

    def of(self, rows: Sequence[Mapping[str, Any]], side: int) -> list[Thumbnail]:
        """The small pictures of some images, in their order.

        Args:
            rows: The images, see `thumbnail`.
            side: Most pixels of width and height.
        """
        keys = [(place_of(row), side) for row in rows]
        with self._turn:
            found = {key: self._kept[key] for key in keys if key in self._kept}
            for key in found:
                self._kept.move_to_end(key)
        missing = list(dict.fromkeys(key for key in keys if key not in found))
        with self._reader.ask(place for place, _ in missing) as asked:
            answers = self._pool.map(partial(_made, asked, side), range(len(missing)))
            for key, made in zip(missing, answers, strict=True):
                found[key] = made
                if not made.problem:  # what is missing now may be there later
                    self._keep(key, made)
        return [found[key] for key in keys]

    def _keep(self, key: tuple[Where, int], made: Thumbnail) -> None:
        with self._turn:
            if key in self._kept:  # another thread was faster
                return
            self._kept[key] = made
            self.bytes += _size(key, made)
            while self.bytes > self.limit:
                self.bytes -= _size(*self._kept.popitem(last=False))


def _size(key: tuple[Where, int], made: Thumbnail) -> int:
    return len(made.jpeg) + len(key[0][0]) + _OVERHEAD


def _made(asked: Asked, side: int, number: int) -> Thumbnail:
    try:
        pixels = decode_small(asked.take(number), side)
    except UnreadableImage as error:
        return Thumbnail(b"", str(error))
    height, width, _ = pixels.shape
    scale = side / max(height, width)
    if scale < 1:
        size = max(round(width * scale), 1), max(round(height * scale), 1)
        pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)  # type: ignore[assignment]
    return Thumbnail(bytes(simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality=_QUALITY)))
