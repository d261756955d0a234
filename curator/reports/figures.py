"""The figures of a published manifest: what its lineage says, what its rows add up to, and some of its pictures.

    lineage ---------------------------> classes, funnel, options, warnings
    its files -> sql/report_*.sql -----> confidence, copies, the rows worth a look -> their pictures, small
    labels, at the recorded versions --> confidence of the whole pool

What the lineage knows is not counted again. Only counts and a few dozen rows leave DuckDB.
"""

from __future__ import annotations

import math
from contextlib import closing
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from curator import progress, queries
from curator.curation import account, manifests
from curator.pictures.thumbnails import thumbnail
from curator.reports import plots

if TYPE_CHECKING:
    import duckdb

    from curator.curation.manifests import Manifest
    from curator.storage.store import Store

PICTURES = 24  # of each kind
PICTURE_SIDE = 96


class Picture(NamedTuple):
    """A row of the manifest with its picture.

    Attributes:
        row: image_id, uri, source, class_name, confidence, copies, weight.
        jpeg: The picture, at most PICTURE_SIDE pixels wide and high; empty if it cannot be read.
        problem: Why it cannot.
    """

    row: dict[str, Any]
    jpeg: bytes
    problem: str


class Figures(NamedTuple):
    """What there is to say about a manifest.

    Attributes:
        classes: See `account.classes`; the class with the most candidates first.
        funnel: What each rule leaves, in images; the last is rows, counted with copies.
        options: The options that are not at their defaults.
        short: Classes with fewer images to choose from than the quota, the fewest first.
        empty: Classes without any.
        warnings: What is wrong or unusual, as sentences.
        seen: Holdout images that the teacher puts into a class at or above its cut-off.
        right: Those of them that belong there.
        pool: int64 [50] labeled pool images by confidence, in steps of 0.02.
        images: int64 [50] kept images.
        rows: int64 [50] kept images, counted with copies.
        copies: Rows of sql/report_copies.sql.
        least_confident: Kept images, the least confident first.
        most_copied: Kept images of the classes that copy most.
    """

    manifest: Manifest
    classes: list[dict[str, Any]]
    funnel: list[tuple[str, int]]
    options: dict[str, Any]
    short: list[dict[str, Any]]
    empty: list[dict[str, Any]]
    warnings: list[str]
    seen: int
    right: int
    pool: npt.NDArray[np.int64]
    images: npt.NDArray[np.int64]
    rows: npt.NDArray[np.int64]
    copies: list[dict[str, Any]]
    least_confident: list[Picture]
    most_copied: list[Picture]


def gather(store: Store, name: str) -> Figures:
    """The figures of a published manifest.

    Raises:
        InputError: There is no manifest of that name, or its files are missing or damaged.
    """
    manifest = manifests.find(store, name)
    lineage = manifest.lineage
    classes = sorted(account.classes(manifest), key=lambda c: (-c["candidates"], c["label"]))
    with closing(store.connect(lineage["tables"])) as con:
        con.execute("set preserve_insertion_order = false")  # each query says its order
        _open(con, manifest)
        generation = lineage["parameters"]["generation"]
        labeled = {"pool": queries.text("pool"), "judged": "select confidence, 1 as copies from pool"}
        pool, _ = _confidence(con, labeled, generation)
        images, rows = _confidence(con, {"judged": "select confidence, copies from kept"}, generation)
        copies = queries.rows(con, queries.text("report_copies"))
        # The fewest candidates come first among classes that copy alike.
        most = sorted((c for c in classes if c["most_copies"] > 1), key=lambda c: (-c["most_copies"], c["label"]))
        labels = [c["label"] for c in most[:PICTURES]]
        each = math.ceil(PICTURES / max(len(labels), 1))
        doubtful = queries.rows(con, queries.text("report_least_confident"), most=PICTURES)
        copied = queries.rows(con, queries.text("report_most_copied"), labels=labels, each=each, most=PICTURES)
    with progress.progress("reading pictures", len(doubtful) + len(copied)) as advance:
        shown = []
        for row in doubtful + copied:
            shown.append(_picture(store, row))
            advance(1)
    right, seen = account.precision(manifest)
    return Figures(
        manifest=manifest,
        classes=classes,
        funnel=account.funnel(manifest),
        options=account.options(manifest),
        short=account.short(manifest),
        empty=[c for c in classes if not c["eligible"]],
        warnings=account.warnings(manifest),
        seen=seen,
        right=right,
        pool=pool,
        images=images,
        rows=rows,
        copies=copies,
        least_confident=shown[: len(doubtful)],
        most_copied=shown[len(doubtful) :],
    )


def _open(con: duckdb.DuckDBPyConnection, manifest: Manifest) -> None:
    """Makes the rows of the manifest the relation `kept`."""
    con.read_parquet([str(file) for file in manifests.files(manifest)]).create_view("kept")


def _confidence(
    con: duckdb.DuckDBPyConnection, steps: dict[str, str], generation: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    images, rows = np.zeros((2, plots.STEPS), np.int64)
    query = queries.compose(steps, queries.text("report_confidence"))
    for found in queries.rows(con, query, generation=generation):
        images[found["step"]], rows[found["step"]] = found["images"], found["rows"]
    return images, rows


def _picture(store: Store, row: dict[str, Any]) -> Picture:
    jpeg, problem = thumbnail(store.root, row, PICTURE_SIDE)
    for name in ("shard", "byte_offset", "byte_length"):
        del row[name]
    return Picture(row, jpeg, problem)
