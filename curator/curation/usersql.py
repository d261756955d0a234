"""SQL that a user gives: an expression for --where, or a whole query for --policy.

Both become part of a manifest, which must be the same each time that it is built from the same tables. So they may read
those tables and nothing else, and call no function whose answer changes; DuckDB's own parser says what they hold.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import duckdb

from curator import queries
from curator.errors import InputError, some, suggestion

WHERE_MEND = "give one boolean expression, e.g. --where \"width >= 64 and uri like 'pool/%'\""
# What reads the clock: DuckDB calls these consistent, and the ones below are written without parentheses.
_CLOCKS = {"age", "current_localtime", "current_localtimestamp"}
# Which of several rows these take is the engine's choice; min_by and max_by say it.
_ANY = {"any_value", "arbitrary", "first", "last"}
# DuckDB 2.0.1 calls inconsistent, too, what depends on the session's time zone, which is UTC in every connection.
_UNSTABLE = (
    "select function_name from duckdb_functions() where (stability in ('VOLATILE', 'CONSISTENT_WITHIN_QUERY') and not"
    " (len(parameter_types) > 0 and list_has_any(list_append(parameter_types, return_type),"
    " ['TIMESTAMP WITH TIME ZONE', 'TIMESTAMPTZ_NS']))) or macro_definition like '%current_timestamp%'"
)
_CLOCK_WORDS = {"current_date", "current_time", "current_timestamp", "localtime", "localtimestamp"}
# Table functions that make rows out of their arguments alone.
_MAKERS = {"unnest", "range", "generate_series"}
_LIMITS = {"LIMIT_MODIFIER", "LIMIT_PERCENT_MODIFIER"}
_READING_NODES = {"SELECT_NODE", "SET_OPERATION_NODE", "RECURSIVE_CTE_NODE", "CTE_NODE"}


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
    queries.check_text(expression)
    with _not_too_deep("--where"):
        tree = _expression(con, expression)
        nodes = list(_nodes(tree))
        if _placeholders(nodes):
            what = "--where holds a placeholder, and there is nothing to fill it with"
            raise InputError(what, "write the value itself")
        _check_reading(con, tree, relations, "--where", "a subquery")
    # Columns of a subquery are for DuckDB to judge; the parameters of a lambda stand in the tree like columns.
    lambdas = [part for node in nodes if node.get("class") == "LAMBDA" for part in _nodes(node["lhs"])]
    names = _columns(nodes) - {name.lower() for part in lambdas for name in part.get("column_names", ())}
    unknown = sorted(names - {column.lower() for column in columns})
    if unknown and not any(node.get("class") == "SUBQUERY" for node in nodes):
        raise InputError(
            f"--where names the unknown column '{unknown[0]}'{suggestion(unknown[0], columns)}",
            f"the columns are {', '.join(sorted(columns))}",
        )


def check_query(
    con: duckdb.DuckDBPyConnection, query: str, relations: Iterable[str], parameters: Iterable[str], what: str
) -> None:
    """Makes sure that a user's query is one SELECT that gives the same answer each time.

    Args:
        con: Any connection.
        query: Its text.
        relations: Views and steps that it may read.
        parameters: Names that it may use as $NAME.
        what: What to call it in a message.

    Raises:
        InputError: A syntax error, another statement than one SELECT, an unknown parameter, or what `check_expression`
            refuses.
    """
    with _not_too_deep(what):
        tree = json.loads(con.execute("select json_serialize_sql(?)", [query]).fetchall()[0][0])
        if tree["error"]:
            raise InputError(f"{what} is not an SQL query: {tree['error_message'].splitlines()[0]}", "write one SELECT")
        if len(tree["statements"]) != 1:
            raise InputError(f"{what} holds {len(tree['statements'])} statements", "write one SELECT")
        nodes = list(_nodes(tree))
        _check_parameters(nodes, parameters, what)
        _check_reading(con, tree, relations, what, "it")


@contextmanager
def _not_too_deep(what: str) -> Iterator[None]:
    """A syntax tree is walked by calls within calls, as many as Python allows."""
    try:
        yield
    except RecursionError:
        raise InputError(
            f"{what} nests too deeply", "write it with fewer terms, or parentheses, in one another"
        ) from None


def _check_parameters(nodes: list[dict[str, Any]], parameters: Iterable[str], what: str) -> None:
    """Makes sure that a query uses known parameters only."""
    unknown = sorted(_placeholders(nodes) - set(parameters))
    if unknown:
        raise InputError(
            f"{what} uses the unknown parameter ${unknown[0]}{suggestion(unknown[0], parameters)}",
            f"state its default in a line of its own: -- Parameter: ${unknown[0]} = 0.5; given are "
            + ", ".join(f"${name}" for name in sorted(parameters)),
        )


def _check_reading(
    con: duckdb.DuckDBPyConnection, tree: dict[str, Any], relations: Iterable[str], what: str, reader: str
) -> None:
    """Makes sure that a syntax tree only reads, only what a manifest records, and the same each time."""
    nodes = list(_nodes(tree))
    called = {str(node["function_name"]).lower() for node in nodes if "function_name" in node}
    unstable = called & (_CLOCKS | _ANY | {name for (name,) in con.execute(_UNSTABLE).fetchall()})
    unstable |= _columns(nodes) & _CLOCK_WORDS
    if any(node.get("sample") for node in nodes):
        unstable |= {"a sample"}
    modifiers = [{part["type"] for part in node["modifiers"]} for node in nodes if node.get("modifiers")]
    if any(kinds & _LIMITS and "ORDER_MODIFIER" not in kinds for kinds in modifiers):
        unstable |= {"limit without order by"}
    if unstable:
        raise InputError(
            f"{what} uses {some(sorted(unstable))}, which gives another answer each time",
            "a manifest must be the same each time it is built: use e.g. image_id % 10 = 0 instead",
        )
    kinds = {str(node["type"]) for node in nodes if str(node.get("type", "")).endswith("_NODE")}
    if kinds - _READING_NODES:
        raise InputError(f"{what} would write something", "only read; what is selected is written by build-manifest")
    makers = [node["function"]["function_name"] for node in nodes if node.get("type") == "TABLE_FUNCTION"]
    foreign = sorted({f"{name}()" for name in makers if name.lower() not in _MAKERS} | set(_read(tree, {*relations})))
    if foreign:
        raise InputError(
            f"{what} reads '{foreign[0]}', which is no part of a manifest's lineage",
            f"{reader} may read {', '.join(relations)}",
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


def _read(tree: Any, known: set[str]) -> Iterator[str]:
    """What a syntax tree reads beside the known relations and, where they can be seen, its own table expressions.

    A table expression of the same name elsewhere makes no file known: DuckDB would read the file.
    """
    if isinstance(tree, list):
        for part in tree:
            yield from _read(part, known)
    elif isinstance(tree, dict):
        if tree.get("type") == "BASE_TABLE" and (name := ".".join(tree["qualified_name"]["path"])).lower() not in known:
            yield name
        if tree.get("type") == "SHOW_REF":
            yield "show"
        for entry in tree.get("cte_map", {}).get("map", ()):
            yield from _read(entry["value"], known)  # sees those before it, not itself
            known = known | {entry["key"].lower()}
        for key, part in tree.items():
            itself = tree.get("type") == "RECURSIVE_CTE_NODE" and key == "right"
            if key != "cte_map":
                yield from _read(part, known | {tree["cte_name"].lower()} if itself else known)


def _columns(nodes: list[dict[str, Any]]) -> set[str]:
    paths = [node["column_names"] for node in nodes if node.get("class") == "COLUMN_REF"]
    return {path[-1].lower() for path in paths}


def _placeholders(nodes: list[dict[str, Any]]) -> set[str]:
    return {str(node["identifier"]) for node in nodes if node.get("class") == "PARAMETER"}


def _nodes(tree: Any) -> Iterator[dict[str, Any]]:
    if isinstance(tree, dict):
        yield tree
        for value in tree.values():
            yield from _nodes(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from _nodes(value)
