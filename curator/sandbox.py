"""Ad hoc SQL that can read the store's views and nothing else.

DuckDB is given the tables as Arrow datasets and has no access to files at all, so a statement that writes, attaches or
reads elsewhere has nothing to do it with, however it is dressed up (`with a as (copy ...) select ...` parses as a
SELECT). Settings are locked, memory and time are bounded, nothing is spilled to a disk, and only one SELECT, DESCRIBE
or EXPLAIN of a SELECT is let through.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import TYPE_CHECKING

import duckdb
import pyarrow as pa
import pyarrow.dataset as ds

from curator import manifests, queries
from curator.errors import InputError
from curator.schema import MANIFEST_ROW, TABLES

if TYPE_CHECKING:
    from curator.store import Store

MEMORY_LIMIT = "2GB"
TIME_LIMIT_S = 300.0
_LONGEST_S = 1e6
_UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB")


@contextmanager
def open_sandbox(store: Store, memory_limit: str = MEMORY_LIMIT) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection that sees the views and one view for each manifest, and no file.

    Raises:
        InputError: The memory limit is no size.
    """
    # Without a folder for temporary files, DuckDB would spill to .tmp in the current folder.
    con = duckdb.connect(
        config={
            "enable_external_access": "false",
            "python_enable_replacements": "false",
            "temp_directory": "",
        }
    )
    try:
        for name, table in TABLES.items():
            files = store.files(name)
            try:
                rows = ds.dataset(files, format="parquet") if files else table.schema.empty_table()
            except (OSError, pa.ArrowException) as error:
                raise store.unreadable(name, error) from None
            con.register(f"stored_{name}", rows)
        queries.create_views(con)
        for row in manifests.published(store):
            # A manifest whose files are gone must not keep the others from being read.
            folder = store.path / row["path"]
            if folder.is_dir():
                con.register(row["name"], ds.dataset(folder, schema=MANIFEST_ROW.schema, format="parquet"))
        con.execute("set timezone = 'UTC'")
        con.execute("set enable_progress_bar = false")  # it goes to standard output, where the answer belongs
        try:
            con.execute("set memory_limit = $limit", {"limit": memory_limit})
        except duckdb.Error as error:
            raise InputError(f"--memory {memory_limit} is no size ({error})", "give e.g. --memory 4GB") from None
        con.execute(f"set threads = {os.cpu_count() or 1}")
        con.execute("set lock_configuration = true")
        con.execute("begin transaction read only")
        yield con
    finally:
        con.close()


def run(con: duckdb.DuckDBPyConnection, query: str, time_limit_s: float = TIME_LIMIT_S) -> pa.RecordBatchReader:
    """The answer of one read-only statement.

    Args:
        con: From `open_sandbox`.
        query: The statement.
        time_limit_s: Seconds until it is interrupted.

    Raises:
        InputError: More than one statement, one that is not read-only, one that DuckDB refuses, or one that takes more
            time or memory than it may, its answer included.
    """
    if not 0 < time_limit_s <= _LONGEST_S:
        raise InputError(f"--timeout {time_limit_s:g} is no time limit", "give the seconds, e.g. --timeout 60")
    _check_statement(con, query)
    # In a thread of its own, because DuckDB at work does not look for Ctrl-C.
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(_answer, con, query)
        try:
            return answer.result(time_limit_s)
        except TimeoutError:
            raise InputError(
                f"the query ran longer than {time_limit_s:g} seconds and was stopped",
                "narrow it, e.g. by generation or class, or raise --timeout",
            ) from None
        except (duckdb.Error, pa.ArrowException, OSError) as error:
            raise _refused(error) from None
        finally:
            while not answer.done():
                con.interrupt()
                wait([answer], 0.1)  # again, should the query not have begun


def _check_statement(con: duckdb.DuckDBPyConnection, query: str) -> None:
    try:
        statements = con.extract_statements(query)
        if len(statements) != 1:
            raise InputError(f"{len(statements)} statements were given", "give one statement at a time")
        kind = _kind(statements[0])
        if kind == "explain":
            # "explain analyze" runs what it explains, whatever that is
            options = re.compile(r"explain\s*(analyze\b|\([^()]*\)\s*(?=\S))?", re.IGNORECASE)
            kind = _kind((con.extract_statements(options.sub("", statements[0].query, 1)) or statements)[0])
    except duckdb.Error as error:
        raise _refused(error) from None
    if kind != "select":
        raise InputError(
            f"a statement of the kind '{kind}' is not let through: SQL here only reads",
            "ask with select; the store changes only through the commands (curator --help)",
        )


def _kind(statement: duckdb.Statement) -> str:
    try:
        return str(statement.type.name).lower().replace("_", " ")
    except ValueError:
        return "other"  # the Python package of DuckDB does not name them all


def _answer(con: duckdb.DuckDBPyConnection, query: str) -> pa.RecordBatchReader:
    """The whole answer, so that an error or a limit shows before anything was printed."""
    value, unit = str(con.execute("select current_setting('memory_limit')").fetchall()[0][0]).split()
    left = float(value) * 1024 ** _UNITS.index(unit)
    reader = con.sql(query).to_arrow_reader(100_000)
    batches = []
    for batch in reader:
        left -= batch.nbytes
        if left < 0:
            raise InputError("the answer is larger than the memory it may use", "narrow it, or raise --memory")
        batches.append(batch)
    return pa.RecordBatchReader.from_batches(reader.schema, batches)


def _refused(error: Exception) -> InputError:
    lines = [line for line in str(error).splitlines() if line.strip()]
    if "Out of Memory Error" in lines[0]:
        return InputError("the query needs more memory than it may use", "narrow it, or raise --memory")
    if "registered as" in lines[0]:
        return InputError(f"a file of the store is damaged ({' '.join(lines)})", "restore it from a backup")
    if isinstance(error, duckdb.PermissionException):
        return InputError(
            f"files, extensions and settings cannot be reached from here ({lines[0]})",
            "the views are images, labels, reviews, models, metrics, classes, manifests and one for each manifest",
        )
    return InputError("\n  ".join(lines), 'the views are described by: curator sql "describe labels"')
