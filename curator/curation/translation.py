"""DuckDB's SQL as Spark understands it: the same rows, or a refusal that names what cannot be handed on.

    sql/*.sql put together --sqlglot: parse, find every column and its type--> tree --rules below--> Spark SQL

sqlglot turns the words of one dialect into those of the other. The rules here are about values: where both engines take
the same words and mean something else by them. Where a column is a FLOAT, DuckDB compares and computes in float32 and
Spark in float64; casts to whole numbers round in one and cut in the other; and Spark's sums of whole numbers overflow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import duckdb
import sqlglot
from sqlglot import exp
from sqlglot.errors import SqlglotError
from sqlglot.optimizer.annotate_types import annotate_types
from sqlglot.optimizer.qualify import qualify
from sqlglot.schema import MappingSchema

from curator.errors import InputError, some

MEND = "--engine duckdb, or write it with comparisons, arithmetic and the functions that docs/spark.md lists"
_Type = exp.DType
_WHOLE = {*exp.DataType.INTEGER_TYPES}
_FRACTIONS = {_Type.FLOAT, _Type.DOUBLE}
_UNKNOWN = {None, _Type.UNKNOWN}
_HALF = 2**45

# What a user's SQL may be made of: what was tried on both engines and gave the same.
_KNOWN = (
    *(exp.Select, exp.From, exp.Join, exp.Where, exp.Group, exp.Having, exp.Order, exp.Ordered, exp.With, exp.CTE),
    *(exp.Subquery, exp.Union, exp.Table, exp.TableAlias, exp.Alias, exp.Star, exp.Column, exp.Identifier),
    *(exp.Literal, exp.Boolean, exp.Null, exp.Placeholder, exp.Paren, exp.And, exp.Or, exp.Not, exp.Tuple, exp.Exists),
    *(exp.EQ, exp.NEQ, exp.GT, exp.GTE, exp.LT, exp.LTE, exp.Is, exp.In, exp.Between, exp.Like),
    *(exp.NullSafeEQ, exp.NullSafeNEQ, exp.Add, exp.Sub, exp.Mul, exp.Div, exp.IntDiv, exp.Mod, exp.Neg),
    *(exp.Case, exp.If, exp.Coalesce, exp.Nullif, exp.Cast, exp.DataType, exp.Greatest, exp.Least),
    *(exp.Abs, exp.Floor, exp.Ceil, exp.Sqrt, exp.Length, exp.Bracket, exp.ArrayContains, exp.DPipe),
    *(exp.Window, exp.WindowSpec, exp.RowNumber, exp.Count, exp.Min, exp.Max, exp.Sum, exp.Filter),
)
_TARGETS = {*_WHOLE, *_FRACTIONS, _Type.BOOLEAN}


def check(text: str, what: str) -> None:
    """Makes sure that a user's SQL holds only what gives the same rows on both engines.

    Args:
        text: A query, or the expression of a --where.
        what: What to call it in a message.

    Raises:
        InputError: It holds something else, which is named.
    """
    try:
        nodes = list(sqlglot.parse_one(text, dialect="duckdb").walk())
    except SqlglotError:
        raise InputError(f"{what} cannot be read by sqlglot, which hands it to Spark", MEND) from None
    foreign = [node for node in nodes if not isinstance(node, _KNOWN) and not _is_call(node, "md5_number_lower")]
    foreign += [node for node in nodes if type(node) is not exp.Cast and isinstance(node, exp.Cast)]
    foreign += [node for node in nodes if type(node) is exp.Cast and node.to.this not in _TARGETS]
    foreign += [node for node in nodes if isinstance(node, exp.Like) and "\\" in node.expression.name]
    foreign += [node for node in nodes if isinstance(node, exp.Bracket) and not _index(node)]
    if foreign:
        named = some(dict.fromkeys(_shown(node) for node in foreign))
        raise InputError(f"{what} holds {named}, of which Spark is not known to give the same", MEND)


def translate(
    query: str, schema: Mapping[str, Mapping[str, str]], values: Mapping[str, Any]
) -> tuple[str, dict[str, Any]]:
    """A query of DuckDB as one of Spark SQL.

    Args:
        query: The query; values are named parameters.
        schema: DuckDB's types of the columns of each relation that it reads.
        values: Values of parameters; those that the query does not name are left out.

    Returns:
        Its text for `SparkSession.sql`, and the values that are to be bound by name.

    Raises:
        InputError: A part has a type that cannot be told, and another one could mean other rows.
    """
    tree = sqlglot.parse_one(query, dialect="duckdb")
    bound = {node.name: values[node.name] for node in tree.find_all(exp.Placeholder)}
    for node in list(tree.walk()):
        node.comments = None
        if isinstance(node, exp.CTE):
            node.set("materialized", None)
        elif (typed := _typed(node, bound)) is not None:
            node.replace(typed)
    _name_apart(tree)
    known = MappingSchema({name: dict(columns) for name, columns in schema.items()}, dialect="duckdb")
    tree = qualify(tree, schema=known, dialect="duckdb", quote_identifiers=False, validate_qualify_columns=False)
    tree = annotate_types(tree, schema=known, dialect="duckdb")
    for node in reversed(list(tree.walk(bfs=False))):  # what lies inside comes first
        for kinds, rule in _RULES:
            if isinstance(node, kinds):
                rule(node)
    return tree.sql("spark", pretty=True), bound


def _name_apart(tree: exp.Expr) -> None:
    """Gives steps inside of steps names of their own: sqlglot moves all of them to the top, where names must differ."""
    inner = [node for node in tree.find_all(exp.With) if node.parent is not tree]
    for number, steps in enumerate(reversed(inner)):  # the innermost first, whose names hide those of the others
        owner = steps.parent
        assert owner is not None
        for place, step in enumerate(steps.expressions):
            name = step.alias
            seen = [*steps.expressions[place + 1 :], *(part for part in owner.iter_expressions() if part is not steps)]
            for table in [table for part in seen for table in part.find_all(exp.Table)]:
                if table.name.lower() == name.lower() and not table.db:
                    table.set("alias", table.args.get("alias") or exp.TableAlias(this=exp.to_identifier(name)))
                    table.set("this", exp.to_identifier(f"{name}_{number}"))
            step.args["alias"].set("this", exp.to_identifier(f"{name}_{number}"))


def _typed(node: exp.Expr, bound: Mapping[str, Any]) -> exp.Expr | None:
    """What to put in the place of values whose type sqlglot cannot tell; None for other nodes."""
    if isinstance(node, exp.Placeholder):
        kinds = {int: "bigint", float: "double", str: "varchar", type(None): "bigint"}  # of $max_copies, if any
        return exp.cast(node.copy(), kinds[type(bound[node.name])])
    if isinstance(node, exp.Literal) and not node.is_string and "." in node.name and "e" not in node.name.lower():
        if not isinstance(node.parent, exp.Cast):
            return exp.cast(node.copy(), f"decimal({len(node.name)}, {len(node.name.partition('.')[2])})")
    elif _is_call(node, "md5_number_lower"):
        # Bytes 8 to 15 as a little-endian number without sign.
        digest = exp.MD5(this=exp.cast(node.expressions[0].copy(), "varchar"))
        pairs = [exp.Anonymous(this="substring", expressions=[digest.copy(), _whole(at), _whole(2)])
                 for at in range(31, 16, -2)]  # fmt: skip
        hexadecimal = exp.Anonymous(this="concat", expressions=pairs)
        number = exp.Anonymous(this="conv", expressions=[hexadecimal, _whole(16), _whole(10)])
        return exp.cast(number, "decimal(20, 0)")
    elif _is_call(node, "list_sum"):
        adding = sqlglot.parse_one("aggregate(x, cast(0 as double), (a, b) -> a + b)", dialect="spark")
        place = adding.find(exp.Column)
        assert place is not None
        place.replace(node.expressions[0].copy())
        return exp.cast(adding, "double")
    elif _is_call(node, "isfinite"):
        return exp.LT(this=exp.Abs(this=node.expressions[0].copy()), expression=exp.cast(_text("Infinity"), "double"))
    return None


def _compare(node: exp.Expr) -> None:
    """A FLOAT beside decimals and whole numbers makes DuckDB take all of them as FLOAT."""
    parts = _operands(node)
    kinds = {_kind(part) for part in parts}
    if kinds & _UNKNOWN and _Type.DECIMAL in kinds:
        unknown = next(part for part in parts if _kind(part) in _UNKNOWN)
        raise InputError(
            f"'{node.sql('duckdb')}' cannot be handed to Spark: sqlglot cannot tell the type of '{_shown(unknown)}'",
            f"state it, e.g. ({_shown(unknown)})::DOUBLE, or --engine duckdb",
        )
    if _Type.FLOAT in kinds and kinds <= {_Type.FLOAT, _Type.DECIMAL, *_WHOLE}:
        for part in parts:
            if _kind(part) != _Type.FLOAT:
                part.replace(_float(part))


def _divide(node: exp.Div) -> None:
    """DuckDB divides in float32 where a FLOAT is the widest, else in float64; Spark also in decimals."""
    _compare(node)
    kinds = {_kind(node.this), _kind(node.expression)}
    node.set("typed", False)
    node.set("safe", False)
    if kinds == {_Type.FLOAT}:
        node.replace(_as(node.copy(), _Type.FLOAT))  # rounding once more is what division in float32 gives
    elif _Type.DOUBLE not in kinds or kinds & {_Type.DECIMAL, *_WHOLE}:
        for part in (node.this, node.expression):
            if _kind(part) not in _FRACTIONS:
                part.replace(_as(part.copy(), _Type.DOUBLE))


def _cast(node: exp.Cast) -> None:
    """DuckDB rounds to whole numbers, halves of floats to the even one and of decimals away from 0; Spark cuts."""
    inner, kind = node.this, _kind(node.this)
    if node.to.this in {*_WHOLE} and kind in _UNKNOWN and not isinstance(inner, (exp.Null, exp.Placeholder)):
        raise InputError(
            f"'{node.sql('duckdb')}' cannot be handed to Spark: sqlglot cannot tell the type of '{_shown(inner)}'",
            f"state it, e.g. ({_shown(inner)})::DOUBLE, or --engine duckdb",
        )
    if node.to.this == _Type.INT128:
        node.set("to", exp.DataType.build("decimal(38, 0)"))
        if kind in _FRACTIONS:
            node.replace(_huge(inner))
    elif node.to.this in _WHOLE and kind in _FRACTIONS:
        inner.replace(exp.Anonymous(this="rint", expressions=[inner.copy()]))
    elif node.to.this in _WHOLE and kind == _Type.DECIMAL and not inner.find(exp.Sum):
        inner.replace(exp.Round(this=inner.copy(), decimals=_whole(0)))


def _huge(number: exp.Expr) -> exp.Expr:
    """A whole number of 38 digits out of a float, in two halves: Spark's own cast goes through a text of 17 digits."""
    high = exp.Floor(this=exp.Div(this=number.copy(), expression=exp.cast(_whole(_HALF), "double")))
    rest = exp.Paren(this=number.copy()) - exp.Paren(this=high.copy()) * exp.cast(_whole(_HALF), "double")
    low = exp.Anonymous(this="rint", expressions=[rest])
    halves = [exp.cast(exp.cast(half, "bigint"), "decimal(38, 0)") for half in (high, low)]
    return exp.Paren(this=halves[0] * _whole(_HALF) + halves[1])


def _sum(node: exp.Sum) -> None:
    """DuckDB's sums of whole numbers do not overflow."""
    if _kind(node.this) in _WHOLE:
        node.this.replace(_as(node.this.copy(), _Type.DECIMAL, "decimal(38, 0)"))


def _bracket(node: exp.Bracket) -> None:
    """An element that is not there is null; places count from 1 in DuckDB, and sqlglot has them from 0."""
    place = node.expressions[0]
    if isinstance(place, exp.Slice):
        start = exp.Anonymous(this="size", expressions=[node.this.copy()])
        node.replace(exp.Anonymous(this="slice", expressions=[node.this.copy(), place.this.copy(), start]))
    else:
        kind = node.type
        found = exp.Anonymous(this="get", expressions=[node.this.copy(), place.copy()])
        found.type = kind
        node.replace(found)


def _length(node: exp.Length) -> None:
    """len() of a list is size() in Spark."""
    if _kind(node.this) in {_Type.ARRAY, _Type.LIST}:
        node.replace(_with(exp.Anonymous(this="size", expressions=[node.this.copy()]), exp.DataType.build("int")))


def _select(node: exp.Select) -> None:
    """Lists that are unnested side by side; Spark unnests one for each SELECT."""
    lists = [part for part in node.expressions if isinstance(part.unalias(), exp.Explode)]
    if len(lists) < 2:
        return
    zipped = exp.Anonymous(this="arrays_zip", expressions=[part.unalias().this.copy() for part in lists])
    alias = exp.TableAlias(
        this=exp.to_identifier("side_by_side"), columns=[exp.to_identifier(part.alias) for part in lists]
    )
    view = exp.Lateral(this=exp.Anonymous(this="inline", expressions=[zipped]), view=True, alias=alias)
    node.append("laterals", view)
    for part in lists:
        part.replace(exp.column(part.alias, table="side_by_side"))


_RULES: tuple[tuple[Any, Callable[[Any], None]], ...] = (
    ((exp.Add, exp.Sub, exp.Mul, exp.Mod), _compare),
    (
        (exp.EQ, exp.NEQ, exp.GT, exp.GTE, exp.LT, exp.LTE, exp.NullSafeEQ, exp.NullSafeNEQ, exp.Between, exp.In),
        _compare,
    ),
    ((exp.Case, exp.Coalesce, exp.Greatest, exp.Least), _compare),
    (exp.Div, _divide),
    (exp.Cast, _cast),
    (exp.Sum, _sum),
    (exp.Bracket, _bracket),
    (exp.Length, _length),
    (exp.Select, _select),
)


def _operands(node: exp.Expr) -> list[exp.Expr]:
    """The parts of an expression that are brought to one type."""
    if isinstance(node, exp.Case):
        return [*(part.args["true"] for part in node.args["ifs"]), *filter(None, [node.args.get("default")])]
    if isinstance(node, exp.Between):
        return [node.this, node.args["low"], node.args["high"]]
    if isinstance(node, (exp.In, exp.Coalesce, exp.Greatest, exp.Least)):
        return [node.this, *node.expressions]
    return [node.this, node.expression]


def _float(part: exp.Expr) -> exp.Expr:
    """A part as FLOAT; a constant is rounded by DuckDB, whose way from a decimal to a FLOAT is its own."""
    if part.find(exp.Column, exp.Placeholder, exp.Query):
        return _as(part.copy(), _Type.FLOAT)
    with duckdb.connect() as con:
        (value,) = con.execute(f"select ({part.sql('duckdb')})::FLOAT").fetchall()[0]
    return _as(_text(repr(value)), _Type.FLOAT)


def _kind(node: exp.Expr) -> Any:
    return node.type.this if node.type is not None else None


def _as(node: exp.Expr, kind: exp.DType, text: str | None = None) -> exp.Expr:
    return _with(exp.Cast(this=node, to=exp.DataType.build(text or kind)), exp.DataType.build(kind))


def _with(node: exp.Expr, kind: exp.DataType) -> exp.Expr:
    node.type = kind
    return node


_text = exp.Literal.string
_whole = partial(exp.Literal.number)


def _is_call(node: exp.Expr, name: str) -> bool:
    return isinstance(node, exp.Anonymous) and node.name.lower() == name


def _index(node: exp.Bracket) -> bool:
    """Whether a bracket takes one element by a number from 1."""
    places: Iterable[exp.Expr] = node.expressions
    return all(isinstance(place, exp.Literal) and not place.is_string and int(place.name) >= 0 for place in places)


def _shown(node: exp.Expr) -> str:
    text = node.sql("duckdb")
    return text if len(text) <= 60 else f"{text[:57]}..."
