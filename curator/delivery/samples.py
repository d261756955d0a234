"""Samples: the pictures of a manifest with their rows, read, checked and written for libraries that train on them.

    rows in a drawn order -> bytes of the picture, compared with its hash -+-> a folder of links
                                                                           +-> tar shards or Parquet files

Pictures are passed on as the bytes that they are. One that is missing or damaged, or has other bytes than when it was
scanned, is left out and named. Memory holds a hundred of them.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import tarfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from curator import progress, queries
from curator.pictures.decode import UnreadableImage, decode
from curator.pictures.reading import Asked, Reader, place_of
from curator.pictures.sources import SUFFIXES
from curator.storage.bucket import Bucket, is_url
from curator.storage.roots import Root

if TYPE_CHECKING:
    import duckdb

SHOWN = 20
# torchvision's ImageFolder looks for these endings and passes over others without a word.
LINKED = [".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"]
_PLACE = ("shard", "byte_offset", "byte_length")
_CHUNK = 100  # pictures in memory, and rows of a row group: the datasets library advises 100 for images
# Not in the name of a folder: "%" because it marks the others, which one file system or another refuses.
_UNFIT = re.compile(r'[%/\\:*?"<>|\x00-\x1f\x7f]|^[._]|[. ]$')


class Sample(NamedTuple):
    """One picture.

    Attributes:
        key: Its image_id, and the number of the copy where copies are repeated.
        ending: That of its file, e.g. ".jpg".
        data: The bytes of its file.
        shard: The tar file that these come from, or None.
        row: The columns of the manifest, without the place in a shard.
    """

    key: str
    ending: str
    data: bytes
    shard: str | None
    row: dict[str, Any]


class Samples:
    """The pictures of a manifest with their rows, to be gone through once.

    Args:
        con: A connection with the store's relations and the manifest's as `rows`.
        root: The folder that relative uris start from.
        total: How many there are, for the progress.
        repeat: Whether each copy is a sample of its own, with `copies` 1.

    Attributes:
        number: How many samples there were.
        copies: What their rows count for.
        unreadable: Ids of the images that were left out.
        problems: The first SHOWN of these: image_id, uri, problem.
    """

    def __init__(self, con: duckdb.DuckDBPyConnection, root: Root, total: int, repeat: bool) -> None:
        self.con, self.root, self.total, self.repeat = con, root, total, repeat
        self.number = self.copies = 0
        self.unreadable: set[int] = set()
        self.problems: list[dict[str, Any]] = []

    def __iter__(self) -> Iterator[Sample]:
        chunks = queries.batches(self.con, queries.text("export_samples"), _CHUNK, repeat=self.repeat)
        with (
            ThreadPoolExecutor() as pool,
            Reader(self.root) as reader,
            progress.progress("exporting", self.total) as advance,
        ):
            for chunk in chunks:
                rows = chunk.to_pylist()
                asked = reader.ask(map(place_of, rows))
                for found in pool.map(partial(self._read, asked), range(len(rows)), rows):
                    advance(1)
                    if isinstance(found, Sample):
                        self.number += 1
                        self.copies += found.row["copies"]
                        yield found
                    else:
                        self._leave_out(found)

    def _leave_out(self, problem: dict[str, Any]) -> None:
        if problem["image_id"] not in self.unreadable:
            self.unreadable.add(problem["image_id"])
            if len(self.problems) < SHOWN:
                self.problems.append(problem)

    def _read(self, asked: Asked, number: int, row: dict[str, Any]) -> Sample | dict[str, Any]:
        place = [row.pop(name) for name in _PLACE]
        copy, content_hash = row.pop("copy"), row.pop("content_hash")
        key = f"{row['image_id']:019}"
        if self.repeat:
            key, row["copies"] = f"{key}-{copy}", 1
        try:
            data = asked.take(number)
            if content_hash is None:
                decode(data)  # it was never scanned
            elif hashlib.blake2b(data, digest_size=16).hexdigest() != content_hash:
                raise UnreadableImage("its bytes are not those that were scanned")
            return Sample(key, ending_of(row["uri"], data), data, place[0], row)
        except UnreadableImage as error:
            return {"image_id": row["image_id"], "uri": row["uri"], "problem": str(error)}


def ending_of(uri: str, data: bytes) -> str:
    """The ending of a picture's name, or what its bytes say where a listing's uri has none."""
    suffix = PurePosixPath(uri).suffix
    if suffix.lower() in SUFFIXES:
        return suffix
    with Image.open(io.BytesIO(data)) as image:
        return ".jpg" if data.startswith(b"\xff\xd8") else f".{str(image.format).lower()}"


def folder_name(class_name: str) -> str:
    """The name of a class's folder: the class name with unfit characters as in a URL, which `unquote` takes back."""
    return _UNFIT.sub(lambda found: f"%{ord(found.group()):02X}", class_name)


def write_folder(samples: Samples, root: Root, making: Path, place: Path) -> int:
    """Writes CLASS/ID-COPY.ENDING: links to the pictures, or files where these lie in tar shards or a bucket.

    Args:
        samples: The samples, each image once.
        root: The folder that relative uris start from; links to them are relative, too, so that both can be moved.
        making: The folder to write into, which exists.
        place: Where it will be.

    Returns:
        How many links and files there are.
    """
    folders: dict[str, tuple[Path, str]] = {}
    above = None if isinstance(root, Bucket) else root.resolve()
    files = 0
    for sample in samples:
        name = sample.row["class_name"]
        if name not in folders:
            folder = making / folder_name(name)
            folder.mkdir()  # fails where the file system takes two classes for one
            folders[name] = folder, os.path.relpath(above, place / folder.name) if above else ""
        folder, up = folders[name]
        for copy in range(sample.row["copies"]):
            link = folder / f"{sample.key}-{copy}{sample.ending}"
            if sample.shard is None and above and not is_url(sample.row["uri"]):
                link.symlink_to(os.path.join(up, sample.row["uri"]))  # noqa: PTH118 - keeps ".." of the uri
            elif copy == 0:
                link.write_bytes(sample.data)
            else:
                link.symlink_to(f"{sample.key}-0{sample.ending}")
            files += 1
    return files


class _Shard(Protocol):
    """A file of samples that is being written."""

    def add(self, sample: Sample) -> bool:
        """Adds a sample, unless the file holds one and would grow beyond its size; whether it was added."""

    def close(self) -> None:
        """Ends the file."""


def write_tars(samples: Samples, folder: Path, name: str, most_rows: int, most_bytes: int) -> int:
    """Writes NAME-000000.tar ... as webdataset reads them, and says how many.

    Args:
        samples: The samples.
        folder: The folder, which exists.
        name: The beginning of the files' names.
        most_rows: Most samples of a file.
        most_bytes: Most bytes of a file that holds more than one sample.
    """
    return _write_shards(samples, lambda n: _Tar(folder / f"{name}-{n:06}.tar", most_bytes), most_rows)


def write_parquet(
    samples: Samples, folder: Path, columns: pa.Schema, classes: list[str], most_rows: int, most_bytes: int
) -> int:
    """Writes data/train-00000.parquet ... as the datasets library reads them, and says how many.

    Args:
        samples: The samples.
        folder: The folder, which exists.
        columns: The manifest's columns.
        classes: The class names in the order of their indexes.
        most_rows: Most samples of a file.
        most_bytes: Most bytes of a file that holds more than one sample.
    """
    fields = [pa.field("label", pa.int64()) if f.name == "label" else f for f in columns if f.name not in _PLACE]
    image = pa.field("image", pa.struct({"bytes": pa.binary(), "path": pa.string()}))
    # The library takes from here what Arrow's types do not say.
    features = {"image": {"_type": "Image"}, "label": {"names": classes, "_type": "ClassLabel"}}
    schema = pa.schema([image, *fields], {"huggingface": json.dumps({"info": {"features": features}})})
    data = folder / "data"
    data.mkdir()
    return _write_shards(samples, lambda n: _Parquet(data / f"train-{n:05}.parquet", schema, most_bytes), most_rows)


def _write_shards(samples: Samples, begin: Callable[[int], _Shard], most_rows: int) -> int:
    shard: _Shard | None = None
    files = rows = 0
    try:
        for sample in samples:
            if shard is None or rows == most_rows or not shard.add(sample):
                if shard is not None:
                    shard.close()
                shard = begin(files)
                shard.add(sample)
                files, rows = files + 1, 0
            rows += 1
    finally:
        if shard is not None:
            shard.close()
    return files


class _Tar:
    """KEY.ENDING (the picture), KEY.cls (the class index) and KEY.json (the row)."""

    def __init__(self, file: Path, most_bytes: int) -> None:
        self.tar = tarfile.open(file, "w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115 - closed by close()
        self.most_bytes = most_bytes

    def add(self, sample: Sample) -> bool:
        members = {
            sample.ending: sample.data,
            ".cls": str(sample.row["label"]).encode(),
            ".json": json.dumps(sample.row, ensure_ascii=False).encode(),
        }
        block = tarfile.BLOCKSIZE
        size = sum(block - len(data) // -block * block for data in members.values())  # a header, and whole blocks
        size += 2 * block + tarfile.RECORDSIZE  # the end of the file, which fills its last record
        if self.tar.offset and self.tar.offset + size > self.most_bytes:
            return False
        for ending, data in members.items():
            member = tarfile.TarInfo(sample.key + ending)  # time 0, owner 0, mode 644
            member.size = len(data)
            self.tar.addfile(member, io.BytesIO(data))
        return True

    def close(self) -> None:
        self.tar.close()


class _Parquet:
    """One row group for each _CHUNK of samples."""

    def __init__(self, file: Path, schema: pa.Schema, most_bytes: int) -> None:
        self.writer = pq.ParquetWriter(file, schema, compression="zstd", use_dictionary=["class_name", "source"])
        self.schema, self.most_bytes = schema, most_bytes
        self.waiting: list[dict[str, Any]] = []
        self.size = 0

    def add(self, sample: Sample) -> bool:
        size = len(sample.data) + 1024  # a row is smaller, its share of the footer included
        if self.size and self.size + size > self.most_bytes:
            return False
        self.size += size
        picture = {"bytes": sample.data, "path": sample.key + sample.ending}
        self.waiting.append({"image": picture} | sample.row)
        if len(self.waiting) == _CHUNK:
            self._flush()
        return True

    def close(self) -> None:
        if self.waiting:
            self._flush()
        self.writer.close()

    def _flush(self) -> None:
        self.writer.write_table(pa.Table.from_pylist(self.waiting, self.schema))
        self.waiting = []
