"""Texts from outside - file names, class names, reasons - as they are to be shown: as text, whatever they hold."""

from __future__ import annotations

import re

import duckdb
import streamlit as st

from curator.errors import CuratorError, StoreError, printable

from .live import MEMORY, command, forget, live

_SIGNS = re.compile(r"([!-/:-@\[-`{-~])")
# What Streamlit replaces, and Markdown links, when the escapes are gone; an invisible sign in it leaves it as it is.
_LATE = re.compile(
    r":(?=material_\w+:|streamlit:)|(?<!\S)[<>~-](?=(?:->|[->=-])(?!\S))|https?:(?=//)|www(?=\.)|@(?=[\w-]+\.)",
    re.IGNORECASE,
)
_JOINER = "\u2060"
_LONGEST = 200


def plain(text: object, longest: int = _LONGEST) -> str:
    """A text for a place that takes Markdown, in which nothing means anything.

    Args:
        text: The text; line ends, control and direction characters become visible.
        longest: Characters that are shown; the middle of a longer one is left out.
    """
    return _SIGNS.sub(r"\\\1", _LATE.sub(rf"\g<0>{_JOINER}", short(text, longest)))


def short(text: object, longest: int = _LONGEST) -> str:
    """A text for a place that takes it as it is."""
    shown = printable(str(text))
    half = (longest - 3) // 2
    return shown if len(shown) <= longest else f"{shown[:half]}...{shown[-half:]}"


def mended(error: Exception) -> CuratorError:
    """What to tell of an error of a page's."""
    if isinstance(error, CuratorError):
        return error
    if isinstance(error, duckdb.OutOfMemoryException):
        return CuratorError(f"the page needs more memory than the {MEMORY} that pages may use", "narrow its filters")
    if isinstance(error, OSError):
        return CuratorError(str(error))
    unreachable = live().store.place.failure(error)
    if unreachable is None:
        forget()  # the store may have been made anew
    lines = str(error).splitlines()  # of a traceback, as of a file of a bucket, the last says what it is
    what = f"a file of the store cannot be read ({lines[-1 if lines[0].startswith('Traceback') else 0]})"
    return unreachable or StoreError(what, "restore it from a backup; curator check says what manifests miss")


def failed(error: CuratorError) -> None:
    """Shows what went wrong, and the mend."""
    st.error(plain(error.what, 1000), icon=":material/error:")
    if error.mend:
        st.text("What helps:")
        st.code(error.mend, language=None, wrap_lines=True)


def nothing(what: str, *commands: str) -> None:
    """Says that there is nothing to show yet, and which commands change that; the store's name comes to them here."""
    st.info(plain(what, 1000), icon=":material/info:")
    for each in commands:
        st.code(command(each), language="bash", wrap_lines=True)
