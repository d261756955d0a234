"""curator sql: statements that could write, read outside or switch something on are refused, and leave no trace."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from conftest import Answer
from traces import answer, outside, prints, stamps  # noqa: F401 - a fixture

from curator.errors import InputError
from curator.serving import sandboxed
from curator.storage.store import Store

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


def test_attacks_are_refused_and_leave_no_trace(
    store: Store,
    outside: Path,  # noqa: F811
    curator: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    home = outside / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    local_rows = [1]
    arrow_rows = pa.table({"a": local_rows})
    before, untouched = prints(store.path, outside), stamps(store.path, outside)
    attacks = [query.replace("STORE", str(store.path)).replace("OUT", str(outside)) for query in REFUSED]
    let_through = []
    mends = []
    with sandboxed.open_sandbox(store) as con:
        for query in attacks:
            try:
                let_through.append((query, answer(con, query)))
            except InputError as error:
                mends.append(error.mend)
            assert stamps(store.path, outside) == untouched, query
            con.execute("rollback")
            con.execute("begin transaction read only")
        assert answer(con, "select count(*) as n from images").to_pylist() == [{"n": 9}]
    assert not let_through
    assert all(mends)
    for query in attacks[:: len(attacks) // 4]:
        done = curator("sql", query, "--store", store.path)
        assert (done.code, done.out, done.err.startswith("error: "), "mend: " in done.err) == (2, "", True, True), query
    assert prints(store.path, outside) == before
    assert len(REFUSED) > 100
    assert arrow_rows.num_rows == 1
    assert not any(home.iterdir())


def test_the_connection_itself_holds_without_the_check(store: Store, outside: Path) -> None:  # noqa: F811
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
