"""Overview: what the store holds, generation by generation, and what to do next."""

from __future__ import annotations

import streamlit as st


def show() -> None:
    """The page."""
    st.title("Overview")
