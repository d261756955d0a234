"""The SQL files: reading them, putting steps together, and the views they stand on.

Each file holds one statement and runs in a duckdb shell once the relations that its header names exist. A longer
route is put together as `with STEP as (FILE), ... FILE`; values travel as bound parameters, never as text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache, lru_cache
from importlib.resources import files
from typing import Any

import duckdb
import pyarrow as pa

from curator.errors import InputError
from curator.schema import TABLES

# Steps that many routes begin with, see the file of the last one: what people decided, and the classes after that.
DECISIONS = ("latest_reviews", "decisions")
TRUSTED = (*DECISIONS, "trusted")


@cache
def text(name: str) -> str:
    """The statement of `sql/NAME.sql`, without its closing semicolon."""
    return files("curator.sql").joinpath(f"{name}.sql").read_text("utf-8").strip().removesuffix(";")


def names(folder: str) -> list[str]:
    """The queries in a sub-folder of sql/, sorted."""
    found = files("curator.sql").joinpath(folder).iterdir()
    return sorted(entry.name.removesuffix(".sql") for entry in found if entry.name.endswith(".sql"))


def steps(*wanted: str) -> dict[str, str]:
    """The files of these names as steps for `compose`, each under its own name."""
    return {name: text(name) for name in wanted}


def compose(steps: Mapping[str, str], final: str) -> str:
    """One statement from named steps.

    Args:
        steps: Relation name to query text, each allowed to read the ones before it.
        final: The query that gives the answer.
    """
    if not steps:
        return final
    # A step that two others read would be kept in memory, all columns of a whole pool; reading it again costs less.
    parts = ",\n".join(f"{name} as not materialized (\n{query}\n)" for name, query in steps.items())
    # The last step may be a file with a "with" of its own, which SQL allows only inside parentheses.
    return f"with\n{parts}\nselect * from (\n{final}\n)" if _starts_with_with(final) else f"with\n{parts}\n{final}"


def _starts_with_with(query: str) -> bool:
    lines = [line for line in query.splitlines() if line.strip() and not line.lstrip().startswith("--")]
    return bool(lines) and lines[0].split()[0].lower() == "with"


def bind(con: duckdb.DuckDBPyConnection, query: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the values that the query names; DuckDB refuses any it does not.

    Raises:
        InputError: A text among them is none.
    """
    wanted = con.extract_statements(query)[0].named_parameters
    for value in values.values():
        if isinstance(value, str):
            check_text(value)
    return {name: value for name, value in values.items() if name in wanted}


def check_text(text: str) -> None:
    """Whether a text is one: Python keeps what is no UTF-8 on a command line as lone surrogates.

    Raises:
        InputError: It is none.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InputError(f"{text!r} is not text in UTF-8", "give it in UTF-8") from None


def rows(con: duckdb.DuckDBPyConnection, query: str, /, **values: Any) -> list[dict[str, Any]]:
    """The answer of a query as dictionaries, for answers of a few thousand rows."""
    answer: pa.Table = con.sql(query, params=bind(con, query, values)).to_arrow_table()
    found: list[dict[str, Any]] = answer.to_pylist()
    return found


def batches(con: duckdb.DuckDBPyConnection, query: str, size: int, /, **values: Any) -> Iterator[pa.Table]:
    """The answer of a query in tables of exactly `size` rows (the last may be shorter), in the query's order.

    DuckDB's own batches depend on how its threads ran; what is written or hashed must not.
    """
    reader = con.sql(query, params=bind(con, query, values)).to_arrow_reader(size)
    waiting = pa.Table.from_batches([], reader.schema)
    for batch in reader:
        waiting = pa.concat_tables([waiting, pa.Table.from_batches([batch])])
        while waiting.num_rows >= size:
            yield waiting.slice(0, size).combine_chunks()
            waiting = waiting.slice(size)
    if waiting.num_rows:
        yield waiting.combine_chunks()


@lru_cache(256)
def reads(query: str) -> tuple[list[str], set[str]]:
    """What a query may read, by the words in it: the public views, and the tables that they and it stand on.

    A word that is only a column or a step may name one too: that costs a little time, and nothing else.
    """
    words = {*re.findall(r"\w+", query.lower())}
    views = [name for name in names("views") if name in words]
    for name in views:
        words.update(re.findall(r"stored_\w+", text(f"views/{name}")))
    return views, {name for name in TABLES if f"stored_{name}" in words}


def create_views(con: duckdb.DuckDBPyConnection, wanted: Iterable[str] | None = None) -> None:
    """Creates the public views, or those that are wanted, over the stored_* relations of a connection."""
    for name in names("views") if wanted is None else wanted:
        con.execute(f"create view {name} as {text(f'views/{name}')}")
