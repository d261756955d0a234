"""A manifest as a reader of timm: its data sets, its transforms, its worker processes and its own training script.

    item i -> position i of the loader's first pass -> row of a manifest -> (bytes of the image, class) -> ImageDataset

timm takes class numbers: that of an image is the class it fills in the manifest. Soft labels, temperature and weights
are lost on this way; `ManifestLoader` keeps them.
"""

from __future__ import annotations

import io
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import timm.data
from timm.data import dataset_factory
from timm.data.dataset import ImageDataset
from timm.data.readers.reader import Reader

from curator import queries
from curator.curation import manifests
from curator.delivery import packs
from curator.errors import InputError
from curator.loading.rows import Place, Rows, holdout_rows
from curator.pictures.decode import UnreadableImage
from curator.pictures.reading import read_bytes
from curator.storage.bucket import Bucket, is_url
from curator.storage.roots import Root
from curator.storage.store import Store


class ManifestReader(Reader):
    """Images with their class numbers, each row of a manifest as often as it has copies.

    Args:
        store: The store, or its folder.
        manifest: Name of the manifest; None for the labeled split in its place.
        split: "train" is the manifest, "labeled" the labeled split, each image once, "train+labeled" both, and
            "validation" the holdout. A part that is named twice counts twice.
        size: Side of the images that a network is trained with in pixels, by which a pack is chosen.
        pack: The pack to read images from where it has them, None for the originals; "auto" takes the one that
            `packs.fitting` finds for the size. The holdout is never packed.

    Raises:
        InputError: The manifest, the split or the pack is not there or cannot be used.
    """

    def __init__(
        self,
        store: Store | str | Path,
        manifest: str | None,
        split: str = "train",
        *,
        size: int | None = None,
        pack: str | None = "auto",
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        store = store if isinstance(store, Store) else Store(store)
        names = ["labeled" if name == "train" and manifest is None else name for name in split.split("+")]
        if not set(names) <= {"train", "labeled"} and names != ["validation"]:
            raise InputError(f"there is no split '{split}'", "train, labeled, train+labeled or validation")
        pack = None if pack == "auto" and size is None else packs.chosen(store, pack, size or 0)
        self._root = store.root
        self._holdout = _holdout(store) if names == ["validation"] else []
        self._ends = np.zeros(0, np.int64)  # of each class, in rows of the manifest
        self._parts = []
        for name in names:
            if name == "labeled":
                self._parts.append(Rows.labeled(store, pack))
            elif name == "train":
                self._parts.append(Rows.manifest(store, str(manifest), pack))
                self._ends = np.cumsum([row["kept"] for row in manifests.find(store, str(manifest)).classes])

    def __len__(self) -> int:
        """Images of a pass, with their copies."""
        return len(self._holdout) + sum(rows.length for rows in self._parts)

    def __getitem__(self, index: int) -> tuple[io.BytesIO, int]:
        """The bytes of an image, and its class.

        Raises:
            OSError: They cannot be read. timm then takes the next index.
        """
        place, label = self._find(index)
        try:
            return io.BytesIO(read_bytes(self._root, *place)), label
        except UnreadableImage as error:
            raise OSError(f"{place.uri}: {error}") from None

    def _filename(self, index: int, basename: bool = False, absolute: bool = False) -> str:
        """The uri of an image; its last part, or where it is from the root of the file system."""
        uri = self._find(index)[0].uri
        return Path(uri).name if basename else _absolute(self._root, uri) if absolute else uri

    def _find(self, index: int) -> tuple[Place, int]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        if self._holdout:
            return self._holdout[index]
        for rows in self._parts:
            if index < rows.length:
                break
            index -= rows.length
        # The copies of an image lie far from each other in this order. So where timm takes the next one in place of an
        # image that cannot be read, that is another image, not the same one again until timm gives up.
        number = rows.at(np.array([index]), seed=0)
        part = rows.read(number)
        label = part.classes[0, 0] if rows.name == "labeled" else np.searchsorted(self._ends, number[0], side="right")
        return part.places[0], int(label)


def _holdout(store: Store) -> list[tuple[Place, int]]:
    with closing(store.connect()) as con:
        found = queries.rows(con, holdout_rows())
    if not found:
        raise InputError("the store has no holdout images", "curator add-images FOLDER --split holdout")
    return [(Place(*(row[name] for name in Place._fields)), row["label"]) for row in found]


def register(*, size: int | None = None, pack: str | None = "auto") -> None:
    """Lets `timm.data.create_dataset` know data sets named `curator/MANIFEST`; their root is the store.

    `curator/` alone is the labeled split. To be called before a script imports the function.

    Args:
        size: As for `ManifestReader`.
        pack: As for `ManifestReader`.
    """

    def create_dataset(name: str, root: str | None = None, split: str = "validation", **options: Any) -> Any:
        kind, _, manifest = name.partition("/")
        if kind != "curator":
            return dataset_factory.create_dataset(name, root, split, **options)
        reader = ManifestReader(root or "store", manifest or None, split, size=size, pack=pack)
        known = {key: options[key] for key in ("load_bytes", "input_img_mode", "target_transform") if key in options}
        return ImageDataset(root, reader, **known)  # type: ignore[no-untyped-call]

    timm.data.create_dataset = create_dataset  # type: ignore[assignment, attr-defined]


def _absolute(root: Root, uri: str) -> str:
    if isinstance(root, Bucket):
        return uri if is_url(uri) or uri.startswith("/") else f"{root}/{uri}"
    return uri if is_url(uri) else str(root / uri)
