"""The store as it is now: one connection for all pages and sessions, whose views follow the tables.

    Delta tables --each second, of a bucket each 5: is there a newer version?--> views of those that changed --> answers

A generation that is published while the app is open appears with the next click. Answers are kept until a table that
they may depend on changes. A bucket that does not answer holds nobody up: what was known of it goes on being shown.
"""

from __future__ import annotations

import datetime as dt
import os
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Any, NamedTuple

import streamlit as st

from curator import queries
from curator.curation import manifests
from curator.curation.manifests import Manifest
from curator.errors import CuratorError
from curator.schema import TABLES
from curator.serving.server import STORE
from curator.serving.situation import option
from curator.storage import bucket
from curator.storage.store import Look, Store

if TYPE_CHECKING:
    import duckdb

MEMORY = "400MB"
_PATIENCE_S = 10.0  # for how long a request is made again: somebody sits before the page
_TAKEN = 200  # newer versions of tables, after which the connection is made anew
_LOOKS = 10  # at tables that grow while they are looked at
_WAITED_S = 3.0  # for newer versions, before what is known already is shown
# Tables that grow while people look: an answer that does not read them is not asked for again because of them.
PASSING = ("reviews", "metrics")


class Behind(NamedTuple):
    """That the newest versions are not known.

    Attributes:
        since: When they were known last.
        error: Why they are not; None where the store has not answered yet.
    """

    since: dt.datetime
    error: CuratorError | None


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
        bucket.patience(_PATIENCE_S)
        self.store = Store(path)
        self._turn, self._views = threading.Lock(), threading.Lock()
        self._pool = ThreadPoolExecutor(1, "follow")
        self._looks = self._settle()
        self._con, self._taken = self._connect(), 0
        self._known = dt.datetime.now(dt.UTC)
        self._looked = time.monotonic()
        self._look: Future[None] = Future()
        self._look.set_result(None)

    def follow(self) -> None:
        """Turns to the newest versions of the tables, unless that was done a moment ago."""
        with self._turn:
            if self._look.done() and time.monotonic() - self._looked > self.store.place.looked_s:
                self._looked = time.monotonic()
                self._look = self._pool.submit(self.refresh)
            look, left = self._look, self._looked + _WAITED_S - time.monotonic()
        wait([look], max(left, 0))

    def behind(self) -> Behind | None:
        """What is to be told where the newest versions are not known."""
        look = self._look
        if not look.done():
            waited = time.monotonic() - self._looked
            return Behind(self._known, None) if waited > _WAITED_S else None
        error = look.exception()
        if error is None or isinstance(error, CuratorError):
            return Behind(self._known, error) if error else None
        raise error

    def refresh(self) -> None:
        """Turns to the newest versions now."""
        if self._newest() != self._looks:
            for name, look in self._settle().items():
                self.take_in(name, look)
            self._renew()
        self._known = dt.datetime.now(dt.UTC)

    def take_in(self, name: str, look: Look) -> None:
        """Turns to a table as somebody sees it, who may just have written to it, if that is newer."""
        with self._views:
            if look.version > self._looks[name].version:
                self.store.view(self._con, name, look)
                self._looks[name] = look
                self._taken += 1

    def _connect(self) -> duckdb.DuckDBPyConnection:
        """A connection with views of the tables as they were seen."""
        con = self.store.connect(looks=self._looks)
        con.execute(f"set memory_limit = '{MEMORY}'")
        # Files of the store never change, and reading their footers again takes longer than a page of the gallery.
        # Global, for else the cursors would not have it.
        con.execute("set global parquet_metadata_cache = true")
        return con

    def _renew(self) -> None:
        """Connects anew after many changes: footers of files that are gone would stay until DuckDB's memory is full."""
        with self._views:
            if self._taken >= _TAKEN:
                self._con, self._taken = self._connect(), 0  # whoever asks the old one keeps it till then

    def _settle(self) -> dict[str, Look]:
        """All tables at one moment: between two looks that found the same."""
        found = self._newest()
        for _ in range(_LOOKS):
            before, found = found, self._newest()
            if found == before:
                break
        return found

    def _newest(self) -> dict[str, Look]:
        return self.store.look_at(dict.fromkeys(TABLES))

    def state(self, *passing: str) -> tuple[tuple[str, int], ...]:
        """What an answer depends on: the versions of all tables but reviews and metrics, unless these are named."""
        kept = self._looks
        return tuple((name, kept[name].version) for name in TABLES if name not in PASSING or name in passing)

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


def forget() -> None:
    """Opens the store anew at the next click."""
    _opened.clear()


def command(text: str) -> str:
    """A command line, for this store."""
    return text + option(str(live().store.place))


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
