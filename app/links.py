"""Links between pages: pages do not import each other, they name one another here.

navigation.py --use--> the pages by name --to, go--> a link in a page, with what it is to show in the URL
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import streamlit as st

from .words import plain

if TYPE_CHECKING:
    from streamlit.navigation.page import StreamlitPage

_pages: dict[str, StreamlitPage] = {}


def use(pages: Mapping[str, StreamlitPage]) -> None:
    """Makes the pages known, by the last part of their URL."""
    _pages.update(pages)


def to(page: str, label: str, icon: str | None = None, help: str | None = None, **shown: Any) -> None:
    """Puts a link.

    Args:
        page: Name of the page.
        label: The text, shown as it is.
        icon: A Material symbol.
        help: What a hovering pointer is told.
        shown: The query parameters that say what the page is to show; None is left out.
    """
    query = {name: str(value) for name, value in shown.items() if value is not None}
    if page in _pages:  # not where a test runs a page by itself
        st.page_link(_pages[page], label=plain(label), icon=icon, help=help and plain(help), query_params=query)
    else:
        st.text(label)


def go(page: str, **shown: Any) -> None:
    """Turns to another page, as after a click into a chart or a table."""
    if page in _pages:
        query = {name: str(value) for name, value in shown.items() if value is not None}
        st.switch_page(_pages[page], query_params=query)
