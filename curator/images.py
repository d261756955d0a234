"""Adding images to a store: ids, splits and classes checked for the whole source first, then scanned and committed.

    source -> incoming (ids, known or new) -> checks -> scan in chunks, each committed -> images table

An interrupted import goes on where it stopped, because images already committed are found again by their uri.
"""

from __future__ import annotations

import datetime as dt
import os
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from curator import progress, queries, sources
from curator.errors import InputError, some, suggestion
from curator.schema import IMAGES
from curator.store import CommitRaced, Store

if TYPE_CHECKING:
    import deltalake
    import duckdb

ID_MASK = 2**63 - 1
_CHUNK = 20_000
_MOST_RACES = 20


class Added(NamedTuple):
    """What an import did."""

    added: int
    already_present: int
    unreadable: int
    total: int
    leaks: int
    problems: list[dict[str, str]]


def read_bytes(root: Path, uri: str, shard: str | None, byte_offset: int | None, byte_length: int | None) -> bytes:
    """The encoded bytes of an image.

    Raises:
        OSError: The file is missing or not readable.
    """
    if shard is None:
        return (root / uri).read_bytes()
    with (root / shard).open("rb") as file:
        return os.pread(file.fileno(), byte_length or 0, byte_offset or 0)


def add_images(
    store: Store,
    source: str,
    split: str | None,
    labels: str | None = None,
    scan: bool = True,
    base: str = "",
    id_mask: int = ID_MASK,
) -> Added:
    """Adds the images of a source to the store.

    Args:
        store: The store.
        source: A folder, tar shards or a listing, see `sources.read`.
        split: labeled, unlabeled or holdout.
        labels: "folder" for a class per sub-folder, or a table file with `uri` (or the path inside the source) and
            `label`. Folders and shards of labeled and holdout images use "folder" unless told otherwise.
        scan: Whether to read each image for size, hashes and readability.
        base: Put before the uris of a listing.
        id_mask: Bits of the id to use; smaller only to force collisions in a test.

    Returns:
        Counts: `added` rows (unreadable ones among them), `already_present`, `total` in the source, `leaks` (images of
        the whole store whose bytes equal those of a holdout image) and the first `problems`.

    Raises:
        InputError: The source does not fit the store; nothing was added.
    """
    listing = Path(source).suffix.lower() in sources.LISTING_SUFFIXES and Path(source).is_file()
    if labels is None and split in ("labeled", "holdout") and not listing:
        labels = "folder"
    versions = store.versions()
    con = store.connect(versions)
    try:
        batches = sources.read(source, split, labels == "folder", store.root, base)
        con.register("given", pa.RecordBatchReader.from_batches(sources.SCHEMA, batches))
        # Names are resolved before any picture is opened, so that a mistake costs seconds, not hours.
        con.execute("create temp table incoming as select *, null::BIGINT as image_id from given")
        con.unregister("given")
        if labels not in (None, "folder"):
            _take_labels(con, Path(str(labels)))
        total = _count(con, "select count(*) from incoming")
        _check_repeats(con)
        class_names = _resolve_classes(con, store.classes())
        _number(con, id_mask)
        _check_known(con)
        con.execute("delete from incoming using stored_images as o where o.uri = incoming.uri")
        new = _count(con, "select count(*) from incoming")
        if class_names:
            store.define_classes(class_names)
        problems = _commit(store, con, _Commits(store, store.delta("images", versions["images"])), new, scan)
    finally:
        con.close()
    leaks = store.rows(f"select count(*) as n from ({queries.text('holdout_twins')})")[0]["n"]
    return Added(new, total - new, len(problems), total, leaks, problems[:20])


def _count(con: duckdb.DuckDBPyConnection, query: str) -> int:
    # fetchall, because DuckDB holds a connection for a result that was not fetched to its end
    return int(con.execute(query).fetchall()[0][0])


def _take_labels(con: duckdb.DuckDBPyConnection, file: Path) -> None:
    """Fills class names or indexes in from a label file."""
    table = pa.Table.from_batches(list(sources.table_batches(file, ("uri", "label")))).select(["uri", "label"])
    con.register("label_file", table)
    column = "label" if pa.types.is_integer(table.schema.field("label").type) else "class_name"
    con.execute(
        f"update incoming set {column} = l.label from label_file as l where l.uri in (incoming.uri, incoming.name)"
    )
    con.unregister("label_file")


def _check_repeats(con: duckdb.DuckDBPyConnection) -> None:
    """Drops exact repeats of a uri; repeats that contradict each other are an error."""
    bad = con.execute(
        "select uri from incoming group by uri"
        " having count(distinct (split, coalesce(class_name, ''), coalesce(label, -1))) > 1 order by uri limit 6"
    ).fetchall()
    if bad:
        raise InputError(
            f"the source names images twice with different labels or splits: {some(uri for (uri,) in bad)}",
            "keep one row for each image",
        )
    con.execute("delete from incoming where position not in (select min(position) from incoming group by uri)")


def _resolve_classes(con: duckdb.DuckDBPyConnection, known: list[str]) -> list[str]:
    """Turns class names into indexes.

    Returns:
        The classes to define, if the store has none and the source brings them.
    """
    missing = con.execute(
        "select position, uri, split from incoming where split <> 'unlabeled' and class_name is null and label is null"
        " order by position limit 6"
    ).fetchall()
    if missing:
        raise InputError(
            f"{missing[0][2]} images without a label: {some(uri for _, uri, _ in missing)}",
            "give --labels folder (a class per sub-folder), --labels FILE, or a label column in the listing",
        )
    # A label of a pool image, where a listing has one, is not to be known to anything that trains.
    con.execute("update incoming set class_name = null, label = null where split = 'unlabeled'")
    found = [
        n for (n,) in con.execute("select distinct class_name from incoming where class_name is not null").fetchall()
    ]
    highest = _count(con, "select coalesce(max(label), -1) from incoming")
    lowest = _count(con, "select coalesce(min(label), 0) from incoming")
    new: list[str] = []
    if not known:
        if found and highest >= 0:
            raise InputError("the source mixes class names and class numbers", "use names throughout")
        new = sorted(found) or [str(i) for i in range(highest + 1)]
        known = new
    strange = sorted(set(found) - set(known))
    if strange:
        raise InputError(
            f"the class '{strange[0]}' is not one of the store's {len(known)} classes ({some(known)})"
            f"{suggestion(strange[0], known)}",
            "rename the class, or make a new store whose --classes FILE names all of them",
        )
    if highest >= len(known) or lowest < 0:
        raise InputError(
            f"the class number {highest if highest >= len(known) else lowest} is outside 0 to {len(known) - 1}",
            "correct the labels, or make a new store whose --classes FILE names all classes",
        )
    con.register("known_classes", pa.table({"class_name": known, "label": range(len(known))}))
    con.execute("update incoming set label = k.label from known_classes as k where k.class_name = incoming.class_name")
    con.unregister("known_classes")
    return new


def _number(con: duckdb.DuckDBPyConnection, mask: int) -> None:
    """Gives each incoming image its id, see sql/image_ids.sql."""
    con.execute("update incoming set image_id = (md5_number_lower(uri) >> 1)::BIGINT & $mask::BIGINT", {"mask": mask})
    for salt in range(1, 1000):
        con.execute(f"create or replace temp table moved as {queries.text('image_ids')}", {"salt": salt, "mask": mask})
        if not _count(con, "select count(*) from moved"):
            return
        con.execute("update incoming set image_id = m.image_id from moved as m where m.uri = incoming.uri")
    raise InputError("no free id could be found for some images", "report this: it should never happen")


def _check_known(con: duckdb.DuckDBPyConnection) -> None:
    """An image has one split and one label for good."""
    clashes = con.execute(
        "select n.uri, o.split, n.split from incoming as n join stored_images as o on o.uri = n.uri"
        " where o.split <> n.split order by n.position limit 6"
    ).fetchall()
    if clashes:
        _, had, wanted = clashes[0]
        raise InputError(
            f"images of this source are in the store already, as '{had}', and cannot be '{wanted}' too: "
            f"{some(uri for uri, _, _ in clashes)}",
            f"take them out of one of the two sources; an image has one split, so that the holdout stays unseen (was "
            f"--split {had} meant?)",
        )
    relabeled = con.execute(
        "select n.uri from incoming as n join stored_images as o on o.uri = n.uri"
        " where o.label is distinct from n.label order by n.position limit 6"
    ).fetchall()
    if relabeled:
        raise InputError(
            f"images of this source are in the store with another label: {some(uri for (uri,) in relabeled)}",
            "correct the source; a trusted label does not change",
        )


def _commit(
    store: Store, con: duckdb.DuckDBPyConnection, commits: _Commits, new: int, scan: bool
) -> list[dict[str, str]]:
    """Scans the incoming images and commits them chunk by chunk; returns the unreadable ones."""
    problems: list[dict[str, str]] = []
    query = "select image_id, uri, shard, byte_offset, byte_length, split, label from incoming order by position"
    with (
        ThreadPoolExecutor((os.cpu_count() or 1) + 1) as pool,
        progress.progress("scanning" if scan else "adding", new) as advance,
    ):
        for chunk in queries.batches(con, query, _CHUNK):
            rows: list[dict[str, Any]] = chunk.to_pylist()
            scans = pool.map(lambda row: _scan(store.root, row), rows) if scan else (_unscanned(row) for row in rows)
            now = dt.datetime.now(dt.UTC)
            for row, seen in zip(rows, scans, strict=True):
                row.update(seen, added_at=now)
                if row["problem"]:
                    problems.append({"uri": row["uri"], "problem": row["problem"]})
                if scan:
                    advance(1)
            commits.add(pa.Table.from_pylist(rows, IMAGES.schema))
            if not scan:
                advance(len(rows))
    return problems


def _unscanned(row: dict[str, Any]) -> dict[str, Any]:
    return {"status": "unscanned", "problem": None, "byte_length": row["byte_length"]}


def _scan(root: Path, row: dict[str, Any]) -> dict[str, Any]:
    from curator.decode import UnreadableImage, scan

    try:
        data = read_bytes(root, row["uri"], row["shard"], row["byte_offset"], row["byte_length"])
        seen = scan(data)
    except UnreadableImage as error:
        return {"status": "unreadable", "problem": str(error)}
    except OSError as error:
        return {"status": "unreadable", "problem": error.strerror or str(error)}
    return {"status": "ok", "problem": None, "byte_length": len(data)} | seen._asdict()


class _Commits:
    """Commits chunks of rows, and leaves out those that another import added since this one looked.

    Args:
        store: The store.
        table: The images table at the version that the source was compared with.
    """

    def __init__(self, store: Store, table: deltalake.DeltaTable) -> None:
        self._store = store
        self._table = table
        self._compared = set(table.file_uris())

    def add(self, rows: pa.Table) -> None:
        """Adds rows in one commit."""
        folder = self._store.path / "images"
        for _ in range(_MOST_RACES):
            foreign = sorted(set(self._table.file_uris()) - self._compared)
            for uri in foreign:
                theirs = pq.read_table(uri, columns=["image_id"])["image_id"]
                rows = rows.filter(pc.invert(pc.is_in(rows["image_id"], theirs)))
            file = folder / f"{uuid.uuid4().hex}.parquet"
            try:
                pq.write_table(rows, file, compression="zstd")
                self._store.publish(self._table, [file], "images")
            except CommitRaced:
                file.unlink()
                self._table = self._store.delta("images")
            except BaseException:
                file.unlink(missing_ok=True)
                raise
            else:
                self._compared.update(uri for uri in self._table.file_uris() if uri.endswith(file.name))
                return
        raise CommitRaced("other imports kept committing first", "run the same command again; it goes on where it was")
