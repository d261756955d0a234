"""Packs as they are: which there are, where each picture lies, whether they are as they were written.

    table `packed`, files of `packing` -> index for the loader, the pack that fits a training, damage

A picture that the table does not name, or whose file is gone or cut off, is in no pack.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa

from curator import progress, queries
from curator.delivery.samples import SHOWN
from curator.delivery.shards import Form, damage
from curator.errors import InputError, some, suggestion

if TYPE_CHECKING:
    import duckdb

    from curator.storage.store import Store

FOLDER = "packs"
BATCH = 1000  # rows read from the database at a time


class Verified(NamedTuple):
    """What reading a whole pack found.

    Attributes:
        pack: Name of the pack.
        path: Its folder.
        images: Pictures that the store says it has.
        shards: Files that these are in.
        damaged: Pictures, and files, that are not as they were written.
        damaged_shards: The files that have damage, relative to the store.
        problems: The first of the damage: image_id, shard, problem.
    """

    pack: str
    path: str
    images: int
    shards: int
    damaged: int
    damaged_shards: list[str]
    problems: list[dict[str, Any]]


def index(store: Store, name: str) -> pa.Table:
    """Where each picture of a pack lies; pictures in files that are gone are not in it.

    Returns:
        image_id int64 in ascending order, shard string (as a dictionary; relative to the store), byte_offset int64,
        byte_length int64, each in one chunk.
    """
    with closing(store.connect()) as con:
        there = register_shards(con, store, name)
        found: pa.Table = con.sql(queries.text("pack_index"), params={"pack": name}).to_arrow_table()
    # One text for each shard and Arrow's sort: a third of the memory that texts sorted by DuckDB take.
    found = found.sort_by("image_id").combine_chunks()
    numbers = pa.array(found["number"].to_numpy())
    return found.set_column(1, "shard", pa.DictionaryArray.from_arrays(numbers, there))


def state(store: Store, name: str) -> str:
    """A short name for which files of a pack there are: what `index` says depends on nothing else."""
    with closing(store.connect()) as con:
        shards = queries.rows(con, queries.text("pack_shards"), pack=name)
    there = [(shard["shard"], shard["images"]) for shard in shards if is_there(store, shard)]
    return hashlib.blake2b(repr(there).encode(), digest_size=6).hexdigest()


def fitting(store: Store, size: int) -> str | None:
    """The pack to read for a training at `size` px.

    Returns:
        Of the packs whose short side is at least `size` the smallest, and the best in quality of these; else
        "original"; None where there is no such pack.
    """
    forms = [Form.named(name) for name in names(store)]
    large = [form for form in forms if form.size is not None and form.size >= size]
    best = min(large, key=lambda form: (form.size, -form.quality), default=None)
    return best.name if best else "original" if Form(None) in forms else None


def chosen(store: Store, wanted: str | None, size: int) -> str | None:
    """The pack that a training at `size` px reads: the one that is asked for, or `fitting`'s for "auto".

    Raises:
        InputError: There is no pack of that name.
    """
    if wanted == "auto":
        return fitting(store, size)
    if wanted is not None:
        _expect(store, wanted)
    return wanted


def _expect(store: Store, name: str) -> None:
    known = names(store)
    if name not in known:
        raise InputError(
            f"there is no pack '{name}'{suggestion(name, known)}",
            f"give the name of a pack: {some(known)}" if known else "curator pack, to make one",
        )


def names(store: Store) -> list[str]:
    """The packs that have pictures and a folder, sorted."""
    rows = store.rows("select distinct pack from packed order by pack")
    return [row["pack"] for row in rows if store.place.has(f"{FOLDER}/{row['pack']}")]


def verify(store: Store, name: str) -> Verified:
    """Reads every picture of a pack and compares it with what the store says.

    Raises:
        InputError: There is no such pack.
    """
    _expect(store, name)
    found: list[dict[str, Any]] = []
    with closing(store.connect()) as con, threads() as pool:
        shards = queries.rows(con, queries.text("pack_shards"), pack=name)
        images = sum(shard["images"] for shard in shards)
        query = "select * from stored_packed where pack = $pack order by shard, byte_offset"
        rows = (row for table in queries.batches(con, query, BATCH, pack=name) for row in table.to_pylist())
        with progress.progress(f"verifying {name}", images) as advance:
            for shard, group in groupby(rows, itemgetter("shard")):
                written = list(group)
                # what others read is verified, and not a copy of it on this machine; a pack may be larger than its disk
                store.place.release([store.path / shard])
                store.place.bring(shard)
                found += damage(store.path, shard, written, pool)
                store.place.release([store.path / shard])
                advance(len(written))
    bad = sorted({problem["shard"] for problem in found})
    return Verified(name, store.place.uri(f"{FOLDER}/{name}"), images, len(shards), len(found), bad, found[:SHOWN])


def register_shards(con: duckdb.DuckDBPyConnection, store: Store, name: str) -> pa.Array:
    """Makes the shards of a pack that are there the relation `shards`, and gives them in the order of their numbers."""
    shards = queries.rows(con, queries.text("pack_shards"), pack=name)
    there = pa.array([shard["shard"] for shard in shards if is_there(store, shard)], pa.string())
    con.register("shards", pa.table({"shard": there, "number": pa.array(range(len(there)), pa.int32())}))
    return there


def is_there(store: Store, shard: dict[str, Any]) -> bool:
    """Whether the file of a row of sql/pack_shards.sql is there and not cut off."""
    size = store.place.size(shard["shard"])
    return size is not None and size >= int(shard["bytes"])


@contextmanager
def threads() -> Iterator[ThreadPoolExecutor]:
    """Threads for reading, decoding and encoding; a Ctrl-C waits for none of them."""
    with ThreadPoolExecutor((os.cpu_count() or 1) + 1) as pool:
        try:
            yield pool
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)  # else Ctrl-C would wait for a whole shard
            raise
