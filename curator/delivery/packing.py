"""Packing: each picture that a training reads once more, encoded at a training size or as it is, in a few large files.

    manifest + labeled split -> images that the pack lacks, in the order of their place
        -> read, compared with the scan, encoded (threads) -> shard -> read back -> one commit to the table `packed`

A killed run goes on after the last commit. What the table does not name is a leftover, and is removed at the next
start; a shard that the table names and that is gone is forgotten then, and its images are packed again.
"""

from __future__ import annotations

import datetime as dt
import os
import re
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa

from curator import progress, queries
from curator.curation import manifests
from curator.delivery import exports, packs
from curator.delivery.samples import SHOWN
from curator.delivery.shards import Form, Picture, Shard, prepare
from curator.errors import InputError, printable
from curator.lock import alone
from curator.pictures.decode import UnreadableImage
from curator.pictures.reading import Asked, Reader, place_of
from curator.schema import MANIFEST_ROW, PACKED
from curator.storage import additions

if TYPE_CHECKING:
    import duckdb

    from curator.curation.manifests import Manifest
    from curator.storage.store import Store

_AHEAD = 2 * ((os.cpu_count() or 1) + 1)  # pictures prepared before they are written


class Packed(NamedTuple):
    """What a run packed.

    Attributes:
        pack: Name of the pack.
        path: Its folder.
        images: Images packed by this run, or to be packed by it where it is dry.
        already_packed: Those that the pack had.
        unreadable: Those that cannot be read, or have other bytes than when they were scanned.
        bytes: Of the packed pictures of this run; None in a dry run.
        source_bytes: Of their originals; in a dry run, as far as they are known from the scan.
        total: All images that the training reads.
        problems: The first of the unreadable ones: image_id, uri, problem.
    """

    pack: str
    path: str
    images: int
    already_packed: int
    unreadable: int
    bytes: int | None
    source_bytes: int
    total: int
    problems: list[dict[str, Any]]


def pack(
    store: Store,
    manifest: str | None = None,
    form: Form | None = None,
    *,
    shard_rows: int = exports.SHARD_ROWS,
    shard_bytes: int = exports.SHARD_BYTES,
    dry_run: bool = False,
) -> Packed:
    """Packs the images of a manifest and of the labeled split that the pack does not have yet.

    Args:
        store: The store.
        manifest: Its name; without one, the labeled split alone is packed.
        form: What to make of each picture; by default `Form.of()`.
        shard_rows: Most pictures of a file.
        shard_bytes: Most bytes of a file; one picture may be larger.
        dry_run: Whether to count only.

    Raises:
        InputError: There is no such manifest, it is damaged or has images of the holdout; there is nothing to pack, or
            none of it can be read.
        StoreError: Another run writes to this pack, or a file could not be read back.
    """
    from curator.noise.augment import single_threaded

    form = form or Form.of()
    if min(shard_rows, shard_bytes) < 1:
        raise InputError("a file cannot hold less than one row or byte", "give --shard-rows and --shard-bytes above 0")
    chosen = None if manifest is None else manifests.find(store, manifest)
    where = store.place.uri(f"{packs.FOLDER}/{form.name}")
    if dry_run:
        with closing(store.connect()) as con:
            count = _count(con, store, chosen, form.name)
            todo = count["total"] - count["packed"]
            return Packed(form.name, where, todo, count["packed"], 0, None, count["source_bytes"], count["total"], [])
    if form.size is not None:
        single_threaded()
    with alone(store.path / packs.FOLDER / form.name, f"packing '{form.name}'"):
        number = _clean(store, form.name)
        with closing(store.connect()) as con, packs.threads() as pool:
            count = _count(con, store, chosen, form.name)
            todo = count["total"] - count["packed"]
            if not count["total"]:
                raise InputError("there are no images to pack", "curator add-images FOLDER --split labeled")
            writing = _Writing(store, form, number, pool, (shard_rows, shard_bytes))
            with progress.progress(f"packing {form.name}", todo) as advance:
                writing.write(_missing(con), advance)
    if todo == writing.unreadable > 0 and not count["packed"]:
        first = writing.problems[0]
        raise InputError(
            f"none of the {todo} images can be read, e.g. '{printable(first['uri'])}': {printable(first['problem'])}",
            f"bring the pictures back; relative uris start from {store.root}",
        )
    return Packed(
        form.name, where, writing.images, count["packed"], writing.unreadable, writing.bytes, writing.source_bytes,
        count["total"], writing.problems,
    )  # fmt: skip


class _Writing:
    """The shards of one run.

    Args:
        store: The store.
        form: What to make of each picture.
        number: Of the first file.
        pool: Threads that read, decode and encode.
        limits: Most pictures, and most bytes, of a file.
    """

    def __init__(
        self, store: Store, form: Form, number: int, pool: ThreadPoolExecutor, limits: tuple[int, int]
    ) -> None:
        self.store, self.form, self.number, self.pool, self.limits = store, form, number, pool, limits
        self.images = self.unreadable = self.bytes = self.source_bytes = 0
        self.problems: list[dict[str, Any]] = []

    def write(self, batches: Iterator[list[dict[str, Any]]], advance: Callable[..., None]) -> None:
        """Packs the images of the rows, in their order."""
        shard: Shard | None = None
        try:
            with closing(self._pictures(batches)) as pictures:
                for found in pictures:
                    advance(1)
                    if isinstance(found, Picture):
                        if shard is not None and not shard.has_room(found, *self.limits):
                            self._publish(shard)
                            shard = None
                        shard = shard or self._begin()
                        shard.add(found)
                        self.source_bytes += found.source_bytes
                    else:
                        self.unreadable += 1
                        self.problems += [found] * (len(self.problems) < SHOWN)
            if shard is not None:
                self._publish(shard)
        except BaseException:
            if shard is not None:
                shard.abandon()
            raise

    def _pictures(self, batches: Iterator[list[dict[str, Any]]]) -> Generator[Picture | dict[str, Any]]:
        """Prepares pictures a little ahead, so that memory holds a few of them."""
        waiting: deque[Future[Picture | dict[str, Any]]] = deque()
        with Reader(self.store.root) as reader:
            for rows in batches:
                asked = reader.ask(map(place_of, rows))
                for number, row in enumerate(rows):
                    waiting.append(self.pool.submit(self._prepare, asked, number, row))
                    if len(waiting) > _AHEAD:
                        yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()

    def _prepare(self, asked: Asked, number: int, row: dict[str, Any]) -> Picture | dict[str, Any]:
        try:
            return prepare(asked.take(number), row, self.form)
        except UnreadableImage as error:
            return {"image_id": row["image_id"], "uri": row["uri"], "problem": str(error)}

    def _begin(self) -> Shard:
        shard = Shard(
            self.store.path, f"{packs.FOLDER}/{self.form.name}/{self.store.place.own_name(f'{self.number:06}')}.tar"
        )
        self.number += 1
        return shard

    def _publish(self, shard: Shard) -> None:
        shard.finish(self.pool)
        self.store.place.share([self.store.path / shard.path])
        made = {"pack": self.form.name, "added_at": dt.datetime.now(dt.UTC)}
        additions.append(self.store, "packed", pa.Table.from_pylist([row | made for row in shard.rows], PACKED.schema))
        self.store.place.release([self.store.path / shard.path])
        self.images += len(shard.rows)
        self.bytes += sum(row["byte_length"] for row in shard.rows)


def _count(con: duckdb.DuckDBPyConnection, store: Store, manifest: Manifest | None, name: str) -> dict[str, int]:
    """Works out the table `pack_images`, and counts it: total, packed, and source_bytes of those that are not."""
    if manifest is None:
        con.register("rows", MANIFEST_ROW.schema.empty_table())
    else:
        exports.open_rows(con, manifest)
    packs.register_shards(con, store, name)
    steps = queries.steps(*queries.TRUSTED, "holdout_twins", "labeled_rows")
    images = queries.compose(steps, queries.text("pack_images"))
    con.execute(f"create temp table pack_images as {images}", {"pack": name})
    counts = (
        "select count(*) as total, count(*) filter (is_packed) as packed,"
        " coalesce(sum(byte_length) filter (not is_packed), 0)::BIGINT as source_bytes from pack_images"
    )
    return queries.rows(con, counts)[0]


def _missing(con: duckdb.DuckDBPyConnection) -> Iterator[list[dict[str, Any]]]:
    """The rows of `pack_images` that are not packed, in the order in which the originals lie, in lists."""
    query = "select * from pack_images where not is_packed order by shard, byte_offset, uri"
    for table in queries.batches(con, query, packs.BATCH):
        yield table.to_pylist()


def _clean(store: Store, name: str) -> int:
    """Removes what killed runs left in the folder of a pack, and forgets shards that are gone.

    Returns:
        The number for the next shard, which none had before: who reads by an older index finds no other picture.
    """
    with closing(store.connect()) as con:
        shards = queries.rows(con, queries.text("pack_shards"), pack=name)
    gone = [shard for shard in shards if not packs.is_there(store, shard)]
    if gone:
        listed = ", ".join(f"'{shard['shard']}'" for shard in gone)
        store.delta("packed").delete(f"shard in ({listed})")
        images = sum(shard["images"] for shard in gone)
        progress.say(f"files that are gone or cut off: {len(gone)}; their {images} images count as not packed")
    folder = f"{packs.FOLDER}/{name}"
    kept = {shard["shard"] for shard in shards if shard not in gone}
    for file in store.place.names(folder):
        if f"{folder}/{file}" not in kept and re.fullmatch(r"\d{6}\.tar(\.unfinished)?", file):
            store.place.remove(store.path / folder / file)
    return 1 + max((int(Path(shard["shard"]).stem[:6]) for shard in shards), default=-1)
