"""Gallery: the images of the pool, filtered and sorted, page by page; every choice stands in the URL."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import streamlit as st

from curator.curation import manifests
from curator.generations import browse
from curator.quality.gallery import FAR, ORDERS, Filter, Gallery, Step
from curator.schema import DECISIONS, SPLITS

from .choices import class_name, classes, generation, manifest_name
from .live import command, live
from .tiles import badge, tiles
from .words import plain

_ALL = "all"
_REVIEWED = {
    _ALL: None,
    "not reviewed": "none",
    "reviewed": "any",
    **{decision: decision for decision in DECISIONS},
}
_SOURCES = {"in the manifest": "any", "pseudo": "pseudo", "review": "review", "not in the manifest": "none"}
_SIZES = (24, 48, 96)


def show() -> None:
    """The page."""
    st.title("Gallery")
    chosen = _filter()
    if chosen is None:
        return
    wanted, order, size = chosen
    reviews = ("reviews",) if wanted.decision or order == "newest decision" else ()
    is_sorted = _is_sorted(live().state(), wanted.generation)
    asked = (wanted, order, is_sorted)
    count = _count(live().state(*reviews), asked)
    pages = max(math.ceil(count / size), 1)
    _turn_back((wanted, order, size), pages)
    with st.container(horizontal=True, vertical_alignment="center"):
        st.text(f"{count:,} image" + "s" * (count != 1))
        page = st.pagination(pages, key="page", bind="query-params") if pages > 1 else 1
    if not is_sorted:
        st.caption(
            f"The labels of generation {wanted.generation} are not sorted for browsing, so each page takes longer. "
            f"{plain(command(browse.COMMAND), 1000)} sorts them."
        )
    if not count:
        st.info("No image passes these filters.", icon=":material/info:")
        return
    first = (page - 1) * size
    steps = _steps(live().state(*reviews), asked) if first >= FAR else ()
    rows = _page(live().state("reviews"), asked, first, size, steps)
    names = classes()
    tiles(rows, [_caption(row, names) for row in rows])


def _filter() -> tuple[Filter, str, int] | None:
    """The choices of the person: which images, in which order, how many on a page."""
    first = st.columns([4, 4, 3, 2, 3], vertical_alignment="bottom")
    with first[0]:
        label = class_name()
    with first[1]:
        order = st.selectbox("Order", ORDERS, key="order", bind="query-params")
    with first[2]:
        reviewed = st.selectbox("Decision", _REVIEWED, key="decision", bind="query-params")
    with first[3]:
        which = generation()
    if which is None:
        return None
    with first[4], st.popover("Filters", icon=":material/tune:", width="stretch"):
        split = st.selectbox("Split", ["unlabeled", "labeled", "holdout", _ALL], key="split", bind="query-params")
        ranges = {name: _range(name, highest) for name, highest in _highest().items()}
        text = st.text_input("Part of the file's name", key="text", bind="query-params")
        name = manifest_name(every="no manifest")
        source = st.selectbox("Source", _SOURCES, key="source", bind="query-params", disabled=name is None)
        size = st.segmented_control(
            "Images on a page", _SIZES, default=_SIZES[0], required=True, key="size", bind="query-params"
        )
    wanted = Filter(
        which,
        split if split in SPLITS else None,
        label,
        **ranges,
        text=text or None,
        decision=_REVIEWED[reviewed],
        source=None if name is None else _SOURCES[source],
        files=() if name is None else _files(live().state(), name),
    )
    return wanted, order, size or _SIZES[0]


def _highest() -> dict[str, float]:
    """The measures, and the highest value that each can have."""
    return {"confidence": 1.0, "margin": 1.0, "entropy": math.ceil(100 * math.log(max(len(classes()), 2))) / 100}


def _range(name: str, highest: float) -> tuple[float | None, float | None]:
    chosen = st.slider(name.capitalize(), 0.0, highest, (0.0, highest), 0.01, key=name, bind="query-params")
    low, high = sorted(chosen)  # a link may have them the other way round
    return low if low > 0 else None, high if high < highest else None


def _turn_back(asked: tuple[Filter, str, int], pages: int) -> None:
    """Goes to the first page when a filter was changed, and to the last where there are fewer by now."""
    before = st.session_state.get("gallery_asked", asked)
    given = st.query_params.get("page", "1")
    if before != asked and st.session_state.get("page", 1) != 1:
        st.session_state["page"] = 1
    elif given.isdecimal() and (len(given) > 18 or int(given) > pages):  # of 4,301 digits, Python reads none
        st.session_state["page"] = pages
    st.session_state["gallery_asked"] = asked


def _caption(row: dict[str, Any], names: list[str]) -> str:
    decided = f"  \n{badge(row['decision'], row['new_class'])}" if row["decision"] else ""
    return f"**{plain(names[row['label']], 30)}** {row['confidence']:.3f}{decided}"


@st.cache_data(show_spinner=False, max_entries=20)
def _is_sorted(state: tuple[tuple[str, int], ...], generation: int) -> bool:
    with live().cursor() as con:
        return browse.is_kept(live().store, con, generation, dict(state)["labels"])


@st.cache_data(show_spinner=False, max_entries=20)
def _files(state: object, name: str) -> tuple[str, ...]:
    return tuple(str(file) for file in manifests.files(live().manifest(name)))


@st.cache_data(show_spinner=False, max_entries=500)
def _count(state: object, asked: tuple[Filter, str, bool]) -> int:
    with live().cursor() as con:
        return Gallery(con, *asked).count()


@st.cache_data(show_spinner=False, max_entries=50)
def _steps(state: object, asked: tuple[Filter, str, bool]) -> list[Step]:
    with live().cursor() as con:
        return Gallery(con, *asked).steps()


@st.cache_data(show_spinner=False, max_entries=200)
def _page(
    state: object, asked: tuple[Filter, str, bool], first: int, size: int, _steps: Sequence[Step]
) -> list[dict[str, Any]]:
    with live().cursor() as con:
        return Gallery(con, *asked).page(first, size, _steps)
