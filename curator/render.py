"""Answers on standard output: one JSON document, a table, or a stream of rows."""

from __future__ import annotations

import datetime as dt
import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa

FORMATS = ("table", "json", "jsonl", "csv", "parquet")
_TABLE_ROWS = 1000


def answer(document: Mapping[str, Any], as_json: bool, text: str = "") -> None:
    """Prints the answer of a command: the document with --json, else the text."""
    print(dumps(document, indent=1) if as_json else text)


def dumps(value: Any, indent: int | None = None) -> str:
    """JSON that every reader accepts: NaN and infinity become null, times become ISO 8601."""
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
    right = [any(isinstance(row.get(name), int | float) for row in rows) for name in names]
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
    # A name from a file must not move the cursor or break the line.
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(value))


def fields(items: Mapping[str, Any]) -> str:
    """Names and values, one a line, values aligned."""
    width = max(len(name) for name in items)
    return "\n".join(f"{name.ljust(width)}  {_cell(value)}" for name, value in items.items())


def stream(reader: pa.RecordBatchReader, form: str) -> None:
    """Prints a query's answer in one of FORMATS without holding it all, but for the table.

    Args:
        reader: The answer.
        form: table, json (one array), jsonl, csv or parquet (bytes on standard output).
    """
    if form == "table":
        _stream_table(reader)
    elif form == "parquet":
        import pyarrow.parquet as pq

        with pq.ParquetWriter(sys.stdout.buffer, reader.schema) as writer:
            for batch in reader:
                writer.write_batch(batch)
    elif form == "csv":
        import csv

        lines = csv.writer(sys.stdout, lineterminator="\n")
        lines.writerow(reader.schema.names)
        for batch in reader:
            for row in batch.to_pylist():
                lines.writerow([_csv_cell(value) for value in row.values()])
    else:
        _stream_json((row for batch in reader for row in batch.to_pylist()), form == "json")


def _csv_cell(value: Any) -> str:
    plain = _plain(value)
    if plain is None:
        return ""
    return str(plain) if isinstance(plain, str | int | float) else dumps(plain)


def _stream_table(reader: pa.RecordBatchReader) -> None:
    rows: list[dict[str, Any]] = []
    for batch in reader:
        rows += batch.to_pylist()
        if len(rows) > _TABLE_ROWS:
            break
    print(table(rows[:_TABLE_ROWS], reader.schema.names))
    if len(rows) > _TABLE_ROWS:
        print(f"only the first {_TABLE_ROWS} rows are shown; --format csv or jsonl gives all", file=sys.stderr)


def _stream_json(rows: Iterable[Mapping[str, Any]], array: bool) -> None:
    if not array:
        for row in rows:
            print(dumps(row))
        return
    first = True
    for row in rows:
        print("[" if first else ",", dumps(row), sep="\n" if first else "\n", end="")
        first = False
    print("[]" if first else "\n]")
