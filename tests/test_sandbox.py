"""curator sql: what could write, read outside or run for ever is refused without a trace; questions are answered."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from conftest import Answer

from curator import manifests, sandbox
from curator.errors import InputError
from curator.store import Store

Run = Callable[..., Answer]

# STORE is replaced by the path of the store, OUT by a folder that exists outside.
REFUSED = """
copy (select 1) to 'x.csv'
copy images to 'OUT/x.parquet'
copy images from 'outside.csv'
with a as (copy (select 1) to 'x.csv') select * from a
with a as (copy (select 1) to 'STORE/x.parquet') select * from a
with a as (copy (select 1) to 'STORE/x.parquet' (use_tmp_file false)) select * from a
with a as materialized (copy (select 1) to 'OUT/x.csv') select 1
with a as (with b as (copy (select 1) to 'x.csv') select * from b) select * from a
select * from (copy (select 1) to 'x.csv')
with a as (insert into images select * from images returning *) select * from a
with a as (insert into stored_images select * from stored_images returning *) select * from a
with a as (delete from stored_images returning *) select * from a
with a as (update images set split = 'holdout' returning *) select * from a
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
select * from query('select * from read_csv(''outside.csv'')')
select * from query('copy (select 1) to ''x.csv''')
select * from query_table('outside.csv')
select * from query_table(['images', 'outside.csv'])
from json_execute_serialized_sql(json_serialize_sql('select * from read_csv(''outside.csv'')'))
select * from duckdb_secrets()
select * from which_secret('s3://a', 's3')
select * from duckdb_extensions()
create secret (type s3)
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
create macro m(a) as a
create temp macro m(a) as a
create table t as select 1
create temp table t as select 1
create or replace view images as select 1
create schema z
create sequence q
create type y as enum ('a')
attach 'x.duckdb'
attach ':memory:' as m
detach memory
use memory
install httpfs
force install httpfs
load httpfs
load '/tmp/x.so'
update extensions
export database 'x'
import database 'x'
drop view images
alter view images rename to i
comment on view images is 'x'
insert into images values (1)
update images set split = 'holdout'
delete from images
truncate images
merge into images using (select 1) on true when matched then delete
checkpoint
vacuum
analyze
begin
commit
prepare p as select 1
execute p
select 1; select 2
select 1; drop view images
select getenv('HOME')
select * from local_rows
select * from arrow_rows
select * from python_map_function()
select * from no_such_table
select nothing from images
select $1
select $name
selec 1
/* only a comment */
;
""".strip().splitlines()

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
select 1/0
select * from images where false
select l.* from labels l join images i using (image_id) order by confidence desc limit 3
""".strip().splitlines()


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
    with sandbox.open_sandbox(store) as con:
        for query in attacks:
            try:
                let_through.append((query, sandbox.run(con, query, 20).read_all()))
            except InputError as error:
                mends.append(error.mend)
            assert prints(store.path, outside, home) == before, query
            con.execute("rollback")
            con.execute("begin transaction read only")
        assert sandbox.run(con, "select count(*) as n from images").read_all().to_pylist() == [{"n": 9}]
    assert not let_through
    assert all(mends)
    for query in attacks[:: len(attacks) // 20]:
        done = curator("sql", query, "--store", store.path)
        assert (done.code, done.out, done.err.startswith("error: "), "mend: " in done.err) == (2, "", True, True), query
    assert prints(store.path, outside, home) == before
    assert len(REFUSED) > 100
    assert arrow_rows.num_rows == 1
    assert not any(home.iterdir())


def test_questions_are_answered(store: Store, outside: Path, curator: Run) -> None:
    before = prints(store.path, outside)
    with sandbox.open_sandbox(store) as con:
        for query in ANSWERED:
            assert sandbox.run(con, query).schema.names, query
    for query in ANSWERED[::5]:
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
    with sandbox.open_sandbox(store) as con:
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
    with sandbox.open_sandbox(store) as con:
        assert sandbox.run(con, "select 1 as a").read_all().to_pylist() == [{"a": 1}]
        with pytest.raises(InputError, match="kind 'drop'"):
            sandbox.run(con, "drop view images")
        assert sandbox.run(con, "select count(*) as n from images").read_all().to_pylist() == [{"n": 9}]
