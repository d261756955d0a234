"""What two generations disagree on: flips and drift per class, the images behind them, the confusion on the holdout.

    tables drift and changes (drift.py; made now where they are missing) --sql/disagreement_*.sql--> answers

The pool is millions of rows and the tables are thousands, so that a page of the app can ask them at each click.
"""

from __future__ import annotations

from contextlib import closing
from typing import Any, NamedTuple

from curator import queries
from curator.curation import selection
from curator.decisions.reviews import class_index
from curator.errors import InputError, suggestion
from curator.generations import drift
from curator.generations.derived import Wanted
from curator.schema import SPLITS
from curator.storage.store import Store


class Disagreement(NamedTuple):
    """A generation compared with the one before it.

    Attributes:
        generation: The later generation.
        previous: The earlier one.
        split: Whose images are counted, but for the holdout's own figures.
        totals: One row of sql/disagreement_totals.sql.
        classes: Rows of sql/disagreement_classes.sql.
        flips: Rows of sql/disagreement_flips.sql.
        images: Rows of sql/disagreement_images.sql.
        holdout: One row of sql/disagreement_holdout.sql.
        confusion: Rows of sql/disagreement_confusion.sql.
    """

    generation: int
    previous: int
    split: str
    totals: dict[str, Any]
    classes: list[dict[str, Any]]
    flips: list[dict[str, Any]]
    images: list[dict[str, Any]]
    holdout: dict[str, Any]
    confusion: list[dict[str, Any]]


def between(
    store: Store,
    generation: int | None = None,
    split: str = "unlabeled",
    class_name: str | None = None,
    limit: int = 20,
) -> Disagreement:
    """Compares a generation with the one before it.

    Args:
        store: The store.
        generation: The later generation; the newest by default.
        split: Whose images to count.
        class_name: Name or index of a class to narrow flips, images and confusion to.
        limit: Most rows of flips, images and confusion.

    Raises:
        InputError: The generation, split or class is unknown, or there is no earlier generation.
    """
    if split not in SPLITS:
        raise InputError(f"the split '{split}' is unknown{suggestion(split, SPLITS)}", f"one of {', '.join(SPLITS)}")
    label = None if class_name is None else class_index(store.classes(), class_name)
    wanted, kept = pair(store, generation)
    if not kept:
        drift.keep(store, wanted.generation)
    values = wanted._asdict() | {"split": split, "label": label, "limit": limit}
    with closing(store.connect()) as con:

        def rows(name: str, *steps: str) -> list[dict[str, Any]]:
            query = queries.compose(queries.steps(*steps), queries.text(f"disagreement_{name}"))
            return queries.rows(con, query, **values)

        return Disagreement(
            wanted.generation,
            wanted.previous,
            split,
            rows("totals")[0],
            rows("classes"),
            rows("flips"),
            rows("images"),
            rows("holdout")[0],
            rows("confusion", "mistakes"),
        )


def history(store: Store, image_id: int) -> list[dict[str, Any]]:
    """What each generation said of one image, see sql/image_labels.sql.

    Raises:
        InputError: No generation has labeled it, or it is not there.
    """
    if rows := store.rows(queries.text("image_labels"), image_id=image_id):
        return rows
    if store.rows("select 1 from images where image_id = $image_id", image_id=image_id):
        raise InputError(f"no generation has labeled the image {image_id}", "curator label --model NAME")
    raise InputError(f"there is no image {image_id}", 'curator sql "select image_id, uri from images limit 10"')


def pair(store: Store, generation: int | None = None) -> tuple[Wanted, bool]:
    """A generation and the one before it, and whether the tables hold them as their labels are now; writes nothing.

    Args:
        store: The store.
        generation: The later generation; the newest by default.

    Raises:
        InputError: The generation is unknown, or there is no earlier one.
    """
    versions = store.versions()
    with closing(store.connect(versions)) as con:
        generation = selection.generation(con, generation)
        wanted = drift.pair(store, con, generation, versions["labels"])
        kept = wanted is not None and drift.is_kept(con, wanted)
    if wanted is None:
        raise InputError(
            f"generation {generation} is the first one, and there is nothing to compare it with",
            "curator label with a later model, or --generation with a later one",
        )
    return wanted, kept
