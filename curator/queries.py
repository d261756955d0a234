"""The SQL files: reading them, putting steps together, and the views they stand on.

Each file holds one statement and runs in a duckdb shell once the relations that its header names exist. A longer
route is put together as `with STEP as (FILE), ... FILE`; values travel as bound parameters, never as text.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

import duckdb
import pyarrow as pa

from curator.errors import InputError, suggestion


@cache
def text(name: str) -> str:
    """The statement of `sql/NAME.sql`, without its closing semicolon."""
    return files("curator.sql").joinpath(f"{name}.sql").read_text("utf-8").strip().removesuffix(";")


def names(folder: str) -> list[str]:
    """The queries in a sub-folder of sql/, sorted."""
    found = files("curator.sql").joinpath(folder).iterdir()
    return sorted(entry.name.removesuffix(".sql") for entry in found if entry.name.endswith(".sql"))


def compose(steps: Mapping[str, str], final: str) -> str:
    """One statement from named steps.

    Args:
        steps: Relation name to query text, each allowed to read the ones before it.
        final: The query that gives the answer.
    """
    if not steps:
        return final
    parts = ",\n".join(f"{name} as (\n{query}\n)" for name, query in steps.items())
    # The last step may be a file with a "with" of its own, which SQL allows only inside parentheses.
    return f"with\n{parts}\nselect * from (\n{final}\n)" if _starts_with_with(final) else f"with\n{parts}\n{final}"


def _starts_with_with(query: str) -> bool:
    lines = [line for line in query.splitlines() if line.strip() and not line.lstrip().startswith("--")]
    return bool(lines) and lines[0].split()[0].lower() == "with"


def bind(con: duckdb.DuckDBPyConnection, query: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the values that the query names; DuckDB refuses any it does not."""
    wanted = con.extract_statements(query)[0].named_parameters
    return {name: value for name, value in values.items() if name in wanted}


def rows(con: duckdb.DuckDBPyConnection, query: str, **values: Any) -> list[dict[str, Any]]:
    """The answer of a query as dictionaries, for answers of a few thousand rows."""
    answer: pa.Table = con.sql(query, params=bind(con, query, values)).to_arrow_table()
    found: list[dict[str, Any]] = answer.to_pylist()
    return found


def batches(con: duckdb.DuckDBPyConnection, query: str, size: int, **values: Any) -> Iterator[pa.Table]:
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


def create_views(con: duckdb.DuckDBPyConnection) -> None:
    """Creates the public views over the stored_* relations of a connection."""
    for name in names("views"):
        con.execute(f"create view {name} as {text(f'views/{name}')}")


def check_expression(con: duckdb.DuckDBPyConnection, expression: str, columns: Iterable[str]) -> None:
    """Makes sure that a user's --where is one boolean expression that always gives the same answer.

    Args:
        con: Any connection.
        expression: The text after --where.
        columns: Names that may be used, for the message.

    Raises:
        InputError: A syntax error, more than one expression or statement, an unknown column, or a function such as
            random() that gives another answer each time.
    """
    mend = "give one boolean expression, e.g. --where \"width >= 64 and uri like 'pool/%'\""
    question = f"select (\n{expression}\n)"
    tree = json.loads(con.execute("select json_serialize_sql(?)", [question]).fetchall()[0][0])
    if tree["error"]:
        raise InputError(f"--where is not an SQL expression: {tree['error_message']}", mend)
    node = tree["statements"][0]["node"] if len(tree["statements"]) == 1 else {}
    one_expression = (
        node.get("type") == "SELECT_NODE"
        and len(node["select_list"]) == 1
        and node["from_table"]["type"] == "EMPTY"
        and not node["where_clause"]
        and not node["modifiers"]
    )
    if not one_expression:
        raise InputError("--where holds more than one expression", mend)
    unstable = _called(tree) & {
        name
        for (name,) in con.execute(
            "select function_name from duckdb_functions() where stability in ('VOLATILE', 'CONSISTENT_WITHIN_QUERY')"
        ).fetchall()
    }
    if unstable:
        raise InputError(
            f"--where calls {', '.join(sorted(unstable))}, which gives another answer each time",
            "a manifest must be the same each time it is built: use e.g. image_id % 10 = 0 instead",
        )
    used = {path[-1] for path in _columns(tree)}
    unknown = sorted(name for name in used if name.lower() not in {c.lower() for c in columns})
    if unknown and not _has_subquery(tree):
        raise InputError(
            f"--where names the unknown column '{unknown[0]}'{suggestion(unknown[0], columns)}",
            f"the columns are {', '.join(sorted(columns))}",
        )


def _nodes(tree: Any) -> Iterable[dict[str, Any]]:
    if isinstance(tree, dict):
        yield tree
        for value in tree.values():
            yield from _nodes(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from _nodes(value)


def _called(tree: Any) -> set[str]:
    return {str(node["function_name"]).lower() for node in _nodes(tree) if "function_name" in node}


def _columns(tree: Any) -> Iterable[Sequence[str]]:
    return (node["column_names"] for node in _nodes(tree) if node.get("class") == "COLUMN_REF")


def _has_subquery(tree: Any) -> bool:
    return any(node.get("class") == "SUBQUERY" for node in _nodes(tree))
