"""The images that a filter lets through, page by page, in an order; each page is one query, however far down it lies.

browse -> reviews -> manifest -> filter (gallery.sql) = found --+--> count
(the table, or gallery_unsorted.sql)                           +--> steps of the measure -> where a far page lies -+
                                                                +--> page in an order <----------------------------+
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any, NamedTuple

from curator import queries
from curator.curation import selection
from curator.generations import browse
from curator.schema import DECISIONS
from curator.storage.store import Store

if TYPE_CHECKING:
    import duckdb

# Orders by name: the query that makes the page, and the measure that it sorts by.
ORDERS = {
    "lowest confidence": ("lowest", "confidence"),
    "highest confidence": ("highest", "confidence"),
    "lowest margin": ("lowest", "margin"),
    "highest margin": ("highest", "margin"),
    "lowest entropy": ("lowest", "entropy"),
    "highest entropy": ("highest", "entropy"),
    "newest decision": ("newest", ""),
}
REVIEWED = ("none", "any", *DECISIONS)
CHOSEN = ("any", "pseudo", "review", "none")
# Rows before a page from which on it is found through the steps of its measure.
FAR = 5_000

Range = tuple[float | None, float | None]


class Filter(NamedTuple):
    """Which images to show; None lets everything through.

    Attributes:
        generation: Whose labels.
        split: Split of the image.
        label: Class that the teacher gave.
        confidence: Lowest and highest, both included.
        margin: Lowest and highest.
        entropy: Lowest and highest, in nats.
        text: Part of the uri, in any case.
        decision: One of REVIEWED: what the latest review says.
        source: One of CHOSEN: as what it is in the manifest.
        files: The files of that manifest.
    """

    generation: int
    split: str | None = None
    label: int | None = None
    confidence: Range = (None, None)
    margin: Range = (None, None)
    entropy: Range = (None, None)
    text: str | None = None
    decision: str | None = None
    source: str | None = None
    files: tuple[str, ...] = ()


class Step(NamedTuple):
    """A range of a measure.

    Attributes:
        low: Lowest value that an image has.
        high: Highest value that an image has.
        images: How many images lie in it.
    """

    low: float
    high: float
    images: int


class Gallery:
    """The images that a filter lets through.

    Args:
        con: A connection to the store.
        wanted: The filter.
        order: One of ORDERS. By newest decision there are only images with a review.
        is_sorted: Whether the table `browse` holds the generation, see browse.py.
    """

    def __init__(
        self, con: duckdb.DuckDBPyConnection, wanted: Filter, order: str = "lowest confidence", is_sorted: bool = True
    ) -> None:
        self._con = con
        self._query, self._measure = ORDERS[order]
        decision = wanted.decision or ("any" if self._query == "newest" else None)
        values = wanted._asdict() | {"decision": decision, "files": list(wanted.files), "measure": self._measure}
        for measure in ("confidence", "margin", "entropy"):
            values[f"{measure}_from"], values[f"{measure}_to"] = values.pop(measure)
        self._values: dict[str, Any] = values
        # nothing that nobody has reviewed has a newest decision
        undecided = decision == "none" and self._query != "newest"
        self._steps = _steps(is_sorted, decision is not None, undecided, wanted.source)

    def count(self) -> int:
        """How many images there are."""
        return int(self._rows("select count(*) as images from found")[0]["images"])

    def steps(self) -> list[Step]:
        """How many images lie in which range of the measure of the order; none for the newest decision."""
        return [Step(**row) for row in self._rows(queries.text("gallery_steps"))] if self._measure else []

    def page(self, first: int, size: int, steps: Sequence[Step] = ()) -> list[dict[str, Any]]:
        """Some images in a row.

        Args:
            first: How many images come before.
            size: Most images.
            steps: What `steps` says; with them a page far down takes no longer than the first.

        Returns:
            Rows of sql/gallery.sql with decision and new_class of the latest review, None where there is none.
        """
        low, high, skipped = None, None, 0
        if steps:
            low, high, skipped = _span(steps if self._query == "lowest" else steps[::-1], first, size)
        values = {"from": low, "to": high, "first": first - skipped, "size": size}
        rows = self._rows(queries.text(f"gallery_{self._query}"), **values)
        marks = {row["image_id"]: row for row in self._marks([row["image_id"] for row in rows])}
        nothing = {"decision": None, "new_class": None}
        return [row | marks.get(row["image_id"], nothing) for row in rows]

    def _marks(self, image_ids: list[int]) -> list[dict[str, Any]]:
        page = {"page": "select unnest($image_ids::BIGINT[]) as image_id"}
        query = queries.compose(page | queries.steps("latest_reviews"), queries.text("gallery_marks"))
        return queries.rows(self._con, query, image_ids=image_ids)

    def _rows(self, final: str, **values: Any) -> list[dict[str, Any]]:
        return queries.rows(self._con, queries.compose(self._steps, final), **self._values, **values)


def index(store: Store, generation: int | None = None) -> list[dict[str, Any]]:
    """Makes the tables of browse.py where a publication could not.

    Args:
        store: The store.
        generation: Only this one; all that have labels by default.

    Returns:
        A row per generation: generation, images.

    Raises:
        InputError: The generation is not there, or none is.
    """
    with closing(store.connect()) as con:
        newest = selection.generation(con, generation)
        every = [row["generation"] for row in queries.rows(con, queries.text("generations"))]
    wanted = sorted(every) if generation is None else [newest]
    return [{"generation": each, "images": browse.keep(store, each)} for each in wanted]


def _steps(is_sorted: bool, reviewed: bool, undecided: bool, source: str | None) -> dict[str, str]:
    """The steps to the relation `found`; what is not asked for costs nothing."""
    steps = {"everything": "from stored_browse" if is_sorted else queries.text("gallery_unsorted")}
    steps |= queries.steps("latest_reviews")
    if reviewed:
        steps["reviewed"] = queries.text("gallery_undecided" if undecided else "gallery_decided")
    else:
        steps["reviewed"] = "from everything"
    if source:
        steps["kept"] = "select image_id, source from read_parquet($files)"
        steps["chosen"] = queries.text("gallery_left_out" if source == "none" else "gallery_selected")
    else:
        steps["chosen"] = "from reviewed"
    return steps | {"found": queries.text("gallery")}


def _span(steps: Sequence[Step], first: int, size: int) -> tuple[float, float, int]:
    """The range of values in which a page lies, and how many images come before the range."""
    before, skipped = 0, 0
    span: list[Step] = []
    for step in steps:
        if before + step.images > first and before < first + size:
            skipped = skipped if span else before
            span.append(step)
        before += step.images
    if not span:  # behind the last image
        return 1.0, 0.0, first
    return min(step.low for step in span), max(step.high for step in span), skipped
