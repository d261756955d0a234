"""Training rows by number: where each image is, its target, and how often it counts, in a memory that does not grow.

position in the endless sequence of passes -> keyed shuffle -> run of copies -> row number -> its record
"""

from __future__ import annotations

import hashlib
from contextlib import closing
from dataclasses import dataclass
from typing import Any, NamedTuple

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from curator import draws, queries
from curator.curation import checks, manifests
from curator.errors import InputError
from curator.loading.records import Bytes, Ints, Records, Shards, lay_out, of_table, paths
from curator.storage.store import Store, Versions


class Place(NamedTuple):
    """Where an image's bytes are, as `reading.read_bytes` takes it."""

    uri: str
    shard: str | None
    byte_offset: int | None
    byte_length: int | None


class Fold(NamedTuple):
    """A part of the labeled split that a training leaves out, see sql/folds.sql and folds.py."""

    run: str
    number: int  # 0 to of - 1
    of: int
    seed: int


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
        records: [N] records, see `records.record`, in memory or in a file.
        uris: The uris one after the other, in memory or in a file.
        shards: The shards that the records number.
        runs: [R, 3] int64: first row, first position and copies of each run of rows that have equally many copies.
        length: Rows counted with their copies: the length of one pass.
        temperature: Of the soft labels.
        unscanned: Labeled rows without a content hash, which cannot be compared with the holdout.
        packed: Rows whose image is read from the pack.
        relabeled: Labeled rows whose class a review gave.
        rejected: Images of the labeled split that a review took out.
    """

    name: str
    records: npt.NDArray[Any] | Records
    uris: bytes | Bytes
    shards: list[str]
    runs: Ints
    length: int
    temperature: float = 1.0
    unscanned: int = 0
    pack: str | None = None
    packed: int = 0
    relabeled: int = 0
    rejected: int = 0

    @property
    def notes(self) -> list[str]:
        """What a user should know of labeled rows before training begins, in lines."""
        found = []
        if self.unscanned:
            found.append(f"{self.unscanned} labeled images were never scanned, so not checked against the holdout")
        if self.relabeled or self.rejected:
            changed = f"{self.relabeled} count for another class, {self.rejected} are left out"
            found.append(f"reviews of labeled images: {changed}")
        return found

    @classmethod
    def labeled(
        cls, store: Store, pack: str | None = None, fold: Fold | None = None, versions: Versions | None = None
    ) -> Rows:
        """The labeled split as people left it, one copy each, one-hot targets.

        Args:
            store: The store.
            pack: The pack that images are read from, where they are in it.
            fold: Part of the split to leave out.
            versions: Table versions to read; the newest for a table that is not named.

        Raises:
            InputError: There is nothing to train on.
        """
        with closing(store.connect(versions)) as con:
            table = labeled_rows(con, fold)
            rejects = "select count(*) as n from stored_images join decisions using (image_id)"
            rejects += " where split = 'labeled' and decision = 'reject'"
            rejected = queries.rows(con, queries.compose(queries.steps(*queries.DECISIONS), rejects))[0]["n"]
        if fold is not None:
            table = table.filter(pc.not_equal(table["fold"], fold.number))
        n = table.num_rows
        if not n:
            raise InputError("there are no labeled images to train on", "curator add-images FOLDER --split labeled")
        shards = Shards(store, pack)
        found, uris = of_table(table, 1)
        shards.place(found, table)
        found["classes"], found["probs"], found["weight"] = table["label"].to_numpy()[:, None], 1, 1
        unscanned = pc.sum(pc.equal(table["status"], "unscanned")).as_py()
        relabeled = pc.sum(pc.equal(table["source"], "review")).as_py()
        runs = np.array([[0, 0, 1]], np.int64)
        where = paths(shards.names, store)
        name = "labeled" if fold is None else f"labeled without fold {fold.number} of {fold.of}, seed {fold.seed}"
        return cls(name, found, uris, where, runs, n, 1.0, unscanned, pack, shards.packed, relabeled, rejected)

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
        try:
            if not files:
                raise FileNotFoundError(f"no files in {found.uri}")
            with closing(store.connect()) as con:
                con.read_parquet([str(file) for file in files]).create_view("rows")
                checks.expect_no_leak(con, name, found.lineage)
            laid = lay_out(store, found, pack)
        except (OSError, pa.ArrowException, duckdb.Error) as error:
            whole = files and all(file.exists() for file in files)
            if whole and getattr(error, "errno", None) is not None:  # the disk is full, say
                raise
            raise InputError(
                f"the files of the manifest '{name}' cannot be read ({str(error).splitlines()[0]})",
                f"{store.place.removal([found.folder])}, then curator build-manifest {name} --as-of {name}",
            ) from None
        temperature = found.lineage["parameters"]["temperature"]
        return cls(
            f"manifest {found.sha256}",
            laid.records,
            laid.uris,
            laid.shards,
            laid.runs,
            laid.length,
            temperature,
            pack=pack,
            packed=laid.packed,
        )

    def __len__(self) -> int:
        return len(self.records)

    @property
    def digest(self) -> str:
        """The sha256 of images and classes, for rows in memory."""
        found = self.records[np.arange(len(self))]
        return hashlib.sha256(found["image_id"].tobytes() + found["classes"].tobytes()).hexdigest()

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
        """The rows [N] of these numbers.

        Raises:
            InputError: What was laid out is damaged.
        """
        try:
            return self._read(rows)
        except (ValueError, IndexError):  # cut off, no text, no shard of that number
            raise self._damaged() from None

    def _damaged(self) -> InputError:
        return InputError(
            f"the rows that were laid out for the {self.name} are damaged",
            "delete the folder rows of the store; it is made again",
        )

    def _read(self, rows: Ints) -> Part:
        found = self.records[rows]
        if not found["uri_bytes"].all():  # a page of zeros, as a power cut may leave
            raise self._damaged()
        uris, shards = self.uris, self.shards
        places = []
        columns = (found[name].tolist() for name in ("uri_at", "uri_bytes", "shard", "byte_offset", "byte_length"))
        for at, size, shard, first, length in zip(*columns, strict=True):
            uri = uris[at : at + size].decode()
            places.append(Place(uri, shards[shard], first, length) if shard >= 0 else Place(uri, None, None, None))
        return Part(found["image_id"], found["weight"], found["classes"], found["probs"], found["tail"], places)


def labeled_rows(con: duckdb.DuckDBPyConnection, folds: Fold | None = None) -> pa.Table:
    """The labeled images that can be trained on, by image_id; with the column `fold` where the split is cut."""
    steps = queries.steps(*queries.TRUSTED, "holdout_twins")
    if folds is None:
        return con.sql(queries.compose(steps, queries.text("labeled_rows"))).to_arrow_table()
    steps |= {"labeled": queries.text("labeled_rows"), "folds": queries.text("folds")}
    values = {"folds": folds.of, "seed": folds.seed}
    return con.sql(queries.compose(steps, queries.text("fold_rows")), params=values).to_arrow_table()


def holdout_rows(sample: bool = False) -> str:
    """The query of the images that a model is evaluated on, see sql/holdout_rows.sql, or of a sample of them.

    Args:
        sample: Whether to take $limit of them, drawn with $seed, see sql/holdout_sample.sql.
    """
    steps, rows = queries.steps(*queries.TRUSTED), queries.text("holdout_rows")
    if not sample:
        return queries.compose(steps, rows)
    return queries.compose(steps | {"evaluated": rows}, queries.text("holdout_sample"))
