"""SQL: questions of one's own, read-only, with the answer as a table, as pictures or as a plot."""

from __future__ import annotations

import io
import re
import shlex
import threading
import time
from typing import Any, NamedTuple

import altair as alt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import streamlit as st

from curator import queries
from curator.errors import CuratorError, InputError, plural
from curator.reports import render
from curator.schema import MANIFEST_ROW, TABLES
from curator.serving import sandbox

from . import tiles
from .live import live, rows
from .words import plain, short

# Of one query. Others wait for their turn, so that all of them together take no more than twice that.
MEMORY = "250MB"
SECONDS = 30.0
_AT_ONCE = 2
ROWS = 5_000
_BYTES = 20_000_000
_TILES = 24
_LONGEST = 20_000
_LARGEST = 2**53  # above it a browser rounds whole numbers
_KINDS = ("bar", "line", "points")


class Shown(NamedTuple):
    """The answer that a session looks at."""

    query: str
    table: pa.Table
    rows: int
    seconds: float


def show() -> None:
    """The page."""
    st.title("SQL")
    st.text(f"Questions over the store, read-only. A query may take {SECONDS:g} seconds and {MEMORY} of memory.")
    st.selectbox(
        "Examples",
        queries.names("examples"),
        index=None,
        format_func=lambda name: name.replace("-", " "),
        placeholder="Choose a query to begin with",
        key="example",
        on_change=_take_example,
    )
    with st.form("question", border=False):
        query = st.text_area(
            "Query",
            key="query",
            height=120,
            max_chars=_LONGEST,
            placeholder="select class_name, count(*) from labels group by all",
            bind="query-params",
        )
        asked = st.form_submit_button("Run", type="primary", icon=":material/play_arrow:")
    _relations()
    if asked:
        st.session_state.pop("answer", None)
        _answer(query)
    shown: Shown | None = st.session_state.get("answer")
    if shown is not None and shown.query == query:
        _show(shown)


def _take_example() -> None:
    if name := st.session_state.get("example"):
        st.session_state["query"] = queries.text(f"examples/{name}")


@st.cache_resource(show_spinner=False)
def _turns() -> threading.BoundedSemaphore:
    return threading.BoundedSemaphore(_AT_ONCE)


def _answer(query: str) -> None:
    """Asks, and keeps the answer for the session; a new run, or leaving the page, ends the query."""
    if not query.strip():
        st.info("Write a query, or choose an example.", icon=":material/info:")
        return
    place = st.empty()

    def meanwhile(seconds: float) -> None:
        if seconds > 0.3:
            place.text(f"running, {seconds:.0f} s")

    began = time.monotonic()
    while not _turns().acquire(timeout=0.2):
        place.text(f"waiting for other queries, {time.monotonic() - began:.0f} s")
    try:
        began = time.monotonic()
        found = sandbox.ask(live().store, query, MEMORY, SECONDS, rows=ROWS, size=_BYTES, meanwhile=meanwhile)
        table = _dated(found.table.rename_columns(render.distinct(found.table.column_names)))
        st.session_state["answer"] = Shown(query, table, found.rows, time.monotonic() - began)
    except InputError as error:
        st.error("There is no answer.", icon=":material/error:")
        st.code("\n".join(map(short, error.what.splitlines())), language=None, wrap_lines=False)
        if "or raise --" in error.mend:  # a limit, which the command line can raise
            st.text("Narrow it, or ask on the command line, which allows more:")
            st.code(_command(query, "table"), language="bash", wrap_lines=True)
    finally:
        _turns().release()
        place.empty()


def _command(query: str, form: str) -> str:
    return f"curator sql {shlex.quote(query)} --format {form} --store {shlex.quote(str(live().store.place))}"


def _show(shown: Shown) -> None:
    kept = shown.table.num_rows
    cut = "" if kept == shown.rows else f"; the first {kept:,} are shown"
    st.text(f"{shown.rows:,} {plural(shown.rows, 'row')} in {shown.seconds:.2f} s{cut}")
    try:
        table = _presentable(shown.table)
    except (CuratorError, pa.ArrowException, ValueError, OverflowError) as error:
        st.error(f"The answer cannot be shown: {plain(error)}", icon=":material/error:")
        st.text("Cast the column in the query, e.g. added_at::varchar.")
        return
    ways = ["Table", *["Pictures"] * ("image_id" in table.column_names), *["Plot"] * (kept > 0)]
    way = st.segmented_control("Show as", ways, default="Table", required=True, key="as", bind="query-params")
    if way == "Pictures" and way in ways:
        _pictures(shown.table)
    elif way == "Plot" and way in ways:
        _plot(table)
    elif table.column_names == ["explain_key", "explain_value"]:
        st.code("\n".join(shown.table["explain_value"].to_pylist()), language=None)
    else:
        st.dataframe(table, hide_index=True, width="stretch")
    _downloads(shown)


def _dated(table: pa.Table) -> pa.Table:
    """The table with the times that Python and browsers do not know, as of the year 280,000 or infinity, as text."""
    for place, name in enumerate(table.column_names):
        if not pa.types.is_temporal(table[name].type):
            continue
        try:
            table[name].to_pylist()
        except (ValueError, OverflowError):
            with live().cursor() as con:
                con.register("answer", pa.table({"value": table[name]}))
                text = con.sql("select value::varchar as value from answer").to_arrow_table()
            table = table.set_column(place, name, text["value"])
    return table


def _presentable(table: pa.Table) -> pa.Table:
    """The table with columns that a browser shows as they are: numbers, times, and everything else as text."""
    return pa.table([_column(column.combine_chunks()) for column in table.columns], table.column_names)


def _column(column: Any) -> Any:
    kind = column.type
    if pa.types.is_decimal(kind):
        column = column.cast(pa.int64() if kind.scale == 0 and _small(column) else pa.float64(), safe=False)
        kind = column.type
    if pa.types.is_integer(kind) and not _small(column):
        return column.cast(pa.string())
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind):
        return column
    if pa.types.is_timestamp(kind) or pa.types.is_date32(kind):
        return column
    return pa.array([None if value is None else _text(value) for value in column.to_pylist()], pa.string())


def _text(value: Any) -> str:
    return short(value if isinstance(value, str) else render.dumps(value), 1000)


def _small(column: Any) -> bool:
    least, most = (bound.as_py() or 0 for bound in pc.min_max(column).values())
    return bool(max(-least, most) < _LARGEST)


def _pictures(table: pa.Table) -> None:
    ids = list(dict.fromkeys(value for value in table["image_id"].to_pylist() if isinstance(value, int)))
    pages = max(1, -(-len(ids) // _TILES))
    page = min(pages, st.pagination(pages, key="page", bind="query-params")) if pages > 1 else 1
    found = live().ask(queries.text("pictures"), ids=ids[(page - 1) * _TILES : page * _TILES])
    if not found:
        st.info("No image of the store has one of these ids.", icon=":material/info:")
        return
    said = {row["image_id"]: row for row in reversed(table.to_pylist())}
    tiles.tiles(found, [_caption(said[row["image_id"]] | {"uri": row["uri"]}) for row in found])


def _caption(row: dict[str, Any]) -> str:
    parts = [plain(row[name], 40) for name in ("class_name", "label", "name") if isinstance(row.get(name), str)][:1]
    if isinstance(row.get("confidence"), float):
        parts.append(f"{row['confidence']:.3f}")
    return " ".join(parts) or plain(row["uri"], 40)


def _plot(table: pa.Table) -> None:
    names = table.column_names
    numbers = [n for n in names if pa.types.is_integer(table[n].type) or pa.types.is_floating(table[n].type)]
    upward = next((name for name in numbers if name != names[0]), names[0])
    line = st.container(horizontal=True)
    kind = line.segmented_control("Plot", _KINDS, default=_KINDS[0], required=True, key="plot", bind="query-params")
    shown = {name: short(name, 60) for name in names}
    chosen = {
        axis: line.selectbox(
            axis, options, index=index, format_func=lambda name: shown.get(name, "none"), key=axis, bind="query-params"
        )
        for axis, options, index in (
            ("x", names, 0),
            ("y", names, names.index(upward)),
            ("colour", [None, *names], 0),
        )
    }
    # Names of one's own: in Vega those of the answer might mean something.
    axes = {axis: name for axis, name in chosen.items() if name is not None}
    frame = pa.table([table[name] for name in axes.values()], list(axes)).to_pandas()
    kinds = {axis: _scale(table[name].type) for axis, name in axes.items()}
    across: Any = "ordinal" if kind == "bar" and kinds["x"] == "quantitative" else kinds["x"]
    sort = None if across == "nominal" else alt.Undefined  # names stay in the order of the answer
    encodings: dict[str, Any] = {
        "x": alt.X("x", type=across, title=shown[axes["x"]], sort=sort),
        "y": alt.Y("y", type=kinds["y"], title=shown[axes["y"]]),
        "tooltip": [alt.Tooltip(axis, type=kinds[axis], title=shown[name]) for axis, name in axes.items()],
    }
    if "colour" in axes:
        encodings["color"] = alt.Color("colour", type=kinds["colour"], title=shown[axes["colour"]])
    chart = alt.Chart(frame)
    marks = {
        "bar": chart.mark_bar,
        "line": lambda: chart.mark_line(point=len(frame) < 100),
        "points": chart.mark_circle,
    }
    st.altair_chart(marks[kind or _KINDS[0]]().encode(**encodings), width="stretch")
    if len(frame) == ROWS:
        st.caption(f"The plot has the first {ROWS:,} rows.")


def _scale(kind: pa.DataType) -> Any:  # one of Vega's words
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        return "temporal"
    return "quantitative" if pa.types.is_integer(kind) or pa.types.is_floating(kind) else "nominal"


def _downloads(shown: Shown) -> None:
    line = st.container(horizontal=True, vertical_alignment="center")
    try:
        text, binary = io.StringIO(), io.BytesIO()
        render.write_csv(text, shown.table.to_pylist(), shown.table.column_names)
        line.download_button("CSV", text.getvalue(), "answer.csv", icon=":material/download:", on_click="ignore")
        pq.write_table(shown.table, binary)
        line.download_button(
            "Parquet", binary.getvalue(), "answer.parquet", icon=":material/download:", on_click="ignore"
        )
    except (pa.ArrowException, ValueError, OverflowError) as error:
        line.text(f"not as a file: {short(error)}")
    if shown.table.num_rows < shown.rows:
        line.caption(f"The files hold the {shown.table.num_rows:,} rows that are shown. All of them:")
        st.code(f"{_command(shown.query, 'parquet')} > answer.parquet", language="bash", wrap_lines=True)


def _relations() -> None:
    with st.expander("Views and their columns", icon=":material/table:"):
        st.text("Each view has the table's rows as they are now; the rows of a manifest stand in a view of its name.")
        st.dataframe(_described(), hide_index=True, width="stretch", height=400)
        if names := [row["name"] for row in rows("manifest_names")]:
            first = re.sub('"', '""', names[0])
            st.text(f"Manifests, the newest first: {short(', '.join(names), 400)}")
            st.code(f'select * from "{first}" limit 100', language="sql")


@st.cache_data(show_spinner=False)
def _described() -> list[dict[str, str]]:
    found = []
    for name, table in TABLES.items():
        meanings = {column.name: column.meaning for column in table.columns}
        for row in live().ask(f"describe {name}"):
            meaning = meanings.get(row["column_name"], "name of the class")
            found.append({"view": name, "column": row["column_name"], "type": row["column_type"], "meaning": meaning})
    for column in MANIFEST_ROW.columns:
        kind = str(column.type)
        found.append({"view": "a manifest", "column": column.name, "type": kind, "meaning": column.meaning})
    return found
