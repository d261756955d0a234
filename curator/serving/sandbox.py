"""Ad hoc SQL that can read the store's views and nothing else.

    question --a process of its own--> sandboxed.py: views, limits, one statement --Arrow stream--> answer

The process can write no file and is ended by the kernel when its time is over; whatever a statement does to it, the
process that asked goes on.
"""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa

from curator import queries
from curator.errors import InputError
from curator.storage import bucket

if TYPE_CHECKING:
    from curator.storage.store import Store

MEMORY_LIMIT = "2GB"
TIME_LIMIT_S = 300.0
MEMORY_MEND = "narrow it, or raise --memory"
_LONGEST_S = 1e6
_TICK_S = 0.1


class Answer(NamedTuple):
    """What a query answered.

    Attributes:
        table: Its rows, or as many of the first ones as were asked for.
        rows: How many there are in all.
    """

    table: pa.Table
    rows: int


def ask(
    store: Store,
    query: str,
    memory_limit: str = MEMORY_LIMIT,
    time_limit_s: float = TIME_LIMIT_S,
    *,
    rows: int | None = None,
    size: int | None = None,
    meanwhile: Callable[[float], None] = lambda _: None,
) -> Answer:
    """The answer of one read-only statement.

    Args:
        store: The store, at its newest versions.
        query: The statement.
        memory_limit: Most memory it may use, e.g. "2GB"; its answer may be as large once more.
        time_limit_s: Seconds until it is ended.
        rows: First rows of the answer that are kept; the others are only counted. None for all of them.
        size: Bytes of the first rows that are kept. None for the memory limit, above which an answer is refused.
        meanwhile: Called ten times a second with the seconds that passed; what it raises ends the query.

    Raises:
        InputError: More than one statement, one that is not read-only, one that DuckDB refuses, or one that takes more
            time or memory than it may.
    """
    if not 0 < time_limit_s <= _LONGEST_S:
        raise InputError(f"--timeout {time_limit_s:g} is no time limit", "give the seconds, e.g. --timeout 60")
    queries.check_text(query)
    asked = {
        "store": store.place.absolute, "query": query, "memory": memory_limit, "seconds": time_limit_s,
        "rows": rows, "size": size, "patience": bucket.patience(),
    }  # fmt: skip
    began = time.monotonic()
    # -P: a duckdb.py in the current folder is none of ours. A session of its own: Ctrl-C is for the one who asked.
    child = subprocess.Popen(
        [sys.executable, "-B", "-P", "-m", "curator.serving.sandboxed"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    with child, ThreadPoolExecutor(1) as pool:
        try:
            answer = pool.submit(_converse, child, asked)
            while not wait([answer], _TICK_S).done:
                meanwhile(time.monotonic() - began)
            return answer.result()
        finally:
            child.kill()


def _converse(child: subprocess.Popen[bytes], asked: dict[str, Any]) -> Answer:
    assert child.stdin is not None
    assert child.stdout is not None
    assert child.stderr is not None
    table = None
    with contextlib.suppress(pa.ArrowException, OSError):  # where it ends before its answer does, it says why below
        child.stdin.write(json.dumps(asked).encode())
        child.stdin.close()
        table = pa.ipc.open_stream(child.stdout).read_all()
    said = child.stderr.read().decode()
    code = child.wait()
    if code == -signal.SIGALRM:
        raise InputError(
            f"the query ran longer than {asked['seconds']:g} seconds and was stopped",
            "narrow it, e.g. by generation or class, or raise --timeout",
        )
    if code < 0:
        what = f"the query ended its process ({signal.Signals(-code).name}): it needs more memory than it may use"
        raise InputError(f"{what}, or nests too deeply", MEMORY_MEND)
    try:
        told = json.loads(said)
    except ValueError:
        raise RuntimeError(f"the sandbox failed: {said}") from None
    if table is None or "what" in told:
        raise InputError(told["what"], told["mend"])
    return Answer(table, told["rows"])
