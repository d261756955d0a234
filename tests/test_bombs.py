"""curator sql: a statement that takes too much time or memory ends alone."""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
from conftest import Answer
from traces import outside, prints  # noqa: F401 - a fixture

from curator.errors import InputError
from curator.serving import sandbox
from curator.storage.store import Store

Run = Callable[..., Answer]

# What each tries, and the statement: a time that DuckDB itself does not bound.
ENDLESS = {
    "one call that takes for ever": "select levenshtein(repeat('a', 200000), repeat('b', 200000))",
    "a number of a million digits": "select length(repeat('9', 3000000)::BIGNUM::VARCHAR)",
    "a nap": "select sleep_ms(100000)",
    "rows without end": "select count(*) from generate_series(date '1-1-1', date '9999-1-1', interval 1 second)",
    "a recursion that never ends": "with recursive t as (select 1 a union all select a + 1 from t) from t",
    "a cross join": "select sum(a.range * b.range) from range(10000000) as a, range(10000000) as b",
    "a tower of joins": "with "
    + ", ".join(["a0 as (select 1)", *(f"a{n} as (from a{n - 1} as a, a{n - 1} as b)" for n in range(1, 40))])
    + " select count(*) from a39",
    "a long chain of unions": "select 1" + " union all select 1" * 20_000,
    "a huge padding": "select length(lpad('x', 1900000000, 'y'))",
}
# A memory, or the end of the process.
LARGE = {
    "a recursion that widens": "with recursive t as (select 1 a union all select a from t, range(9)) from t",
    "a huge text": "select length(repeat('x', 1500000000))",
    "a huge format": "select printf('%1900000000d', 1)",
    "a huge list": "select len(range(1000000000))",
    "a huge list, sorted": "select list_sort(range(100000000))[1]",
    "a huge list, mapped": "select list_sum(list_transform(range(100000000), lambda x: x + 1))",
    "lists that grow": "select max(len(range(range))) from range(100000)",
    "a huge aggregate": "select histogram(range) from range(100000000)",
    "parentheses": "select " + "(" * 1_000_000 + "1" + ")" * 1_000_000,
    "subqueries in subqueries": "select * from " + "(select * from " * 50_000 + "images" + ")" * 50_000,
    "sums of sums": "select 1" + "+1" * 100_000,
    "an answer without end": "select * from range(10) as a, range(10000000000) as b",
    "one row that is too large": "select repeat('x', 150000000) as a",
}
# What looks as bad and is harmless.
HARMLESS = {
    "a regular expression that backtracks": "select regexp_matches(repeat('a', 1000000), '(a*)*b')",
    "one with many ways": "select regexp_replace(repeat('a', 100000), '(a|aa)+$', 'x', 'g')",
    "comments in comments": "/*" * 10_000 + "*/" * 10_000 + "select 1",
}


def let_off(path: Path) -> tuple[dict[str, str], list[float], float]:
    """The bombs, two at a time, beside a query that goes on.

    Returns:
        What each ended with, the seconds each took, and the most memory of any process that was asked, in MB: counted
        is what a process held when it was started too, which is why this runs in a process that is itself small.
    """
    store = Store(path)
    messages = {}

    def ended(bomb: tuple[str, str]) -> float:
        started = time.monotonic()
        with pytest.raises(InputError) as caught:
            sandbox.ask(store, bomb[1], "100MB", 0.3 if bomb[0] in ENDLESS else 20)
        messages[bomb[0]] = str(caught.value)
        return time.monotonic() - started

    with ThreadPoolExecutor(2) as pool:
        ending = pool.map(ended, (ENDLESS | LARGE).items())
        for _ in range(3):
            assert sandbox.ask(store, "select count(*) as n from images").table.to_pylist() == [{"n": 9}]
        took = list(ending)
    return messages, took, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the kernel bounds no process's memory")
def test_bombs_end_alone(store: Store, outside: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """Each ends within its limits, a query beside it goes on, and nothing is left behind."""
    temporary = outside / "tmp"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    before = prints(store.path, outside)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        messages, took, peak = pool.submit(let_off, store.path).result()
    assert max(took) < 30, messages
    assert messages.keys() == (ENDLESS | LARGE).keys()
    said = ("more memory than it may use", "larger than the memory", "Max expression depth")
    for name, message in messages.items():
        assert any(words in message for words in (("was stopped",) if name in ENDLESS else said)), (name, message)
    assert peak < 1200, f"{peak:.0f} MB under a limit of 100 MB"
    for query in HARMLESS.values():
        assert sandbox.ask(store, query).rows == 1, query
    assert prints(store.path, outside) == before


@pytest.mark.parametrize(
    "query",
    [
        "with recursive t as (select 1 as a union all select a + 1 from t) select count(*) from t",
        "with recursive t as (select 1 as a union all select a + 1 from t) select * from t",
        "select sum(a.range * b.range) from range(1000000) as a, range(1000000) as b",
    ],
)
def test_endless_queries_are_stopped(store: Store, curator: Run, query: str) -> None:
    for limit in ("0.5", "0.001"):
        started = time.monotonic()
        done = curator("sql", query, "--timeout", limit, "--store", store.path)
        assert done.code == 2
        assert f"the query ran longer than {limit} seconds and was stopped" in done.err
        assert time.monotonic() - started < 10


@pytest.mark.parametrize(
    "query",
    [
        "select list(range) from range(1000000000)",
        "select count(*) from (select range, hash(range) as h from range(100000000) order by h, range)",
        "select string_agg(repeat('x', 1000), '') from range(10000000)",
        "select * from range(1000000000)",
    ],
)
def test_memory_is_bounded_and_nothing_is_spilled(store: Store, outside: Path, curator: Run, query: str) -> None:  # noqa: F811
    done = curator("sql", query, "--memory", "100MB", "--format", "parquet", "--store", store.path)
    assert (done.code, done.out) == (2, "")
    assert "memory" in done.err
    assert "raise --memory" in done.err
    assert [path.name for path in outside.iterdir()] == ["outside.csv"]


def test_who_asks_may_change_their_mind(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `meanwhile` raises ends the query at once, and its process."""
    passed: list[float] = []
    children: list[subprocess.Popen[bytes]] = []

    class Noted(subprocess.Popen[bytes]):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            children.append(self)

    class Enough(Exception):
        pass

    def meanwhile(seconds: float) -> None:
        passed.append(seconds)
        if seconds > 1:
            raise Enough

    monkeypatch.setattr(subprocess, "Popen", Noted)
    with pytest.raises(Enough):
        sandbox.ask(store, "select sleep_ms(100000)", meanwhile=meanwhile)
    assert passed == sorted(passed)
    assert 1 < passed[-1] < 10
    assert [child.returncode for child in children] == [-signal.SIGKILL]  # ended, and waited for


def test_the_process_of_a_query_can_write_no_file(store: Store, outside: Path) -> None:  # noqa: F811
    """Not even if DuckDB could be talked into it."""
    code = (
        "from curator.serving import sandboxed; import pathlib\n"
        "sandboxed._confine(10**8, 20)\n"
        "pathlib.Path('written').write_text('x')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "File too large" in done.stderr
    assert (outside / "written").read_text() == ""
