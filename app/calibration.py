"""Calibration: how far a generation's confidences can be believed, and what a threshold on them selects."""

from __future__ import annotations

import altair as alt
import numpy as np
import numpy.typing as npt
import pandas as pd
import streamlit as st

from curator import queries
from curator.curation.account import wilson
from curator.quality import calibration

from .choices import classes, generation
from .live import live
from .words import nothing, plain, short

Ints = npt.NDArray[np.int64]

_MOST = 2_000  # rows of the table
_GREY = "#8a919c"
_EXTENT = 50  # pixels for the numbers beside an axis, so that charts above one another have the same sides


def show() -> None:
    """The page."""
    st.title("Calibration", anchor=False)
    chosen = generation()
    if chosen is None:
        return
    found = _read(live().state("reviews"), chosen)
    if found is None:
        nothing(
            f"Generation {chosen} has no label of a holdout image.",
            "curator add-images FOLDER --split holdout --labels folder",
            "curator label --model NAME --split holdout",
        )
        return
    _figures(found)
    _diagrams(found)
    _threshold(found)


@st.cache_data(show_spinner=False, max_entries=8)
def _read(state: object, generation: int) -> calibration.Reading | None:
    return calibration.read(live().store, generation)


def _figures(found: calibration.Reading) -> None:
    st.caption(f"The model {plain(found.model)} on {found.images:,} images of the holdout.")
    fit = found.fit
    places = st.columns(4)
    right = int(found.right.sum())
    low, high = wilson(right, found.images)
    places[0].metric("Top-1 accuracy", f"{found.top1:.1%}", help=f"{low:.1%} to {high:.1%} at 95 %")
    places[1].metric("Mean confidence", f"{found.confidence.mean(dtype=np.float64):.1%}")
    for place, name, value, help in (
        (places[2], "ECE", found.ece, "Expected calibration error: the mean gap of accuracy and confidence, 15 bins."),
        (places[3], "NLL", found.nll, "Mean -ln p of the true class, in nats."),
    ):
        after = fit and fit[f"{name.lower()}_after"]
        place.metric(
            f"{name} as given",
            f"{value:.4f}",
            None if after is None else f"{after:.4f} under the temperature",
            delta_color="off",
            delta_arrow="off",
            help=f"{help} The figure under the temperature is cross-fitted." if fit else help,
        )


def _diagrams(found: calibration.Reading) -> None:
    left, right = st.columns(2)
    with left:
        st.markdown("**As given**")
        _reliability(found.bins)
    with right:
        if found.fit is None:
            st.markdown("**Under a temperature**")
            nothing("No temperature is stored for this model.", f"curator quality calibration --model {found.model}")
            return
        st.markdown(f"**Under the temperature {found.fit['temperature']:.3f}**")
        _reliability(found.bins_after)
    when = f"{found.fit['fitted_at']:%Y-%m-%d %H:%M} UTC"
    kind = "overconfident" if found.fit["temperature"] > 1 else "underconfident"
    st.caption(
        f"Fitted {when} on {found.fit['images']:,} images: as given the model is {kind}. build-manifest --calibrated "
        "compares confidences under this temperature. The right diagram shows the images that it was fitted on."
    )


def _reliability(bins: list[dict[str, float]]) -> None:
    """Accuracy by confidence against the diagonal, and below it how many images each bin has."""
    table = pd.DataFrame(bins).assign(nothing=0)
    said = [
        alt.Tooltip("confidence:Q", title="mean confidence", format=".1%"),
        alt.Tooltip("accuracy:Q", title="right", format=".1%"),
        alt.Tooltip("accuracy_low:Q", title="at least (95 %)", format=".1%"),
        alt.Tooltip("accuracy_high:Q", title="at most (95 %)", format=".1%"),
        alt.Tooltip("images:Q", format=",d"),
    ]
    ends = pd.DataFrame({"at": [0, 1]})
    whole = alt.Scale(domain=[0, 1])
    x = alt.X("low:Q", title=None, scale=whole, axis=alt.Axis(format="~%", tickCount=5))
    y = alt.Y("accuracy:Q", title="right", scale=whole, axis=alt.Axis(format="~%", minExtent=_EXTENT))
    base = alt.Chart(table)
    bars = base.mark_bar(opacity=0.75).encode(x=x, x2="high:Q", y=y, y2="nothing:Q", tooltip=said)
    limits = base.mark_rule(strokeWidth=2, color=_GREY).encode(
        x="confidence:Q", y="accuracy_low:Q", y2="accuracy_high:Q", tooltip=said
    )
    diagonal = alt.Chart(ends).mark_line(color=_GREY, strokeDash=[5, 4]).encode(x="at:Q", y="at:Q")
    st.altair_chart(bars + limits + diagonal, height=280, alt="Share of right labels by confidence, and the diagonal")
    axis = alt.Axis(tickCount=2, format="~s", minExtent=_EXTENT)
    counts = base.mark_bar(color=_GREY).encode(
        x=x.title("confidence"),
        x2="high:Q",
        y=alt.Y("images:Q", title="images", axis=axis),
        y2="nothing:Q",
        tooltip=said,
    )
    st.altair_chart(counts, height=120, alt="Images by confidence")


def _threshold(found: calibration.Reading) -> None:
    st.subheader("What a threshold selects", anchor=False)
    threshold = st.slider(
        "Confidence above", 0.0, 0.99, 0.3, 0.01, key="threshold", bind="query-params", help="As --min-confidence."
    )
    names = classes()
    seen, right = found.above(threshold, len(names))
    above, total = _pool(live().state(), found.generation, threshold, len(names))
    kept = int(above.sum())
    places = st.columns(4)
    places[0].metric("Pool images selected", f"{kept:,}", help="Before reviews, duplicates and the quota.")
    places[1].metric("Share of the pool", f"{kept / total:.1%}" if total else "-")
    places[2].metric("Holdout images above it", f"{int(seen.sum()):,}", help=f"Of {found.images:,}.")
    low, high = wilson(int(right.sum()), int(seen.sum()))
    places[3].metric(
        "Right ones of them",
        f"{right.sum() / seen.sum():.1%}" if seen.sum() else "-",
        help=f"{low:.1%} to {high:.1%} at 95 %",
    )
    table = _classes(names, seen, right, above)
    if len(table) > _MOST:
        st.caption(f"The {_MOST:,} classes with the lowest precision, of {len(table):,}.")
    table = table.head(_MOST)
    st.dataframe(
        table.assign(**{"class": [short(name) for name in table["class"]]}),
        hide_index=True,
        placeholder="-",
        column_config={
            "class": st.column_config.TextColumn("class", pinned=True),
            "pool": st.column_config.NumberColumn("pool above", format="localized"),
            "seen": st.column_config.NumberColumn("holdout above", format="localized"),
            "precision": st.column_config.ProgressColumn(
                "precision", format="%.1f%%", min_value=0, max_value=100, help="Right ones of the holdout images above."
            ),
            "low": st.column_config.NumberColumn("at least", format="%.1f%%", help="95 % interval (Wilson)."),
            "high": st.column_config.NumberColumn("at most", format="%.1f%%", help="95 % interval (Wilson)."),
        },
    )


@st.cache_data(show_spinner=False, max_entries=32)
def _pool(state: object, generation: int, threshold: float, count: int) -> tuple[Ints, int]:
    """Pool images of each class above the threshold [C], and all pool images."""
    found = live().ask(queries.text("pool_above"), generation=generation, min_confidence=threshold)
    above = np.zeros(count, np.int64)
    above[[row["label"] for row in found]] = [row["above"] for row in found]
    return above, sum(row["images"] for row in found)


def _classes(names: list[str], seen: Ints, right: Ints, above: Ints) -> pd.DataFrame:
    """The precision of each class above the threshold, the lowest first, those without a holdout image last."""
    limits = [wilson(hits, n) if n else (None, None) for hits, n in zip(right.tolist(), seen.tolist(), strict=True)]
    table = pd.DataFrame(limits, columns=["low", "high"], dtype=float)
    table["class"] = names
    table["pool"], table["seen"] = above, seen
    table["precision"] = np.where(seen > 0, right / np.maximum(seen, 1), np.nan)
    table[["precision", "low", "high"]] *= 100
    return table.sort_values("precision", kind="stable", na_position="last")[
        ["class", "pool", "seen", "precision", "low", "high"]
    ]
