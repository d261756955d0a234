"""What several pages let a person choose: a generation, a class. Each choice stands in the URL."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import streamlit as st

from .live import rows
from .words import nothing, short

ALL = "all classes"


def generation() -> int | None:
    """Lets choose a generation that has labels, the newest by default; bound to the query parameter `generation`.

    Returns:
        The generation; None where there is none, after a notice that says how to get one.
    """
    found = [row["generation"] for row in rows("generations")]
    if not found:
        nothing(
            "No generation has labels yet.",
            "curator label --model NAME",
            "curator import-labels FILE --generation 0 --model NAME",
        )
        return None
    chosen: int = _chosen("Generation", found, "generation")
    return chosen


def classes() -> list[str]:
    """The class names in the order of their indexes."""
    return [row["class_name"] for row in rows("class_names")]


def class_name(label: str = "Class", key: str = "class", every: str | None = ALL, lets_go: bool = False) -> int | None:
    """Lets choose a class; bound to the query parameter of the key's name, which holds the class's name.

    Args:
        label: What stands above the choice.
        key: Its key, and name of the query parameter.
        every: What the choice of no class is called; None where one must be chosen.
        lets_go: For a page with keys, see `freed`.

    Returns:
        The class index; None for all classes, or where the store has no classes.
    """
    texts: dict[int | None, str] = {} if every is None else {None: every}
    texts |= dict(enumerate(_class_texts()))
    if not texts:
        return None
    chosen: int | None = freed(label, texts, key) if lets_go else _chosen(label, list(texts), key, texts)
    return chosen


def freed(label: str, texts: Mapping[Any, str], key: str, help: str | None = None) -> Any:
    """Lets choose one of some options on a page with keys.

    A box that was used would keep the keys to itself, so each choice is followed by a new box.

    Args:
        label: What stands above the choice.
        texts: What each option is called; the first is the default.
        key: Name of the query parameter, which holds the text.
        help: What a hovering pointer is told.
    """
    box = f"{key}-{st.session_state.get(f'{key}-boxes', 0)}"
    options, said = list(texts), list(texts.values())
    asked = st.query_params.get(key)
    index = said.index(asked) if asked in said else 0

    def take() -> None:
        chosen = st.session_state[box]
        if chosen == options[0]:
            st.query_params.pop(key, None)
        else:
            st.query_params[key] = texts[chosen]
        st.session_state[f"{key}-boxes"] = st.session_state.get(f"{key}-boxes", 0) + 1

    return st.selectbox(
        label, options, index, format_func=lambda each: texts.get(each, ""), key=box, on_change=take, help=help
    )


def class_text(label: int | None) -> str | None:
    """What stands in the URL for a class, to link to a page where it is chosen; None for all classes."""
    return None if label is None else _class_texts()[label]


def _class_texts() -> list[str]:
    return _distinct([short(name) for name in classes()])


def manifest_name(label: str = "Manifest", key: str = "manifest", every: str | None = None) -> str | None:
    """Lets choose a manifest, the newest by default; bound to the query parameter of the key's name.

    Args:
        label: What stands above the choice.
        key: Its key, and name of the query parameter.
        every: What the choice of none is called, which is then the default; None where one must be chosen.

    Returns:
        Its name; None for none, or where there is none.
    """
    names = [row["name"] for row in rows("manifest_names")]
    options: list[str | None] = [*([] if every is None else [None]), *names]
    if not options:
        return None
    chosen: str | None = _chosen(label, options, key, {None: every or ""} | {name: name for name in names})
    return chosen


def _chosen(label: str, options: list[Any], key: str, texts: dict[Any, str] | None = None) -> Any:
    said = texts or {option: str(option) for option in options}
    return st.selectbox(
        label, options, format_func=lambda option: said.get(option, str(option)), key=key, bind="query-params"
    )


def _distinct(texts: list[str]) -> list[str]:
    """The texts with a number behind those that stood there before: the URL tells options apart by them."""
    seen: dict[str, int] = {}
    found = []
    for text in texts:
        seen[text] = seen.get(text, 0) + 1
        found.append(text if seen[text] == 1 else f"{text} ({seen[text]})")
    return found
