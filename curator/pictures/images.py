"""Adding images to a store: ids, splits and classes checked for the whole source first, then scanned and committed.

    source -> incoming (ids, known or new) -> checks -> scan in chunks, each committed -> images table

An interrupted import goes on where it stopped, because images already committed are found again by their uri.
"""

from __future__ import annotations

import datetime as dt
import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa

from curator import progress, queries
from curator.errors import InputError, some, suggestion
from curator.pictures import listings, sources
from curator.pictures.commits import ImageCommits
from curator.pictures.decode import UnreadableImage, scan
from curator.pictures.reading import ABSENT, Asked, Reader, place_of
from curator.schema import IMAGES
from curator.storage.store import Store

if TYPE_CHECKING:
    import duckdb

ID_MASK = 2**63 - 1
_CHUNK = 20_000


class Added(NamedTuple):
    """What an import did."""

    added: int
    already_present: int
    unreadable: int
    total: int
    leaks: int
    repeated: int  # rows of the source that name an image again
    problems: list[dict[str, str]]
    known_unreadable: int = 0  # of those that were there already
    known_unscanned: int = 0


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
        source: A folder, tar shards or a listing, by path or URL, see `sources.read`.
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
    source = listings.local(source)
    labels = labels and listings.local(labels)
    listing = Path(source) if Path(source).suffix.lower() in listings.SUFFIXES else None
    if listing is not None and not listing.is_file():
        listing = None
    if labels is None and split in ("labeled", "holdout") and listing is None:
        labels = "folder"
    if labels == "folder" and listing is not None:
        raise InputError("a listing has no class folders", "leave --labels out; its column 'label' gives the classes")
    versions = store.versions()
    con = store.connect(versions)
    try:
        # Names are resolved before any picture is opened, so that a mistake costs seconds, not hours.
        con.register("no_images", sources.SCHEMA.empty_table())
        con.execute("create temp table incoming as select *, null::BIGINT as image_id from no_images")
        for batch in sources.read(source, split, labels == "folder", store.root, base):
            con.register("given", pa.Table.from_batches([batch]))
            con.execute("insert into incoming select *, null from given")
        label_file = Path(labels) if labels not in (None, "folder") else None
        if label_file is not None:
            _take_labels(con, label_file)
        total = _count(con, "select count(*) from incoming")
        _check_repeats(con)
        known = store.classes()
        if (label_file or listing or Path()).suffix.lower() in listings.TEXT_SUFFIXES:
            _read_numbers(con, known)
        class_names = _resolve_classes(con, known)
        _number(con, id_mask)
        _check_known(con)
        different = _count(con, "select count(*) from incoming")
        known_bad = dict(
            con.execute(
                "select o.status, count(*) from incoming join stored_images as o on o.uri = incoming.uri"
                " where o.status <> 'ok' group by o.status"
            ).fetchall()
        )
        con.execute("delete from incoming using stored_images as o where o.uri = incoming.uri")
        new = _count(con, "select count(*) from incoming")
        if listing is not None and scan and new == different:
            _check_there(store, con, source)
        if class_names:
            store.define_classes(class_names)
        commits = ImageCommits(store, store.delta("images", versions["images"]))
        _commit(store, con, commits, new, scan)
    finally:
        con.close()
    leaks = store.rows(f"select count(*) as n from ({queries.text('holdout_twins')})")[0]["n"]
    bad = commits.problems
    return Added(
        commits.added,
        different - commits.added,
        len(bad),
        total,
        leaks,
        total - different,
        bad[:20],
        known_bad.get("unreadable", 0),
        known_bad.get("unscanned", 0),
    )


def _count(con: duckdb.DuckDBPyConnection, query: str) -> int:
    # fetchall, because DuckDB holds a connection for a result that was not fetched to its end
    return int(con.execute(query).fetchall()[0][0])


def _take_labels(con: duckdb.DuckDBPyConnection, file: Path) -> None:
    """Fills class names or indexes in from a label file."""
    con.register("label_file", listings.read_labels(file))
    bad = con.execute(
        "select uri from label_file group by uri"
        " having count(distinct (coalesce(class_name, ''), coalesce(label, -1))) > 1 order by uri limit 6"
    ).fetchall()
    if bad:
        raise InputError(
            f"the label file '{file}' names images twice with different labels: {some(uri for (uri,) in bad)}",
            "keep one row for each image",
        )
    # two statements, because a join over "or" compares every image with every label
    for key in ("name", "uri"):
        con.execute(
            "update incoming set class_name = l.class_name, label = l.label from label_file as l"
            f" where l.uri = incoming.{key}"
        )


def _read_numbers(con: duckdb.DuckDBPyConnection, known: list[str]) -> None:
    """In a text file a number that is no class's name is a class index."""
    con.execute(
        "update incoming set label = class_name::BIGINT, class_name = null"
        " where regexp_full_match(class_name, '0|[1-9][0-9]{0,8}') and not list_contains($known, class_name)",
        {"known": known},
    )


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
    twofold = con.execute(
        "select uri, n.label, n.class_name from incoming as n join known_classes as k using (class_name)"
        " where n.label <> k.label order by position limit 6"
    ).fetchall()
    if twofold:
        named = some(f"{uri} ({label}, '{name}')" for uri, label, name in twofold)
        raise InputError(
            f"label and class_name name different classes for: {named}", "correct them, or leave one of the columns out"
        )
    doubtful = con.execute(
        "select n.label, k.label, i.class_name from incoming as n"
        " join known_classes as k on k.class_name = n.label::VARCHAR join known_classes as i on i.label = n.label"
        " where n.class_name is null and k.label <> n.label order by position limit 1"
    ).fetchall()
    if doubtful:
        number, other, name = doubtful[0]
        raise InputError(
            f"the label {number} may be the class '{number}', which is number {other}, or the number of the class "
            f"'{name}'",
            "name the classes in a column class_name instead",
        )
    con.execute("update incoming set label = k.label from known_classes as k where k.class_name = incoming.class_name")
    con.unregister("known_classes")
    return new


def _check_there(store: Store, con: duckdb.DuckDBPyConnection, source: str) -> None:
    """Makes sure that one picture of a listing's first chunk is there: images that were added cannot be removed."""
    query = "select uri, shard, byte_offset, byte_length from incoming order by position"
    rows: list[dict[str, Any]] = next(iter(queries.batches(con, query, _CHUNK))).to_pylist()
    with Reader(store.root) as reader, reader.ask(map(place_of, rows)) as asked:
        for number in range(len(rows)):
            try:
                asked.take(number)
            except UnreadableImage as error:
                if str(error) in ABSENT:
                    continue
            return
    raise InputError(
        f"no file is there of the first {len(rows)} that '{source}' names, as {some(row['uri'] for row in rows[:3])}; "
        "nothing was added",
        f"give what stands before its uris with --base; relative ones start from {store.root}",
    )


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


def _commit(store: Store, con: duckdb.DuckDBPyConnection, commits: ImageCommits, new: int, scan: bool) -> None:
    """Scans the incoming images and commits them chunk by chunk."""
    query = "select image_id, uri, shard, byte_offset, byte_length, split, label from incoming order by position"
    with (
        ThreadPoolExecutor((os.cpu_count() or 1) + 1) as pool,
        Reader(store.root) as reader,
        progress.progress("scanning" if scan else "adding", new) as advance,
    ):
        try:
            for chunk in queries.batches(con, query, _CHUNK):
                rows: list[dict[str, Any]] = chunk.to_pylist()
                if scan:
                    asked = reader.ask(map(place_of, rows))
                found = pool.map(partial(_scan, asked), range(len(rows))) if scan else map(_unscanned, rows)
                now = dt.datetime.now(dt.UTC)
                for row, seen in zip(rows, found, strict=True):
                    row.update(seen, added_at=now)
                    advance(1)
                commits.add(pa.Table.from_pylist(rows, IMAGES.schema))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)  # else Ctrl-C would wait for the whole chunk
            raise


def _unscanned(row: dict[str, Any]) -> dict[str, Any]:
    return {"status": "unscanned", "problem": None, "byte_length": row["byte_length"]}


def _scan(asked: Asked, number: int) -> dict[str, Any]:
    try:
        data = asked.take(number)
        seen = scan(data)
    except UnreadableImage as error:
        return {"status": "unreadable", "problem": str(error)}
    return {"status": "ok", "problem": None, "byte_length": len(data)} | seen._asdict()
