"""Answers on standard output: JSON that every reader takes, tables that keep their lines."""

from __future__ import annotations

import datetime as dt
import decimal
import json
import math
import uuid

import pyarrow as pa
import pytest

from curator import render
from curator.errors import CuratorError, printable, some, suggestion


def test_json_is_plain() -> None:
    at = dt.datetime(2026, 1, 2, 3, tzinfo=dt.UTC)
    number = uuid.UUID(int=5)
    given = {
        "nan": math.nan,
        "inf": [-math.inf, 1.5],
        "whole": decimal.Decimal("12"),
        "long": decimal.Decimal(2**100),
        "part": decimal.Decimal("0.25"),
        "at": at,
        "bytes": b"\x01\xff",
        "tuple": (1, None, True),
        5: {"deep": at.date()},
        "id": number,
        "text": 'ü "q"\n',
    }
    wanted = {
        "nan": None,
        "inf": [None, 1.5],
        "whole": 12,
        "long": 2**100,
        "part": 0.25,
        "at": "2026-01-02T03:00:00+00:00",
        "bytes": "01ff",
        "tuple": [1, None, True],
        "5": {"deep": "2026-01-02"},
        "id": str(number),
        "text": 'ü "q"\n',
    }
    assert json.loads(render.dumps(given)) == wanted
    assert "ü" in render.dumps(given)
    assert isinstance(json.loads(render.dumps({"whole": decimal.Decimal("12")}))["whole"], int)


def test_answer_is_a_document_or_a_text(capsys: pytest.CaptureFixture[str]) -> None:
    render.answer({"a": 1}, True, "never")
    render.answer({"a": 1}, False, "one")
    assert capsys.readouterr().out == '{\n "a": 1\n}\none\n'


def test_table() -> None:
    rows = [{"name": "a", "n": 1, "p": 0.123456}, {"name": "long name", "n": None, "p": 12345678.9}]
    assert render.table(rows, title="two rows").splitlines() == [
        "two rows",
        "name       n         p",
        "---------  -  --------",
        "a          1    0.1235",
        "long name  -  12345679",
    ]
    assert render.table([]) == "no rows"
    assert render.table([], ["a", "bc"]) == "a  bc\n-  --"


def test_cells_keep_to_their_line() -> None:
    text = render.table([{"a": "x\ny\x1b[2J\t\udcff", "b": [1, 2, 3, 4, 5, 6], "c": b"\x00\x01", "d": []}])
    assert text.splitlines()[2] == "x\\ny\\x1b[2J\\t\\udcff  [1, 2, 3, 4, 5, ... 6]  0001  []"
    assert len(text.splitlines()) == 3


def test_fields() -> None:
    assert render.fields({"name": "a", "n": 1234567.0}) == "name  a\nn     1234567"


def test_streams_of_several_batches(capsys: pytest.CaptureFixture[str]) -> None:
    schema = pa.schema({"a": pa.int64()})
    parts = [pa.record_batch([pa.array(values, pa.int64())], schema=schema) for values in ([1, 2], [], [3])]
    for form, wanted in (
        ("json", '[\n{"a": 1},\n{"a": 2},\n{"a": 3}\n]\n'),
        ("jsonl", '{"a": 1}\n{"a": 2}\n{"a": 3}\n'),
        ("csv", "a\n1\n2\n3\n"),
        ("table", "a\n-\n1\n2\n3\n"),
    ):
        render.stream(pa.RecordBatchReader.from_batches(schema, parts), form)
        assert capsys.readouterr().out == wanted


def test_messages() -> None:
    assert some(range(3)) == "0, 1, 2"
    assert some((str(i) for i in range(9)), 2) == "0, 1 and 7 more"
    assert some(["a\nb"]) == "a\\nb"
    assert printable("日本 é") == "日本 é"
    assert suggestion("holdut", ["holdout", "labeled"]) == "; did you mean 'holdout'?"
    assert suggestion("xyz", ["holdout"]) == ""
    assert str(CuratorError("it broke", "mend it")) == "it broke\n  mend: mend it"
    assert str(CuratorError("it broke")) == "it broke"
