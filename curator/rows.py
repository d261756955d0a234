"""Training rows by number: where each image is, its target, and how often it counts, in a memory that does not grow.

    files of the manifest (+ index of a pack) --once--> STORE/rows/KEY: records of one size, uris, runs of copies
    position in the endless sequence of passes -> keyed shuffle -> run of copies -> row number -> one read of its record

Shuffled training asks for rows in an order that no Parquet file is read in, so the rows are laid out once for that:
every row is one record, read where it stands. The folder can be deleted at any time; it is made again.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
import weakref
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from curator import draws, manifests, packs, progress, queries
from curator.errors import InputError, some
from curator.lock import alone
from curator.store import Store

Ints = npt.NDArray[np.int64]

_COLUMNS = ["image_id", "copies", "weight", "uri", "shard", "byte_offset", "byte_length", "top_classes", "top_probs"]
_COLUMNS += ["tail"]
_FORMAT = 1  # of the folders; another one makes them anew


class Place(NamedTuple):
    """Where an image's bytes are, as `images.read_bytes` takes it."""

    uri: str
    shard: str | None
    byte_offset: int | None
    byte_length: int | None


class Part(NamedTuple):
    """Some rows, each with what a batch needs of it.

    Attributes:
        image_id: [N] int64.
        weight: [N] float32, what a row weighs in the loss.
        classes: [N, K] int16, -1 where a row has fewer than K.
        probs: [N, K] float32.
        tail: [N] float32, mass of all other classes.
        places: Where the images are.
    """

    image_id: Ints
    weight: npt.NDArray[np.float32]
    classes: npt.NDArray[np.int16]
    probs: npt.NDArray[np.float32]
    tail: npt.NDArray[np.float32]
    places: list[Place]


@dataclass(frozen=True)
class Rows:
    """Training rows.

    Attributes:
        name: What the rows are, part of the key of their order.
        records: [N] records of `_record`, in memory or in a file.
        uris: The uris one after the other, in memory or in a file.
        shards: The shards that the records number.
        runs: [R, 3] int64: first row, first position and copies of each run of rows that have equally many copies.
        length: Rows counted with their copies: the length of one pass.
        temperature: Of the soft labels.
        unscanned: Labeled rows without a content hash, which cannot be compared with the holdout.
        packed: Rows whose image is read from the pack.
    """

    name: str
    records: npt.NDArray[Any] | _Records
    uris: bytes | _Bytes
    shards: list[str]
    runs: Ints
    length: int
    temperature: float = 1.0
    unscanned: int = 0
    pack: str | None = None
    packed: int = field(default=0, compare=False)

    @classmethod
    def labeled(cls, store: Store, pack: str | None = None) -> Rows:
        """The labeled split, one copy each, one-hot targets.

        Args:
            store: The store.
            pack: The pack that images are read from, where they are in it.

        Raises:
            InputError: There is nothing to train on.
        """
        with closing(store.connect()) as con:
            steps = {"holdout_twins": queries.text("holdout_twins")}
            table = con.sql(queries.compose(steps, queries.text("labeled_rows"))).to_arrow_table()
        n = table.num_rows
        if not n:
            raise InputError("there are no labeled images to train on", "curator add-images FOLDER --split labeled")
        shards = _Shards(store, pack)
        records, uris = _records(table, shards, 0, 1)
        records["classes"], records["probs"], records["weight"] = table["label"].to_numpy()[:, None], 1, 1
        unscanned = pc.sum(pc.equal(table["status"], "unscanned")).as_py()
        runs = np.array([[0, 0, 1]], np.int64)
        return cls("labeled", records, uris, shards.names, runs, n, 1.0, unscanned, pack, shards.packed)

    @classmethod
    def manifest(cls, store: Store, name: str, pack: str | None = None) -> Rows:
        """The rows of a manifest, its soft labels as they stand (temperature is applied when targets are made).

        Args:
            store: The store.
            name: The manifest.
            pack: The pack that images are read from, where they are in it.

        Raises:
            InputError: Its files are gone or damaged, or an image of it is in the holdout by now.
        """
        found = manifests.find(store, name)
        files = sorted(found.path.glob("*.parquet"))
        state = f"-{pack}-{store.delta('packed').version()}" if pack else ""
        folder = store.path / "rows" / f"{found.sha256}{state}"
        try:
            if not files:
                raise FileNotFoundError(f"no files in {found.path}")
            _expect_no_twins(store, name, files)
            if not _there(folder):
                with alone(folder.parent):
                    if not _there(folder):  # else another process made it meanwhile
                        _make(folder, files, _Shards(store, pack), _kept(store, files), found.unique_images)
        except (OSError, pa.ArrowException, duckdb.Error) as error:
            if getattr(error, "errno", None) not in (None, errno.ENOENT):  # the disk is full, say
                raise
            raise InputError(
                f"the files of the manifest '{name}' cannot be read ({str(error).splitlines()[0]})",
                f"remove {found.path}, and curator build-manifest {name} --as-of {name}",
            ) from None
        about = json.loads((folder / "about.json").read_text("utf-8"))
        return cls(
            f"manifest {found.sha256}",
            _Records(folder / "records", _record(about["kept"])),
            _Bytes(folder / "uris"),
            about["shards"],
            np.load(folder / "runs.npy"),
            about["length"],
            found.lineage["parameters"]["temperature"],
            pack=pack,
            packed=about["packed"],
        )

    def __len__(self) -> int:
        return len(self.records)

    def at(self, positions: Ints, seed: int) -> Ints:
        """Row numbers [N] of positions [N] in the endless sequence of passes, each pass shuffled anew."""
        shuffled = np.empty(len(positions), np.int64)
        passes = positions // self.length
        for number in np.unique(passes):
            inside = passes == number
            key = draws.key(seed, "order", self.name, int(number))
            shuffled[inside] = draws.shuffle(key, positions[inside] % self.length, self.length)
        row, position, copies = self.runs[np.searchsorted(self.runs[:, 1], shuffled, side="right") - 1].T
        found: Ints = row + (shuffled - position) // copies
        return found

    def read(self, rows: Ints) -> Part:
        """The rows [N] of these numbers."""
        records = self.records[rows]
        uris, shards = self.uris, self.shards
        places = []
        columns = (records[name].tolist() for name in ("uri_at", "uri_bytes", "shard", "byte_offset", "byte_length"))
        for at, size, shard, first, length in zip(*columns, strict=True):
            uri = uris[at : at + size].decode()
            places.append(Place(uri, shards[shard], first, length) if shard >= 0 else Place(uri, None, None, None))
        return Part(
            records["image_id"], records["weight"], records["classes"], records["probs"], records["tail"], places
        )


def _record(kept: int) -> np.dtype[Any]:
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


class _Records:
    """Records in a file. Read, not mapped: mapped pages count as memory of the process, a whole manifest in the end."""

    def __init__(self, path: Path, record: np.dtype[Any]) -> None:
        self._record, self._length = record, path.stat().st_size // record.itemsize
        self._file = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._file)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, rows: Ints) -> npt.NDArray[Any]:
        file, size = self._file, self._record.itemsize
        return np.frombuffer(b"".join(os.pread(file, size, row * size) for row in rows.tolist()), self._record)


class _Bytes:
    """The bytes of a file, as slices."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._file)

    def __getitem__(self, part: slice) -> bytes:
        return os.pread(self._file, part.stop - part.start, part.start)


class _Shards:
    """Numbers the shards, and sends rows that a pack holds to the pack."""

    def __init__(self, store: Store, pack: str | None) -> None:
        self.names: list[str] = []
        self.packed = 0
        self._number: dict[str, int] = {}
        self._index = None
        if pack is not None:
            index = packs.index(store, pack)
            self._index = index["image_id"].to_numpy(), index
            folder = os.path.relpath(store.path.absolute(), store.root)
            self._folder = "" if folder == "." else f"{folder}/"

    def place(self, records: npt.NDArray[Any], table: pa.Table) -> None:
        """Fills shard, byte_offset and byte_length of records in."""
        records["shard"] = self._numbers(table["shard"], "")
        for name in ("byte_offset", "byte_length"):
            records[name] = pc.fill_null(table[name], 0).to_numpy()
        if self._index is None or not len(self._index[0]):
            return
        ids, index = self._index
        at = np.minimum(np.searchsorted(ids, records["image_id"]), len(ids) - 1)
        inside = np.flatnonzero(ids[at] == records["image_id"])
        there = index.take(pa.array(at[inside]))
        records["shard"][inside] = self._numbers(there["shard"], self._folder)
        for name in ("byte_offset", "byte_length"):
            records[name][inside] = there[name].to_numpy()
        self.packed += len(inside)

    def _numbers(self, shards: pa.ChunkedArray, folder: str) -> npt.NDArray[np.int32]:
        coded = shards.combine_chunks().dictionary_encode()
        numbers = []
        for name in coded.dictionary.to_pylist():
            number = self._number.setdefault(folder + name, len(self.names))
            if number == len(self.names):
                self.names.append(folder + name)
            numbers.append(number)
        codes = pc.fill_null(coded.indices, -1).to_numpy()
        found: npt.NDArray[np.int32] = np.array([*numbers, -1], np.int32)[codes]  # the code -1 takes the last
        return found


def _records(table: pa.Table, shards: _Shards, uris_before: int, kept: int) -> tuple[npt.NDArray[Any], bytes]:
    """Records of a table's images, soft labels and weights still empty, and their uris."""
    records = np.zeros(table.num_rows, _record(kept))
    records["image_id"] = table["image_id"].to_numpy()
    uris = table["uri"].cast(pa.large_binary())
    sizes = pc.binary_length(uris).to_numpy()
    records["uri_bytes"] = sizes
    records["uri_at"] = uris_before + np.cumsum(sizes) - sizes
    shards.place(records, table)
    return records, b"".join(uris.to_pylist())


def _expect_no_twins(store: Store, name: str, files: list[Path]) -> None:
    with closing(store.connect()) as con:
        con.read_parquet([str(file) for file in files]).create_view("manifest")
        steps = {"holdout_twins": queries.text("holdout_twins")}
        leaks = queries.rows(con, queries.compose(steps, queries.text("manifest_twins")))
    if leaks:
        raise InputError(
            f"{len(leaks)} images of the manifest '{name}' have the same bytes as images that were added to the "
            f"holdout since: {some(row['uri'] for row in leaks)}",
            "build it again under another name; images of the holdout are left out",
        )


def _there(folder: Path) -> bool:
    try:
        return bool(json.loads((folder / "about.json").read_text("utf-8"))["format"] == _FORMAT)
    except (OSError, ValueError, KeyError):
        return False


def _make(folder: Path, files: list[Path], shards: _Shards, kept: int, unique: int) -> None:
    """Lays the rows of a manifest out for reading by number; the folder is there when it is complete."""
    for old in folder.parent.glob(f"{folder.name[:64]}*"):  # of this manifest: another state of the pack, or damaged
        shutil.rmtree(old)
    for old in folder.parent.glob(".unfinished-*"):
        shutil.rmtree(old)
    beside = Path(tempfile.mkdtemp(prefix=".unfinished-", dir=folder.parent))
    try:
        runs, rows, length, uris_bytes = [], 0, 0, 0
        with (
            (beside / "records").open("wb") as records_file,
            (beside / "uris").open("wb") as uris_file,
            progress.progress("laying the manifest's rows out for the loader, once", unique, "rows") as advance,
        ):
            for table, classes, probs in _groups(files, kept):
                records, uris = _records(table, shards, uris_bytes, kept)
                records["classes"], records["probs"] = classes, probs
                records["tail"], records["weight"] = table["tail"].to_numpy(), table["weight"].to_numpy()
                records.tofile(records_file)
                uris_file.write(uris)
                uris_bytes += len(uris)
                copies = table["copies"].to_numpy().astype(np.int64)
                begins = np.flatnonzero(np.diff(copies, prepend=-1))
                positions = length + np.cumsum(copies) - copies
                runs.append(np.stack([rows + begins, positions[begins], copies[begins]], axis=1))
                rows += len(records)
                length += int(copies.sum())
                advance(len(records))
        np.save(beside / "runs.npy", np.concatenate(runs))
        about = {"format": _FORMAT, "kept": kept, "length": length, "shards": shards.names, "packed": shards.packed}
        (beside / "about.json").write_text(json.dumps(about), "utf-8")
        beside.rename(folder)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise


def _kept(store: Store, files: list[Path]) -> int:
    """Classes that a soft label keeps at most."""
    for file in files:
        about = pq.read_metadata(file)
        column = about.schema.names.index("element")  # the first list: top_classes
        for group in map(about.row_group, range(about.num_row_groups)):
            if group.column(column).num_values > group.num_rows:
                return min(store.settings.kept_classes, len(store.classes()))
    return 1  # hard targets


def _groups(files: list[Path], kept: int) -> Iterator[tuple[pa.Table, npt.NDArray[np.int16], npt.NDArray[np.float32]]]:
    """The row groups in their order, with classes and probabilities [N, kept]; threads read ahead."""

    def group(file: Path, number: int) -> tuple[pa.Table, npt.NDArray[np.int16], npt.NDArray[np.float32]]:
        with pq.ParquetFile(file) as opened:
            table = opened.read_row_group(number, columns=_COLUMNS, use_threads=False)
        lengths = pc.list_value_length(table["top_classes"]).to_numpy()
        there = np.arange(kept)[None, :] < lengths[:, None]
        classes = np.full((len(table), kept), -1, np.int16)
        probs = np.zeros((len(table), kept), np.float32)
        classes[there] = pc.list_flatten(table["top_classes"]).to_numpy()
        probs[there] = pc.list_flatten(table["top_probs"]).to_numpy()
        return table, classes, probs

    threads = min(4, os.cpu_count() or 1)
    waiting: deque[Any] = deque()
    with ThreadPoolExecutor(threads, "rows") as pool:
        for file in files:
            for number in range(pq.read_metadata(file).num_row_groups):
                waiting.append(pool.submit(group, file, number))
                if len(waiting) > threads:
                    yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
