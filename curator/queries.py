"""The SQL files: reading them, putting steps together, and the views they stand on.

Each file holds one statement and runs in a duckdb shell once the relations that its header names exist. A longer
route is put together as `with STEP as (FILE), ... FILE`; values travel as bound parameters, never as text.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from importlib.resources import files
from typing import Any

import duckdb
import pyarrow as pa

from curator.errors import InputError, some, suggestion


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


WHERE_MEND = "give one boolean expression, e.g. --where \"width >= 64 and uri like 'pool/%'\""
# What reads the clock: DuckDB calls these consistent, and the ones below are written without parentheses.
_CLOCKS = {"age", "current_localtime", "current_localtimestamp"}
_CLOCK_WORDS = {"current_date", "current_time", "current_timestamp", "localtime", "localtimestamp"}


def check_expression(
    con: duckdb.DuckDBPyConnection, expression: str, columns: Iterable[str], relations: Iterable[str]
) -> None:
    """Makes sure that a user's --where is one expression that gives the same answer each time.

    Args:
        con: Any connection.
        expression: The text after --where.
        columns: Names that may be used.
        relations: Views that a subquery may read.

    Raises:
        InputError: A syntax error, more than one expression or statement, a placeholder, an unknown column, a function
            such as random() that gives another answer each time, or a subquery that reads something else.
    """
    nodes = list(_nodes(_expression(con, expression)))
    names = {path[-1].lower() for path in (node["column_names"] for node in nodes if node.get("class") == "COLUMN_REF")}
    called = {str(node["function_name"]).lower() for node in nodes if "function_name" in node}
    volatile = "select function_name from duckdb_functions() where stability in ('VOLATILE', 'CONSISTENT_WITHIN_QUERY')"
    unstable = called & (_CLOCKS | {name for (name,) in con.execute(volatile).fetchall()}) | names & _CLOCK_WORDS
    if any(node.get("sample") for node in nodes):
        unstable |= {"a sample"}
    if unstable:
        raise InputError(
            f"--where uses {some(sorted(unstable))}, which gives another answer each time",
            "a manifest must be the same each time it is built: use e.g. image_id % 10 = 0 instead",
        )
    if any(node.get("class") == "PARAMETER" for node in nodes):
        raise InputError("--where holds a placeholder, and there is nothing to fill it with", "write the value itself")
    own = {entry["key"].lower() for node in nodes for entry in node.get("cte_map", {}).get("map", ())}
    read = {".".join(node["qualified_name"]["path"]) for node in nodes if node.get("type") == "BASE_TABLE"}
    read |= {f"{node['function']['function_name']}()" for node in nodes if node.get("type") == "TABLE_FUNCTION"}
    foreign = sorted(name for name in read if name.lower() not in {*relations, *own})
    if foreign:
        raise InputError(
            f"--where reads '{foreign[0]}', which is no part of a manifest's lineage",
            f"a subquery may read {', '.join(relations)}",
        )
    # Columns of a subquery are for DuckDB to judge; the parameters of a lambda stand in the tree like columns.
    lambdas = [part for node in nodes if node.get("class") == "LAMBDA" for part in _nodes(node["lhs"])]
    names -= {name.lower() for part in lambdas for name in part.get("column_names", ())}
    unknown = sorted(names - {column.lower() for column in columns})
    if unknown and not any(node.get("class") == "SUBQUERY" for node in nodes):
        raise InputError(
            f"--where names the unknown column '{unknown[0]}'{suggestion(unknown[0], columns)}",
            f"the columns are {', '.join(sorted(columns))}",
        )


def _expression(con: duckdb.DuckDBPyConnection, expression: str) -> Any:
    """The syntax tree of a text that is one expression by itself and inside parentheses: `true) or (true` is not."""
    tree: Any = None
    for question in (f"select (\n{expression}\n)", f"select\n{expression}\n"):
        tree = json.loads(con.execute("select json_serialize_sql(?)", [question]).fetchall()[0][0])
        if tree["error"]:
            raise InputError(f"--where is not an SQL expression: {tree['error_message'].splitlines()[0]}", WHERE_MEND)
        node = tree["statements"][0]["node"] if len(tree["statements"]) == 1 else {}
        if node.get("type") != "SELECT_NODE" or len(node["select_list"]) != 1:
            raise InputError("--where holds more than one expression", WHERE_MEND)
    return tree


def _nodes(tree: Any) -> Iterable[dict[str, Any]]:
    if isinstance(tree, dict):
        yield tree
        for value in tree.values():
            yield from _nodes(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from _nodes(value)
