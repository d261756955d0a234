"""Classes: what the pool and a manifest hold of each class, and how far its labels can be believed."""

from __future__ import annotations

from functools import partial
from typing import Any

import altair as alt
import numpy as np
import pandas as pd
import streamlit as st

from curator import queries
from curator.curation import account
from curator.generations import browse
from curator.quality import audit

from . import links
from .choices import classes, generation
from .live import live, rows
from .words import nothing, plain, short

_NONE = "no manifest"
_MOST = 2_000  # rows of the table
_STEPS, _BARS = 50, 25  # of a histogram: as it is kept, and in a cell of the table
_CONFUSED = 12
_GREY, _ORANGE = "#8a919c", "#c2571a"
# How the table can be ordered: the column, and whether the lowest comes first.
_ORDERS = {
    "class index": ("label", True),
    "fewest pool images": ("images", True),
    "most pool images": ("images", False),
    "lowest mean confidence": ("confidence", True),
}
_MANIFEST_ORDERS = {
    "largest shortfall": ("shortfall", False),
    "most copies": ("most_copies", False),
    "lowest cut-off": ("cut_off", True),
    "lowest precision": ("precision", True),
}


def show() -> None:
    """The page."""
    st.title("Classes", anchor=False)
    places = st.columns([2, 3, 3, 3, 3], vertical_alignment="bottom")
    with places[0]:
        chosen = generation()
    if chosen is None:
        return
    published = [row["name"] for row in rows("manifest_names") if row["generation"] == chosen]
    manifest = places[1].selectbox(
        "Manifest", [*published, _NONE], format_func=short, key="manifest", bind="query-params"
    )
    table = _table(live().state(), chosen, None if manifest == _NONE else manifest)
    orders = _ORDERS | (_MANIFEST_ORDERS if manifest != _NONE else {})
    order = places[2].selectbox("Order", list(orders), key="order", bind="query-params")
    name = places[3].text_input("Name contains", key="name", bind="query-params")
    short_only = places[4].toggle(
        "Short only",
        key="short",
        bind="query-params",
        disabled=manifest == _NONE,
        help="Classes with fewer images to choose from than the quota.",
    )
    if not published:
        nothing(f"There is no manifest of generation {chosen} yet.", "curator build-manifest --per-class K")
    audited = _audited(live().state("reviews"), chosen)
    found = table if audited.empty else table.merge(audited, on="class_name", how="left")
    if name:
        found = found[found["class_name"].str.contains(name, case=False, regex=False)]
    if short_only and manifest != _NONE:
        found = found[found["is_short"]]
    column, ascending = orders[order]
    found = found.sort_values(column, ascending=ascending, kind="stable", na_position="last")
    _summary(found, table)
    _rows(found.head(_MOST), chosen)
    if (label := _named()) is not None:
        _class(table.set_index("label", drop=False).loc[label], chosen, manifest)


@st.cache_data(show_spinner=False, max_entries=16)
def _table(state: object, generation: int, manifest: str | None) -> pd.DataFrame:
    """All classes, one row each, in the order of their indexes."""
    table = pd.DataFrame(live().ask(queries.text("class_pool"), generation=generation))
    if manifest is not None:
        found = live().manifest(manifest)
        added = pd.DataFrame(account.classes(found)).drop(columns="class_name")
        quota = found.lineage["parameters"]["per_class"]
        table = table.merge(added, on="label", how="left")
        table["shortfall"] = (quota - table["kept"]).clip(lower=0)
        table["is_short"] = table["eligible"] < quota
    return table


@st.cache_data(show_spinner=False, max_entries=4)
def _audited(state: object, generation: int) -> pd.DataFrame:
    """The estimates of the newest sample of the generation; empty where nobody has decided on an image of it."""
    columns = {"class_name": "class_name", "precision": "audited", "low": "audited_low", "high": "audited_high"}
    with live().cursor() as con:
        for key in audit.drawn(con):
            found = audit.read(con, key, limit=0) if key.generation == generation else None
            if found and (decided := [row for row in found.classes if row["decided"]]):
                return pd.DataFrame(decided)[list(columns)].rename(columns=columns)
    return pd.DataFrame()


def _summary(found: pd.DataFrame, table: pd.DataFrame) -> None:
    said = f"{len(found):,} of {len(table):,} classes"
    if len(found) > _MOST:
        said += f", the first {_MOST:,} in this order are shown"
    if "is_short" in table:
        said += f"; short of the quota: {int(table['is_short'].sum()):,}"
    st.caption(f"{said}. Select a row for its details.")


def _rows(table: pd.DataFrame, generation: int) -> None:
    """The table of the classes; the selected one goes into the URL."""
    if table.empty:
        st.info("No class passes these filters.", icon=":material/info:")
        return
    shown = pd.DataFrame({"class_name": [short(name) for name in table["class_name"]]})
    labels = table["label"].tolist()
    # in one order, so that another order of the table asks for nothing new
    counts = _counts(live().state(), generation, tuple(sorted(labels)))[np.argsort(np.argsort(labels))]
    shown["images"] = table["images"].to_numpy()
    shown["confidence"] = 100 * table["confidence"].to_numpy(dtype=float, na_value=np.nan)
    shown["histogram"] = counts.reshape(len(labels), _BARS, -1).sum(axis=2).tolist()
    for name in ("candidates", "kept", "shortfall", "most_copies", "cut_off"):
        if name in table:
            shown[name] = table[name].to_numpy()
    for name, low, high in (("precision", "low", "high"), ("audited", "audited_low", "audited_high")):
        if name in table:
            shown[name] = 100 * table[name].to_numpy(dtype=float, na_value=np.nan)
            shown[f"{name}_range"] = [_range(*limits) for limits in zip(table[low], table[high], strict=True)]
    number = partial(st.column_config.NumberColumn, format="localized")
    percent = partial(st.column_config.NumberColumn, format="%.1f%%")
    key = f"classes-{hash(tuple(labels))}"  # another table, another selection
    chosen = _named()
    st.dataframe(
        shown,
        hide_index=True,
        placeholder="-",
        height=_height(len(shown), 12),
        key=key,
        on_select=partial(_selected, key, labels),
        selection_mode="single-row",
        selection_default={"selection": {"rows": [labels.index(chosen)] if chosen in labels else []}},
        column_config={
            "class_name": st.column_config.TextColumn("class", pinned=True),
            "images": number("pool images", help="Pool images that the teacher puts into the class."),
            "confidence": percent("mean conf.", help="Mean confidence of these."),
            "histogram": st.column_config.BarChartColumn(
                "histogram", y_min=0, width="small", help="Of the confidences, from 0 to 1."
            ),
            "candidates": number("candidates", help="What the threshold, reviews and the holdout leave."),
            "kept": number("kept", help="Different images in the manifest."),
            "shortfall": number("shortfall", help="Images that are missing to the quota."),
            "most_copies": number("copies", help="Most copies of an image."),
            "cut_off": st.column_config.NumberColumn(
                "cut-off", format="%.3f", help="Confidence of the last kept image."
            ),
            "precision": percent("precision", help="Right ones of the holdout images at or above the cut-off."),
            "precision_range": st.column_config.TextColumn("95 %", help="Interval of the precision (Wilson)."),
            "audited": percent("audited", help="Estimated from decisions on the newest random sample."),
            "audited_range": st.column_config.TextColumn("95 % ", help="Interval of the audited precision."),
        },
    )


def _height(count: int, most: int) -> int:
    """Of a table, in pixels, without half a row at its end."""
    return 37 + 35 * min(max(count, 1), most)


def _range(low: float, high: float) -> str | None:
    return None if pd.isna(low) else f"{100 * low:.0f}-{100 * high:.0f}%"


@st.cache_data(show_spinner=False, max_entries=64)
def _counts(state: object, generation: int, labels: tuple[int, ...]) -> Any:
    """Pool images by class and step of confidence, [L, STEPS]."""
    query = queries.text("class_histograms")
    with live().cursor() as con:
        if not browse.is_kept(live().store, con, generation, dict(live().state())["labels"]):
            query = queries.compose({"stored_histograms": queries.text("histograms")}, query)
        values = {"generation": generation, "labels": list(labels), "basis": ""}
        found = con.sql(query, params=queries.bind(con, query, values)).to_arrow_table()
    places = {label: place for place, label in enumerate(labels)}
    counts = np.zeros((len(labels), _STEPS), np.int64)
    counts[[places[label] for label in found["label"].to_pylist()], found["step"].to_numpy()] = found[
        "images"
    ].to_numpy()
    return counts


def _selected(key: str, labels: list[int]) -> None:
    """Puts the selected class into the URL."""
    chosen = st.session_state[key]["selection"]["rows"]
    if chosen:
        st.query_params["class"] = short(classes()[labels[chosen[0]]])
    else:
        st.query_params.pop("class", None)


def _named() -> int | None:
    """The class that the URL names, if it names one."""
    if (name := st.query_params.get("class")) is None:
        return None
    names = classes()
    if name in names:
        return names.index(name)
    return next((label for label, known in enumerate(names) if short(known) == name), None)


def _class(row: Any, generation: int, manifest: str) -> None:
    """One class: its histogram with the lines that the manifest draws, its confusion, links."""
    name = short(row["class_name"])
    st.subheader(plain(row["class_name"]), anchor=False)
    with st.container(horizontal=True):
        shown: dict[str, Any] = {"class": name, "generation": generation}
        links.to("gallery", "Least confident images", icon=":material/photo_library:", **shown)
        links.to("review", "Review", icon=":material/rate_review:", **{"class": name})
        links.to("disagreement", "Changes", icon=":material/compare_arrows:", **shown)
    left, right = st.columns(2)
    with left:
        st.markdown("**Confidence in the pool**")
        _histogram(row, generation, manifest)
    with right:
        st.markdown("**Confusion on the holdout**")
        _confusion(int(row["label"]), generation)


def _histogram(row: Any, generation: int, manifest: str) -> None:
    counts = _counts(live().state(), generation, (int(row["label"]),))[0]
    steps = np.arange(_STEPS)
    bars = pd.DataFrame({"low": steps / _STEPS, "high": (steps + 1) / _STEPS, "nothing": 0, "images": counts})
    if not counts.any():
        st.text("No image of the pool is in this class.")
        return
    lines = []
    if manifest != _NONE:
        parameters = _parameters(live().state(), manifest)
        if parameters.get("calibration") is None:  # else the threshold is one of calibrated confidences
            lines.append(("least confidence", parameters["min_confidence"]))
        if not pd.isna(row["cut_off"]):
            lines.append(("cut-off", row["cut_off"]))
    chart: Any = (
        alt.Chart(bars)
        .mark_bar()
        .encode(
            x=alt.X("low:Q", title="confidence", scale=alt.Scale(domain=[0, 1])),
            x2="high:Q",
            y=alt.Y("images:Q", title="images"),
            y2="nothing:Q",
            tooltip=[
                alt.Tooltip("low:Q", title="from", format=".2f"),
                alt.Tooltip("high:Q", title="to", format=".2f"),
                alt.Tooltip("images:Q", format=",d"),
            ],
        )
    )
    if lines:
        marks = alt.Chart(pd.DataFrame(lines, columns=["line", "at"]))
        chart += marks.mark_rule(strokeWidth=2, strokeDash=[6, 3]).encode(
            x="at:Q",
            color=alt.Color(
                "line:N",
                title=None,
                scale=alt.Scale(domain=["least confidence", "cut-off"], range=[_GREY, _ORANGE]),
                legend=alt.Legend(orient="top"),
            ),
            tooltip=[alt.Tooltip("line:N"), alt.Tooltip("at:Q", format=".4f")],
        )
    st.altair_chart(chart, height=300, alt="Histogram of the confidences of the class")


@st.cache_data(show_spinner=False, max_entries=64)
def _parameters(state: object, manifest: str) -> dict[str, Any]:
    found: dict[str, Any] = live().manifest(manifest).lineage["parameters"]
    return found


def _confusion(label: int, generation: int) -> None:
    """What the holdout images of the class are taken for, and what the images are that are taken for it."""
    found = _confused(live().state("reviews"), generation)
    own, given = found[found["truth"] == label], found[found["label"] == label]
    if own.empty and given.empty:
        nothing(
            "The teacher has labeled no holdout image of this class, and put none into it.",
            "curator label --model NAME --split holdout",
        )
        return
    names = classes()
    for title, part, other in (
        ("Images of the class are taken for", own, "label"),
        ("Images that are taken for the class are", given, "truth"),
    ):
        total = int(part["images"].sum())
        st.caption(f"{title} (of {total:,})")
        part = part.head(_CONFUSED)
        shown = pd.DataFrame(
            {
                "class": [short(names[each]) for each in part[other]],
                "images": part["images"].to_numpy(),
                "share": 100 * part["images"].to_numpy() / max(total, 1),
                "confidence": 100 * part["confidence"].to_numpy(),
            }
        )
        st.dataframe(
            shown,
            hide_index=True,
            height=_height(len(shown), 5),
            column_config={
                "images": st.column_config.NumberColumn("images", format="localized"),
                "share": st.column_config.ProgressColumn("share", format="%.1f%%", min_value=0, max_value=100),
                "confidence": st.column_config.NumberColumn("mean conf.", format="%.1f%%"),
            },
        )


@st.cache_data(show_spinner=False, max_entries=4)
def _confused(state: object, generation: int) -> pd.DataFrame:
    query = queries.compose(queries.steps(*queries.TRUSTED), queries.text("class_confusion"))
    with live().cursor() as con:
        return con.sql(query, params={"generation": generation}).df()
