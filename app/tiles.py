"""Pictures in a grid, each a link to the Image page."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import cv2
import numpy as np
import simplejpeg
import streamlit as st

from curator.pictures.thumbnails import Thumbnail, Thumbnails

from .live import live
from .words import plain, short

SIDE = 192  # pixels of a tile's picture
CACHE = 128 * 2**20  # bytes of pictures that a server keeps
_COLUMN = 140  # least width of a tile, in pixels
_COLOURS = {"accept": "green", "reject": "red", "relabel": "blue", "skip": "gray"}


@st.cache_resource(show_spinner=False)
def _thumbnails(path: str) -> Thumbnails:
    return Thumbnails(live().store.root, CACHE)


def pictures(rows: Sequence[Mapping[str, Any]], side: int = SIDE) -> list[Thumbnail]:
    """The pictures of images, made together and kept.

    Args:
        rows: The images: uri, shard, byte_offset, byte_length.
        side: Most pixels of width and height.
    """
    return _thumbnails(str(live().store.place)).of(rows, side)


def tiles(rows: Sequence[Mapping[str, Any]], captions: Sequence[str]) -> None:
    """Puts a grid of pictures; a click on one opens the Image page in a tab of its own.

    Args:
        rows: The images: image_id, uri, shard, byte_offset, byte_length.
        captions: Markdown for each; what comes from outside has gone through `plain`.
    """
    grid = st.grid("auto", min_column_width=_COLUMN, gap="small")
    for row, small, caption in zip(rows, pictures(rows), captions, strict=True):
        said = f"{caption}  \n{_problem(row, small)}" if small.problem else caption
        grid.image(
            _url(small),
            caption=said,
            width="stretch",
            link=f"image?image_id={row['image_id']}",
            alt=short(row["uri"]),
        )


def picture(row: Mapping[str, Any], side: int = SIDE) -> None:
    """Puts one picture as wide as its place, or a placeholder that says where it should be and why it cannot be shown.

    Args:
        row: The image: uri, shard, byte_offset, byte_length.
        side: Most pixels of width and height.
    """
    (small,) = pictures([row], side)
    said = _problem(row, small) if small.problem else None
    st.image(_url(small), caption=said, width="stretch", alt=short(row["uri"]))


def badge(decision: str, new_class: str | None = None) -> str:
    """A decision as Markdown: a word with a colour.

    Args:
        decision: accept, reject, relabel or skip.
        new_class: The class that a relabel gave.
    """
    said = f"{decision}: {plain(new_class, 30)}" if new_class else decision
    return f":{_COLOURS[decision]}-badge[{said}]"


def _problem(row: Mapping[str, Any], small: Thumbnail) -> str:
    return f"{plain(row['uri'])}: {plain(small.problem)}"


def _url(small: Thumbnail) -> str:
    # inside the page: a request for each of 24 pictures would take longer than all the rest
    return f"data:image/jpeg;base64,{base64.b64encode(small.jpeg or placeholder()).decode()}"


@cache
def placeholder() -> bytes:
    """What stands where a picture cannot be shown: a grey square, crossed out."""
    pixels = np.full((SIDE, SIDE, 3), 150, np.uint8)
    far = SIDE - 1
    for ends in (((0, 0), (far, far)), ((0, far), (far, 0))):
        cv2.line(pixels, *ends, (110, 110, 110), 2, cv2.LINE_AA)
    return bytes(simplejpeg.encode_jpeg(pixels))
