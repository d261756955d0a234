"""curator sql: what could write, read outside or run for ever is refused without a trace; questions are answered."""

from __future__ import annotations

import hashlib
import io
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest
from conftest import Answer

from curator import manifests, sandbox, sandboxed
from curator.errors import InputError
from curator.store import Store

Run = Callable[..., Answer]

# STORE is replaced by the path of the store, OUT by a folder that exists outside; "# " says what those below it try.
ATTACKS = """
# writing a file with COPY: plainly, outside, and reading one into a view
copy (select 1) to 'x.csv'
copy images to 'OUT/x.parquet'
copy images from 'outside.csv'
# a COPY inside a statement that parses as a SELECT; past the temporary file, into the store, nested
with a as (copy (select 1) to 'x.csv') select * from a
with a as (copy (select 1) to 'STORE/x.parquet') select * from a
with a as (copy (select 1) to 'STORE/x.parquet' (use_tmp_file false)) select * from a
with a as materialized (copy (select 1) to 'OUT/x.csv') select 1
with a as (with b as (copy (select 1) to 'x.csv') select * from b) select * from a
select * from (copy (select 1) to 'x.csv')
# changing a view or a relation inside a SELECT
with a as (insert into images select * from images returning *) select * from a
with a as (insert into stored_images select * from stored_images returning *) select * from a
with a as (delete from stored_images returning *) select * from a
with a as (update images set split = 'holdout' returning *) select * from a
# EXPLAIN and EXPLAIN ANALYZE, which runs what it explains, also where comments and options hide it
explain copy (select 1) to 'x.csv'
explain analyze copy (select 1) to 'x.csv'
explain analyze create table t as select 1
explain analyze create temp table t as select 1
explain (analyze) drop view images
explain (analyze, format json) drop view images
explain analyze/* a */drop view images
explain analyze insert into images values (1)
explain analyze set threads = 1
explain analyze attach 'x.duckdb'
# reading other files: by function, by name, as metadata, listings, other stores, devices, the network
select * from read_csv('outside.csv')
select * from read_csv_auto('OUT/outside.csv')
select * from read_text('outside.csv')
select * from read_blob('outside.csv')
select * from read_json('outside.csv')
select * from read_parquet('STORE/images/*.parquet')
select * from parquet_scan('STORE/images/*.parquet')
select * from parquet_metadata('STORE/images/*.parquet')
select * from parquet_schema('STORE/images/*.parquet')
select * from parquet_kv_metadata('STORE/images/*.parquet')
select * from sniff_csv('outside.csv')
select * from 'outside.csv'
select * from "outside.csv"
from 'STORE/store.json'
describe 'outside.csv'
summarize 'outside.csv'
select * from glob('*')
select * from read_duckdb('x.duckdb')
select * from delta_scan('STORE/images')
select * from read_text('/etc/hostname')
select * from read_text('file:///etc/hostname')
select * from read_text('/dev/stdin')
select * from 'http://127.0.0.1:9/x.csv'
# a text that is run as SQL: query(), query_table(), a serialised statement
select * from query('select * from read_csv(''outside.csv'')')
select * from query('copy (select 1) to ''x.csv''')
select * from query_table('outside.csv')
select * from query_table(['images', 'outside.csv'])
from json_execute_serialized_sql(json_serialize_sql('select * from read_csv(''outside.csv'')'))
# secrets and extensions
select * from duckdb_secrets()
select * from which_secret('s3://a', 's3')
select * from duckdb_extensions()
create secret (type s3)
# settings: SET, RESET, PRAGMA, and functions that switch something on
set variable x = 1
set enable_external_access = true
set memory_limit = '100GB'
set lock_configuration = false
set allowed_directories = ['/']
reset lock_configuration
reset memory_limit
pragma database_list
pragma enable_profiling
pragma profiling_output = 'x.json'
pragma memory_limit = '100GB'
pragma import_database('x')
call pragma_version()
call enable_logging(storage = 'file', storage_path = 'x')
select * from enable_logging()
select * from enable_profiling()
select * from force_checkpoint()
# making things: macros, tables, views, schemas, sequences, types
create macro m(a) as a
create temp macro m(a) as a
create table t as select 1
create temp table t as select 1
create or replace view images as select 1
create schema z
create sequence q
create type y as enum ('a')
# other databases and extensions
attach 'x.duckdb'
attach ':memory:' as m
detach memory
use memory
install httpfs
force install httpfs
load httpfs
load '/tmp/x.so'
update extensions
# whole databases out and in
export database 'x'
import database 'x'
# changing views and their rows
drop view images
alter view images rename to i
comment on view images is 'x'
insert into images values (1)
update images set split = 'holdout'
delete from images
truncate images
merge into images using (select 1) on true when matched then delete
# upkeep and transactions
checkpoint
vacuum
analyze
begin
commit
# prepared and several statements
prepare p as select 1
execute p
select 1; select 2
select 1; drop view images
select 1 /* ; */; /* select 1 */ drop view images
select 1;;; drop view images
select ';'; drop view images
# the process around: its environment, Python's variables and functions
select getenv('HOME')
select * from local_rows
select * from arrow_rows
select * from python_map_function()
# words and names that look like others, and signs that hide some
FULLWIDTH 1
copCYRILLIC (select 1) to 'x.csv'
coZEROWIDTHpy (select 1) to 'x.csv'
/*/* */ select 1 */ copy (select 1) to 'x.csv'
copy(select 1)to'x.csv'
CoPy/**/(select 1)/**/To/**/E'x\x2ecsv'
select * from "read_csv"('outside.csv')
select * from system.main.read_text('outside.csv')
select * from U&"outside.csv"
# tables of the system that tell of connections, temporary files and logs outside
from pg_catalog.pg_read_file('outside.csv')
# plain mistakes
select * from no_such_table
select nothing from images
select $1
select $name
selec 1
/* only a comment */
;
"""
for word, signs in {
    "FULLWIDTH": "\uff53\uff45\uff4c\uff45\uff43\uff54",
    "CYRILLIC": "\u0443",
    "ZEROWIDTH": "\u200b",
}.items():
    ATTACKS = ATTACKS.replace(word, signs)
REFUSED = [line for line in ATTACKS.strip().splitlines() if not line.startswith("# ")]

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


# What each tries, and the statement: a time or memory that DuckDB itself does not bound, or the end of the process.
BOMBS = {
    "one call that takes for ever": "select levenshtein(repeat('a', 200000), repeat('b', 200000))",
    "a number of a million digits": "select length(repeat('9', 3000000)::BIGNUM::VARCHAR)",
    "a nap": "select sleep_ms(100000)",
    "rows without end": "select count(*) from generate_series(date '1-1-1', date '9999-1-1', interval 1 second)",
    "a recursion that never ends": "with recursive t as (select 1 a union all select a + 1 from t) from t",
    "a recursion that widens": "with recursive t as (select 1 a union all select a from t, range(9)) from t",
    "a cross join": "select sum(a.range * b.range) from range(10000000) as a, range(10000000) as b",
    "a tower of joins": "with "
    + ", ".join(["a0 as (select 1)", *(f"a{n} as (from a{n - 1} as a, a{n - 1} as b)" for n in range(1, 40))])
    + " select count(*) from a39",
    "a long chain of unions": "select 1" + " union all select 1" * 20_000,
    "a huge text": "select length(repeat('x', 1500000000))",
    "a huge padding": "select length(lpad('x', 1900000000, 'y'))",
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


def answer(con: duckdb.DuckDBPyConnection, query: str) -> pa.Table:
    """What the process in the sandbox would send."""
    sent = io.BytesIO()
    rows = sandboxed.send(con, query, sent)
    table = pa.ipc.open_stream(sent.getvalue()).read_all()
    assert table.num_rows == rows
    return table


def prints(*folders: Path) -> dict[str, str]:
    files = [path for folder in folders if folder.exists() for path in folder.rglob("*") if path.is_file()]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a file that is not to be read."""
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "outside.csv").write_text("word\nsecret\n")
    monkeypatch.chdir(folder)
    return folder


def test_attacks_are_refused_and_leave_no_trace(
    store: Store, outside: Path, curator: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = outside / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    local_rows = [1]
    arrow_rows = pa.table({"a": local_rows})
    before = prints(store.path, outside, Path("~/.duckdb").expanduser())
    attacks = [query.replace("STORE", str(store.path)).replace("OUT", str(outside)) for query in REFUSED]
    let_through = []
    mends = []
    with sandboxed.open_sandbox(store) as con:
        for query in attacks:
            try:
                let_through.append((query, answer(con, query)))
            except InputError as error:
                mends.append(error.mend)
            assert prints(store.path, outside, home) == before, query
            con.execute("rollback")
            con.execute("begin transaction read only")
        assert answer(con, "select count(*) as n from images").to_pylist() == [{"n": 9}]
    assert not let_through
    assert all(mends)
    for query in attacks[:: len(attacks) // 8]:
        done = curator("sql", query, "--store", store.path)
        assert (done.code, done.out, done.err.startswith("error: "), "mend: " in done.err) == (2, "", True, True), query
    assert prints(store.path, outside, home) == before
    assert len(REFUSED) > 100
    assert arrow_rows.num_rows == 1
    assert not any(home.iterdir())


def test_questions_are_answered(store: Store, outside: Path, curator: Run) -> None:
    before = prints(store.path, outside)
    with sandboxed.open_sandbox(store) as con:
        for query in ANSWERED:
            assert answer(con, query).schema.names, query
    for query in ANSWERED[::9]:
        done = curator("sql", query, "--store", store.path)
        assert (done.code, done.err) == (0, ""), (query, done.err)
        assert done.out.strip(), query
    assert prints(store.path, outside) == before


def test_a_query_as_a_file_and_wrong_usage(store: Store, outside: Path, curator: Run) -> None:
    (outside / "q.sql").write_text("-- how many\nselect count(*) as n\nfrom images;\n")
    assert curator("sql", "-f", "q.sql", "--store", store.path, "--json").out == '[\n{"n": 9}\n]\n'
    (outside / "bytes.sql").write_bytes(b"\xff\xfe")
    for arguments, said in (
        ([], "give either a query or a file"),
        (["select 1", "-f", "q.sql"], "give either a query or a file"),
        (["-f", "gone.sql"], "'gone.sql' cannot be read"),
        (["-f", "bytes.sql"], "'bytes.sql' cannot be read"),
        (["-f", "."], "'.' cannot be read"),
        (["select 1", "--format", "jsn"], "the format 'jsn' is unknown; did you mean 'json'?"),
        (["select 1", "--memory", "much"], "--memory much is no size"),
        (["select 1", "--memory", "0"], "--memory 0 is no size"),
        (["select 1", "--timeout", "0"], "--timeout 0 is no time limit"),
        (["select 1", "--timeout", "nan"], "--timeout nan is no time limit"),
        (["select 1", "--timeout", "inf"], "--timeout inf is no time limit"),
    ):
        done = curator("sql", *arguments, "--store", store.path)
        assert (done.code, done.out, said in done.err) == (2, "", True), done.err


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
def test_memory_is_bounded_and_nothing_is_spilled(store: Store, outside: Path, curator: Run, query: str) -> None:
    done = curator("sql", query, "--memory", "100MB", "--format", "parquet", "--store", store.path)
    assert (done.code, done.out) == (2, "")
    assert "memory" in done.err
    assert "raise --memory" in done.err
    assert [path.name for path in outside.iterdir()] == ["outside.csv"]


def test_the_connection_itself_holds_without_the_check(store: Store, outside: Path) -> None:
    """What the check of the statement's kind might miss one day must still find nothing to write or read."""
    with sandboxed.open_sandbox(store) as con:
        for query in (
            "copy (select 1) to 'x.csv'",
            "from read_csv('outside.csv')",
            "attach 'x.duckdb'",
            "set threads = 1",
            "create table t as select 1",
            "drop view images",
        ):
            with pytest.raises(Exception, match=r"Error"):
                con.execute(query)
            con.execute("rollback")
            con.execute("begin transaction read only")
    assert [path.name for path in outside.iterdir()] == ["outside.csv"]


def test_manifests_are_views_of_their_own(store: Store, curator: Run) -> None:
    manifests.build(store, None, {"per_class": 5})
    manifests.build(store, "9lives.x", {"per_class": 2})
    done = curator("sql", 'select sum(copies) as n from "g0-5"', "--store", store.path, "--json")
    assert done.json == [{"n": 15}]
    names = curator("sql", "select name, rows from manifests order by name", "--store", store.path, "--json").json
    assert names == [{"name": "9lives.x", "rows": 6}, {"name": "g0-5", "rows": 15}]
    both = 'select count(*) as n from "g0-5" join "9lives.x" using (image_id) join images using (image_id)'
    assert curator("sql", both, "--store", store.path, "--json").json[0]["n"] > 0
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


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the kernel bounds no process's memory")
def test_bombs_end_alone(store: Store, outside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each ends within its limits, a query beside it goes on, and nothing is left behind."""
    temporary = outside / "tmp"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    before = prints(store.path, outside)
    highest = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024  # of the processes of other tests
    messages = {}

    def ended(bomb: tuple[str, str]) -> float:
        started = time.monotonic()
        with pytest.raises(InputError) as caught:
            sandbox.ask(store, bomb[1], "100MB", 1)
        messages[bomb[0]] = str(caught.value)
        return time.monotonic() - started

    with ThreadPoolExecutor(2) as pool:
        ending = pool.map(ended, BOMBS.items())
        for _ in range(3):
            assert sandbox.ask(store, "select count(*) as n from images").table.to_pylist() == [{"n": 9}]
        took = list(ending)
    assert max(took) < 30, messages
    said = ("was stopped", "more memory than it may use", "larger than the memory", "Max expression depth")
    assert all(any(words in message for words in said) for message in messages.values()), messages
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    assert peak < max(1200, highest + 1), f"{peak:.0f} MB under a limit of 100 MB"
    for query in HARMLESS.values():
        assert sandbox.ask(store, query).rows == 1, query
    assert prints(store.path, outside) == before


def test_who_asks_may_change_their_mind(store: Store) -> None:
    """What `meanwhile` raises ends the query at once, and its process."""
    passed: list[float] = []

    class Enough(Exception):
        pass

    def meanwhile(seconds: float) -> None:
        passed.append(seconds)
        if seconds > 1:
            raise Enough

    with pytest.raises(Enough):
        sandbox.ask(store, "select sleep_ms(100000)", meanwhile=meanwhile)
    assert passed == sorted(passed)
    assert 1 < passed[-1] < 10
    with pytest.raises(ChildProcessError):  # none is left to wait for
        os.waitpid(-1, os.WNOHANG)


def test_the_process_of_a_query_can_write_no_file(store: Store, outside: Path) -> None:
    """Not even if DuckDB could be talked into it."""
    code = (
        "from curator import sandboxed; import pathlib\n"
        "sandboxed._confine(10**8, 20)\n"
        "pathlib.Path('written').write_text('x')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "File too large" in done.stderr
    assert (outside / "written").read_text() == ""
