"""Training: the curves of runs, followed while one goes on, and the models that came of them."""

from __future__ import annotations

from typing import Any

import altair as alt
import duckdb
import pandas as pd
import streamlit as st

from curator.errors import CuratorError

from .live import rows
from .words import failed, mended, nothing, plain, short

_FRESH_S = 300  # a run writes its figures at least once a minute
_EVERY_S = 10
_POINTS = 400  # of a curve; more cannot be told apart
_SHOWN = 3  # runs, where nobody chose
_MOST = 10
# What stands in a chart of its own: the title, and the names of the figures.
_CHARTS = (
    ("Loss", ("loss",)),
    ("Learning rate", ("learning_rate",)),
    ("Top-1 accuracy on the holdout", ("holdout_top1", "top1")),
    ("Images per second", ("images_per_second",)),
)


def show() -> None:
    """The page."""
    st.title("Training", anchor=False)
    if not rows("training_runs", passing=("metrics",)) and not rows("training_models"):
        nothing("No model has been trained or imported yet.", "curator recipes", "curator train --recipe NAME")
        return
    going = bool(_going())
    st.fragment(_followed, run_every=_EVERY_S if going else None)(going)


def _going() -> list[dict[str, Any]]:
    """The runs that go on: they wrote a moment ago and are no models yet. The time passes, so nothing is kept."""
    runs = rows("training_runs", passing=("metrics",))
    now = pd.Timestamp.now("UTC")
    return [run for run in runs if not run["registered"] and (now - run["latest"]).total_seconds() < _FRESH_S]


def _followed(was_going: bool) -> None:
    """What is drawn again every few seconds while a run goes on."""
    try:
        going = _going()
        if was_going and not going:
            st.rerun()
        for run in going:
            st.badge(
                f"{plain(run['model'])}: step {run['step']:,}, goes on", icon=":material/play_arrow:", color="green"
            )
        _curves([run["model"] for run in rows("training_runs", passing=("metrics",))])
        _models()
    except (CuratorError, duckdb.Error) as error:  # nobody else catches it in a run of the fragment alone
        failed(mended(error))


def _curves(runs: list[str]) -> None:
    if not runs:
        nothing("No run has left figures yet: the models here came from outside.", "curator train --recipe NAME")
        return
    chosen = st.multiselect(
        "Runs", runs, runs[:_SHOWN], format_func=short, max_selections=_MOST, key="run", bind="query-params"
    )
    if not chosen:
        st.caption("Choose a run to see its curves.")
        return
    found = pd.DataFrame(
        rows("training_curves", {"runs": tuple(chosen), "most": _POINTS}, passing=("metrics",)),
        columns=["model", "name", "step", "epoch", "value"],
    )
    found["run"] = found["model"].map(short)
    colours, steps = alt.Scale(domain=[short(run) for run in chosen]), alt.Scale(domain=[0, int(found["step"].max())])
    places = st.columns(2)
    drawn = 0
    for title, names in _CHARTS:
        points = found[found["name"].isin(names)]
        if len(points):
            with places[drawn % 2]:
                _chart(title, points, steps, colours)
            drawn += 1


def _chart(title: str, points: pd.DataFrame, steps: alt.Scale, colours: alt.Scale) -> None:
    """One figure over the steps; a run that told it once is a dot."""
    lines = (
        alt.Chart(points)
        .mark_line(point=bool(points.groupby("run").size().min() < 10))
        .encode(
            x=alt.X("step:Q", title=None, scale=steps, axis=alt.Axis(format=",d", tickMinStep=1)),
            y=alt.Y("value:Q", title=None, scale=alt.Scale(zero=False, nice=True)),
            color=alt.Color("run:N", title=None, scale=colours, legend=alt.Legend(orient="top")),
            tooltip=[
                alt.Tooltip("run:N"),
                alt.Tooltip("step:Q", format=",d"),
                alt.Tooltip("epoch:Q", format=".2f"),
                alt.Tooltip("value:Q", format=".5~g"),
            ],
        )
    )
    st.markdown(f"**{title}**, over the steps")
    st.altair_chart(lines, height=280, alt=f"{title} over the steps of each run")


def _models() -> None:
    st.subheader("Models", anchor=False)
    found = rows("training_models")
    if not found:
        nothing("No run has ended with a model yet.", "curator train --recipe NAME")
        return
    table = pd.DataFrame(found)
    for name in ("model", "recipe", "manifest"):
        table[name] = [short(text) if isinstance(text, str) else None for text in table[name]]
    table["parents"] = [[short(parent) for parent in parents or []] for parents in table["parents"]]
    st.dataframe(
        table,
        hide_index=True,
        placeholder="-",
        column_config={
            "generation": st.column_config.NumberColumn("gen.", width="small"),
            "model": "model",
            "recipe": st.column_config.TextColumn("recipe", width="medium"),
            "steps": st.column_config.NumberColumn("steps", format="localized"),
            "top1": st.column_config.NumberColumn("top-1", format="percent", help="On the holdout after training."),
            "ece": st.column_config.NumberColumn("ECE", format="%.4f", help="Expected calibration error, holdout."),
            "images_per_second": st.column_config.NumberColumn("images/s", format="localized"),
            "manifest": "manifest",
            "parents": st.column_config.ListColumn("parents"),
            "created_at": st.column_config.DatetimeColumn("made", format="YYYY-MM-DD"),
        },
    )
