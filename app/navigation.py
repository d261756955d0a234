"""The pages and their order, and what is shown where the store cannot be read."""

from __future__ import annotations

import duckdb
import streamlit as st

from curator.errors import CuratorError

from . import overview
from .links import use
from .live import live
from .words import failed, short

_DAMAGE = "a file of the store cannot be read"


def run() -> None:
    """Runs the page that the URL names."""
    st.set_page_config(page_title="curator", page_icon=":material/filter_alt:", layout="wide")
    sections = {
        "": [st.Page(overview.show, title="Overview", icon=":material/home:", url_path="overview", default=True)],
    }
    pages = {page.url_path or "overview": page for section in sections.values() for page in section}
    use(pages)
    chosen = st.navigation(sections)
    try:
        st.sidebar.caption(f"Store: {short(live().store.path)}")
        chosen.run()
    except CuratorError as error:
        failed(error)
    except duckdb.IOException as error:
        said = str(error).splitlines()[0]
        failed(CuratorError(f"{_DAMAGE} ({said})", "restore it from a backup; curator check says what manifests miss"))
