"""The SQL page: a query in a link waits for a click; answers as table, pictures, plot and file; the end of a query."""

from __future__ import annotations

import csv
import datetime as dt
import io
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from browser import Tab, browser, serve  # noqa: F401 - a fixture
from streamlit.testing.v1 import AppTest

from curator import queries
from curator.curation import building
from curator.decisions.reviews import add_review
from curator.serving import sandboxed
from curator.storage.store import Store

QUERY = (
    "select image_id, uri, l.class_name, confidence from labels as l join images using (image_id)"
    " order by confidence desc, image_id"
)


@pytest.fixture(scope="module")
def asked(made_once: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """The fixture store with a manifest and a decision."""
    folder = tmp_path_factory.mktemp("asked")
    shutil.copytree(made_once, folder, dirs_exist_ok=True)
    store = Store(folder / "store")
    building.build(store, None, {"per_class": 2})
    add_review(store, store.rows("select image_id from images order by image_id")[0]["image_id"], "reject")
    return store


@pytest.fixture(scope="module")
def url(asked: Store) -> Iterator[str]:
    with serve(asked.path) as address:
        yield address


def run(tab: Tab, query: str = "", **shown: str) -> Tab:
    """Opens a link with a query, and runs it."""
    tab.open("sql?" + urlencode({"query": query, **shown}))
    tab.page.get_by_role("button", name="Run").click()
    tab.page.wait_for_selector("text=/rows? in|no answer/")
    return tab.settle()


def queries_of(url: str) -> int:
    """Queries that are running for a server."""
    listed = subprocess.run(["ps", "-ewwo", "pid,ppid,args"], capture_output=True, text=True, check=True).stdout
    found = [line.split(None, 2) for line in listed.splitlines()]
    port = url.rpartition(":")[2]
    servers = {pid for pid, _, args in found if f"--server.port={port}" in args}
    return sum(parent in servers and "curator.serving.sandboxed" in args for _, parent, args in found)


@pytest.mark.parametrize("name", queries.names("examples"))
def test_every_example_is_a_question_that_can_be_answered(asked: Store, name: str) -> None:
    with sandboxed.open_sandbox(asked) as con:
        rows = sandboxed.send(con, queries.text(f"examples/{name}"), io.BytesIO())
    assert rows >= (name in {"least-confident", "classes-of-the-pool", "confidences", "decisions-by-day", "manifests"})


def test_a_query_in_a_link_is_shown_and_runs_on_a_click(url: str, browser: Any) -> None:  # noqa: F811
    tab = Tab(browser, url).open("sql?" + urlencode({"query": QUERY}))
    assert tab.page.locator("textarea").input_value() == QUERY
    assert not re.search(r"rows? in \d", tab.text)
    tab.page.locator("textarea").click()
    tab.page.keyboard.press("Control+End")
    tab.page.keyboard.type("\nlimit 4")
    tab.page.keyboard.press("Control+Enter")
    tab.page.wait_for_selector("text=/4 rows in/")
    tab.settle()
    assert tab.path == "sql?" + urlencode({"query": f"{QUERY}\nlimit 4"})
    assert not tab.errors


def test_an_answer_as_table_pictures_plot_and_files(url: str, browser: Any, asked: Store) -> None:  # noqa: F811
    tab = run(Tab(browser, url), QUERY)
    assert "9 rows in" in tab.text
    files = {}
    for form in ("CSV", "Parquet"):
        with tab.page.expect_download() as waiting:
            tab.page.get_by_role("button", name=form, exact=False).last.click()
        files[form] = Path(waiting.value.path()).read_bytes()
    want = asked.rows(QUERY)
    assert [row["uri"] for row in csv.DictReader(io.StringIO(files["CSV"].decode()))] == [row["uri"] for row in want]
    assert pq.read_table(io.BytesIO(files["Parquet"])).to_pylist() == want
    tab.page.get_by_text("Pictures", exact=True).click()
    tab.settle()
    assert tab.page.locator('[data-testid="stMain"] img').count() == 9
    assert "cat 0.900" in tab.text
    assert "as=Pictures" in tab.path
    tab.page.get_by_text("Plot", exact=True).click()
    tab.settle()
    tab.page.wait_for_selector('[data-testid="stVegaLiteChart"] svg, [data-testid="stVegaLiteChart"] canvas')
    tab = run(Tab(browser, url), "select range as n from range(10000)")
    assert "10,000 rows in" in tab.text
    assert "the first 5,000 are shown" in tab.text
    assert "--format parquet" in tab.text
    assert not tab.errors


@pytest.mark.long
def test_what_is_refused_says_why(url: str, browser: Any) -> None:  # noqa: F811
    for query, said in {
        "drop view images": "a statement of the kind 'drop' is not let through",
        "select 1 +\n  from images": 'syntax error at or near "from"',
        "select nothing from images": 'Referenced column "nothing" not found',
        "select list_sort(range(100000000))": "the query needs more memory than it may use",
        "select * from read_csv('/etc/passwd')": "files, extensions and settings cannot be reached",
    }.items():
        tab = run(Tab(browser, url), query)
        assert said in tab.text, query
        assert "Traceback" not in tab.text
        tab.page.close()
    tab = run(Tab(browser, url), "select 1 as still_here")
    assert "1 row in" in tab.text


def test_a_query_ends_when_nobody_waits_for_it(url: str, browser: Any) -> None:  # noqa: F811
    """By another run, and by leaving; a query of another session goes on meanwhile."""
    waiting, other = Tab(browser, url), Tab(browser, url)
    waiting.open("sql?" + urlencode({"query": "select sleep_ms(25000)"}))
    waiting.page.get_by_role("button", name="Run").click()
    waiting.page.wait_for_selector("text=/running, /")
    assert queries_of(url) == 1
    run(other, "select 42 as n")
    assert "1 row in" in other.text
    waiting.page.get_by_role("link", name="Manifests").click()
    until = time.monotonic() + 8
    while queries_of(url) and time.monotonic() < until:
        time.sleep(0.1)
    assert queries_of(url) == 0


def page() -> None:
    from curator.app import sql

    sql.show()


def test_whatever_a_column_holds_it_is_shown(asked: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CURATOR_STORE", str(asked.path))
    query = (
        "select 1 as a, 2 as a, 1.5::decimal(38, 3) as d, sum(1) as s, interval 1 day as i, uuid() as u,"
        " 'x'::blob as b, map {'a': 1} as m, {'x': 1} as t, 2::hugeint as h, time '1:00' as o,"
        " '1'::bit as bits, [1, 2] as l, null as n, 9223372036854775807 as big, 'inf'::double as f, now() as z,"
        " date '9999-01-01' as day, 'null' as word, 1 = 1 as yes, chr(8238) || '<b>' as \"<i>\""
    )
    at = AppTest.from_function(page, default_timeout=60)
    at.query_params["query"] = query
    at.run()
    at.button[0].click().run()
    assert not at.exception
    assert not at.error
    shown = at.dataframe[-1].value.iloc[0]
    assert (shown["a"], shown["a_1"], shown["d"], shown["s"], shown["big"]) == (1, 2, 1.5, 1, "9223372036854775807")
    assert (shown["m"], shown["word"], shown["<i>"]) == ('[["a", 1]]', "null", "\\u202e<b>")


def test_what_cannot_be_a_date_of_a_browser_is_still_an_answer(asked: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CURATOR_STORE", str(asked.path))
    for query in ("select date '100000-01-01' as d", "select 'infinity'::timestamp as t", "select 1 as n where false"):
        at = AppTest.from_function(page, default_timeout=60)
        at.query_params["query"] = query
        at.run()
        at.button[0].click().run()
        assert not at.exception, query


def test_a_time_beyond_all_calendars_is_shown_as_text(asked: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CURATOR_STORE", str(asked.path))
    at = AppTest.from_function(page, default_timeout=60)
    at.query_params["query"] = (
        "select timestamp '280000-01-02 03:04:05' as t, 'infinity'::date as d, date '2000-01-01' as o"
    )
    at.run()
    at.button[0].click().run()
    shown = at.dataframe[-1].value.iloc[0]
    assert (shown["t"], shown["d"]) == ("280000-01-02 03:04:05", "infinity")
    assert shown["o"].year == 2000
    assert not any("not as a file" in text.value for text in at.text)


@pytest.mark.parametrize(("query", "said"), [("", "Write a query"), ("select 1 as x, 2 as y", "")])
def test_nonsense_in_the_link(asked: Store, monkeypatch: pytest.MonkeyPatch, query: str, said: str) -> None:
    monkeypatch.setenv("CURATOR_STORE", str(asked.path))
    at = AppTest.from_function(page, default_timeout=60)
    for name in ("as", "plot", "x", "y", "page", "example"):
        at.query_params[name] = "nonsense"
    at.query_params["query"] = query
    at.run()
    at.button[0].click().run()
    assert not at.exception
    if said:
        assert said in at.info[0].value
    else:
        assert at.dataframe[-1].value["x"].tolist() == [1]


def test_numbers_that_a_browser_rounds_become_texts() -> None:
    from curator.app import sql

    table = pa.table(
        {"small": [1, -(2**53) + 1], "large": [1, 2**53], "low": [None, -(2**63)], "at": [dt.date.max] * 2}
    )
    shown = sql._presentable(table)
    assert [str(field.type) for field in shown.schema] == ["int64", "string", "string", "date32[day]"]
