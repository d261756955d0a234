"""Manifests: what each holds and how it was made, two compared, and what other options would select."""

from __future__ import annotations

import shlex
import threading
from collections.abc import Sequence
from typing import Any

import altair as alt
import pandas as pd
import streamlit as st

from curator.curation import account, building, comparison, policies
from curator.curation.manifests import Manifest
from curator.curation.parameters import DEFAULTS, FILLS, NEAR_LEAKS, TARGETS
from curator.errors import CuratorError
from curator.names import check_name

from . import choices, links, tiles
from .live import command, live, rows
from .words import failed, nothing, plain, short

_VIEWS = ("Contents", "Compare", "Build")
_MOST = 2_000  # rows of a table
_TILES = 24
_EARLIER = "manifest"  # the parameter that names an earlier manifest, see policies.EARLIER


def show() -> None:
    """The page."""
    st.title("Manifests")
    found = rows("manifest_list")
    if not found:
        nothing("There is no manifest yet.", "curator build-manifest --per-class K")
        st.text("Below you can try options; they select nothing yet, and write nothing.")
        _build(None)
        return
    shown = [
        row | {"name": short(row["name"]), "created_at": row["created_at"].isoformat(" ", "minutes")[:16]}
        for row in found
    ]
    names = {"per_class": "quota", "unique_images": "images", "created_at": "created (UTC)"}
    st.dataframe(
        pd.DataFrame(shown[:_MOST]).rename(columns=names), hide_index=True, height="auto" if len(shown) < 8 else 300
    )
    view = st.segmented_control("View", _VIEWS, default=_VIEWS[0], required=True, key="view", bind="query-params")
    if view == "Build":
        _build(found[0])
        return
    if view == "Compare":
        _compare()
    elif name := choices.manifest_name():
        _contents(_found(live().state(), name))


@st.cache_data(show_spinner=False, max_entries=50)
def _found(state: object, name: str) -> Manifest:
    return live().manifest(name)


def _contents(manifest: Manifest) -> None:
    lineage = manifest.lineage
    _account(manifest)
    with st.expander("Lineage", icon=":material/account_tree:"):
        facts = account.options(manifest) | {
            "seed": lineage["parameters"]["seed"],
            "teacher": lineage["model"]["model"],
            "its weights, sha256": lineage["model"]["weights_hash"],
            "sha256": manifest.sha256,
            "tool": lineage["tool"],
            "folder": manifest.uri,
        }
        facts |= {f"version of {table}": version for table, version in lineage["tables"].items() if version >= 0}
        texts = {name: "-" if value is None else short(value, 1000) for name, value in facts.items()}
        st.dataframe(pd.DataFrame({"what": texts.keys(), "value": texts.values()}), hide_index=True, width="stretch")
        again = shlex.join(["curator", "build-manifest", "NEW", "--as-of", manifest.name])
        st.code(command(again), language="bash", wrap_lines=True)
    with st.expander("SQL", icon=":material/database:"):
        st.code(lineage["sql"], language="sql", height=500)


def _account(manifest: Manifest) -> None:
    """What a manifest, or a dry run, holds: figures, warnings, funnel, classes that fall short."""
    line = st.container(horizontal=True)
    line.metric("Rows, with copies", f"{manifest.rows:,}", border=True)
    line.metric("Images", f"{manifest.unique_images:,}", border=True)
    line.metric("Quota", f"{manifest.lineage['parameters']['per_class']:,}", border=True)
    line.metric("Generation", manifest.generation, border=True)
    right, seen = account.precision(manifest)
    if seen:
        low, high = account.wilson(right, seen)
        said = f"{right / seen:.1%}"
        told = f"{low:.1%} to {high:.1%}; of the {seen:,} holdout images at or above the cut-off of their class"
        line.metric("Rightly labeled, estimated", said, border=True, help=told)
    for warning in account.warnings(manifest):
        st.warning(plain(warning, 1000), icon=":material/warning:")
    _funnel(manifest)
    short_classes = account.short(manifest)
    if short_classes:
        quota = manifest.lineage["parameters"]["per_class"]
        st.subheader(f"{len(short_classes):,} of {len(manifest.classes):,} classes fall short of {quota:,}")
        table = pd.DataFrame(
            {
                "class": [short(row["class_name"]) for row in short_classes],
                "images to choose from": [row["eligible"] for row in short_classes],
                "kept": [row["kept"] for row in short_classes],
                "rows": [row["rows"] for row in short_classes],
                "most copies of one": [row["most_copies"] for row in short_classes],
            }
        )
        st.dataframe(table[:_MOST], hide_index=True, width="stretch", height="auto" if len(table) < 10 else 360)
    links.to("classes", "All classes of the generation", ":material/bar_chart:", generation=manifest.generation)


def _funnel(manifest: Manifest) -> None:
    st.subheader("What each rule leaves")
    steps = account.funnel(manifest)
    frame = pd.DataFrame({"rule": [rule for rule, _ in steps], "images": [number for _, number in steps]})
    across = alt.X("images:Q", title=None, axis=None)
    order = alt.Y("rule:N", sort=None, title=None, axis=alt.Axis(labelLimit=320, ticks=False, domain=False))
    bars = alt.Chart(frame).encode(across, order, tooltip=["rule", alt.Tooltip("images", format=",")])
    numbers = bars.mark_text(align="left", dx=4, color="gray").encode(text=alt.Text("images", format=","))
    st.altair_chart(bars.mark_bar() + numbers, width="stretch", height=34 * len(steps))


def _compare() -> None:
    line = st.columns(2)
    with line[0]:
        name = choices.manifest_name()
    with line[1]:
        other = choices.manifest_name("What changed since", key="since", every="choose one")
    if name is None or other is None or other == name:
        st.info("Choose an earlier manifest to compare it with.", icon=":material/info:")
        return
    difference = _difference(live().state(), other, name)
    counts = st.container(horizontal=True)
    for change, number in difference.totals.items():
        counts.metric(change.replace("_", " "), f"{number:,}", border=True)
    if not difference.differs:
        st.success("Both hold the same images, classes and copies.", icon=":material/check:")
        return
    changed = [row for row in difference.classes if any(row[change] for change in comparison.CHANGES)]
    changed.sort(key=lambda row: -sum(row[change] for change in comparison.CHANGES))
    table = pd.DataFrame(changed[:_MOST]).rename(columns=lambda column: column.replace("_", " "))
    table["class name"] = table["class name"].map(short)
    st.subheader(f"{len(changed):,} of {len(difference.classes):,} classes differ")
    st.dataframe(table, hide_index=True, width="stretch", height="auto" if len(table) < 10 else 360)
    there = [change for change in comparison.CHANGES if difference.totals[change]]
    change = st.segmented_control(
        "Images that were", there, default=there[0], required=True, key="change", bind="query-params",
        format_func=lambda each: {"copies_changed": "given other copies"}.get(each, each),
    )  # fmt: skip
    if change in there:
        images = _examples(live().state(), other, name, change)
        if len(images) < difference.totals[change]:
            st.caption(f"The first {len(images)} of {difference.totals[change]:,}, class by class.")
        tiles.tiles(images, [_caption(row, change) for row in images])


def _caption(row: dict[str, Any], change: str) -> str:
    if change == "relabeled":
        return f"{plain(row['class_before'], 30)} to {plain(row['class_after'], 30)}"
    said = plain(row["class_after"] if row["class_after"] is not None else row["class_before"], 40)
    return f"{said}, {row['copies_before']} to {row['copies_after']} copies" if change == "copies_changed" else said


@st.cache_data(show_spinner="Comparing", max_entries=50)
def _difference(state: object, before: str, after: str) -> comparison.Difference:
    return comparison.diff(live().store, before, after)


@st.cache_data(show_spinner="Comparing", max_entries=50)
def _examples(state: object, before: str, after: str, change: str) -> list[dict[str, Any]]:
    return comparison.images(live().store, before, after, change, _TILES)


def _build(newest: dict[str, Any] | None) -> None:
    """Lets try options: a dry run, which writes nothing, and the command that builds."""
    st.text("What other options would select. The app builds nothing: it gives the command that does.")
    line = st.columns(3)
    with line[0]:
        generation = choices.generation()
    if generation is None:
        return
    quota = newest["per_class"] if newest else 1000
    options: dict[str, Any] = {
        "generation": generation,
        "per_class": line[1].number_input(
            "Quota of each class (--per-class)", 1, 2**31 - 1, quota, key="per_class", bind="query-params"
        ),
        "min_confidence": _number(line[2], "Confidence above", "min_confidence", 0.0, 0.999, 0.05),
    }
    names = ["top", *(name for name in policies.names() if name != "top" and (newest or not _takes_up(name)))]
    options["policy"] = line[0].selectbox("Policy", names, key="policy", bind="query-params")
    options["settings"] = _settings(line, options["policy"])
    with st.expander("More options", icon=":material/tune:"):
        where = _more(options)
    try:
        name = st.text_input(
            "Name of the manifest",
            key="name",
            bind="query-params",
            max_chars=100,
            placeholder=f"g{generation}-{options['per_class']}",
        )
        if name:
            check_name("manifest", name)
        built = _command(name, options, where)
        said = _said(options)
        if st.button("Try it", type="primary", icon=":material/play_arrow:"):
            st.session_state["tried"] = said
        st.text("To build it:")
        st.code(built, language="bash", wrap_lines=True)
        if where:
            st.info(
                "The figures below are without the SQL condition, which only the command line runs: there, add "
                "\\-\\-dry-run to see what it leaves.",
                icon=":material/info:",
            )
        if st.session_state.get("tried") == said:
            with st.container(border=True):
                _account(_tried(live().state("reviews"), said))
    except CuratorError as error:
        failed(error)


def _number(place: Any, label: str, name: str, least: float, most: float, step: float) -> float:
    default: Any = DEFAULTS[name]
    given = place.number_input(label, least, most, float(default), step, "%.3f", key=name, bind="query-params")
    return float(f"{given:.3f}")


def _takes_up(policy: str) -> bool:
    """Whether a policy selects from an earlier manifest."""
    return _EARLIER in policies.load(policy).defaults


def _settings(line: Sequence[Any], policy: str) -> dict[str, policies.Value]:
    """The parameters of a policy, each with a field of its own."""
    found: dict[str, policies.Value] = {}
    for position, (name, default) in enumerate(policies.load(policy).defaults.items(), start=1):
        place, key = line[position % 3], f"{policy}.{name}"
        if name == _EARLIER:
            with place:
                found[name] = choices.manifest_name(name, key) or default
        elif isinstance(default, str):
            found[name] = place.text_input(name, default, key=key, bind="query-params", max_chars=100)
        elif isinstance(default, int):
            found[name] = place.number_input(name, value=default, key=key, bind="query-params")
        else:
            given = place.number_input(
                name, value=float(default), step=0.05, format="%.3f", key=key, bind="query-params"
            )
            found[name] = float(f"{given:.3f}")
    return found


def _more(options: dict[str, Any]) -> str:
    """Asks for the other options; gives the SQL condition, which is no part of a dry run.

    A condition is SQL, and a selection runs on a connection that can read files: the sandbox is none for it.
    """
    line = st.columns(3)
    bound: dict[str, Any] = {"bind": "query-params"}
    options["targets"] = line[0].selectbox("Targets", TARGETS, key="targets", **bound)
    options["hard_from"] = _number(line[1], "With auto, hard from", "hard_from", 0.0, 1.0, 0.05)
    options["temperature"] = _number(line[2], "Temperature", "temperature", 0.01, 100.0, 0.1)
    line = st.columns(3)
    options["fill"] = line[0].selectbox("Fill short classes with", FILLS, key="fill", **bound)
    options["max_copies"] = line[1].number_input(
        "Most copies of one image", 1, 2**31 - 1, None, placeholder="no limit", key="max_copies", **bound
    )
    options["near_leaks"] = line[2].selectbox("Images near the holdout", NEAR_LEAKS, key="near_leaks", **bound)
    line = st.columns(3)
    options["dedup"] = line[0].toggle("Keep one of repeated images", key="dedup", **bound)
    options["accepted"] = line[1].toggle("Accepted first, at any confidence", key="accepted", **bound)
    options["calibrated"] = line[2].toggle("Calibrated confidences", key="calibrated", **bound)
    left, right = st.columns([1, 2])
    options["seed"] = left.number_input("Seed", -(2**53) + 1, 2**53 - 1, 0, key="seed", **bound)
    where: str = right.text_input(
        "SQL condition (--where)", key="where", max_chars=5000, placeholder="width >= 64", help="For the command only.",
        **bound,
    )  # fmt: skip
    return where.strip()


def _said(options: dict[str, Any]) -> dict[str, Any]:
    """The options that are not as they are when nobody says anything; the generation and the quota always."""
    usual: dict[str, Any] = DEFAULTS | {"calibrated": False, "settings": policies.load(options["policy"]).defaults}
    always = ("generation", "per_class")
    said = {name: value for name, value in options.items() if name in always or value != usual[name]}
    if "settings" in said:
        said["settings"] = {name: v for name, v in said["settings"].items() if v != usual["settings"][name]}
    return said


def _command(name: str, options: dict[str, Any], where: str) -> str:
    """The command line that builds what the options select, quoted for a shell."""
    words: list[str] = ["curator", "build-manifest", *[name] * bool(name)]
    for option, value in _said(options).items():
        flag = f"--{option.replace('_', '-')}"
        if option == "settings":
            words += [word for key, setting in value.items() for word in ("--set", f"{key}={setting}")]
        else:
            words += [flag] if value is True else [flag, str(value)]
    words += [*(["--where", where] if where else []), "--store", str(live().store.place)]
    return shlex.join(words)


@st.cache_resource(show_spinner=False)
def _turn() -> threading.Lock:
    return threading.Lock()


@st.cache_data(show_spinner="Selecting", max_entries=20)
def _tried(state: object, said: dict[str, Any]) -> Manifest:
    with _turn():  # one at a time: a selection may take as much memory as it is allowed
        return building.build(live().store, None, said, dry_run=True)
