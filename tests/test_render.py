"""Answers on standard output: JSON that every reader takes, tables that keep their lines."""

from __future__ import annotations

import csv
import datetime as dt
import decimal
import io
import json
import math
import subprocess
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import Answer

from curator.errors import CuratorError, printable, some, suggestion
from curator.reports import render
from curator.storage.store import Store

Run = Callable[..., Answer]


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
        render.stream(pa.Table.from_batches(parts, schema), form)
        assert capsys.readouterr().out == wanted


# Every --format of curator sql

ROWS = """
select * from (values
    (1, 'a', 0.5, 'nan'::float, true, [1, 2], timestamptz '2026-01-02 03:04:05+02', date '2026-01-02', 7::hugeint),
    (2, 'say "x", y' || chr(10) || 'z', null, 'inf', false, [], null, null, null)
) as t (n, word, half, real, flag, list, moment, day, big) order by n
"""


def rows_of(curator: Run, store: Store, form: str, query: str = ROWS) -> str:
    done = curator("sql", query, "--format", form, "--store", store.path)
    assert (done.code, done.err) == (0, "")
    return done.out


def test_format_json_and_jsonl(store: Store, curator: Run) -> None:
    wanted: list[dict[str, Any]] = [
        {"n": 1, "word": "a", "half": 0.5, "real": None, "flag": True, "list": [1, 2]},
        {"n": 2, "word": 'say "x", y\nz', "half": None, "real": None, "flag": False, "list": []},
    ]
    wanted[0] |= {"moment": "2026-01-02T01:04:05+00:00", "day": "2026-01-02", "big": 7}
    wanted[1] |= {"moment": None, "day": None, "big": None}
    assert json.loads(rows_of(curator, store, "json")) == wanted
    assert [json.loads(line) for line in rows_of(curator, store, "jsonl").splitlines()] == wanted
    none = "select 1 as a where false"
    assert json.loads(rows_of(curator, store, "json", none)) == []
    assert rows_of(curator, store, "jsonl", none) == ""
    assert curator("sql", none, "--format", "csv", "--json", "--store", store.path).code == 2  # one of both


def test_format_csv(store: Store, curator: Run) -> None:
    header, first, second = csv.reader(io.StringIO(rows_of(curator, store, "csv")))
    assert header == ["n", "word", "half", "real", "flag", "list", "moment", "day", "big"]
    assert first == ["1", "a", "0.5", "", "true", "[1, 2]", "2026-01-02T01:04:05+00:00", "2026-01-02", "7"]
    assert second == ["2", 'say "x", y\nz', "", "", "false", "[]", "", "", ""]
    assert rows_of(curator, store, "csv", "select 1 as a where false") == "a\n"


def test_format_table(store: Store, curator: Run) -> None:
    lines = rows_of(curator, store, "table").splitlines()
    assert lines[0].split() == ["n", "word", "half", "real", "flag", "list", "moment", "day", "big"]
    assert len(lines) == 4
    assert 'say "x", y\\nz' in lines[3]
    assert "2026-01-02 01:04:05+00:00" in lines[2]
    plan = rows_of(curator, store, "table", "explain select * from images")
    assert len(plan.splitlines()) > 3
    done = curator("sql", "select * from range(1500)", "--store", store.path)
    assert len(done.out.splitlines()) == 1002
    assert "only the first 1000 rows are shown" in done.err
    assert curator("sql", "select * from range(1500)", "--quiet", "--store", store.path).err == ""


def test_format_parquet(store: Store, tmp_path: Path) -> None:
    with (tmp_path / "out.parquet").open("wb") as out:
        program = Path(sys.executable).with_name("curator")
        query = ROWS.replace("'nan'::float", "0.25::float")
        subprocess.run([program, "sql", query, "--format", "parquet", "--store", store.path], stdout=out, check=True)
    found = pq.read_table(tmp_path / "out.parquet").to_pylist()
    assert found[0]["list"] == [1, 2]
    assert found[0]["real"] == 0.25
    assert found[0]["moment"].isoformat() == "2026-01-02T01:04:05+00:00"
    assert found[1]["half"] is None


@pytest.mark.parametrize("form", ["table", "json", "jsonl", "csv"])
def test_columns_of_the_same_name_are_all_there(store: Store, curator: Run, form: str) -> None:
    out = rows_of(curator, store, form, "select 1 as a, 2 as a, 3 as b, 4 as a")
    assert [word in out for word in ("a_1", "a_2", "b")] == [True] * 3
    assert all(number in out for number in "1234")


@pytest.mark.parametrize("form", ["table", "json", "jsonl", "csv", "parquet"])
def test_what_a_format_cannot_show_is_said(store: Store, curator: Run, form: str) -> None:
    query = "select interval 1 day" if form == "parquet" else "select date '290000-01-01', 'infinity'::timestamp"
    done = curator("sql", query, "--format", form, "--store", store.path)
    assert done.code == 2
    assert "mend: cast" in done.err
    assert "varchar" in done.err


@pytest.mark.parametrize(("form", "value"), [("json", "{d}"), ("jsonl", "[{d}]"), ("csv", "{{'a': [{d}]}}")])
def test_what_cannot_be_shown_late_is_said_before_the_first_row(
    store: Store, curator: Run, form: str, value: str
) -> None:
    day = value.format(d="case when range = 299999 then date '290000-01-01' end")
    done = curator("sql", f"select range, {day} as a from range(300000)", "--format", form, "--store", store.path)
    assert (done.code, done.out) == (2, "")
    assert "mend: cast" in done.err


def test_a_table_shows_its_first_rows_whatever_the_others_are(store: Store, curator: Run) -> None:
    far = "union all select date '290000-01-01' from range({})"
    done = curator("sql", "select date '2020-01-01' as a from range(1000) " + far.format(2000), "--store", store.path)
    assert (done.code, len(done.out.splitlines())) == (0, 1002)
    done = curator("sql", "select date '2020-01-01' as a from range(999) " + far.format(1), "--store", store.path)
    assert (done.code, done.out) == (2, "")


def test_int_lists_and_label_columns(store: Store, curator: Run) -> None:
    query = "select top_classes, label, typeof(label) as t from labels order by confidence desc limit 1"
    [row] = json.loads(rows_of(curator, store, "json", query))
    assert row == {"top_classes": row["top_classes"], "label": 0, "t": "INTEGER"}
    assert row["top_classes"][0] == 0
    assert len(row["top_classes"]) == 3


def test_messages() -> None:
    assert some(range(3)) == "0, 1, 2"
    assert some((str(i) for i in range(9)), 2) == "0, 1 and 7 more"
    assert some(["a\nb"]) == "a\\nb"
    assert printable("日本 é") == "日本 é"
    assert suggestion("holdut", ["holdout", "labeled"]) == "; did you mean 'holdout'?"
    assert suggestion("xyz", ["holdout"]) == ""
    assert str(CuratorError("it broke", "mend it")) == "it broke\n  mend: mend it"
    assert str(CuratorError("it broke")) == "it broke"
