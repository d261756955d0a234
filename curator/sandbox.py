"""Ad hoc SQL that can read the store's views and nothing else.

DuckDB is given the tables as Arrow datasets and has no access to files at all, so a statement that writes, attaches or
reads elsewhere has nothing to do it with, however it is dressed up (`with a as (copy ...) select ...` parses as a
SELECT). Settings are locked, memory and time are bounded, and only one SELECT, DESCRIBE or EXPLAIN is let through.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
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
_READ_ONLY = (duckdb.StatementType.SELECT, duckdb.StatementType.EXPLAIN)


@contextmanager
def open_sandbox(store: Store, memory_limit: str = MEMORY_LIMIT) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection that sees the views and one view for each manifest, and no file."""
    con = duckdb.connect(config={"enable_external_access": "false", "python_enable_replacements": "false"})
    try:
        for name, table in TABLES.items():
            files = store.delta(name).file_uris()
            con.register(
                f"stored_{name}",
                ds.dataset(sorted(files), format="parquet") if files else table.schema.empty_table(),
            )
        queries.create_views(con)
        for row in manifests.published(store):
            # A manifest whose files are gone must not keep the others from being read.
            folder = store.path / row["path"]
            if folder.is_dir():
                con.register(row["name"], ds.dataset(folder, schema=MANIFEST_ROW.schema, format="parquet"))
        con.execute("set timezone = 'UTC'")
        con.execute("set memory_limit = $limit", {"limit": memory_limit})
        con.execute(f"set threads = {os.cpu_count() or 1}")
        con.execute("set lock_configuration = true")
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
        InputError: More than one statement, one that is not read-only, or one that DuckDB refuses.
    """
    try:
        statements = con.extract_statements(query)
    except duckdb.Error as error:
        raise _refused(error) from None
    if len(statements) != 1:
        raise InputError(f"{len(statements)} statements were given", "give one statement at a time")
    if statements[0].type not in _READ_ONLY:
        kind = statements[0].type.name.lower().replace("_", " ")
        raise InputError(
            f"a statement of the kind '{kind}' is not let through: SQL here only reads",
            "ask with select; the store changes only through the commands (curator --help)",
        )
    timer = threading.Timer(time_limit_s, con.interrupt)
    timer.daemon = True
    timer.start()
    try:
        relation = con.sql(query)
        if relation is None:
            raise InputError("the statement gives no rows", "ask with select")
        # Run to the end here, so that an error or the time limit shows before anything was printed.
        return relation.to_arrow_table().to_reader()
    except duckdb.InterruptException:
        raise InputError(
            f"the query ran longer than {time_limit_s:.0f} seconds and was stopped",
            "narrow it, e.g. by generation or class, or raise --timeout",
        ) from None
    except duckdb.OutOfMemoryException:
        raise InputError("the query needs more memory than it may use", "narrow it, or raise --memory") from None
    except (duckdb.Error, pa.ArrowException) as error:
        raise _refused(error) from None
    finally:
        timer.cancel()


def _refused(error: Exception) -> InputError:
    lines = [line for line in str(error).splitlines() if line.strip()]
    if isinstance(error, duckdb.PermissionException):
        return InputError(
            f"files, extensions and settings cannot be reached from here ({lines[0]})",
            "the views are images, labels, reviews, models, metrics, classes, manifests and one for each manifest",
        )
    return InputError("\n  ".join(lines), 'the views are described by: curator sql "describe labels"')
