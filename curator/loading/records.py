"""Rows of a manifest laid out for reading by number: records of one size in one file, uris in another.

    files of the manifest (+ index of a pack) --once--> STORE/rows/KEY/{records,uris,runs.npy,about.json}
    row number -> one read of its record -> one read of its uri

Shuffled training asks for rows in an order in which no Parquet file can be read. The folder holds nothing else than the
manifest does, and can be deleted at any time; it is made again.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import weakref
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from curator import progress
from curator.curation.manifests import Manifest
from curator.delivery import packs
from curator.errors import InputError
from curator.lock import alone
from curator.storage.store import Store

Ints = npt.NDArray[np.int64]

_COLUMNS = ["image_id", "copies", "weight", "uri", "shard", "byte_offset", "byte_length", "top_classes", "top_probs"]
_COLUMNS += ["tail"]
_FORMAT = 2  # of the folders; another one makes them anew
_PIECE = 16_384  # rows; of pieces this small the memory is used again and again, which saves a third of the time


def record(kept: int) -> np.dtype[Any]:
    """One row: 48 bytes and 6 for each class that soft labels keep."""
    return np.dtype(
        [
            ("image_id", "<i8"),
            ("uri_at", "<i8"),
            ("byte_offset", "<i8"),
            ("byte_length", "<i8"),
            ("uri_bytes", "<i4"),
            ("shard", "<i4"),  # -1 for a file of its own
            ("weight", "<f4"),
            ("tail", "<f4"),
            ("probs", "<f4", (kept,)),
            ("classes", "<i2", (kept,)),
        ]
    )


class Layout(NamedTuple):
    """The rows of a manifest on disk.

    Attributes:
        records: Its records.
        uris: What `uri_at` and `uri_bytes` of a record are places in.
        shards: What `shard` numbers, relative to the root.
        runs: [R, 3] int64: first row, first position and copies of each run of rows that have equally many copies.
        length: Rows with their copies.
        packed: Rows whose image lies in the pack.
    """

    records: Records
    uris: Bytes
    shards: list[str]
    runs: Ints
    length: int
    packed: int


class Records:
    """Records in a file. Read, not mapped: mapped pages count as memory of the process, a whole manifest in the end."""

    def __init__(self, path: Path, record: np.dtype[Any]) -> None:
        # absolute, for a process that opens it again somewhere else
        self._path, self._record = path.absolute(), record
        self._length = path.stat().st_size // record.itemsize
        self._file = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._file)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._path, self._record)  # another process opens the file for itself

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, rows: Ints) -> npt.NDArray[Any]:
        file, size = self._file, self._record.itemsize
        return np.frombuffer(b"".join(os.pread(file, size, row * size) for row in rows.tolist()), self._record)


class Bytes:
    """The bytes of a file, as slices."""

    def __init__(self, path: Path) -> None:
        self._path = path.absolute()
        self._file = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._file)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._path,)

    def __getitem__(self, part: slice) -> bytes:
        return os.pread(self._file, part.stop - part.start, part.start)


class Shards:
    """Numbers the shards, and sends rows that a pack holds to the pack."""

    def __init__(self, store: Store, pack: str | None) -> None:
        self.names: list[tuple[bool, str]] = []  # whether of the pack, and so relative to the store and not to the root
        self.packed = 0
        self._number: dict[tuple[bool, str], int] = {}
        self._index = None
        if pack is not None:
            index = packs.index(store, pack)
            self._index = index["image_id"].to_numpy(), index

    def place(self, records: npt.NDArray[Any], table: pa.Table) -> None:
        """Fills shard, byte_offset and byte_length of records in."""
        records["shard"] = self._numbers(table["shard"], False)
        for name in ("byte_offset", "byte_length"):
            records[name] = pc.fill_null(table[name], 0).to_numpy()
        if self._index is None or not len(self._index[0]):
            return
        ids, index = self._index
        at = np.minimum(np.searchsorted(ids, records["image_id"]), len(ids) - 1)
        inside = np.flatnonzero(ids[at] == records["image_id"])
        there = index.take(pa.array(at[inside]))
        records["shard"][inside] = self._numbers(there["shard"], True)
        for name in ("byte_offset", "byte_length"):
            records[name][inside] = there[name].to_numpy()
        self.packed += len(inside)

    def _numbers(self, shards: pa.ChunkedArray, packed: bool) -> npt.NDArray[np.int32]:
        coded = shards.combine_chunks().dictionary_encode()
        numbers = []
        for name in coded.dictionary.to_pylist():
            number = self._number.setdefault((packed, name), len(self.names))
            if number == len(self.names):
                self.names.append((packed, name))
            numbers.append(number)
        codes = pc.fill_null(coded.indices, -1).to_numpy()
        found: npt.NDArray[np.int32] = np.array([*numbers, -1], np.int32)[codes]  # the code -1 takes the last
        return found


def paths(names: list[tuple[bool, str]], store: Store) -> list[str]:
    """Where the shards are, relative to the root or absolute. The store may have another place by now."""
    return [store.place.locate(name) if packed else name for packed, name in names]


def of_table(table: pa.Table, kept: int) -> tuple[npt.NDArray[Any], bytes]:
    """Records of a table's images, with shards, soft labels and weights still empty, and their uris."""
    records = np.zeros(table.num_rows, record(kept))
    records["image_id"] = table["image_id"].to_numpy()
    uris = table["uri"].cast(pa.large_binary())
    sizes = pc.binary_length(uris).to_numpy()
    records["uri_bytes"] = sizes
    records["uri_at"] = np.cumsum(sizes) - sizes
    return records, _joined(uris)


def _joined(values: pa.ChunkedArray) -> bytes:
    """The values of a large binary array one after the other, as they lie in memory."""
    parts = []
    for chunk in values.chunks:
        _, offsets, data = chunk.buffers()
        ends = np.frombuffer(offsets, np.int64)[[chunk.offset, chunk.offset + len(chunk)]]
        parts.append(memoryview(data)[ends[0] : ends[1]] if data else b"")
    return b"".join(parts)


def lay_out(store: Store, manifest: Manifest, pack: str | None) -> Layout:
    """The rows of a manifest, laid out now if they are not yet.

    Args:
        store: The store.
        manifest: The manifest.
        pack: The pack that images are read from, where they are in it.

    Raises:
        InputError: The folder cannot be written.
    """
    # of the manifest and the state of the pack; folders of other states may be in use and stay
    state = f"-{pack}-{packs.state(store, pack)}" if pack else ""
    folder = store.path / "rows" / f"{manifest.sha256}{state}"
    try:
        return _open(store, folder, sorted(manifest.path.glob("*.parquet")), pack, manifest.unique_images)
    except PermissionError:
        raise InputError(
            f"the loader lays a manifest's rows out in {folder.parent}, once, and may not write there",
            "open the loader once as somebody who may, or change the folder's permissions",
        ) from None


def _open(store: Store, folder: Path, files: list[Path], pack: str | None, unique: int) -> Layout:
    if not _is_there(folder):
        with alone(folder.parent):
            if not _is_there(folder):  # else another process made it meanwhile
                _make(folder, files, Shards(store, pack), _kept_classes(store, files), unique)
    about = json.loads((folder / "about.json").read_text("utf-8"))
    records = Records(folder / "records", record(about["kept"]))
    runs = np.load(folder / "runs.npy")
    shards = paths(about["shards"], store)
    return Layout(records, Bytes(folder / "uris"), shards, runs, about["length"], about["packed"])


def _is_there(folder: Path) -> bool:
    """Whether a folder holds rows, of this format and whole."""
    try:
        about = json.loads((folder / "about.json").read_text("utf-8"))
        sizes = {name: (folder / name).stat().st_size for name in about["bytes"]}
        np.load(folder / "runs.npy")
        return bool(about["format"] == _FORMAT and sizes == about["bytes"])
    except (OSError, ValueError, KeyError, EOFError):
        return False


def _make(folder: Path, files: list[Path], shards: Shards, kept: int, unique: int) -> None:
    """Lays the rows of a manifest out for reading by number; the folder is there when it is complete."""
    for old in [*folder.parent.glob(folder.name), *folder.parent.glob(".unfinished-*")]:  # damaged, of killed runs
        shutil.rmtree(old)
    beside = Path(tempfile.mkdtemp(prefix=".unfinished-", dir=folder.parent))
    try:
        runs, rows, length = [], 0, 0
        with (
            (beside / "records").open("wb") as records_file,
            (beside / "uris").open("wb") as uris_file,
            progress.progress("laying the manifest's rows out for the loader, once", unique, "rows") as advance,
            # its threads end before the files are closed that they write to
            closing(_written(files, kept, shards, records_file.fileno(), uris_file.fileno())) as written,
        ):
            for copies in written:
                begins = np.flatnonzero(np.diff(copies, prepend=-1))
                positions = length + np.cumsum(copies) - copies
                runs.append(np.stack([rows + begins, positions[begins], copies[begins]], axis=1))
                rows += len(copies)
                length += int(copies.sum())
                advance(len(copies))
        np.save(beside / "runs.npy", np.concatenate(runs))
        about = {
            "format": _FORMAT,
            "kept": kept,
            "length": length,
            "packed": shards.packed,
            "shards": shards.names,
            "bytes": {file.name: file.stat().st_size for file in sorted(beside.iterdir())},
        }
        (beside / "about.json").write_text(json.dumps(about), "utf-8")
        beside.rename(folder)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise


def _kept_classes(store: Store, files: list[Path]) -> int:
    """Classes that a soft label keeps at most."""
    for file in files:
        about = pq.read_metadata(file)
        column = about.schema.names.index("element")  # the first list: top_classes
        for group in map(about.row_group, range(about.num_row_groups)):
            if group.column(column).num_values > group.num_rows:
                return min(store.settings.kept_classes, len(store.classes()))
    return 1  # hard targets


def _written(files: list[Path], kept: int, shards: Shards, records_file: int, uris_file: int) -> Generator[Ints]:
    """Writes records, each in its place, and uris, in any order, in threads; yields the copies of rows in order."""
    one, uris_end = Lock(), 0
    size = record(kept).itemsize

    def group(file: Path, number: int, at: int) -> Ints:
        nonlocal uris_end
        copies = []
        with pq.ParquetFile(file) as opened:
            for batch in opened.iter_batches(_PIECE, row_groups=[number], columns=_COLUMNS, use_threads=False):
                table = pa.Table.from_batches([batch])
                records, uris = _soft(table, kept)
                with one:
                    shards.place(records, table)
                    uris_at, uris_end = uris_end, uris_end + len(uris)
                records["uri_at"] += uris_at
                _write(uris_file, uris, uris_at)
                _write(records_file, records.view(np.uint8).data, at * size)
                at += len(records)
                copies.append(table["copies"].to_numpy().astype(np.int64))
        return np.concatenate(copies)

    threads = min(4, os.cpu_count() or 1)
    with ThreadPoolExecutor(threads, "rows") as pool:
        begun, at = [], 0
        for file in files:
            about = pq.read_metadata(file)
            for number in range(about.num_row_groups):
                begun.append(pool.submit(group, file, number, at))
                at += about.row_group(number).num_rows
        try:
            for each in begun:
                yield each.result()
        finally:  # after an error the others need not begin
            pool.shutdown(cancel_futures=True)


def _write(file: int, values: bytes | memoryview, at: int) -> None:
    left = memoryview(values)
    while left:  # a call may write less, when the disk is nearly full
        done = os.pwrite(file, left, at)
        left, at = left[done:], at + done


def _soft(table: pa.Table, kept: int) -> tuple[npt.NDArray[Any], bytes]:
    """Records of a manifest's rows, shards still empty, and their uris."""
    records, uris = of_table(table, kept)
    records["tail"], records["weight"] = table["tail"].to_numpy(), table["weight"].to_numpy()
    classes, probs = (pc.list_flatten(table[name]).to_numpy() for name in ("top_classes", "top_probs"))
    if len(classes) == kept * len(table):
        records["classes"], records["probs"] = classes.reshape(-1, kept), probs.reshape(-1, kept)
    else:
        lengths = pc.list_value_length(table["top_classes"]).to_numpy()
        there = np.arange(kept)[None, :] < lengths[:, None]
        records["classes"] = -1
        records["classes"][there], records["probs"][there] = classes, probs
    return records, uris
