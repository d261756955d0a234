"""Turns: which images a reviewer judges, one after the other, and what is known of them.

worklist, or the sample of an audit --sql/review_queue.sql--> Listed --decisions--> Turn: the image to look at
"""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import duckdb
import streamlit as st
from streamlit.runtime import Runtime
from streamlit.runtime.scriptrunner import get_script_run_ctx

from curator import queries
from curator.decisions.session import Session
from curator.errors import CuratorError
from curator.quality import audit, worklist
from curator.quality.audit import Key

from .live import live

LIMIT = 300  # images that are listed at a time
QUEUE, AUDIT = "Queue", "Audit"
_STATE = "review"
_RESTS_S = 60.0  # an image that somebody has had before them for longer is for others, too
_GIVEN = "select unnest($images::BIGINT[]) as image_id"


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
        self.place = self.next_open() or 0
        self.said = ""
        self.reviewer = ""

    def next_open(self, after: int = -1) -> int | None:
        """The place of the next image to decide on that nobody else has before them; see Session.next_open.

        Where others have all of them before them, it is the next one nevertheless.
        """
        theirs = _theirs()
        first = place = self.session.next_open(after)
        while place is not None and self.session.image_ids[place] in theirs:
            place = self.session.next_open(place)
            if place == first:
                break
        return place

    def show(self) -> None:
        """Says that this person has the image before them."""
        _shown(str(live().store.place))[_own()] = self.image_id, time.monotonic()

    @property
    def image_id(self) -> int:
        """The image that is shown."""
        return self.session.image_ids[self.place]

    @property
    def row(self) -> dict[str, Any]:
        """What is known of it."""
        return self.listed.rows[self.image_id]


@st.cache_resource(show_spinner=False)
def _shown(path: str) -> dict[str, tuple[int, float]]:
    """The image that each session of the server has before it, and since when."""
    return {}


def _theirs() -> set[int]:
    """The images that other sessions have before them; not of those that are closed, or at rest."""
    shown, own = _shown(str(live().store.place)), _own()
    for session, (_, since) in list(shown.items()):
        closed = Runtime.exists() and not Runtime.instance().is_active_session(session)
        if closed or time.monotonic() - since > _RESTS_S:
            shown.pop(session, None)
    return {image for session, (image, _) in list(shown.items()) if session != own}


def _own() -> str:
    context = get_script_run_ctx()
    return context.session_id if context else ""


def turn(mode: str, label: int | None, chosen: Any) -> Turn:
    """The reviewer's turn; a new one where other images are asked for, or the list's tables changed."""
    choices = (mode, label, chosen, live().state())
    kept: Turn | None = st.session_state.get(_STATE)
    if kept is None or kept.chosen != choices:
        kept = st.session_state[_STATE] = _listing(choices, kept)
        asked = st.query_params.get("at", "")
        if asked.isdecimal() and len(asked) < 20 and int(asked) in kept.listed.rows:
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
        found = at.listed.rows.get(image_id)
        if found is None:
            with live().cursor() as con:
                found = _facts(con, _GIVEN, at.listed.generation, images=[image_id]).get(image_id)
    except (CuratorError, duckdb.Error):
        found = None
    return str(found["uri"]) if found else f"image {image_id}"


def _listing(choices: tuple[Any, ...], before: Turn | None) -> Turn:
    mode, label, chosen, state = choices
    there = live()
    if mode == AUDIT:
        listed = _sampled(chosen, label)
        generation = None
    else:
        with st.spinner("Looking for the images that are worth most ..."):
            listed = _queue(state, str(there.store.place), label, chosen)
        generation = listed.generation
    session = Session(there.store, listed.rows, generation, before.session.made if before else ())
    there.take_in("reviews", session.seen)
    if mode == QUEUE and session.next_open() is None and not listed.complete:  # a kept list, and all is decided
        _queue.clear(state, str(there.store.place), label, chosen)
        listed = _queue(state, str(there.store.place), label, chosen)
        session = Session(there.store, listed.rows, generation, session.made)
    return Turn(choices, listed, session)


def first_queue() -> None:
    """Works out the queue that everybody begins with, so that it is there when it is asked for."""
    there = live()
    _queue(there.state(), str(there.store.place), None, None)


@st.cache_data(show_spinner=False, max_entries=50)
def _queue(state: object, store: str, label: int | None, reason: str | None) -> Listed:
    there = live()
    with there.cursor() as con:
        found = worklist.look(there.store, con, dict(there.state())["labels"], LIMIT, label, reason)
        facts = _facts(con, "select image_id from worklist", found.generation)
        images = queries.rows(con, "select * from worklist order by value desc, image_id")
    source = f"manifest {found.manifest}" if found.manifest else f"generation {found.generation}, no manifest yet"
    hint = None if found.compared else f"curator quality disagreement --generation {found.generation}"
    return Listed(_joined(images, facts), found.generation, source, len(images) < LIMIT, hint)


def _sampled(key: Key, label: int | None) -> Listed:
    with live().cursor() as con:
        found = audit.read(con, key, label, LIMIT)
        images = found.open if found else []
        facts = _facts(con, _GIVEN, key.generation, images=[row["image_id"] for row in images])
    return Listed(_joined(images, facts), key.generation, "the sample", len(images) < LIMIT)


def _joined(images: list[dict[str, Any]], facts: dict[int, dict[str, Any]]) -> dict[int, dict[str, Any]]:
    return {row["image_id"]: row | facts[row["image_id"]] for row in images if row["image_id"] in facts}


def _facts(con: duckdb.DuckDBPyConnection, asked: str, generation: int, **values: Any) -> dict[int, dict[str, Any]]:
    """Rows of sql/review_queue.sql, by image, for the images that a query asks for."""
    query = queries.compose({"asked": asked}, queries.text("review_queue"))
    return {row["image_id"]: row for row in queries.rows(con, query, generation=generation, **values)}
