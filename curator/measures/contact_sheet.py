"""A contact sheet: one picture of the holdout under every corruption in every severity, to look at.

first image of the holdout (or its sample) --decode, crop--> picture --corrupt--> tiles with names --> a PNG file
"""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from curator import queries
from curator.errors import InputError
from curator.loading.rows import holdout_rows
from curator.networks.inference import pictures
from curator.networks.network import load
from curator.noise import corruptions
from curator.noise.noises import Pixels
from curator.storage.store import Store

_TILE = 96  # pixels, at least, of a side
_NAME, _GAP, _LINE = 130, 4, 16


def check(file: Path) -> None:
    """Whether a sheet can be written to the file.

    Raises:
        InputError: It does not end in .png, it exists, or its folder does not.
    """
    if file.suffix != ".png":
        raise InputError(f"'{file}' does not end in .png", "--show corruptions.png")
    if file.exists():
        raise InputError(f"'{file}' exists", "name a file that is not there yet")
    if not file.parent.is_dir():
        raise InputError(f"there is no folder '{file.parent}'", f"mkdir -p '{file.parent}'")


def write(store: Store, model: str, file: Path, limit: int | None = None, seed: int = 0) -> None:
    """Writes the sheet of the first holdout image that can be read, as a model sees it.

    Args:
        store: The store.
        model: A registered model with weights, for the size of the picture.
        file: The PNG to write.
        limit: Size of the sample of the holdout; None for all of it.
        seed: Of the sample and the corruptions.

    Raises:
        InputError: See `check`; or the model or the holdout is not there.
    """
    check(file)
    recipe = load(store, model)[1]
    query = holdout_rows(sample=limit is not None)
    with closing(store.connect()) as con:
        for table in queries.batches(con, query, 1, limit=limit, seed=seed):
            seen = pictures(store.root, table, recipe)
            if len(seen.good):
                made = sheet(seen.pixels, seen.rows["image_id"].to_numpy(), seed)
                unfinished = file.with_name(file.name + ".unfinished")
                try:
                    made.save(unfinished, "PNG")
                    unfinished.rename(file)
                finally:
                    unfinished.unlink(missing_ok=True)
                return
    raise InputError("there is no holdout image that can be read", "curator add-images FOLDER --split holdout")


def sheet(pixels: Pixels, ids: np.ndarray, seed: int) -> Image.Image:
    """A row for each kind: its name, the picture uint8 [1, S, S, 3] as it is, then the severities, left to right."""
    times = -(-_TILE // pixels.shape[1])
    side = times * pixels.shape[1]
    columns, rows = 1 + len(corruptions.SEVERITIES), len(corruptions.KINDS)
    made = Image.new("RGB", (_NAME + columns * (side + _GAP), _LINE + rows * (side + _GAP)), "white")
    draw = ImageDraw.Draw(made)
    for column, name in enumerate(("as it is", *(f"severity {s}" for s in corruptions.SEVERITIES))):
        draw.text((_NAME + column * (side + _GAP), 2), name, "black")
    for row, kind in enumerate(corruptions.KINDS):
        top = _LINE + row * (side + _GAP)
        draw.text((4, top + side // 2 - 6), kind.replace("_", " "), "black")
        tiles = [pixels, *(corruptions.corrupt(pixels, ids, kind, s, seed) for s in corruptions.SEVERITIES)]
        for column, tile in enumerate(tiles):
            large = np.repeat(np.repeat(tile[0], times, axis=0), times, axis=1)
            made.paste(Image.fromarray(large), (_NAME + column * (side + _GAP), top))
    return made
