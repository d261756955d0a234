"""Answers on standard output: one JSON document, a table, or a stream of rows."""

from __future__ import annotations

import datetime as dt
import decimal
import json
import math
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TextIO

from curator import progress
from curator.errors import InputError, printable

if TYPE_CHECKING:
    import pyarrow as pa

FORMATS = ("table", "json", "jsonl", "csv", "parquet")
_TABLE_ROWS = 1000
# Arrow's names of types that Python may have no value for, in lists and structs too.
_HAS_TIMES = re.compile("date|time|duration|interval")


def answer(document: Mapping[str, Any], as_json: bool, text: str = "") -> None:
    """Prints the answer of a command: the document with --json, else the text."""
    print(dumps(document, indent=1) if as_json else text)


def dumps(value: Any, indent: int | None = None) -> str:
    """JSON that every reader accepts: NaN and infinity become null, times become ISO 8601, bytes become hex."""
    return json.dumps(_plain(value), indent=indent, ensure_ascii=False, allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int | bool):
        return value
    if isinstance(value, decimal.Decimal):
        # what DuckDB gives for a sum of integers and for 0.5
        return int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, dt.date | dt.time):
        return value.isoformat()
    if isinstance(value, bytes):
        return value.hex()
    return str(value)


def table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None, title: str = "") -> str:
    """Rows as a plain text table, numbers to the right; an empty answer says so."""
    if not rows and columns is None:
        return "no rows"
    names = list(columns or rows[0])
    cells = [[_cell(row.get(name)) for name in names] for row in rows]
    widths = [max(len(name), *(len(line[i]) for line in cells)) if cells else len(name) for i, name in enumerate(names)]
    right = [any(isinstance(row.get(name), int | float | decimal.Decimal) for row in rows) for name in names]
    lines = [[*names], ["-" * width for width in widths], *cells]
    text = [
        "  ".join(c.rjust(w) if r else c.ljust(w) for c, w, r in zip(line, widths, right, strict=True)).rstrip()
        for line in lines
    ]
    return "\n".join(([title] if title else []) + text)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e6 else f"{value:.0f}"
    if isinstance(value, list | tuple):
        shown = ", ".join(_cell(v) for v in value[:5])
        return f"[{shown}, ... {len(value)}]" if len(value) > 5 else f"[{shown}]"
    return printable(value.hex() if isinstance(value, bytes) else str(value))


def fields(items: Mapping[str, Any]) -> str:
    """Names and values, one a line, values aligned."""
    width = max(len(name) for name in items)
    return "\n".join(f"{name.ljust(width)}  {_cell(value)}" for name, value in items.items())


def stream(answer: pa.Table, form: str) -> None:
    """Prints a query's answer in one of FORMATS.

    Args:
        answer: The answer. Of columns with the same name the later ones get a number, as in DuckDB's tables.
        form: table, json (one array), jsonl, csv or parquet (bytes on standard output).

    Raises:
        InputError: The answer holds something that the format cannot show; nothing was printed.
    """
    names = distinct(answer.schema.names)
    answer = answer.rename_columns(names)
    if form == "table":
        _print_table(answer)
    elif form == "parquet":
        _print_parquet(answer)
    elif form == "csv":
        _expect_shown(answer)
        write_csv(sys.stdout, _rows(answer), names)
    else:
        _expect_shown(answer)
        _print_json(_rows(answer), form == "json")


def write_csv(to: TextIO, rows: Iterable[Mapping[str, Any]], names: Sequence[str]) -> None:
    """Writes rows as CSV, with a line of names: lists and maps as JSON, null as nothing."""
    import csv

    lines = csv.writer(to, lineterminator="\n")
    lines.writerow(names)
    lines.writerows([_csv_cell(value) for value in row.values()] for row in rows)


def distinct(names: Sequence[str]) -> list[str]:
    """Names with a number behind those that stood there before, as in DuckDB's tables."""
    found: list[str] = []
    for name in names:
        number = 0
        numbered = name
        while numbered in found:
            number += 1
            numbered = f"{name}_{number}"
        found.append(numbered)
    return found


def _rows(answer: pa.Table) -> Iterator[dict[str, Any]]:
    for batch in answer.to_batches():
        yield from _pylist(batch)


def _expect_shown(answer: pa.Table) -> None:
    """Whether Python has a value for every cell, which is to be known before the first row is printed."""
    for column in answer.columns:
        if _HAS_TIMES.search(str(column.type)):
            for chunk in column.chunks:
                _pylist(chunk)


def _pylist(values: pa.RecordBatch | pa.Array) -> list[Any]:
    try:
        found: list[Any] = values.to_pylist()
    except (OverflowError, ValueError) as error:
        raise InputError(
            f"the answer holds a date or time that cannot be shown ({error})",
            "cast it in the query: select added_at::varchar",
        ) from None
    return found


def _print_parquet(answer: pa.Table) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        pq.write_table(answer, sys.stdout.buffer)
    except pa.ArrowNotImplementedError as error:
        raise InputError(f"the answer cannot be written as Parquet ({error})", "cast the column to varchar") from None


def _csv_cell(value: Any) -> str:
    plain = _plain(value)
    if plain is None:
        return ""
    return plain if isinstance(plain, str) else dumps(plain)


def _print_table(answer: pa.Table) -> None:
    shown, names = list(_rows(answer.slice(0, _TABLE_ROWS))), answer.schema.names
    if names == ["explain_key", "explain_value"]:
        print("\n".join(row["explain_value"] for row in shown))  # a drawing of several lines
    else:
        print(table(shown, names))
    if answer.num_rows > _TABLE_ROWS:
        progress.say(f"only the first {_TABLE_ROWS} rows are shown; --format csv or jsonl gives all")


def _print_json(rows: Iterable[Mapping[str, Any]], array: bool) -> None:
    if not array:
        for row in rows:
            print(dumps(row))
        return
    first = True
    for row in rows:
        print("[" if first else ",", dumps(row), sep="\n", end="")
        first = False
    print("[]" if first else "\n]")
