"""The store as the app sees it, which follows other processes for as long as it is open."""

from __future__ import annotations

import contextlib

import deltalake
import pytest
from curator.app import live

from curator.decisions.reviews import add_review
from curator.serving import server
from curator.storage import additions
from curator.storage.store import Store

REVIEWS = "select count(*) as n from reviews"


def held(seen: live.Live) -> int:
    """Bytes that DuckDB keeps."""
    with seen.cursor() as con:
        return int(con.execute("select sum(memory_usage_bytes) from duckdb_memory()").fetchall()[0][0])


def test_many_changes_leave_nothing_in_memory(
    store: Store, ids: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "_TAKEN", 5)
    monkeypatch.setattr(additions, "_MOST_SMALL", 4)  # of five reviews one file is made
    seen, image = live.Live(str(store.path)), next(iter(ids.values()))
    first = seen.ask(REVIEWS)[0]["n"]
    for number in range(1, 31):
        add_review(store, image, "accept")
        seen.refresh()
        assert seen.ask(REVIEWS)[0]["n"] == first + number
    fresh = live.Live(str(store.path))
    fresh.ask(REVIEWS)
    assert held(seen) <= held(fresh)


def test_the_tables_are_open_once(store: Store, ids: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    seen = live.Live(str(store.path))
    opened: list[tuple[str, int | None]] = []
    delta, follow, followed = Store.delta, Store.follow, []

    def counted(self: Store, table: str, version: int | None = None) -> object:
        opened.append((table, version))
        return delta(self, table, version)

    def noted(self: Store, table: str, opened: deltalake.DeltaTable) -> None:
        if table == "reviews":
            followed.append(opened.version())
        follow(self, table, opened)

    monkeypatch.setattr(Store, "delta", counted)
    monkeypatch.setattr(Store, "follow", noted)
    with contextlib.closing(seen.store.connect()):  # as pages do that ask for more than one query
        pass
    assert not opened
    before = seen.ask(REVIEWS)[0]["n"]
    for number in range(1, 4):
        add_review(store, next(iter(ids.values())), "accept")
        opened.clear()
        followed.clear()
        seen.refresh()
        assert not opened
        assert followed[0] == number - 1
        assert seen.ask(REVIEWS)[0]["n"] == before + number
        with contextlib.closing(seen.store.connect({"reviews": 0})) as con:  # as whoever explains an old manifest
            assert con.execute(REVIEWS).fetchall() == [(before,)]
        assert opened == [("reviews", 0)]


def test_the_apps_process_has_one_arena_of_each_allocator(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("MALLOC_ARENA_MAX", "_RJEM_MALLOC_CONF")
    for name in names:
        monkeypatch.delenv(name, raising=False)
    assert [server.server(store).environment[name] for name in names] == ["1", "narenas:1"]
    monkeypatch.setenv("MALLOC_ARENA_MAX", "4")
    assert [server.server(store).environment[name] for name in names] == ["4", "narenas:1"]
