"""Decisions of people on images: appended, never changed; the latest of an image wins."""

from __future__ import annotations

import datetime as dt
import getpass
import os

import pyarrow as pa

from curator.errors import InputError, some, suggestion
from curator.schema import DECISIONS, REVIEWS
from curator.store import Store


def add_review(
    store: Store,
    image_id: int,
    decision: str,
    new_label: str | None = None,
    reviewer: str | None = None,
    reason: str | None = None,
) -> dict[str, object]:
    """Records one decision.

    Args:
        store: The store.
        image_id: The image.
        decision: accept, reject, relabel, or skip, which takes an earlier decision back.
        new_label: Class name or index, for a relabel.
        reviewer: Who decided; the user's login name by default.
        reason: Free text.

    Returns:
        The row that was written.

    Raises:
        InputError: The image, decision or class is unknown, or a class is given where none belongs.
    """
    if decision not in DECISIONS:
        raise InputError(
            f"the decision '{decision}' is unknown{suggestion(decision, DECISIONS)}",
            f"one of {', '.join(DECISIONS)}",
        )
    if (decision == "relabel") != (new_label is not None):
        raise InputError(
            "a relabel needs a class, and only a relabel",
            "--decision relabel --new-label CLASS, or leave --new-label out",
        )
    known = abs(image_id) < 2**63 and store.rows("select 1 from images where image_id = $id", id=image_id)
    if not known:
        raise InputError(f"there is no image {image_id}", 'curator sql "select image_id, uri from images limit 10"')
    newest = store.rows(
        "select max(generation) as generation from labels where image_id = $image_id", image_id=image_id
    )
    row = {
        "image_id": image_id,
        "generation": newest[0]["generation"],
        "decision": decision,
        "new_label": None if new_label is None else class_index(store.classes(), new_label),
        "reviewer": reviewer or _login(),
        "reason": reason,
        "decided_at": dt.datetime.now(dt.UTC),
    }
    store.append("reviews", pa.Table.from_pylist([row], REVIEWS.schema))
    return row


def _login() -> str:
    """The user's login name, or the user's number where the system knows no name, as in many containers."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def class_index(classes: list[str], given: str) -> int:
    """The index of a class given by its name or, where no class has that name, by its index.

    Raises:
        InputError: There is no such class.
    """
    if given in classes:
        return classes.index(given)
    if given.isdecimal() and int(given) < len(classes):
        return int(given)
    raise InputError(f"there is no class '{given}'{suggestion(given, classes)}", f"the classes are {some(classes, 12)}")
