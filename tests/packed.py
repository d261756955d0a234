"""A store with real pictures of many kinds to pack, and ways to look at a pack.

ROOT/pool/*   ROOT/s.tar   ROOT/{labeled,holdout}/CLASS/0.jpg   ROOT/store with the manifests "a" and "b"
"""

import hashlib
import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from curator.curation import building
from curator.delivery import packs
from curator.delivery.shards import Form
from curator.generations.labels import import_labels
from curator.pictures.images import add_images
from curator.pictures.reading import read_bytes
from curator.storage.store import Store

SMALL = Form(32, 90)


def picture(seed: int, width: int = 60, height: int = 45, mode: str = "RGB", kind: str = "JPEG", **more: Any) -> bytes:
    """A smooth picture with some grain, as photographs are."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 255, (4, 5, 3), np.uint8)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    pixels = np.clip(np.asarray(coarse) + rng.normal(0, 4, (height, width, 3)), 0, 255).astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(out, kind, **({"quality": 95} if kind == "JPEG" else {}), **more)
    return out.getvalue()


def turned(seed: int) -> bytes:
    """60 x 45 in the file, 45 x 60 to a viewer."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return picture(seed, exif=exif)


KINDS = {
    "plain.jpg": picture(0),
    "turned.jpg": turned(1),
    "grey.jpg": picture(2, mode="L"),
    "cmyk.jpg": picture(3, mode="CMYK"),
    "some.png": picture(4, kind="PNG"),
    "tall.JPEG": picture(5, 40, 90),
    "small.jpg": picture(6, 40, 32),
    "tiny.png": picture(7, 9, 7, kind="PNG"),
    "no_ending": picture(8, 20, 20, kind="PNG"),
}


def write(folder: Path, files: dict[str, bytes]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)


def label(store: Store, generation: int, chosen: str) -> None:
    """Soft labels of the pool: class 0 with confidence .9 for uris that contain the text, .2 for others."""
    rows = store.rows("select image_id, uri from images where split = 'unlabeled' and status <> 'unreadable'")
    probs = [[0.9, 0.05, 0.05] if chosen in row["uri"] else [0.34, 0.33, 0.33] for row in rows]
    table = {"image_id": [row["image_id"] for row in rows], "probs": pa.array(probs, pa.list_(pa.float32()))}
    pq.write_table(pa.table(table), store.root / "probs.parquet")
    import_labels(store, str(store.root / "probs.parquet"), generation, f"outside-{generation}")


def world(root: Path) -> None:
    """KINDS in the pool, four more in a tar shard, labeled and holdout pictures, and the manifests "a" and "b"."""
    store = Store.create(root / "store", ["x", "y", "z"])
    write(root / "pool", KINDS)
    # a listing, because a folder's file without an ending is passed over
    pq.write_table(pa.table({"uri": [f"pool/{name}" for name in KINDS]}), root / "pool.parquet")
    add_images(store, str(root / "pool.parquet"), "unlabeled")
    write(root / "sharded", {f"{i}.jpg": picture(100 + i) for i in range(4)})
    with tarfile.open(root / "s.tar", "w") as tar:
        for i in range(4):
            tar.add(root / "sharded" / f"{i}.jpg", f"{i}.jpg")
    add_images(store, str(root / "s.tar"), "unlabeled")
    for split, first in (("labeled", 200), ("holdout", 300)):
        for name in "xyz":
            write(root / split / name, {"0.jpg": picture(first + ord(name))})
        add_images(store, str(root / split), split)
    label(store, 0, "pool/")
    building.build(store, "a", {"per_class": 20, "min_confidence": 0.5})  # the files, with copies
    label(store, 1, "")
    building.build(store, "b", {"per_class": 20, "min_confidence": 0.5})  # these and what is in the shard


def contents(store: Store, name: str) -> dict[str, bytes]:
    """The packed bytes by uri, read by the index."""
    uris = {row["image_id"]: row["uri"] for row in store.rows("select image_id, uri from images")}
    return {
        uris[row["image_id"]]: read_bytes(store.path, "", row["shard"], row["byte_offset"], row["byte_length"])
        for row in packs.index(store, name).to_pylist()
    }


def files(store: Store) -> dict[str, str]:
    """Every file of the packs and of their table, with its hash."""
    return {
        str(file.relative_to(store.path)): hashlib.sha256(file.read_bytes()).hexdigest()
        for folder in ("packs", "packed")
        for file in sorted((store.path / folder).rglob("*"))
        if file.is_file()
    }
