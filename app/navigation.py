"""The pages and their order, and what is shown where the store cannot be read."""

from __future__ import annotations

import time

import duckdb
import streamlit as st

from curator.errors import CuratorError, StoreError

from . import calibration, classes, disagreement, gallery, image, manifests, overview, review, sql, training
from .links import use
from .live import live
from .words import failed, mended, plain, short

# A picture of its own: for a symbol the browser would ask a server of fonts.
_ICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16"><path d="M1 2h14L10 9v5l-4-2V9z" fill="#888"/></svg>'
)
_AGAIN_S = 5.0


def run() -> None:
    """Runs the page that the URL names."""
    st.set_page_config(page_title="curator", page_icon=_ICON, layout="wide")
    sections = {
        "": [st.Page(overview.show, title="Overview", icon=":material/home:", url_path="overview", default=True)],
        "Pool": [
            st.Page(classes.show, title="Classes", icon=":material/bar_chart:", url_path="classes"),
            st.Page(gallery.show, title="Gallery", icon=":material/photo_library:", url_path="gallery"),
            st.Page(image.show, title="Image", icon=":material/image:", url_path="image"),
        ],
        "Quality": [
            st.Page(review.show, title="Review", icon=":material/rate_review:", url_path="review"),
            st.Page(disagreement.show, title="Disagreement", icon=":material/grid_on:", url_path="disagreement"),
            st.Page(calibration.show, title="Calibration", icon=":material/straighten:", url_path="calibration"),
        ],
        "Training": [
            st.Page(manifests.show, title="Manifests", icon=":material/list_alt:", url_path="manifests"),
            st.Page(training.show, title="Training", icon=":material/show_chart:", url_path="training"),
        ],
        "Ask": [
            st.Page(sql.show, title="SQL", icon=":material/database:", url_path="sql"),
        ],
    }
    pages = {page.url_path or "overview": page for section in sections.values() for page in section}
    use(pages)
    chosen = st.navigation(sections)
    try:
        here = live()
        st.sidebar.caption(f"Store: {short(str(here.store.place))}")
        if here.behind():
            _waiting()
        chosen.run()
    except (CuratorError, duckdb.Error) as error:
        told = mended(error)
        failed(told)
        if isinstance(told, StoreError):
            _retry(time.monotonic())


@st.fragment(run_every=_AGAIN_S)
def _waiting() -> None:
    """Says that what is shown is not the newest, as long as that is so."""
    behind = live().behind()
    if behind is None:
        st.rerun()
    why = f"{behind.error.what}: {behind.error.mend}" if behind.error else "the store has not answered yet"
    said = f"What is shown is as of {behind.since:%H:%M:%S} UTC, and newer versions are looked for every few seconds"
    st.warning(plain(f"{said}; {why}", 1000), icon=":material/sync_problem:")


@st.fragment(run_every=_AGAIN_S)
def _retry(since: float) -> None:
    """Tries again after a while, by itself."""
    st.caption("This page tries again every few seconds.")
    if time.monotonic() - since > _AGAIN_S / 2:
        st.rerun()
