"""Stores with a manifest to export: real pictures with labels of an outside model, and the ways to look at an export.

ROOT/pool/00.png ...   ROOT/store with the manifest "m"
"""

import hashlib
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pictures import picture, write

from curator.curation import building, manifests
from curator.generations.labels import import_labels
from curator.pictures.images import add_images
from curator.storage.store import Store

# Two of them are one where unfit characters are replaced by one fit one, three where some file system folds the case.
CLASSES = ["cat", "Cat", ".cat", "a/b", "a%2Fb", "a:b "]
PLACE = {"shard", "byte_offset", "byte_length"}


def publish(root: Path, classes: list[str] = CLASSES, scan: bool = True, per_class: int = 5, **places: str) -> Store:
    """A store whose pool is all of root/pool, labeled by picture number modulo classes, and its manifest "m"."""
    store = Store.create(root / "store", classes)
    for source in places.values() or [str(root / "pool")]:
        add_images(store, source, "unlabeled", scan=scan)
    rows = store.rows("select image_id, uri from images order by uri")
    probs = np.full((len(rows), len(classes)), 0.25 / (len(classes) - 1), np.float32)
    for i, row in enumerate(rows):
        probs[i, int(Path(row["uri"].split("::")[-1]).stem) % len(classes)] = 0.75
    table = {"image_id": [row["image_id"] for row in rows], "probs": pa.array(probs.tolist(), pa.list_(pa.float32()))}
    pq.write_table(pa.table(table), root / "probs.parquet")
    import_labels(store, str(root / "probs.parquet"), 0, "outside")
    building.build(store, "m", {"per_class": per_class})
    return store


def world(root: Path) -> Store:
    """18 pictures of 6 classes, 5 rows of each class with copies: 2, 2 and 1."""
    for i in range(18):
        write(root / "pool" / f"{i:02}.{['png', 'jpg', 'JPG'][i // 6]}", picture(i % 3, i))
    return publish(root)


def rows_of(store: Store) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pa.concat_tables(
        [pq.read_table(file) for file in manifests.files(manifests.find(store, "m"))]
    ).to_pylist()
    return rows


def samples_of(store: Store) -> dict[int, dict[str, Any]]:
    """The rows by image_id, without the place."""
    return {row["image_id"]: {k: v for k, v in row.items() if k not in PLACE} for row in rows_of(store)}


def tree(path: Path) -> dict[str, str]:
    """Every file and link below a path, with its bytes or its target."""
    found = {}
    for file in sorted(path.rglob("*") if path.is_dir() else [path]):
        if file.is_symlink():
            found[str(file.relative_to(path))] = f"-> {file.readlink()}"
        elif file.is_file():
            found[str(file.relative_to(path))] = hashlib.sha256(file.read_bytes()).hexdigest()
    return found


def read_tars(folder: Path, decode: bool = True) -> list[dict[str, Any]]:
    import webdataset

    urls = [str(file) for file in sorted(folder.glob("*.tar"))]
    found = webdataset.WebDataset(urls, shardshuffle=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # the library leaves it to Python to close its files
        return list(found.decode("pilrgb") if decode else found)
