"""What runs inside the sandbox: a process of its own, which reads the store's views and sends one answer.

    stdin: what is asked, as JSON --> store opened --> limits set --> statement checked, run --> stdout: Arrow stream
                                                                                             --> stderr: JSON, the end

DuckDB is given the tables as Arrow datasets and has no access to files at all, so a statement that writes, attaches or
reads elsewhere has nothing to do it with, however it is dressed up (`with a as (copy ...) select ...` parses as a
SELECT). Settings are locked, nothing is spilled to a disk, and only one SELECT, DESCRIBE or EXPLAIN of a SELECT is let
through. What DuckDB itself does not bound is left to the kernel: a single call of a function neither looks at the time
nor counts its memory (`list_sort(range(100000000))`), and a statement that nests deep enough ends the process.
"""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import duckdb
import pyarrow as pa
import pyarrow.dataset as ds

from curator import queries
from curator.curation import manifests
from curator.errors import CuratorError, InputError, StoreError
from curator.schema import MANIFEST_ROW, TABLES
from curator.serving.sandbox import MEMORY_LIMIT, MEMORY_MEND
from curator.storage import bucket
from curator.storage.store import Store

_UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB")
# Rows that are sent at once.
_BATCH = 10_000
# What the process may take beside the memory limit: readers' buffers, stacks of threads, and Python itself.
_BESIDE = 256 * 2**20
_BESIDE_CORE = 16 * 2**20
_LEAST = 16 * 2**20  # a memory limit with which DuckDB can answer anything
_LONGEST_MESSAGE = 2000


def main() -> None:
    """Answers the question on standard input; see sandbox.ask."""
    asked = json.load(sys.stdin)
    bucket.patience(asked["patience"])
    try:
        store = Store(asked["store"])
        with open_sandbox(store, asked["memory"]) as con:
            try:
                # Said and done at once: to give up a scan whose reader failed may wait for that reader for ever.
                store.place.on_failure(lambda error: _refuse(_broken(error)))
                names = [name for (name,) in con.execute("show tables").fetchall()]
                _confine(_memory(con), asked["seconds"])
                rows = send(con, asked["query"], sys.stdout.buffer, asked["rows"], asked["size"])
                sys.stdout.flush()
                _end({"rows": rows})
            except CuratorError as error:
                if mend := _quoted(asked["query"], names):
                    error.mend = mend
                # With the connection open: to close it waits for its readers, and those of a bucket wait for Python.
                _refuse(store.place.failure(error) or error)
    except CuratorError as error:
        _refuse(error)
    except (duckdb.Error, pa.ArrowException, OSError) as error:  # of the store, before the question was asked
        _refuse(_broken(error))


def _broken(error: Exception) -> CuratorError:
    if isinstance(error, CuratorError):
        return error
    said = str(error).partition(": Error")[0]  # obstore goes on with the request and its answer
    return StoreError(f"a file of the store is missing or damaged ({said})", "restore it from a backup")


def _quoted(query: str, names: Sequence[str]) -> str:
    """The mend of a query that names a manifest without the quotes that its name needs; nothing where it does not."""
    for name in names:
        if not re.fullmatch(r"[A-Za-z_]\w*", name) and re.search(
            rf"""(?<![\w"'.-]){re.escape(name)}(?![\w"'.-])""", query
        ):
            return f"the name of this manifest needs double quotes: curator sql 'select * from \"{name}\"'"
    return ""


def _refuse(error: CuratorError) -> None:
    _end({"what": error.what[:_LONGEST_MESSAGE], "mend": error.mend})


def _end(said: dict[str, Any]) -> None:
    """Says how it went, and ends the process at once: a large query takes its time to tidy up."""
    sys.stderr.write(json.dumps(said))
    sys.stderr.flush()
    os._exit(0)


@contextmanager
def open_sandbox(store: Store, memory_limit: str = MEMORY_LIMIT) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection that sees the views and one view for each manifest, and no file.

    Raises:
        InputError: The memory limit is no size, or too small for any question.
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
        filesystem = store.place.filesystem
        for name, files in store.every_file().items():
            schema = TABLES[name].schema
            try:
                rows = ds.dataset(files, format="parquet", filesystem=filesystem) if files else schema.empty_table()
            except (OSError, pa.ArrowException) as error:
                raise store.unreadable(name, error) from None
            con.register(f"stored_{name}", rows)
        queries.create_views(con)
        for row in manifests.published(store):
            # A manifest whose files are gone must not keep the others from being read.
            files = store.place.files(row["path"])
            if files:
                rows = ds.dataset(files, MANIFEST_ROW.schema, format="parquet", filesystem=filesystem)
                con.register(row["name"], rows)
        con.execute("set timezone = 'UTC'")
        con.execute("set enable_progress_bar = false")  # it goes to standard output, where the answer belongs
        try:
            # to DuckDB a negative size is none: no limit
            con.execute("set memory_limit = $limit", {"limit": memory_limit.replace("-", "minus ")})
            enough = _memory(con) >= _LEAST
        except duckdb.OutOfMemoryException:  # what the views hold may be above it, or what the question takes
            enough = False
        except duckdb.Error as error:
            raise InputError(f"--memory {memory_limit} is no size ({error})", "give e.g. --memory 4GB") from None
        if not enough:
            raise InputError(f"--memory {memory_limit} is below {_LEAST >> 20} MiB", "give e.g. --memory 4GB")
        con.execute(f"set threads = {os.cpu_count() or 1}")
        con.execute("set lock_configuration = true")
        con.execute("begin transaction read only")
        yield con
    finally:
        con.close()


def send(
    con: duckdb.DuckDBPyConnection, query: str, to: IO[bytes], rows: int | None = None, size: int | None = None
) -> int:
    """Writes the answer of one read-only statement as an Arrow stream.

    Args:
        con: From `open_sandbox`.
        query: The statement.
        to: Where to write.
        rows: The first rows that are written; the others are only counted. None for all of them.
        size: Bytes of the first rows that are written. None for the memory limit, above which an answer is refused.

    Returns:
        Rows of the whole answer.

    Raises:
        InputError: More than one statement, one that is not read-only, one that DuckDB refuses, or one that takes more
            memory than it may.
    """
    check(con, query)
    left = _memory(con) if size is None else size
    total = 0
    try:
        reader = con.sql(query).to_arrow_reader(_BATCH)
        with pa.ipc.new_stream(to, reader.schema) as stream:
            for batch in reader:
                wanted = batch if rows is None else batch.slice(0, max(0, rows - total))
                total += len(batch)
                if wanted.nbytes > left:
                    if size is None:
                        raise InputError("the answer is larger than the memory it may use", MEMORY_MEND)
                    wanted, rows = wanted.slice(0, int(len(wanted) * left / wanted.nbytes)), 0
                left -= wanted.nbytes
                if len(wanted):
                    stream.write_batch(wanted)
    except (duckdb.Error, pa.ArrowException, MemoryError, OSError) as error:
        raise _refused(error) from None
    return total


def check(con: duckdb.DuckDBPyConnection, query: str) -> None:
    """Makes sure that a text is one statement that only reads.

    Raises:
        InputError: It is not.
    """
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


def _memory(con: duckdb.DuckDBPyConnection) -> int:
    """The memory limit of a connection in bytes."""
    value, unit = str(con.execute("select current_setting('memory_limit')").fetchall()[0][0]).split()
    return int(float(value) * 1024 ** _UNITS.index(unit))


def _confine(memory: int, seconds: float) -> None:
    """Has the kernel end this process at the time limit, and refuse it more memory and any byte of a file."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    status = Path("/proc/self/status")
    if status.exists():  # Linux; elsewhere only what DuckDB counts is bounded
        used = re.findall(r"^VmData:\s+(\d+) kB", status.read_text(), re.MULTILINE)
        most = int(used[0]) * 1024 + memory + _BESIDE + _BESIDE_CORE * (os.cpu_count() or 1)
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    signal.setitimer(signal.ITIMER_REAL, seconds)


def _refused(error: Exception) -> InputError:
    if isinstance(error, (MemoryError, pa.ArrowMemoryError)):
        return InputError("the query needs more memory than it may use", MEMORY_MEND)
    lines = [line for line in str(error).splitlines() if line.strip()]
    if "Out of Memory Error" in lines[0] or "bad_alloc" in lines[0]:
        return InputError("the query needs more memory than it may use", MEMORY_MEND)
    if "registered as" in lines[0]:
        return InputError(f"a file of the store is damaged ({' '.join(lines)})", "restore it from a backup")
    if isinstance(error, duckdb.PermissionException):
        return InputError(
            f"files, extensions and settings cannot be reached from here ({lines[0]})",
            "the views are images, labels, reviews, models, metrics, classes, manifests and one for each manifest",
        )
    return InputError("\n  ".join(lines), 'the views are described by: curator sql "describe labels"')


if __name__ == "__main__":
    main()
