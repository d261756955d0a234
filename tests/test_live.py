"""The store as the app sees it, which follows other processes for as long as it is open."""

from __future__ import annotations

import pytest
from curator.app import live

from curator.decisions.reviews import add_review
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
