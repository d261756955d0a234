"""Images that repeat each other, and images outside the holdout that show one of its pictures.

    images: bytes, perceptual hash --+--> members of nodes --neighbors--> edges --a look at both pictures-->
    embeddings of one model ---------+
        --> edges of copies --+--> closest twin, leak --> duplicates
                              +--> groups (connected) ----^

Each scan replaces the table in one commit. Its one file also says, in its footer, what the scan looked at and how, so
that a scan that found nothing is a scan, too.
"""

from __future__ import annotations

import datetime as dt
import json
import uuid
from collections.abc import Sequence
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from curator import progress, queries
from curator.errors import InputError, absent
from curator.repeats import confirmation, neighbors
from curator.schema import DUPLICATES
from curator.storage import additions, delta
from curator.storage.roots import Root
from curator.storage.store import Store, Versions

if TYPE_CHECKING:
    import duckdb

DISTANCE = 10
COSINE = 0.8
NEAREST = 16  # candidates of a picture that are looked at, of each split, by hash and by embedding
SHOWN = 20
_STRUCTURE = 8  # a hash of a photograph has 31 or 32 bits
_FOOTER = b"curator.scan"
_PAIRS = pa.schema(
    [
        ("space", pa.string()),
        ("node", pa.int64()),
        ("other", pa.int64()),
        ("kind", pa.string()),
        ("distance", pa.float32()),
    ]
)


class Rule(NamedTuple):
    """What counts as a twin.

    Attributes:
        distance: Most differing bits of two perceptual hashes, 0 to 32.
        model: Name of the model whose embeddings are compared as well; None for none.
        cosine: Least cosine of two embeddings.
        confirm: Whether pictures that are near each other by these are twins only where a look at both says so.
    """

    distance: int = DISTANCE
    model: str | None = None
    cosine: float = COSINE
    confirm: bool = True


_DEFAULT = Rule()


class Scan(NamedTuple):
    """What a scan looked at.

    Attributes:
        scan: Its id.
        rule: What counted as a twin.
        versions: Versions of the tables that it read.
        images: All images of the store.
        checked: Images whose bytes and hashes were compared.
        not_checked: Images that were never scanned, so have neither hash.
        unreadable: Images that cannot be read, which have none either.
        plain: Of the checked ones, those without structure, compared by their bytes alone.
        embedded: Images whose embedding was compared.
        compared: Pairs of pictures that were looked at; 0 where the rule asks for none.
        rejected: Of these, those that are no copies.
        cleared: Images that were near others, none of which is a copy.
        unconfirmed: Pairs of which a picture could not be read: they count as copies.
        crowded: Images with more than NEAREST candidates in a split, of which only the nearest were looked at.
        problems: The first pictures that could not be read: image_id, uri, problem.
    """

    scan: str
    rule: Rule
    versions: dict[str, int]
    images: int
    checked: int
    not_checked: int
    unreadable: int
    plain: int
    embedded: int
    compared: int = 0
    rejected: int = 0
    cleared: int = 0
    unconfirmed: int = 0
    crowded: int = 0
    problems: Sequence[dict[str, Any]] = ()


class Found(NamedTuple):
    """What a scan found.

    Attributes:
        scan: What it looked at.
        duplicates: Images that have a twin.
        groups: Groups of two or more that repeat each other, on one side of the holdout.
        spare: Images of the pool that go when each group keeps one image.
        leaks: Images outside the holdout that show a holdout image.
        labeled_twins: Images of the pool that show a labeled image.
        kinds: One row per kind, see sql/duplicate_kinds.sql.
        examples: The first images, see sql/duplicate_examples.sql.
        written: Whether the table holds it.
    """

    scan: Scan
    duplicates: int
    groups: int
    spare: int
    leaks: int
    labeled_twins: int
    kinds: list[dict[str, Any]]
    examples: list[dict[str, Any]]
    written: bool

    @property
    def document(self) -> dict[str, Any]:
        """The answer as it is given with --json."""
        looked = self.scan._asdict() | self.scan.rule._asdict()
        del looked["rule"], looked["versions"]
        return looked | {name: value for name, value in self._asdict().items() if name != "scan"}


def last_scan(store: Store, version: int | None = None) -> Scan | None:
    """What the scan looked at that the table `duplicates` holds at a version, by default the newest.

    Returns:
        None where there was no scan.
    """
    for footer in store.footers("duplicates", version):
        stated = json.loads(footer.get(_FOOTER, b"null"))
        if stated is not None:
            # scans of earlier versions looked at no picture
            return Scan(**stated | {"rule": Rule(**{"confirm": False} | stated["rule"])})
    return None


def find(store: Store, rule: Rule = _DEFAULT, *, leaks_only: bool = False, dry_run: bool = False) -> Found:
    """Finds the images that repeat each other, and keeps the answer in the table `duplicates`.

    A scan of the same images by the same rule, where the table holds it and could read every picture, is taken from
    there.

    Args:
        store: The store.
        rule: What counts as a twin.
        leaks_only: Whether the examples are leaks only.
        dry_run: Whether to write nothing.

    Raises:
        InputError: The rule cannot be used, or too many pictures are within the distance.
        CommitRaced: Another scan was kept at the same time.
    """
    if not 0 <= rule.distance <= neighbors.MOST_DISTANCE:
        raise InputError(
            f"the distance {rule.distance} is not in 0 to {neighbors.MOST_DISTANCE}",
            f"hashes of different pictures differ in about half of their 64 bits: --distance {DISTANCE}",
        )
    if not 0 < rule.cosine <= 1:
        raise InputError(f"the cosine {rule.cosine:g} is not above 0 and at most 1", f"--cosine {COSINE}")
    if not dry_run:
        additions.make(store, "duplicates")
    versions = store.versions()
    known = last_scan(store, versions["duplicates"])
    read = {name: versions[name] for name in ("images", *["embeddings"] * (rule.model is not None))}
    with closing(store.connect(versions)) as con:
        if known is not None and (known.rule, known.versions, known.unconfirmed) == (rule, read, 0):
            return _answer(con, known, leaks_only, True)
        looked, rows = _scan(con, store.root, rule, read)
        con.execute("drop view if exists stored_duplicates")
        con.register("stored_duplicates", rows)
        if not dry_run:
            _keep(store, versions["duplicates"], looked, rows)
        return _answer(con, looked, leaks_only, not dry_run)


def _scan(con: duckdb.DuckDBPyConnection, root: Root, rule: Rule, versions: Versions) -> tuple[Scan, pa.Table]:
    """Compares the images; gives the rows of the table `duplicates`."""
    query = queries.text("duplicate_members")
    con.execute(f"create temp table members as {query}", {"structure": _STRUCTURE})
    with progress.progress("comparing images", None, "%") as advance:
        pairs = [_PAIRS.empty_table(), *_close(con, rule, lambda share: advance(round(50 * share)))]
    con.register("pairs", pa.concat_tables(pairs))
    con.execute(f"create temp table edges as {queries.text('duplicate_edges')}")
    counts = queries.rows(con, queries.text("duplicate_coverage"), structure=_STRUCTURE)[0]
    if rule.confirm:
        counts |= _confirm(con, root)
    links = con.sql(f"select distinct a, b from ({queries.text('duplicate_links')})").fetchnumpy()
    con.register("groups", groups(links["a"], links["b"]))
    now = dt.datetime.now(dt.UTC)
    scan = uuid.uuid4().hex[:12]
    rows = con.sql(
        "select t.image_id, coalesce(g.group_id, t.image_id) as group_id, t.nearest, t.kind, t.distance,"
        " t.holdout_twin is not null as leak, t.holdout_twin, t.labeled_twin, $scan as scan, $now as found_at"
        f" from ({queries.text('duplicate_images')}) as t left join groups as g on g.image_id = t.image_id"
        " order by t.image_id",
        params={"scan": scan, "now": now},
    ).to_arrow_table()
    return Scan(scan, rule, dict(versions), **counts), rows.cast(DUPLICATES.schema)


def _confirm(con: duckdb.DuckDBPyConnection, root: Root) -> dict[str, Any]:
    """Leaves the members and edges of pictures that are copies; gives what the scan states about the looks."""
    con.execute(f"create temp table near as {queries.text('duplicate_near')}", {"most": NEAREST})
    con.execute(f"create temp table candidates as {queries.text('duplicate_candidates')}", {"most": NEAREST})
    links = con.sql("select node, other from candidates").fetchnumpy()
    con.register("groups", groups(links["other"], links["node"]))
    tables = queries.batches(con, queries.text("duplicate_places"), confirmation.BATCH)
    kept, *counts = confirmation.look(tables, len(links["node"]), root)
    con.register("pairs", kept.append_column("space", pa.repeat("bytes", kept.num_rows)))
    con.execute(f"create temp table pictures as {queries.text('duplicate_pictures')}")
    stated = queries.rows(con, queries.text("duplicate_looks"), most=NEAREST)[0]
    con.execute("drop table members")
    con.execute("alter table pictures rename to members")
    con.execute(f"create or replace temp table edges as {queries.text('duplicate_edges')}")
    return stated | dict(zip(confirmation.Looked._fields[1:], counts, strict=True))


def _close(con: duckdb.DuckDBPyConnection, rule: Rule, advance: Any) -> list[pa.Table]:
    """The pairs of close nodes, each once."""
    found = con.sql("select distinct node from members where space = 'phash' order by node").fetchnumpy()["node"]
    hashes = np.asarray(found, np.int64)
    pairs = []
    for kind, mirrored in (("phash", False), ("mirror", True)):
        near = neighbors.close_hashes(hashes.view(np.uint64), rule.distance, mirrored, advance)
        pairs.append(_table("phash", kind, hashes[near.left], hashes[near.right], near.distance))
    if rule.model is not None:
        pairs += _alike(con, rule)
    return pairs


def _alike(con: duckdb.DuckDBPyConnection, rule: Rule) -> list[pa.Table]:
    """The pairs of images whose embeddings are close; makes the images members, too.

    Raises:
        InputError: There is no such model, or it has no embeddings.
    """
    assert rule.model is not None
    weights = {row["model"]: row["weights"] for row in queries.rows(con, "select * from models order by model")}
    if rule.model not in weights:
        raise absent("model", rule.model, weights, "curator train --recipe tiny-teacher")
    embedded = con.sql(queries.text("duplicate_embeddings"), params={"model": rule.model}).to_arrow_table()
    if not embedded.num_rows:
        what = f"there are no embeddings of the model '{rule.model}'"
        if weights[rule.model] is None:
            what += ": it was named by an import and has no weights to compute them"
            raise InputError(what, 'name a model that was trained here: curator sql "select model from models"')
        raise InputError(what, f"curator label --model {rule.model} --embeddings")
    lengths = set(pc.binary_length(embedded["vector"]).unique().to_pylist())
    assert len(lengths) == 1, "one model's embeddings have one length"
    con.register("embedded", embedded.select(["image_id", "split"]))
    con.execute("insert into members select 'embedding', image_id, image_id, split from embedded")
    ids = embedded["image_id"].to_numpy()
    bytes_of_all = embedded["vector"].cast(pa.large_binary()).combine_chunks().buffers()[2]
    vectors = np.frombuffer(bytes_of_all, np.int8, len(ids) * lengths.pop()).reshape(len(ids), -1)
    holdout = np.flatnonzero(pc.equal(embedded["split"], "holdout").to_numpy())
    # The holdout once more by itself: of an image with many twins an index gives only the nearest.
    near = [neighbors.close_vectors(vectors, rule.cosine, rows) for rows in (None, holdout)]
    left, right, distance = (np.concatenate(column) for column in zip(*near, strict=True))
    _, first = np.unique(left * len(ids) + right, return_index=True)
    return [_table("embedding", "embedding", ids[left[first]], ids[right[first]], distance[first])]


def _table(
    space: str, kind: str, node: npt.NDArray[np.int64], other: npt.NDArray[np.int64], distance: npt.NDArray[np.float32]
) -> pa.Table:
    text = {name: pa.repeat(value, len(node)) for name, value in (("space", space), ("kind", kind))}
    columns = [text["space"], pa.array(node), pa.array(other), text["kind"], pa.array(distance)]
    return pa.Table.from_arrays(columns, schema=_PAIRS)


def groups(a: npt.NDArray[np.int64], b: npt.NDArray[np.int64]) -> pa.Table:
    """The connected groups of linked images.

    Args:
        a: image_ids int64 [N].
        b: The image_id that each is linked to.

    Returns:
        One row per image: image_id, and group_id, the lowest image_id of its group.
    """
    ids, places = np.unique(np.concatenate([a, b]), return_inverse=True)
    a, b = places[: len(a)], places[len(a) :]
    lowest = np.arange(len(ids))
    while len(a):
        # the roots of both ends get the lower one; then every image goes to the root of its root
        np.minimum.at(lowest, lowest[a], lowest[b])
        np.minimum.at(lowest, lowest[b], lowest[a])
        while not np.array_equal(lowest, lowest[lowest]):
            lowest = lowest[lowest]
        apart = lowest[a] != lowest[b]
        a, b = a[apart], b[apart]
    return pa.table({"image_id": pa.array(ids, pa.int64()), "group_id": pa.array(ids[lowest], pa.int64())})


def _keep(store: Store, version: int, looked: Scan, rows: pa.Table) -> None:
    """Puts the rows in the place of those of the scan before."""
    table = store.delta("duplicates", version)
    stated = json.dumps(looked._asdict() | {"rule": looked.rule._asdict()})
    rows = rows.replace_schema_metadata({_FOOTER: stated.encode()})
    delta.put(store.place, "duplicates", table, partial(delta.write, rows), "duplicates", replace=True)


def _answer(con: duckdb.DuckDBPyConnection, looked: Scan, leaks_only: bool, written: bool) -> Found:
    counts = queries.rows(con, queries.text("duplicate_counts"))[0]
    examples = queries.rows(con, f"{queries.text('duplicate_examples')} limit {SHOWN}", leaks=leaks_only)
    return Found(
        looked, kinds=queries.rows(con, queries.text("duplicate_kinds")), examples=examples, written=written, **counts
    )
