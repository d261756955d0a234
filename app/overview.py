"""Overview: where the store stands, generation by generation, and what comes next."""

from __future__ import annotations

from typing import Any

import altair as alt
import pandas as pd
import streamlit as st

from curator.curation import account
from curator.repeats import duplicates
from curator.serving.situation import Situation, situation

from .links import to
from .live import answer, live
from .words import plain, short

_SPLITS = {"unlabeled": "Pool", "labeled": "Labeled", "holdout": "Holdout"}


def show() -> None:
    """The page."""
    st.title("Overview")
    now = live()
    found = situation(str(now.store.place), _scanned(now.state()), _ask)
    _figures(found)
    left, right = st.columns([2, 1], gap="large")
    with left:
        _generations(found)
        if found.extent["manifest"] is not None:
            _funnel(found.extent["manifest"])
    with right:
        _next(found)


@st.cache_data(show_spinner=False, max_entries=20)
def _scanned(state: tuple[tuple[str, int], ...]) -> bool:
    return duplicates.last_scan(live().store, dict(state)["duplicates"]) is not None


def _ask(query: str) -> list[dict[str, Any]]:
    return answer(query, passing=("reviews",) if "reviews" in query else ())


def _figures(found: Situation) -> None:
    images = {row["split"]: row for row in found.images}
    with st.grid(min_column_width=110):
        for split, name in _SPLITS.items():
            row = images.get(split, {"images": 0, "unreadable": 0})
            bad = f"{row['unreadable']:,} cannot be read" if row["unreadable"] else None
            st.metric(name, f"{row['images']:,}", bad, delta_color="off", delta_arrow="off", help=f"images, {split}")
        st.metric("Classes", f"{found.extent['classes']:,}")
        st.metric("Manifests", f"{found.extent['manifests']:,}")
        st.metric("Decisions", f"{found.extent['decisions']:,}", help="of people, also those that a later one replaced")


def _generations(found: Situation) -> None:
    st.subheader("Generations")
    if not found.generations:
        st.caption("There is no model and no soft label yet.")
        return
    table = [row | {"model": short(row["model"])} for row in found.generations]
    percent = st.column_config.NumberColumn
    st.dataframe(
        table,
        hide_index=True,
        placeholder="-",
        column_order=["generation", "model", "top1", "pool", "confidence", "confident", "manifests"],
        column_config={
            "generation": percent("Gen.", width="small"),
            "model": st.column_config.TextColumn("Teacher"),
            "top1": percent("Top-1", format="percent", help="of holdout images with a trusted class"),
            "pool": percent("Pool labeled", format="localized"),
            "confidence": percent("Mean confidence", format="%.3f"),
            "confident": percent("Above 0.3", format="percent", help="share of the labeled pool"),
            "manifests": percent("Manifests", width="small"),
        },
    )


def _funnel(name: str) -> None:
    st.subheader("Newest manifest")
    to("manifests", name, icon=":material/list_alt:", manifest=name)
    steps = _manifest(live().state(), name)
    table = pd.DataFrame(steps, columns=["step", "number"])
    bars = alt.Chart(table).encode(
        y=alt.Y("step", sort=None, title=None, axis=alt.Axis(labelLimit=260)),
        x=alt.X("number", title=None, axis=None),
        tooltip=["step", alt.Tooltip("number", format=",")],
    )
    st.altair_chart(
        bars.mark_bar() + bars.mark_text(align="left", dx=4, color="gray").encode(text=alt.Text("number", format=",")),
        alt=f"What each rule leaves of the pool, for the manifest {short(name)}",
    )


@st.cache_data(show_spinner=False, max_entries=20)
def _manifest(state: object, name: str) -> list[tuple[str, int]]:
    return account.funnel(live().manifest(name))


def _next(found: Situation) -> None:
    st.subheader("What comes next")
    for step in found.steps:
        st.markdown(plain(step.what, 1000))
        st.code(step.command, language="bash", wrap_lines=True)
    if not found.steps:
        st.markdown("Nothing is missing on the way to the next student.")
    if any(row["pool"] for row in found.generations):
        to("review", "What is most worth a look", icon=":material/rate_review:")
        to("gallery", "The least confident images", icon=":material/grid_view:")
