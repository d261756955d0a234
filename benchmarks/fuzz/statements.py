"""SQL of a user's own: what `curator sql` asks, --where, and policies; attempts to get out of it among them."""

from __future__ import annotations

import functools
import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import duckdb
import pyarrow as pa
from hypothesis import strategies as st

from curator import queries
from curator.curation import policies, usersql
from curator.errors import InputError
from curator.schema import IMAGES, LABELS
from curator.serving import sandboxed

from .target import Target, mutated
from .world import SECRET, World

_STOP_AFTER = 1.0  # s of a statement, in the place of the sandbox's own clock
_FILES = ["outside.csv", "../outside/outside.csv", "/etc/hostname", "../store/store.json", "/proc/self/environ", "*"]
_FILES += ["http://127.0.0.1:9/x.csv", "s3://a/b.parquet", "../pool.parquet", "x.duckdb", "/dev/stdin", "first"]
_READERS = ["read_csv", "read_text", "read_blob", "read_json", "read_parquet", "parquet_scan", "parquet_metadata"]
_READERS += [
    "read_csv_auto",
    "parquet_schema",
    "read_duckdb",
    "delta_scan",
    "sniff_csv",
    "glob",
    "query",
    "query_table",
]
_RELATIONS = ["images", "labels", "candidates", "pool", "reviews", "classes", "first", "stored_images", "range(3)"]
_RELATIONS += ["duckdb_settings()", "duckdb_functions()", "information_schema.tables", "sqlite_master"]
_WORDS = """\
copy (select 1) to 'x.csv'
attach 'x.duckdb' as a
install httpfs
load httpfs
set threads = 1
set enable_external_access = true
reset memory_limit
pragma database_list
call pragma_version()
create table t as select 1
create macro m(a) as a
create secret (type s3)
insert into images values (1)
update images set uri = ''
delete from images
drop view images
detach memory
use memory
export database 'x'
import database 'x'
checkpoint
vacuum
begin
prepare p as select 1""".splitlines()
_VALUES = f"""\
1
null
'a'
true
1e400
{"9" * 50}
image_id
confidence
uri
label
getenv('CURATOR_CANARY')
current_setting('threads')
random()
now()
current_date
uuid()
version()
any_value(uri)
getvariable('x')
nextval('s')
txid_current()
pg_sleep(1)
[1,2]
{{'a': 1}}
x'00'
$generation
?
$1
list_transform([1], x -> x + 1)
max(confidence)
row_number() over ()
count(*)
columns(*)""".splitlines()
_SEEDS = [
    "select * from images",
    "select l.* from labels l join images i using (image_id) order by confidence desc limit 3",
    "with a as (select * from images) select count(*) from a",
    "explain analyze select * from images",
    "summarize images",
    "describe labels",
    "pivot labels on label using max(confidence)",
    "from images select uri where image_id > 0 limit 1",
    "select * from query('select 1')",
    "with recursive t as (select 1 as a union all select a + 1 from t where a < 5) select * from t",
    *_WORDS,
    *(f"select * from {reader}('outside.csv')" for reader in _READERS),
]
_WHERES = [
    "width >= 64 and uri like 'pool/%'",
    "image_id in (select image_id from labels where confidence > 0.5)",
    "regexp_matches(uri, 'a|b') or confidence between 0.1 and 0.5",
    "case when confidence > 0.9 then true else image_id % 2 = 0 end",
    "list_contains(list_transform([1, 2], lambda x: x + 1), 2)",
    "exists (select 1 from reviews as r where r.image_id = image_id)",
]
_OWN = """-- Parameter: $x = 0.5
select image_id, label, confidence, confidence as score from candidates where confidence > $x"""
_POLICIES = [*(queries.text(f"policies/{name}").rstrip().removesuffix(";") for name in policies.names()), _OWN]


# Made statements


def _expressions() -> st.SearchStrategy[str]:
    between = st.sampled_from(["+", "and", "or", "=", "in", "like", "is distinct from", "::", "->"])
    functions = st.sampled_from(["coalesce", "list", "hash", "query", "eval", "upper", "read_text"])

    def larger(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
        return st.one_of(
            st.tuples(inner, between, inner).map(" ".join),
            inner.map(lambda e: f"({e})"),
            inner.map(lambda e: f"not {e}"),
            st.tuples(inner, inner).map(lambda p: f"case when {p[0]} then {p[1]} end"),
            st.tuples(functions, inner).map(lambda p: f"{p[0]}({p[1]})"),
            _selects(inner).map(lambda q: f"({q})"),
            _selects(inner).map(lambda q: f"exists ({q})"),
            st.tuples(inner, st.integers(2, 3000)).map(lambda p: "(" * p[1] + p[0] + ")" * p[1]),
            st.tuples(inner, st.integers(2, 1200)).map(lambda p: p[0] + f" + {p[0]}" * min(p[1], 20_000 // len(p[0]))),
        )

    return st.recursive(st.sampled_from(_VALUES), larger, max_leaves=5)


def _sources(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    quoted = st.sampled_from(_FILES)
    return st.one_of(
        st.sampled_from(_RELATIONS),
        st.tuples(st.sampled_from(_READERS), quoted).map(lambda p: f"{p[0]}('{p[1]}')"),
        quoted.map(lambda f: f"'{f}'"),
        quoted.map(lambda f: f'"{f}"'),
        st.tuples(quoted, st.sampled_from(["main", "memory", "system.main"])).map(lambda p: f'{p[1]}."{p[0]}"'),
        quoted.map(lambda f: f"query('select * from ''{f}''')"),
        inner.map(lambda e: f"(values ({e}))"),
        st.sampled_from(_WORDS).map(lambda w: f"({w})"),
    )


def _selects(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    ends = st.sampled_from(
        ["", " limit 1", " order by 1", " union all select 1", " using sample 1", " qualify true", " for update"]
    )
    plain = st.tuples(inner, _sources(inner), ends).map(lambda p: f"select {p[0]} from {p[1]}{p[2]}")
    inside = st.one_of(plain, st.sampled_from(_WORDS), _sources(inner).map(lambda s: f"from {s}"))
    name = st.sampled_from(['"outside.csv"', "a", "images", '"a"'])
    with_one = st.tuples(name, inside, _sources(inner)).map(lambda p: f"with {p[0]} as ({p[1]}) select * from {p[2]}")
    with_same = st.tuples(name, inside).map(lambda p: f"with {p[0]} as ({p[1]}) select * from {p[0]}")
    return plain | with_one | with_same


def _statements() -> st.SearchStrategy[str]:
    select = _selects(_expressions())
    before = ["explain ", "explain analyze ", "explain (analyze, format json) ", "describe ", "summarize ", "/* a */ "]
    before += ["prepare p as ", "create view v as ", "select 1; ", "execute ", "from (", "copy (", "-- a\n"]
    before += ["\ufeff", "\uff53elect "]
    dressed = st.tuples(st.sampled_from(before), select | st.sampled_from(_WORDS)).map("".join)
    return st.one_of(select, select, dressed, st.sampled_from(_WORDS))


def _bytes(texts: st.SearchStrategy[str]) -> st.SearchStrategy[bytes]:
    return texts.map(lambda text: text.encode())


# Reading them


@functools.cache
def _sandbox(world: World) -> duckdb.DuckDBPyConnection:
    opened = sandboxed.open_sandbox(world.store, "200MB")
    con = opened.__enter__()
    _keep.append(opened)
    return con


_keep: list[object] = []


@contextmanager
def _stopped(con: duckdb.DuckDBPyConnection) -> Iterator[None]:
    clock = threading.Timer(_STOP_AFTER, con.interrupt)
    clock.start()
    try:
        yield
    finally:
        clock.cancel()


def _ask(world: World, data: bytes) -> None:
    con, sent = _sandbox(world), io.BytesIO()
    query = data.decode("utf-8", "replace")
    try:
        with _stopped(con):
            sandboxed.send(con, query, sent, 1000, 1 << 20)
    except MemoryError as error:
        raise InputError("the query needs more memory than it may use") from error
    except duckdb.Error as error:
        raise InputError(str(error)) from error
    except InputError as error:
        if SECRET in error.what.replace(query, ""):
            raise AssertionError("the secret was told") from error
        raise
    finally:
        with suppress(duckdb.Error):  # an error ends the transaction, with which a question of the tool would be over
            con.rollback()
        con.execute("begin transaction read only")
        if SECRET.encode() in sent.getvalue() and SECRET not in query:
            raise AssertionError("the secret was told")
    table = pa.ipc.open_stream(sent.getvalue()).read_all()
    assert SECRET not in str(table.slice(0, 50).to_pydict())


@functools.cache
def _plain(world: World) -> duckdb.DuckDBPyConnection:
    """The views in a connection that reaches no file, so that what would read one is refused by DuckDB."""
    con = duckdb.connect(config={"enable_external_access": "false", "temp_directory": "", "memory_limit": "500MB"})
    with world.store.connect() as full:
        for name in ("images", "labels", "reviews", "classes", "models", "decisions"):
            steps = queries.steps(*queries.DECISIONS) if name == "decisions" else {}
            con.register(name, full.sql(queries.compose(steps, f"from {name}")).to_arrow_table())
    for name in ("candidates", "allowed", "pool", "holdout"):
        con.execute(f"create view {name} as select *, null as width from labels join images using (image_id, split)")
    con.execute("set lock_configuration = true")
    return con


def _judge(world: World, query: str, values: dict[str, object]) -> None:
    """Runs what was let through: it reaches no file, and answers the same twice."""
    con, answers = _plain(world), []
    for _ in range(2):
        try:
            with _stopped(con):
                answers.append(repr(con.execute(query, values).fetchmany(100)))
        except duckdb.PermissionException as error:
            raise AssertionError(f"let through, and reaches out: {error}") from None
        except duckdb.InterruptException:
            return
        except duckdb.Error as error:  # its own mistake, which the tool tells
            if "xternal access" in str(error):
                raise AssertionError(f"let through, and reaches out: {error}") from None
            raise InputError(str(error)) from error
        except (UnicodeDecodeError, ValueError, OverflowError):  # of an answer that Python has no value for
            return
    assert answers[0] == answers[1], "let through, and answers differently"
    assert SECRET not in answers[0]


def _check_where(world: World, data: bytes) -> None:
    expression = data.decode("utf-8", "replace")
    columns = {*IMAGES.schema.names, *LABELS.schema.names}
    usersql.check_expression(_plain(world), expression, columns, policies.READS)
    _judge(world, f"select image_id from allowed where (\n{expression}\n) order by image_id", {})


def _check_policy(world: World, data: bytes) -> None:
    file = world.given / "own.sql"
    file.write_bytes(data)
    policy = policies.read(file)
    values = {"generation": 0, "per_class": 2, "min_confidence": 0.5, "seed": 0, **policies.settle(policy, {})}
    usersql.check_query(_plain(world), policy.text, policies.READS, values, "the policy")
    query = f"select * from (\n{policy.text}\n) order by all"
    _judge(world, query, queries.bind(_plain(world), query, values))


def _encoded(texts: list[str]) -> list[bytes]:
    return [text.encode() for text in texts]


def _asked() -> st.SearchStrategy[bytes]:
    return mutated(_encoded(_SEEDS[:10])) | mutated(_encoded(_SEEDS)) | _bytes(_statements())


def _wheres() -> st.SearchStrategy[bytes]:
    return mutated(_encoded(_WHERES)) | _bytes(_expressions())


def _policies() -> st.SearchStrategy[bytes]:
    return mutated(_encoded(_POLICIES)) | _bytes(_statements())


TARGETS = [
    Target("curator sql", lambda: _encoded(_SEEDS), _asked, _ask, 9000, own_process=True),
    Target("--where", lambda: _encoded(_WHERES), _wheres, _check_where, 1000, 1000),
    Target("policies", lambda: _encoded(_POLICIES), _policies, _check_policy, 1000, 1000),
]
