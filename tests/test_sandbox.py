"""curator sql: questions are answered; what is refused is in test_refused.py and test_bombs.py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from conftest import Answer
from traces import answer, outside, prints  # noqa: F401 - a fixture

from curator.curation import building
from curator.errors import InputError
from curator.serving import sandbox, sandboxed
from curator.storage.store import Store

Run = Callable[..., Answer]

ANSWERED = """
select 1;;
/* first */ select 1 -- last
with a as (select * from images) select count(*) from a
from images
table images
values (1), (2)
describe
describe images
desc labels
show tables
show all tables
summarize images
explain select * from images
explain analyze select * from images
explain (select 1)
explain(select 1)
select * from query('select 1')
select * from query_table('images')
select getvariable('x')
select * from checkpoint()
select * from duckdb_tables()
select * from duckdb_settings() where name like '%directory%'
select * from duckdb_databases()
select * from duckdb_logs()
select * from duckdb_temporary_files()
select 1/0
select * from images where false
select l.* from labels l join images i using (image_id) order by confidence desc limit 3
""".strip().splitlines()


def test_questions_are_answered(store: Store, outside: Path, curator: Run) -> None:  # noqa: F811
    before = prints(store.path, outside)
    with sandboxed.open_sandbox(store) as con:
        for query in ANSWERED:
            assert answer(con, query).schema.names, query
    for query in ANSWERED[::9]:
        done = curator("sql", query, "--store", store.path)
        assert (done.code, done.err) == (0, ""), (query, done.err)
        assert done.out.strip(), query
    assert prints(store.path, outside) == before


def test_a_query_as_a_file_and_wrong_usage(store: Store, outside: Path, curator: Run) -> None:  # noqa: F811
    (outside / "q.sql").write_text("-- how many\nselect count(*) as n\nfrom images;\n")
    assert curator("sql", "-f", "q.sql", "--store", store.path, "--json").out == '[\n{"n": 9}\n]\n'
    (outside / "bytes.sql").write_bytes(b"\xff\xfe")
    for arguments, said in (
        ([], "give either a query or a file"),
        (["select 1", "-f", "q.sql"], "give either a query or a file"),
        (["-f", "gone.sql"], "'gone.sql' cannot be read"),
        (["-f", "bytes.sql"], "'bytes.sql' cannot be read"),
        (["-f", "."], "'.' cannot be read"),
        (["select 1", "--format", "csv", "--json"], "--json and --format csv are two forms of one answer"),
        (["select 1", "--format", "jsn"], "the format 'jsn' is unknown; did you mean 'json'?"),
        (["select 1", "--memory", "much"], "--memory much is no size"),
        (["select 1", "--memory", "0"], "--memory 0 is no size"),
        (["select 1", "--memory", "-1GB"], "--memory -1GB is no size"),
        (["select 1", "--memory", "0GB"], "--memory 0GB is below 16 MiB"),
        (["select 1", "--memory", "1B"], "--memory 1B is below 16 MiB"),
        (["select '\udcff'"], "is not text in UTF-8"),
        (["select 1", "--timeout", "0"], "--timeout 0 is no time limit"),
        (["select 1", "--timeout", "nan"], "--timeout nan is no time limit"),
        (["select 1", "--timeout", "inf"], "--timeout inf is no time limit"),
    ):
        done = curator("sql", *arguments, "--store", store.path)
        assert (done.code, done.out, said in done.err) == (2, "", True), done.err


def test_manifests_are_views_of_their_own(store: Store, curator: Run) -> None:
    building.build(store, None, {"per_class": 5})
    building.build(store, "9lives.x", {"per_class": 2})
    done = curator("sql", 'select sum(copies) as n from "g0-5"', "--store", store.path, "--json")
    assert done.json == [{"n": 15}]
    names = curator("sql", "select name, rows from manifests order by name", "--store", store.path, "--json").json
    assert names == [{"name": "9lives.x", "rows": 6}, {"name": "g0-5", "rows": 15}]
    both = 'select count(*) as n from "g0-5" join "9lives.x" using (image_id) join images using (image_id)'
    assert curator("sql", both, "--store", store.path, "--json").json[0]["n"] > 0
    bare = curator("sql", "select * from g0-5", "--store", store.path).err
    assert """mend: the name of this manifest needs double quotes: curator sql 'select * from "g0-5"'""" in bare
    assert "9lives.x" in sandboxed._quoted("select uri from 9lives.x limit 1", ["images", "g0-5", "9lives.x"])
    for query in ("select * from g0-7", "selct 'g0-5'", 'select nothing from "g0-5"', "select x from images"):
        assert not sandboxed._quoted(query, ["images", "g0-5", "9lives.x"])
    for path in (store.path / "manifests" / "g0-5").glob("*"):
        path.unlink()
    (store.path / "manifests" / "g0-5").rmdir()
    assert curator("sql", 'select * from "9lives.x"', "--store", store.path).code == 0
    assert "g0-5" in curator("sql", 'select * from "g0-5"', "--store", store.path).err


def test_the_library_says_what_the_command_says(store: Store) -> None:
    assert sandbox.ask(store, "select 1 as a") == (pa.table({"a": pa.array([1], pa.int32())}), 1)
    with pytest.raises(InputError, match="kind 'drop'"):
        sandbox.ask(store, "drop view images")


def test_of_a_large_answer_the_first_rows_are_kept_and_the_others_counted(store: Store) -> None:
    query = "select range as n, repeat('x', 1000) as x from range(25000) order by n"
    table, rows = sandbox.ask(store, query, rows=12_345)
    assert rows == 25_000
    assert table["n"].to_pylist() == list(range(12_345))
    table, rows = sandbox.ask(store, query, rows=12_345, size=1_000_000)
    assert rows == 25_000
    assert 900 < table.num_rows < 1000
    assert table["n"].to_pylist() == list(range(table.num_rows))
    table, rows = sandbox.ask(store, "select repeat('x', 2000000) as x", rows=10, size=1_000_000)
    assert (table.num_rows, rows) == (0, 1)
