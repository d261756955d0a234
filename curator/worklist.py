"""The images most worth a person's time, from all that is known of them.

    newest manifest, duplicates, label issues, changes, reviews --sql/worklist.sql--> images by value

What has not been computed (a scan for duplicates, folds) gives no images; nothing is computed for the list.
"""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa

from curator import drift, issues, manifests, queries, selection
from curator.account import MANY_COPIES
from curator.errors import InputError, suggestion
from curator.manifests import Manifest
from curator.parameters import Parameters
from curator.reviews import class_index
from curator.store import Store

if TYPE_CHECKING:
    import duckdb

REASONS = ("leak", "label", "flip", "doubt", "close call")
_SUSPECTS = 1_000_000


class Worklist(NamedTuple):
    """What to look at.

    Attributes:
        generation: The generation that the reasons are of.
        manifest: The newest manifest, whose copies count; None where there is none.
        images: Rows of sql/worklist.sql, the highest value first.
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
        newest = queries.rows(con, "select name from manifests order by created_at desc, name limit 1")
        manifest = manifests.find(store, newest[0]["name"]) if newest else None
        generation = manifest.generation if manifest else selection.generation(con, None)
        wanted = drift.pair(store, con, generation, versions["labels"])
        compared = wanted is None or drift.is_kept(con, wanted)
        if compare and not compared:
            drift.keep(store, generation)
            store.view(con, "changes")
            compared = True
        suspects = _suspects(store, con) if reason in (None, "label") else []
        selection.prepare(con, Parameters(generation, per_class=1))
        _register(con, manifest, suspects)
        values = {"generation": generation, "has_manifest": manifest is not None, "label": label, "limit": limit}
        images = queries.rows(con, queries.text("worklist"), **values, only=reason)
    return Worklist(generation, manifest.name if manifest else None, images, compared)


def _suspects(store: Store, con: duckdb.DuckDBPyConnection) -> list[dict[str, Any]]:
    """The labels that the newest run of folds objects to; none where there was no run."""
    run = queries.rows(con, "select max(run) as run from stored_held_out")[0]["run"]
    return issues.find(store, run=run, limit=_SUSPECTS).rows if run is not None else []


def _register(con: duckdb.DuckDBPyConnection, manifest: Manifest | None, suspects: list[dict[str, Any]]) -> None:
    """Gives a connection the relations of sql/worklist.sql that are not in the store's tables."""
    if manifest is None:
        columns = {"image_id": pa.int64(), "label": pa.int32(), "confidence": pa.float32(), "copies": pa.int32()}
        con.register("kept", pa.schema(columns.items()).empty_table())
    else:
        con.read_parquet([str(file) for file in manifests.files(manifest)]).create_view("kept")
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
