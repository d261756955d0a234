"""Review: one image after the other, a key for each decision.

the queue by value, or the sample of an audit --the keys--> rows of reviews, each there before the next image is shown
"""

from __future__ import annotations

from typing import Any

import duckdb
import simplejpeg
import streamlit as st

from curator.decisions import reviews
from curator.errors import CuratorError
from curator.quality import audit, worklist
from curator.quality.audit import Key

from . import turns
from .choices import class_name, classes, freed
from .links import to
from .live import command, live, rows
from .tiles import badge, pictures, placeholder
from .turns import AUDIT, QUEUE, Turn
from .words import failed, mended, nothing, plain, short

SIDE = 480  # pixels of the picture that is judged
_AHEAD = 5  # pictures that are made, and sent to the browser, before their turn
# What finds the images of a reason; the other reasons follow from labels and manifest.
_MORE = {
    "leak": "curator quality leaks",
    "label": "curator quality folds --recipe RECIPE",
    "flip": "curator quality disagreement",
}
_NAME = "reviewer's name"
_DONE = {"accept": "accepted", "reject": "rejected", "relabel": "relabeled", "skip": "skipped"}
_FAILURES = (CuratorError, OSError, duckdb.Error)
_ICONS = {"accept": ":material/check:", "reject": ":material/close:", "skip": ":material/skip_next:"}


def show() -> None:
    """The page."""
    st.title("Review", anchor=False)
    if not rows("generations"):
        nothing(
            "No generation has labels yet, so there is nothing to judge.",
            "curator label --model NAME",
            "curator import-labels FILE --generation 0 --model NAME",
        )
        return
    reviewer = _reviewer()
    with st.container(horizontal=True, vertical_alignment="bottom"):
        mode = st.segmented_control(
            "From", [QUEUE, AUDIT], default=QUEUE, required=True, key="mode", bind="query-params"
        )
        with st.container(width=220):
            label = class_name(lets_go=True)
        with st.container(width=220 if mode == QUEUE else 400):
            chosen: Any = _reason() if mode == QUEUE else _sample()
    if mode == AUDIT and chosen is None:
        nothing("No sample was drawn yet. This draws 50 images of each class:", "curator quality audit")
        return
    turn = turns.turn(mode or QUEUE, label, chosen)
    turn.reviewer = reviewer
    if turn.listed.hint:
        hint = plain(command(turn.listed.hint), 1000)
        st.caption(f"Images that changed their class are missing from this list until this was run: {hint}")
    _judging()


def _reviewer() -> str:
    """Who decides. It stands in no link: whoever opens one would decide under the sender's name."""
    login = reviews.login()
    st.session_state.setdefault("reviewer", st.session_state.get(_NAME, login))
    name = st.sidebar.text_input("Reviewer", max_chars=100, key="reviewer", help="Your name, kept with each decision.")
    st.session_state[_NAME] = name  # that of the box is gone when another page was looked at
    return (name or "").strip() or login


def _reason() -> str | None:
    texts = {None: "all reasons"} | {reason: reason for reason in worklist.REASONS}
    chosen: str | None = freed("Reason", texts, "reason", "Why a look is worth it; docs/audit.md has the table.")
    return chosen


def _sample() -> Key | None:
    with live().cursor() as con:
        drawn = audit.drawn(con)
    if not drawn:
        return None
    named = {
        f"generation {k.generation}, {k.per_class} a class above {k.min_confidence:g}, seed {k.seed}": k for k in drawn
    }
    return named[st.selectbox("Sample", list(named), key="sample", bind="query-params")]


@st.fragment
def _judging() -> None:
    """The image, and the keys: what a key reruns."""
    turn = turns.now()
    try:
        live().take_in("reviews", turn.session.seen)  # one's own decisions are there at once
        if turn.said:
            st.warning(plain(turn.said, 500), icon=":material/info:")
            turn.said = ""
        if turn.session.next_open() is None and not turn.session.image_ids:
            _nothing_left(turn)
            return
        if turn.session.next_open() is None and turn.chosen[0] == QUEUE:
            _nothing_left(turn)
        st.query_params["at"] = str(turn.image_id)
        turn.show()
        left, right = st.columns([5, 4], gap="medium")
        with left:
            _picture(turn.row)
            _moves(turn)
        with right:
            _known(turn)
            _keys(turn)
        _progress(turn)
        if turn.chosen[0] == AUDIT:
            _estimate(turn)
        _ahead(turn)
    except (CuratorError, duckdb.Error) as error:  # nobody else catches it in a run of the fragment alone
        failed(mended(error))


def _nothing_left(turn: Turn) -> None:
    if turn.chosen[0] == AUDIT:
        st.success("Every image of this sample is decided on, or was skipped just now.", icon=":material/done_all:")
        return
    st.success(
        "Nothing is left to look at. The next manifest takes the decisions in, and diff shows what they did:",
        icon=":material/done_all:",
    )
    after = ("curator build-manifest NAME --per-class K", "curator diff OLD NAME")
    st.code("\n".join(map(command, after)), language="bash")
    reason = turn.chosen[2]
    more = [command(each) for name, each in _MORE.items() if reason in (None, name)]
    if more:
        st.caption("More to look at is there once this was run:")
        st.code("\n".join(more), language="bash")


def _picture(row: dict[str, Any]) -> None:
    """The image; beside it the one of the holdout that it leaks."""
    if row["twin"] is None:
        _one(row, SIDE)
        return
    names = ("uri", "shard", "byte_offset", "byte_length")
    twin = dict(zip(names, (row[f"twin_{name.removeprefix('byte_')}"] for name in names), strict=True))
    own, other = st.columns(2, gap="xsmall", wrap=False)
    with own:
        _one(row, SIDE)
    with other:
        _one(twin, SIDE)
        st.caption(f"Of the holdout: {plain(row['twin_uri'])}, {row['kind']}, distance {row['distance']:g}")


def _one(row: dict[str, Any], side: int) -> None:
    """A picture with its longer side at so many pixels; small ones are enlarged by the browser."""
    (small,) = pictures([row], side)
    width = side
    if small.jpeg:
        high, wide, *_ = simplejpeg.decode_jpeg_header(small.jpeg)
        width = max(1, round(side * wide / max(high, wide)))
    said = f"{plain(row['uri'])}: {plain(small.problem)}" if small.problem else None
    st.image(small.jpeg or placeholder(), width=width, caption=said, alt=short(row["uri"]))


def _keys(turn: Turn) -> None:
    row, names = turn.row, classes()
    is_audit = turn.chosen[0] == AUDIT
    of = f"-{turn.image_id}"  # so that a key that was pressed before the image was shown decides nothing
    with st.container(horizontal=True, gap="xsmall"):
        for decision, key, label in (
            ("accept", "A", "Right" if is_audit else "Accept"),
            ("reject", "X", "Wrong" if is_audit else "Reject"),
            ("skip", "S", "Skip"),
        ):
            args = (turn.image_id, decision)
            st.button(label, key=decision + of, shortcut=key, icon=_ICONS[decision], on_click=_decide, args=args)
    top = [*zip(row["top_classes"] or [], row["top_probs"] or [], strict=True)]
    if top:
        st.caption("Wrong, and really:" if is_audit else "It is:")
    with st.container(gap="xxsmall"):
        for number, (label, share) in enumerate(top, start=1):
            st.button(
                f"{plain(names[label], 60)} :gray[{share:.3f}]",
                key=f"top{number}{of}",
                shortcut=str(number),
                width="stretch",
                on_click=_decide,
                args=(turn.image_id, "relabel", label),
            )
    other, why = st.columns(2, gap="xsmall")
    with other:
        st.selectbox(
            "Another class",
            range(len(names)),
            index=None,
            key=f"other{of}",  # a new box for each image: one that was used would keep the keys to itself
            format_func=lambda label: short(names[label]),
            placeholder="another class",
            label_visibility="collapsed",
            on_change=_relabel,
            args=(turn.image_id,),
        )
    with why:
        st.text_input(
            "Reason",
            key="why",
            placeholder="reason, if you like",
            label_visibility="collapsed",
            max_chars=500,
            on_change="ignore",
        )


def _known(turn: Turn) -> None:
    row, names = turn.row, classes()
    said = []
    if row["trusted"] is not None:
        said.append(f"Given: **{plain(names[row['trusted']])}** ({row['split']})")
    if row["label"] is not None:
        said.append(f"Teacher: **{plain(names[row['label']])}** {row['confidence']:.3f}")
    if "reason" in row:
        copies = f"; {row['copies']} cop{'y' if row['copies'] == 1 else 'ies'} in the manifest" if row["copies"] else ""
        detail = f", {plain(row['detail'])}" if row["detail"] else ""
        said.append(f"Here for: **{row['reason']}**{detail}{copies}")
    latest = turn.session.latest.get(turn.image_id)
    if latest is not None:
        given = None if latest["new_label"] is None else names[latest["new_label"]]
        said.append(f"Decided: {badge(latest['decision'], given)} by {plain(latest['reviewer'])}")
    st.markdown("  \n".join(said))


def _moves(turn: Turn) -> None:
    st.text(short(turn.row["uri"]))
    with st.container(horizontal=True, vertical_alignment="center", gap="xsmall"):
        st.button("Back", key="back", shortcut="Left", on_click=_look, args=(-1,))
        st.button("On", key="forth", shortcut="Right", on_click=_look, args=(1,))
        st.button("Undo", key="undo", shortcut="Z", disabled=not turn.session.made, on_click=_undo)
        to("image", "All about the image", icon=":material/image:", image_id=turn.image_id)


def _progress(turn: Turn) -> None:
    session = turn.session
    count = len(session.image_ids)
    done = count - sum(map(session.is_open, session.image_ids))
    made = ", ".join(f"{number} {decision}" for decision, number in session.counts().items() if number)
    more = "" if turn.listed.complete else " or more"
    said = f"Image {turn.place + 1} of {count}{more} ({turn.listed.source}), {done} done"
    st.progress(done / count, plain(f"{said}; in this session {made or 'no decision'}", 300))


def _estimate(turn: Turn) -> None:
    """What is known of the precision by now."""
    there = live()
    _, label, key, _ = turn.chosen
    with there.cursor() as con:
        found = audit.read(con, key, turn.row["label"], 1)
        every = audit.read(con, key, None, 1) if label is None else None
    figures = list(found.classes) if found else []
    figures += [every.total | {"class_name": "all classes with decisions"}] if every else []
    with st.container(horizontal=True):
        for each in figures:
            share, interval = "-", "no decision yet"
            if each["precision"] is not None:
                share = f"{each['precision']:.1%}"
                interval = (
                    f"95 % from {each['low']:.1%} to {each['high']:.1%}; {each['right']} of {each['decided']} right"
                )
            name = plain(each["class_name"], 40)
            st.metric(f"Precision of {name}", share, interval, delta_color="off", delta_arrow="off")


def _ahead(turn: Turn) -> None:
    """The next pictures: made before their turn, and, as they are shown small, in the browser too."""
    session, place = turn.session, turn.place
    coming: list[int] = []
    while len(coming) < _AHEAD:
        after = session.next_open(place)
        if after is None or after <= place:
            break
        coming.append(session.image_ids[after])
        place = after
    if coming:
        st.caption("Next:")
        cells = st.columns(2 * _AHEAD, wrap=False)
        for cell, small in zip(cells, pictures([turn.listed.rows[image] for image in coming], SIDE), strict=False):
            cell.image(small.jpeg or placeholder(), width="stretch")


def _decide(image_id: int, decision: str, label: int | None = None) -> None:
    """Records what a key says of the image that it was pressed for, and goes on to the next."""
    turn = turns.now()
    if image_id != turn.image_id:  # pressed twice, and the image is decided on already
        return
    generation = turn.listed.generation if decision == "skip" else turn.row["generation"]
    try:
        why = st.session_state.get("why") or None
        made = turn.session.decide(image_id, decision, label, generation, turn.reviewer, why)
    except _FAILURES as error:
        turn.said = f"Nothing was recorded: {_told(error)}"
        return
    st.session_state["why"] = ""
    if made.unseen and made.before:
        counts = "yours" if turn.session.latest[image_id] == made.row else "theirs"
        done = f"{made.before['reviewer']} had {_DONE[made.before['decision']]} it a moment ago"
        turn.said = f"{short(turn.row['uri'])}: {done}; {counts} counts now"
    place = turn.next_open(turn.place)
    if place is not None:
        turn.place = place
    elif not turn.listed.complete:
        try:
            turns.again(turn)
        except _FAILURES as error:
            turn.said = f"What comes next cannot be listed: {_told(error)}"


def _relabel(image_id: int) -> None:
    key = f"other-{image_id}"
    label = st.session_state[key]
    st.session_state[key] = None
    if label is not None:
        _decide(image_id, "relabel", label)


def _undo() -> None:
    turn = turns.now()
    try:
        image_id = turn.session.undo(turn.reviewer)
    except _FAILURES as error:
        turn.said = f"Nothing was undone: {_told(error)}"
        return
    if image_id in turn.listed.rows:
        turn.place = turn.session.image_ids.index(image_id)
    elif image_id is not None:
        latest = turn.session.latest[image_id]
        holds = "no decision on it" if latest["decision"] == "skip" else f"it is {_DONE[latest['decision']]}"
        turn.said = f"Undone for {short(turns.uri(turn, image_id))}, which is not on this list; now {holds}"


def _told(error: Exception) -> str:
    """What went wrong and the mend, on one line."""
    told = mended(error)
    return f"{told.what}. What helps: {told.mend}" if told.mend else told.what


def _look(step: int) -> None:
    turn = turns.now()
    try:
        turn.session.follow()
    except CuratorError as error:
        turn.said = _told(error)
    turn.place = min(max(turn.place + step, 0), len(turn.session.image_ids) - 1)
