"""Turns: which images a reviewer judges, one after the other, and what is known of them.

worklist, or the sample of an audit --sql/review_queue.sql--> Listed --decisions--> Turn: the image to look at
"""

from __future__ import annotations

from typing import Any, NamedTuple

import streamlit as st

from curator import audit, queries, worklist
from curator.audit import Key
from curator.errors import CuratorError
from curator.session import Session

from .choices import classes
from .live import live

LIMIT = 300  # images that are listed at a time
QUEUE, AUDIT = "Queue", "Audit"
_STATE = "review"


class Listed(NamedTuple):
    """The images to decide on.

    Attributes:
        rows: What is known of each, as in sql/review_queue.sql, with the reason, value, detail and copies of a queue.
        generation: Whose labels are judged.
        source: What it is a list of, in words.
        complete: Whether there are no more.
        hint: A command that adds reasons; None where nothing is missing.
    """

    rows: dict[int, dict[str, Any]]
    generation: int
    source: str
    complete: bool
    hint: str | None = None


class Turn:
    """What a reviewer is at.

    Attributes:
        chosen: The choices that the list follows from.
        listed: The list.
        session: The decisions on it.
        place: Of the image that is shown, in the list.
        said: What is to be told above the next image; empty for nothing.
        reviewer: Who decides.
    """

    def __init__(self, chosen: tuple[Any, ...], listed: Listed, session: Session) -> None:
        self.chosen, self.listed, self.session = chosen, listed, session
        self.place = session.next_open() or 0
        self.said = ""
        self.reviewer = ""

    @property
    def image_id(self) -> int:
        """The image that is shown."""
        return self.session.image_ids[self.place]

    @property
    def row(self) -> dict[str, Any]:
        """What is known of it."""
        return self.listed.rows[self.image_id]


def turn(mode: str, label: int | None, chosen: Any) -> Turn:
    """The reviewer's turn; a new one where other images are asked for, or the list's tables changed."""
    choices = (mode, label, chosen, live().state())
    kept: Turn | None = st.session_state.get(_STATE)
    if kept is None or kept.chosen != choices:
        kept = st.session_state[_STATE] = _listing(choices, kept)
        asked = st.query_params.get("at", "")
        if asked.isdecimal() and int(asked) in kept.listed.rows:
            kept.place = kept.session.image_ids.index(int(asked))
    return kept


def now() -> Turn:
    """The turn that `turn` gave last."""
    found: Turn = st.session_state[_STATE]
    return found


def again(before: Turn) -> Turn:
    """A new turn of the same choices, whose list goes on where the last one is used up."""
    found = _listing(before.chosen, before)
    found.reviewer, found.said = before.reviewer, before.said
    st.session_state[_STATE] = found
    return found


def uri(at: Turn, image_id: int) -> str:
    """The URI of an image that may be on no list any more, or its number where that cannot be read."""
    try:
        found = at.listed.rows.get(image_id) or _facts([image_id], at.listed.generation).get(image_id)
    except CuratorError:
        found = None
    return str(found["uri"]) if found else f"image {image_id}"


def _listing(choices: tuple[Any, ...], before: Turn | None) -> Turn:
    mode, label, chosen, state = choices
    there = live()
    if mode == AUDIT:
        there.refresh()
        listed = _sampled(chosen, label)
        generation = None
    else:
        listed = _queue(state, str(there.store.path), label, chosen)
        generation = listed.generation
    session = Session(there.store, listed.rows, generation, before.session.made if before else ())
    if mode == QUEUE and session.next_open() is None and not listed.complete:  # a kept list, and all is decided
        _queue.clear(state, str(there.store.path), label, chosen)
        listed = _queue(state, str(there.store.path), label, chosen)
        session = Session(there.store, listed.rows, generation, session.made)
    return Turn(choices, listed, session)


@st.cache_data(show_spinner="Looking for the images that are worth most ...", max_entries=50)
def _queue(state: object, store: str, label: int | None, reason: str | None) -> Listed:
    there = live()
    name = None if label is None else classes()[label]
    found = worklist.worklist(there.store, LIMIT, name, reason, compare=False)
    facts = _facts([row["image_id"] for row in found.images], found.generation)
    listed = {row["image_id"]: row | facts[row["image_id"]] for row in found.images}
    source = f"manifest {found.manifest}" if found.manifest else f"generation {found.generation}, no manifest yet"
    hint = None if found.compared else f"curator quality disagreement --generation {found.generation}"
    return Listed(listed, found.generation, source, len(listed) < LIMIT, hint)


def _sampled(key: Key, label: int | None) -> Listed:
    with live().cursor() as con:
        found = audit.read(con, key, label, LIMIT)
    images = found.open if found else []
    facts = _facts([row["image_id"] for row in images], key.generation)
    listed = {row["image_id"]: row | facts[row["image_id"]] for row in images if row["image_id"] in facts}
    return Listed(listed, key.generation, "the sample", len(images) < LIMIT)


def _facts(images: list[int], generation: int) -> dict[int, dict[str, Any]]:
    found = live().ask(queries.text("review_queue"), images=images, generation=generation)
    return {row["image_id"]: row for row in found}
