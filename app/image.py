"""Image: what each generation said of one image, what repeats it, what people decided, why a manifest has it or not."""

from __future__ import annotations

from typing import Any

import altair as alt
import duckdb
import pandas as pd
import streamlit as st

from curator.curation.explanation import Explanation, explain
from curator.errors import CuratorError
from curator.pictures.images import ID_MASK

from . import links
from .choices import class_text, classes, manifest_name
from .live import command, live, rows
from .tiles import picture, tiles
from .words import failed, mended, nothing, plain, short

_LARGE = 800  # pixels
_BARS = 5  # classes of each generation
_TWINS = 12
_MOST_BARS = 60  # of all generations together


def show() -> None:
    """The page."""
    st.title("Image")
    given = st.text_input("Image id", key="image_id", bind="query-params", width=260)
    image_id = int(given) if given.isascii() and given.isdigit() and len(given) < 20 else -1
    found = rows("image", {"image_id": image_id}) if 0 <= image_id <= ID_MASK else []
    if not found:
        said = f"There is no image {short(given)} in this store." if given else "Give the id of an image."
        nothing(said, "curator sql \"select image_id, uri from images where uri like '%...%' limit 10\"")
        return
    image = found[0]
    labels = rows("image_labels", {"image_id": image_id})
    left, right = st.columns([2, 3], gap="large")
    with left:
        picture(image, _LARGE)
    with right:
        _facts(image)
        if labels:
            name = labels[-1]["class_name"]
            shown = {"class": class_text(labels[-1]["label"]), "generation": labels[-1]["generation"]}
            links.to("gallery", f"All images labeled {short(name, 40)}", icon=":material/photo_library:", **shown)
    _labels(labels)
    _twins(image_id)
    _reviews(image_id)
    _manifest(image_id)


def _facts(image: dict[str, Any]) -> None:
    size = f"{image['width']} x {image['height']} pixels" if image["width"] else None
    place = None
    if image["shard"] is not None:
        place = f"{image['shard']}, byte {image['byte_offset']}"
    facts = {
        "uri": image["uri"],
        "shard": place,
        "split": image["split"],
        "trusted class": image["trusted_class"],
        "size": size,
        "bytes": image["byte_length"],
        "status": image["status"],
        "problem": image["problem"],
        "content hash": image["content_hash"],
        "perceptual hash": None if image["phash"] is None else f"{image['phash'] % 2**64:016x}",
        "added": f"{image['added_at']:%Y-%m-%d %H:%M} UTC",
    }
    _list(facts)


def _labels(labels: list[dict[str, Any]]) -> None:
    st.subheader("Soft labels", anchor=False)
    if not labels:
        nothing("No generation has labeled this image.", "curator label --model NAME")
        return
    names = classes()
    last = [row["generation"] for row in labels][-(_MOST_BARS // _BARS) :]
    bars = [
        {"class": f"{short(names[label], 30)}", "probability": prob, "generation": row["generation"], "label": label}
        for row in labels
        if row["generation"] in last
        for label, prob in zip(row["top_classes"][:_BARS], row["top_probs"], strict=False)
    ]
    table = pd.DataFrame(bars)
    order = table.groupby("class")["probability"].max().sort_values(ascending=False).index.tolist()
    chart = (
        alt.Chart(table)
        .mark_bar()
        .encode(
            x=alt.X("probability:Q", scale=alt.Scale(domain=[0, 1]), axis=alt.Axis(tickCount=10)),
            y=alt.Y("class:N", sort=order, title=None, axis=alt.Axis(labelLimit=240)),
            yOffset=alt.YOffset("generation:O", sort="ascending"),
            color=alt.Color("generation:O", legend=alt.Legend() if len(last) > 1 else None),
            tooltip=["class", "generation", alt.Tooltip("probability", format=".4f")],
        )
        .properties(height=100 + len(order) * max(22, 12 * len(last)))
    )
    st.altair_chart(chart)
    shown = pd.DataFrame(
        {
            "generation": row["generation"],
            "model": short(row["model"]),
            "class": short(row["class_name"], 60),
            "confidence": row["confidence"],
            "margin": row["margin"],
            "entropy": row["entropy"],
        }
        for row in labels
    )
    st.dataframe(
        shown,
        hide_index=True,
        column_config={
            name: st.column_config.NumberColumn(format="%.4f") for name in ("confidence", "margin", "entropy")
        },
    )


def _twins(image_id: int) -> None:
    twins = rows("image_twins", {"image_id": image_id, "limit": _TWINS})
    st.subheader("Images that it repeats", anchor=False)
    if not twins:
        scan = plain(command("curator quality duplicates"), 1000)
        st.caption(f"None that the newest scan for duplicates knows of ({scan}).")
        return
    tiles(twins, [_twin(row) for row in twins])


def _twin(row: dict[str, Any]) -> str:
    if row["twin"] == "nearest":
        return f"{row['split']}, nearest  \n{row['kind']}, distance {row['distance']:.3g}"
    return f"{row['split']}, the holdout image it shows" if row["twin"] == "holdout" else f"{row['split']}, same group"


def _reviews(image_id: int) -> None:
    st.subheader("Decisions", anchor=False)
    decided = rows("image_reviews", {"image_id": image_id}, passing=("reviews",))
    if not decided:
        st.caption("Nobody has reviewed it.")
        return
    st.dataframe(
        pd.DataFrame(
            {name: short(row[name]) if isinstance(row[name], str) else row[name] for name in row} for row in decided
        ),
        hide_index=True,
        column_config={
            "decided_at": st.column_config.DatetimeColumn("when", format="YYYY-MM-DD HH:mm:ss"),
            "new_class": "new class",
        },
    )


@st.fragment
def _manifest(image_id: int) -> None:
    st.subheader("In a manifest", anchor=False)
    with st.container(horizontal=True, vertical_alignment="bottom"):
        name = manifest_name()
        asked = name is not None and st.button("Why is it in or out?", icon=":material/help:")
    if name is None:
        nothing("There is no manifest yet.", "curator build-manifest --per-class 100")
        return
    if asked:
        st.session_state["explained"] = (image_id, name)
    if st.session_state.get("explained") != (image_id, name):
        return
    try:
        with st.spinner("Asking the rules of its selection ..."):
            found = _explained(live().state("reviews"), name, image_id)
    except (CuratorError, duckdb.Error) as error:  # nobody else catches it in a run of the fragment alone
        failed(mended(error))
        return
    verb = "is" if found.is_in else "is not"
    st.markdown(f"It {verb} in **{plain(name)}**: {plain(found.reason, 1000)}.")
    with st.expander("What the rules looked at"):
        _list({key.replace("_", " "): value for key, value in found.facts.items()})


def _list(facts: dict[str, Any]) -> None:
    """Names and values, without those that are None."""
    st.table({name: plain(value, 300) for name, value in facts.items() if value is not None}, border="horizontal")


@st.cache_data(show_spinner=False, max_entries=100)
def _explained(state: object, name: str, image_id: int) -> Explanation:
    return explain(live().store, name, image_id)
