"""Disagreement: a generation against the one before it, and both against the holdout; a cell shows its images."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import altair as alt
import pandas as pd
import streamlit as st

from curator import queries
from curator.generations import drift
from curator.generations.derived import Wanted
from curator.schema import SPLITS

from .choices import class_name, classes, generation
from .live import answer, live, rows
from .tiles import tiles
from .words import nothing, plain, short

_COMMAND = "curator quality disagreement"
_CLASSES = 25  # of a matrix
_NUMBERED = 12  # up to here the cells say how many images they have
_LEVEL = 60  # letters that fit below a matrix side by side
_IMAGES = 24
_MOST = 2_000  # rows of the table
_CELL = re.compile(r"(flip|now|before)-(\d{1,5})-(\d{1,5})")


class Cell(NamedTuple):
    """A cell of a matrix, as the URL names it.

    Attributes:
        kind: flip, of the matrix of both teachers; now or before, of a teacher's mistakes.
        row: Class before, or the true one.
        column: Class after, or the given one.
    """

    kind: str
    row: int
    column: int


def show() -> None:
    """The page."""
    st.title("Disagreement", anchor=False)
    places = st.columns([3, 3, 6, 4])
    with places[0]:
        chosen = generation()
    if chosen is None:
        return
    with places[1]:
        label = class_name()
    split = places[2].segmented_control(
        "Images", SPLITS, default="unlabeled", required=True, key="split", bind="query-params"
    )
    teacher = places[3].segmented_control(
        "Mistakes", ["now", "before"], default="now", required=True, key="teacher", bind="query-params"
    )
    pair, kept = _pair(live().state(), chosen)
    if pair is None:
        nothing(
            f"Generation {chosen} is the first one, and there is nothing to compare it with.",
            "curator label --model NAME",
        )
        return
    if not kept:
        nothing(
            f"Generation {pair.generation} as it is now has not been compared with generation {pair.previous} yet.",
            f"{_COMMAND} --generation {pair.generation}",
        )
        return
    values = {"generation": pair.generation, "split": split, "label": label}
    _totals(pair, values)
    _matrices(values, teacher)
    cell = _cell(len(classes()))
    if cell is None:
        _changed(values)
    else:
        _images(pair, cell, values)
    _classes(values)


@st.cache_data(show_spinner=False, max_entries=100)
def _pair(state: tuple[tuple[str, int], ...], generation: int) -> tuple[Wanted | None, bool]:
    """The generation and the one before it, if there is one; and whether the tables hold them as they are now."""
    there = live()
    with there.cursor() as con:
        pair = drift.pair(there.store, con, generation, dict(state)["labels"])
        return pair, pair is not None and drift.is_kept(con, pair)


def _totals(pair: Wanted, values: dict[str, Any]) -> None:
    (totals,), (held,) = rows("disagreement_totals", values), rows("disagreement_holdout", values)
    both, places = totals["images"], st.columns(4)
    places[0].metric(
        "Images in both",
        f"{both:,}",
        help=f"Only generation {pair.previous} labeled {totals['only_before']:,} more, only {pair.generation} "
        f"{totals['only_after']:,}.",
    )
    places[1].metric("Another class now", f"{totals['flipped']:,}", help=_share(totals["flipped"], both))
    if both:
        places[2].metric(
            "Mean confidence",
            f"{totals['confidence_after']:.1%}",
            f"{100 * (totals['confidence_after'] - totals['confidence_before']):+.2f} points",
            help=f"{totals['confidence_before']:.1%} before",
        )
    if held["images"]:
        places[3].metric(
            "Right on the holdout",
            f"{held['right_after'] / held['images']:.1%}",
            f"{held['mended']:,} mended, {held['broken']:,} broken",
            delta_color="off",
            delta_arrow="off",
            help=f"{held['right_before'] / held['images']:.1%} before, of {held['images']:,} images",
        )


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.2%} of them" if whole else "of none"


def _matrices(values: dict[str, Any], teacher: str) -> None:
    most = {"most": _CLASSES}
    left, right = st.columns(2)
    with left:
        st.markdown("**From class to class**")
        st.caption(f"Images that got another class. A click on a cell shows them. {_limit()}")
        flips = pd.DataFrame(rows("disagreement_matrix", values | most))
        if flips.empty:
            st.text("No image got another class.")
        else:
            flips = flips.set_axis(["row", "column", "images"], axis=1)
            _heat(flips, "class before", "class now", "flip")
    with right:
        st.markdown("**Mistakes on the holdout**")
        st.caption(f"True class against the class that a teacher gives. {_limit()}")
        query = queries.compose(queries.steps("mistakes"), queries.text("disagreement_mistakes"))
        mistakes = pd.DataFrame(answer(query, values | most))
        if not mistakes.empty:
            mistakes = mistakes.set_axis(["row", "column", "before", "now"], axis=1)
            mistakes = mistakes.assign(images=mistakes[teacher])[["row", "column", "images"]]
            mistakes = mistakes[mistakes["images"] > 0]
        if mistakes.empty:
            st.text("No mistake on the holdout, or no holdout image that both have labeled.")
        else:
            _heat(mistakes, "true class", "given class", teacher)


def _limit() -> str:
    return f"The {_CLASSES} classes with most of them." if len(classes()) > _CLASSES else ""


def _heat(cells: pd.DataFrame, rows_are: str, columns_are: str, kind: str) -> None:
    """A matrix; `row` and `column` are class indexes."""
    used, every = sorted({*cells["row"], *cells["column"]}), classes()
    names = {label: short(every[label], 24) for label in used}
    angle = 0 if len(used) * max((len(names[label]) for label in used), default=0) < _LEVEL else -45
    # by number, as two long names may be shown alike
    said = "{" + ", ".join(f"{label}: {_quoted(names[label])}" for label in used) + "}[datum.value]"
    cells = cells.assign(
        row_name=[names[label] for label in cells["row"]], column_name=[names[label] for label in cells["column"]]
    )
    chosen = alt.selection_point(name="cell", fields=["row", "column"])
    base = alt.Chart(cells).encode(
        x=alt.X(
            "column:O", title=columns_are, scale=alt.Scale(domain=used), axis=alt.Axis(labelExpr=said, labelAngle=angle)
        ),
        y=alt.Y("row:O", title=rows_are, scale=alt.Scale(domain=used), axis=alt.Axis(labelExpr=said)),
        tooltip=[
            alt.Tooltip("row_name:N", title=rows_are),
            alt.Tooltip("column_name:N", title=columns_are),
            alt.Tooltip("images:Q", format=",d"),
        ],
    )
    squares = base.mark_rect(cursor="pointer").encode(
        color=alt.Color("images:Q", scale=alt.Scale(type="sqrt"), legend=None),
        opacity=alt.condition(chosen, alt.value(1), alt.value(0.45)),
    )
    squares = squares.add_params(chosen)
    chart: alt.Chart | alt.LayerChart = squares
    if len(used) <= _NUMBERED:
        middle = cells["images"].max() / 4  # half of the way on a scale of roots
        strong, faint = ("black", "white") if st.context.theme.type == "dark" else ("white", "black")
        chart = squares + base.mark_text(tooltip=None).encode(
            text=alt.Text("images:Q", format=",d"),
            color=alt.condition(alt.datum.images > middle, alt.value(strong), alt.value(faint)),
        )
    key = f"matrix-{kind}-{st.session_state.get('matrices', 0)}"
    st.altair_chart(
        chart,
        height=120 + 26 * max(len(used), 5),
        key=key,
        on_select=partial(_clicked, key, kind),
        alt=f"{rows_are} against {columns_are}",
    )


def _quoted(text: str) -> str:
    """A text inside an expression of Vega."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def _clicked(key: str, kind: str) -> None:
    """Puts the cell into the URL, where the images below are taken from."""
    points = st.session_state[key]["selection"]["cell"]
    if points:
        st.query_params["cell"] = f"{kind}-{points[0]['row']}-{points[0]['column']}"
    else:
        st.query_params.pop("cell", None)


def _left() -> None:
    """Leaves the cell; a matrix of another key has no cell selected."""
    st.query_params.pop("cell", None)
    st.session_state["matrices"] = st.session_state.get("matrices", 0) + 1


def _cell(count: int) -> Cell | None:
    """The cell that the URL names, if it names one."""
    found = _CELL.fullmatch(st.query_params.get("cell", ""))
    if found is None or int(found[2]) >= count or int(found[3]) >= count:
        return None
    return Cell(found[1], int(found[2]), int(found[3]))


def _images(pair: Wanted, cell: Cell, values: dict[str, Any]) -> None:
    """The images of a cell."""
    row, column = (plain(classes()[label]) for label in (cell.row, cell.column))
    if cell.kind == "flip":
        st.subheader(f"{row} before, {column} now", anchor=False)
        found = rows(
            "disagreement_cell",
            {
                "generation": pair.generation,
                "split": values["split"],
                "before": cell.row,
                "after": cell.column,
                "limit": _IMAGES,
                "offset": 0,
            },
        )
        captions = [f"{image['confidence_before']:.2f} -> {image['confidence_after']:.2f}" for image in found]
        order = "those that both teachers were surest of first"
    else:
        teacher = pair.generation if cell.kind == "now" else pair.previous
        st.subheader(f"{row}, taken for {column} by generation {teacher}", anchor=False)
        found = rows(
            "disagreement_mistaken",
            {"generation": teacher, "truth": cell.row, "given": cell.column, "limit": _IMAGES, "offset": 0},
        )
        captions = [f"{image['confidence']:.2f}" for image in found]
        order = "the most confident first"
    st.button("All changed images", icon=":material/close:", on_click=_left)
    if not found:
        st.text("No image.")
        return
    st.caption(f"The first {len(found)}, {order}." if len(found) == _IMAGES else f"{len(found)}, {order}.")
    tiles(found, captions)


def _changed(values: dict[str, Any]) -> None:
    """The images that changed most, where no cell is chosen."""
    st.subheader("Images that changed most", anchor=False)
    found = rows("disagreement_images", values | {"limit": _IMAGES})
    if not found:
        st.text("None.")
        return
    st.caption("Other classes first, those that both teachers were surest of before the rest.")
    tiles(found, [_change(image) for image in found])


def _change(image: dict[str, Any]) -> str:
    before, after = plain(image["class_before"], 20), plain(image["class_after"], 20)
    named = before if before == after else f"{before} -> {after}"
    return f"{named}  \n{image['confidence_before']:.2f} -> {image['confidence_after']:.2f}"


def _classes(values: dict[str, Any]) -> None:
    st.subheader("Classes", anchor=False)
    found = rows("disagreement_classes", values)
    if len(found) > _MOST:
        st.caption(f"The {_MOST:,} classes with the largest share of flips, of {len(found):,}.")
    table = pd.DataFrame(found[:_MOST])
    if table.empty:
        st.text("No image of this split that both have labeled.")
        return
    for name in ("class_name", "mostly_to"):
        table[name] = _shown(table[name])
    table["drift"] = 100 * (table["confidence_after"] - table["confidence_before"])
    table[["flipped", "confidence_before", "confidence_after"]] *= 100
    percent = partial(st.column_config.NumberColumn, format="%.1f%%")
    number = partial(st.column_config.NumberColumn, format="localized")
    st.dataframe(
        table,
        hide_index=True,
        placeholder="-",
        column_config={
            "class_name": st.column_config.TextColumn("class", pinned=True),
            "before": number("before", help="Images in the class before."),
            "after": number("now", help="Images in the class now."),
            "left_it": number("left it"),
            "came": number("came"),
            "flipped": percent("flipped", help="Share of the images before that left the class."),
            "mostly_to": "mostly to",
            "confidence_before": percent("confidence before", help="Mean, of the images in the class before."),
            "confidence_after": percent("confidence now", help="Mean, of the images in the class now."),
            "drift": st.column_config.NumberColumn("drift", format="%+.2f", help="Of the mean confidence, in points."),
        },
    )


def _shown(names: Sequence[object]) -> list[str | None]:
    """Class names, some of them missing, as pandas has them."""
    return [short(name) if isinstance(name, str) else None for name in names]
