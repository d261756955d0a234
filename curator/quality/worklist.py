"""The images most worth a person's time, from all that is known of them.

    newest manifest, duplicates, label issues, changes, reviews --sql/worklist_REASON.sql--> the first of each reason
                                                                --sql/worklist.sql--> the first of all, by value

What has not been computed (a scan for duplicates, folds) gives no images; nothing is computed for the list.
"""

from __future__ import annotations

import math
from contextlib import closing
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa

from curator import queries
from curator.curation import manifests, selection
from curator.curation.account import MANY_COPIES
from curator.curation.manifests import Manifest
from curator.decisions.reviews import class_index
from curator.errors import InputError, suggestion
from curator.generations import browse, drift
from curator.quality import issues
from curator.storage.store import Store

if TYPE_CHECKING:
    import duckdb

# In the order in which they are told of, each with its query.
REASONS = ("leak", "label", "flip", "doubt", "close call")
# In the order in which they are looked at: what is found early spares the later ones most of their work, which is more.
_ORDER = ("leak", "label", "doubt", "flip", "close call")
_LISTED = "image_id BIGINT, label INT, reason VARCHAR, value DOUBLE, detail VARCHAR, confidence FLOAT, copies INT"
_SUSPECTS = 1_000_000


class Worklist(NamedTuple):
    """What to look at.

    Attributes:
        generation: The generation that the reasons are of.
        manifest: The newest manifest, whose copies count; None where there is none.
        images: Rows of sql/worklist_names.sql, the highest value first.
        compared: Whether the flips are complete: the generation is compared with the one before it, or is the first.
    """

    generation: int
    manifest: str | None
    images: list[dict[str, Any]]
    compared: bool


def worklist(
    store: Store, limit: int = 50, class_name: str | None = None, reason: str | None = None, compare: bool = True
) -> Worklist:
    """Lists images by what a look at them is worth, see sql/worklist.sql.

    Args:
        store: The store.
        limit: Most images.
        class_name: Name or index of the only class to list.
        reason: The only one of REASONS to list.
        compare: Whether to make the comparison with the generation before it, and keep it, where it is missing.

    Raises:
        InputError: The class or reason is unknown, or no generation has labels yet.
    """
    if reason not in (None, *REASONS):
        raise InputError(
            f"the reason '{reason}' is unknown{suggestion(reason, REASONS)}", f"one of {', '.join(REASONS)}"
        )
    versions = store.every_version()
    with closing(store.connect(versions)) as con:
        classes = [row["class_name"] for row in queries.rows(con, "select class_name from classes order by label")]
        label = None if class_name is None else class_index(classes, class_name)
        found = look(store, con, versions["labels"], limit, label, reason)
        if compare and not found.compared:
            drift.keep(store, found.generation)
            store.view(con, "changes")
            found = look(store, con, versions["labels"], limit, label, reason)._replace(compared=True)
        return found._replace(images=queries.rows(con, queries.text("worklist_names")))


def look(
    store: Store, con: duckdb.DuckDBPyConnection, version: int, limit: int, label: int | None, reason: str | None
) -> Worklist:
    """Leaves the list in a connection, as the temporary table `worklist` of rows of sql/worklist.sql.

    Args:
        store: The store.
        con: A connection, or a cursor of one that others use.
        version: Version of the labels table that it reads.
        limit: Most images.
        label: The only class to list.
        reason: The only one of REASONS to list.

    Returns:
        What the list is of, without its images.

    Raises:
        InputError: No generation has labels yet.
    """
    manifest = manifests.newest(store, con)
    generation = manifest.generation if manifest else selection.generation(con, None)
    wanted = drift.pair(store, con, generation, version)
    values: dict[str, Any] = {
        "generation": generation, "label": label, "limit": limit, "has_manifest": manifest is not None, "most": 1,
    }  # fmt: skip
    steps = {"kept": _kept(con, manifest, values)} | queries.steps("holdout_twins")
    steps["said"] = f"from stored_{'browse' if browse.is_kept(store, con, generation, version) else 'labels'}"
    settled = queries.compose(queries.steps("latest_reviews"), queries.text("worklist_settled"))
    _keep(con, "settled", settled, values)
    _register(con, manifest, _suspects(store, con) if reason in (None, "label") else [])
    con.execute(f"create or replace temp table listed ({_LISTED})")
    for each in _ORDER if reason is None else [reason]:
        least = queries.rows(con, queries.text("worklist_least"), limit=limit)
        values["least"] = least[0]["least"] if least else -math.inf
        query = queries.compose(steps, queries.text(f"worklist_{each.replace(' ', '_')}"))
        con.execute(f"insert into listed {query}", queries.bind(con, query, values))
    _keep(con, "worklist", queries.text("worklist"), values)
    compared = wanted is None or drift.is_kept(con, wanted)
    return Worklist(generation, manifest.name if manifest else None, [], compared)


def _keep(con: duckdb.DuckDBPyConnection, name: str, query: str, values: dict[str, Any]) -> None:
    con.execute(f"create or replace temp table {name} as {query}", queries.bind(con, query, values))


def _kept(con: duckdb.DuckDBPyConnection, manifest: Manifest | None, values: dict[str, Any]) -> str:
    """The query of the manifest's rows; their files, and the most copies of one, come to the values."""
    columns = {"image_id": pa.int64(), "label": pa.int32(), "confidence": pa.float32(), "copies": pa.int32()}
    if manifest is None:
        con.register("nothing_kept", pa.schema(columns.items()).empty_table())
        return "from nothing_kept"
    values["files"] = [str(file) for file in manifests.files(manifest)]
    kept = f"select {', '.join(columns)} from read_parquet($files)"
    most = queries.rows(con, f"select max(copies) as most from ({kept})", files=values["files"])
    values["most"] = most[0]["most"] or 1
    return kept


def _suspects(store: Store, con: duckdb.DuckDBPyConnection) -> list[dict[str, Any]]:
    """The labels that the newest run of folds objects to; none where there was no run."""
    run = queries.rows(con, "select max(run) as run from stored_held_out")[0]["run"]
    return issues.find(store, run=run, limit=_SUSPECTS).rows if run is not None else []


def _register(con: duckdb.DuckDBPyConnection, manifest: Manifest | None, suspects: list[dict[str, Any]]) -> None:
    """Gives a connection the relations of the queries that are not in the store's tables."""
    gains = _gains(manifest) if manifest else {}
    short = {"label": pa.array(gains.keys(), pa.int32()), "gain": pa.array(gains.values(), pa.int32())}
    con.register("short_classes", pa.table(short))
    given = {
        "image_id": pa.array([row["image_id"] for row in suspects], pa.int64()),
        "label": pa.array([row["given"] for row in suspects], pa.int32()),
        "chance": pa.array([1 - row["self_confidence"] for row in suspects], pa.float64()),
        "suggested": pa.array([row["suggested_class"] for row in suspects], pa.string()),
    }
    con.register("label_suspects", pa.table(given))


def _gains(manifest: Manifest) -> dict[int, int]:
    """What one more image would count for in each class that has fewer than its quota.

    Not more than MANY_COPIES: beyond, another image takes the place of copies that were too many anyhow.
    """
    quota = manifest.lineage["parameters"]["per_class"]
    short = [row for row in manifest.classes if row["eligible"] < quota]
    return {row["label"]: min(row["most_copies"] if row["eligible"] else MANY_COPIES, MANY_COPIES) for row in short}


def summary(found: Worklist) -> dict[str, int]:
    """How many of the listed images are there for which reason, for the reasons that occur."""
    counts = {reason: sum(row["reason"] == reason for row in found.images) for reason in REASONS}
    return {reason: number for reason, number in counts.items() if number}
