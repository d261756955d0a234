"""The store as it is now: one connection for all pages and sessions, whose views follow the tables.

    Delta tables --at most once a second: is there a newer version?--> the views of those that changed --> answers

A generation that is published while the app is open appears with the next click. Answers are kept until a table that
they may depend on changes.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import streamlit as st

from curator import manifests, queries
from curator.manifests import Manifest
from curator.schema import TABLES
from curator.server import STORE
from curator.situation import option
from curator.store import Store

if TYPE_CHECKING:
    import duckdb

MEMORY = "400MB"
_LOOKED_S = 1.0
# Tables that grow while people look: an answer that does not read them is not asked for again because of them.
PASSING = ("reviews", "metrics")


class Live:
    """The store as the pages see it.

    Args:
        path: Folder of the store.

    Attributes:
        store: The store.

    Raises:
        StoreError: There is no store at the path, or one that cannot be read.
    """

    def __init__(self, path: str) -> None:
        self.store = Store(path)
        self._turn = threading.Lock()
        self._versions = self.store.every_version()
        self._con = self.store.connect(self._versions)
        self._con.execute(f"set memory_limit = '{MEMORY}'")
        # Files of the store never change, and reading their footers again takes longer than a page of the gallery.
        # Global, for else the cursors would not have it.
        self._con.execute("set global parquet_metadata_cache = true")
        self._looked = time.monotonic()

    def follow(self) -> None:
        """Turns to the newest versions of the tables, unless that was done within the last second."""
        with self._turn:
            if time.monotonic() - self._looked < _LOOKED_S:
                return
            self._turn_to_newest()

    def refresh(self) -> None:
        """Turns to the newest versions now, as after a decision of one's own."""
        with self._turn:
            self._turn_to_newest()

    def _turn_to_newest(self) -> None:
        newest = self.store.every_version()
        for name, version in newest.items():
            if version != self._versions[name]:
                self.store.view(self._con, name, version)
        self._versions = newest
        self._looked = time.monotonic()

    def state(self, *passing: str) -> tuple[tuple[str, int], ...]:
        """What an answer depends on: the versions of all tables but reviews and metrics, unless these are named."""
        kept = self._versions
        return tuple((name, kept[name]) for name in TABLES if name not in PASSING or name in passing)

    def cursor(self) -> duckdb.DuckDBPyConnection:
        """A connection of its own to the same views, for one thread; temporary relations are its own too."""
        return self._con.cursor()

    def ask(self, query: str, /, **values: Any) -> list[dict[str, Any]]:
        """The answer of a query over the views, for answers of a few thousand rows."""
        with self.cursor() as con:
            return queries.rows(con, query, **values)

    def manifest(self, name: str) -> Manifest:
        """A published manifest, see manifests.find."""
        with self.cursor() as con:
            return manifests.find(self.store, name, con)


def live() -> Live:
    """The store that the app was started on, as it is now."""
    found = _opened(os.environ.get(STORE, "store"))
    found.follow()
    return found


@st.cache_resource(show_spinner=False)
def _opened(path: str) -> Live:
    return Live(path)


def command(text: str) -> str:
    """A command line, for this store."""
    return text + option(live().store.path)


def rows(name: str, values: Mapping[str, Any] | None = None, passing: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    """The answer of sql/NAME.sql, kept until a table changes.

    Args:
        name: The query.
        values: Its parameters.
        passing: Which of PASSING it reads.
    """
    return answer(queries.text(name), values, passing)


def answer(query: str, values: Mapping[str, Any] | None = None, passing: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    """The answer of a query that is put together, as `rows`."""
    return _rows(live().state(*passing), query, tuple((values or {}).items()))


@st.cache_data(show_spinner=False, max_entries=500)
def _rows(state: object, query: str, values: tuple[tuple[str, Any], ...]) -> list[dict[str, Any]]:
    return live().ask(query, **dict(values))
