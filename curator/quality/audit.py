"""How good the labels of a class are, from few decisions: a random sample, drawn and kept, and an estimate from it.

    pool labels of a generation --sql/audit_draw.sql--> table audits: the sample, with the sizes of its strata
    the sample, decisions on its images --sql/audit_strata.sql--> counts per class and stratum --estimate--> precision

The sample is kept before anybody looks, so that images which were reviewed for other reasons (most of them doubtful)
do not count. docs/audit.md says how the estimate is made, and how far it was tried.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable
from contextlib import closing, suppress
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa

from curator import queries
from curator.curation import selection
from curator.curation.account import wilson
from curator.curation.parameters import Parameters
from curator.decisions.reviews import class_index
from curator.errors import InputError
from curator.schema import AUDITS
from curator.storage import additions
from curator.storage.delta import CommitRaced
from curator.storage.store import Store

if TYPE_CHECKING:
    import duckdb

PER_CLASS = 50
MIN_CONFIDENCE = 0.3
EVERY = 2**31 - 1  # as a limit
# Images that each stratum borrows from its class's mean, so that one with right answers alone is not taken for certain.
_BORROWED = 2
_SAMPLE = (
    "select * from stored_audits where generation = $generation and seed = $seed and per_class = $per_class"
    " and min_confidence = $min_confidence::FLOAT order by label, place"
)


class Key(NamedTuple):
    """What a sample is known by: the same key gives the same sample."""

    generation: int
    seed: int
    per_class: int
    min_confidence: float


class Stratum(NamedTuple):
    """Images of one range of confidences: all, those that were decided on, and the right ones of these."""

    images: int
    decided: int
    right: int


class Estimate(NamedTuple):
    """A share of right labels and its 95 % interval; all None without a decision."""

    precision: float | None
    low: float | None
    high: float | None


class Audit(NamedTuple):
    """A sample and what is known from it.

    Attributes:
        key: What the sample is known by.
        is_new: Whether it was drawn now.
        classes: class_name, images, drawn, decided, right, precision, low, high of each class that has images.
        total: The same without class_name, of the classes with decisions.
        open: Rows of sql/audit_open.sql: what is left to decide on.
    """

    key: Key
    is_new: bool
    classes: list[dict[str, Any]]
    total: dict[str, Any]
    open: list[dict[str, Any]]


def audit(
    store: Store,
    generation: int | None = None,
    per_class: int = PER_CLASS,
    seed: int = 0,
    min_confidence: float = MIN_CONFIDENCE,
    class_name: str | None = None,
    limit: int = 20,
) -> Audit:
    """Estimates the precision of each class from the decisions on a sample, which is drawn when it is not there yet.

    Args:
        store: The store.
        generation: Whose labels; the newest by default.
        per_class: Images to draw of each class.
        seed: Seed of the draw, another one for another sample.
        min_confidence: Only images with a confidence above this.
        class_name: Name or index of the only class to return.
        limit: Most open images to return.

    Raises:
        InputError: The generation or class is unknown, or no image is confident enough.
    """
    label = None if class_name is None else class_index(store.classes(), class_name)
    with closing(store.connect()) as con:
        generation = selection.generation(con, generation)
        key = Key(generation, seed, per_class, float(np.float32(min_confidence)))
        found = read(con, key, label, limit)
    if found is None:
        _draw(store, key)
        with closing(store.connect()) as con:
            found = read(con, key, label, limit)
        assert found is not None, "a sample stays"
        found = found._replace(is_new=True)
    return found


def drawn(con: duckdb.DuckDBPyConnection) -> list[Key]:
    """The samples that are there, the newest first."""
    query = (
        "select generation, seed, per_class, min_confidence from stored_audits group by all order by max(drawn_at) desc"
    )
    return [Key(**row) for row in queries.rows(con, query)]


def read(con: duckdb.DuckDBPyConnection, key: Key, label: int | None = None, limit: int = EVERY) -> Audit | None:
    """What is known from a sample; nothing is written.

    Args:
        con: A connection with the store's relations; it gets the relations `sample`, `latest_reviews` and `decisions`.
        key: The sample.
        label: The only class to return.
        limit: Most open images to return.

    Returns:
        None where the sample was not drawn.
    """
    con.execute(f"create or replace temp table sample as {_SAMPLE}", key._asdict())
    if not queries.rows(con, "select 1 from sample limit 1"):
        return None
    for name in ("latest_reviews", "decisions"):
        con.execute(f"create or replace temp table {name} as {queries.text(name)}")
    strata = queries.rows(con, queries.text("audit_strata"))
    names = {row["label"]: row["class_name"] for row in queries.rows(con, "select * from classes")}
    left = queries.rows(con, queries.text("audit_open"), label=label, limit=limit)
    classes, decided = [], []
    for number, rows in groupby(strata, lambda row: row["label"]):
        found = list(rows)
        if label in (None, number):
            classes.append({"class_name": names.get(number, str(number))} | _figures(found))
            decided += found if classes[-1]["decided"] else []
    return Audit(key, False, classes, _figures(decided), left)


def write_sheet(found: Audit, file: Path) -> None:
    """Writes the open images as a CSV file with empty decisions, to be filled in and read by reviews.add_reviews.

    Raises:
        InputError: The file exists, or cannot be written.
    """
    columns = [
        "image_id",
        "uri",
        "generation",
        "class_name",
        "confidence",
        "decision",
        "new_label",
        "reviewer",
        "reason",
    ]
    try:
        with file.open("x", encoding="utf-8", newline="") as text:
            lines = csv.DictWriter(text, columns, restval="", extrasaction="ignore", lineterminator="\n")
            lines.writeheader()
            # the sample's generation, which need not be the newest when the decisions come back
            same = {"generation": found.key.generation}
            lines.writerows(row | same | {"confidence": f"{row['confidence']:.4f}"} for row in found.open)
    except OSError as error:
        why = "it exists" if isinstance(error, FileExistsError) else error.strerror
        raise InputError(f"'{file}' cannot be written ({why})", "name a new file with --sheet") from None


def estimate(classes: Iterable[list[Stratum]]) -> Estimate:
    """The share of right labels, from stratified samples, with a 95 % interval.

    Args:
        classes: The strata of each class, in the order of confidence.

    The share is the mean of the strata's shares by their sizes. The interval is Wilson's for as many images as a simple
    random sample of the same variance would have (Franco, Little, Louis and Slud, "Comparative study of confidence
    intervals for proportions in complex sample surveys", Journal of Survey Statistics and Methodology 2019).
    """
    strata = [stratum for each in classes for stratum in _joined(each)]
    total = sum(stratum.images for stratum in strata)
    decided = sum(stratum.decided for stratum in strata)
    if not decided:
        return Estimate(None, None, None)
    share = sum(s.images * s.right / s.decided for s in strata) / total
    near = (share * decided + 1) / (decided + 2)
    smoothed, variance = 0.0, 0.0
    for s in strata:
        weight, rate = s.images / total, (s.right + _BORROWED * near) / (s.decided + _BORROWED)
        smoothed += weight * rate
        # the factor in front is 0 where all images were decided on
        variance += (1 - s.decided / s.images) * weight**2 * rate * (1 - rate) / s.decided
    if not variance:
        return Estimate(share, share, share)
    effective = smoothed * (1 - smoothed) / variance
    return Estimate(share, *wilson(min(share, 1.0) * effective, effective))


def _joined(strata: list[Stratum]) -> list[Stratum]:
    """Strata without a decision joined to a neighbour; none are left where the class has no decision."""
    found: list[Stratum] = []
    for stratum in strata:
        if found and not (stratum.decided and found[-1].decided):
            stratum = Stratum(*(a + b for a, b in zip(found.pop(), stratum, strict=True)))
        found.append(stratum)
    return [stratum for stratum in found if stratum.decided]


def _figures(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Counts and the estimate of rows of sql/audit_strata.sql."""
    by_class = [
        [Stratum(row["images"], row["decided"], row["right_ones"]) for row in each]
        for _, each in groupby(rows, lambda row: row["label"])
    ]
    sums = {name: sum(row[name] for row in rows) for name in ("images", "drawn", "decided", "right_ones")}
    sums["right"] = sums.pop("right_ones")
    return sums | estimate(by_class)._asdict()


def _draw(store: Store, key: Key) -> None:
    """Draws and keeps the sample of a key; of two processes that draw the same one, the first is believed.

    Raises:
        InputError: No image is confident enough.
    """
    additions.make(store, "audits")
    table = store.delta("audits")
    with closing(store.connect({"audits": table.version()})) as con:
        if queries.rows(con, f"{_SAMPLE} limit 1", **key._asdict()):  # drawn since somebody looked
            return
        selection.prepare(con, Parameters(key.generation, per_class=1))  # the leaks, as build-manifest takes them
        query = queries.text("audit_draw")
        images: pa.Table = con.sql(query, params=queries.bind(con, query, key._asdict())).to_arrow_table()
    if not images.num_rows:
        raise InputError(
            f"no image of generation {key.generation} has a confidence above {key.min_confidence:g}",
            "a lower --min-confidence, or label the pool: curator label --model NAME --split unlabeled",
        )
    same = key._asdict() | {"drawn_at": additions.now(store.rows, "audits")}
    columns = {
        field.name: images[field.name].cast(field.type)
        if field.name in images.column_names
        else pa.array([same[field.name]] * images.num_rows, field.type)
        for field in AUDITS.schema
    }
    sample = pa.table(columns, schema=AUDITS.schema)
    with suppress(CommitRaced):
        additions.claim(store, "audits", sample, "audit " + " ".join(map(str, key)), table)
