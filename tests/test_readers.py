"""Other readers of the store: the lines of docs/store.md, run as they stand there, give the rows that curator gives."""

import datetime as dt
import json
import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest

from curator.decisions.reviews import add_review
from curator.generations.labels import import_labels
from curator.schema import METRICS
from curator.storage import additions
from curator.storage.store import Store

DOCS = Path(__file__).parents[1] / "docs" / "store.md"
FOLDERS = {"labels": "labels", "images": "images", "classes": "classes", "models": "model_table", "reviews": "reviews"}
# Ray starts servers of its own, so it gets a process.
APART = """
import json, sys
for code in json.load(sys.stdin):
    exec(code)
    print("ROWS", json.dumps(labels, default=str))
"""


def blocks() -> dict[str, str]:
    """The code of the section, by its first line."""
    section = DOCS.read_text("utf-8").split("## Other readers\n")[1].split("\n## ")[0]
    found = re.findall(r"^```(?:python|sql)\n(.*?)\n```$", section, re.MULTILINE | re.DOTALL)
    found = [each.replace("\n\n", "\n") for each in found]
    return {each.split("\n")[0]: each for each in found}


CODE = blocks()


@pytest.fixture(scope="module")
def many_once(made: Store, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """The fixture store with another generation, a decision, a figure, and a part that no commit has named."""
    folder = tmp_path_factory.mktemp("many")
    shutil.copytree(made.root, folder, dirs_exist_ok=True)
    store = Store(folder / "store")
    import_labels(store, str(folder / "probs.parquet"), 1, "student")
    add_review(
        store, store.rows("select min(image_id) as i from images")[0]["i"], "relabel", "owl", "anna", "it is one"
    )
    additions.append(store, "metrics", pa.Table.from_pylist([{"model": "student", "step": 1}], METRICS.schema))
    part = next((store.path / "labels").glob("g*/*.parquet"))
    shutil.copy(part, part.with_name("part-not-committed.parquet"))
    return store


@pytest.fixture
def many(many_once: Store, monkeypatch: pytest.MonkeyPatch) -> Store:
    """The store, which the lines find in the current folder as "store"; only to be read."""
    monkeypatch.chdir(many_once.root)
    return many_once


def plain(rows: list[dict[str, Any]]) -> list[str]:
    """Rows in an order, and in words in which times and lists of all libraries are alike."""

    def word(value: object) -> object:
        return str(value.astimezone(dt.UTC)) if isinstance(value, dt.datetime) else value

    return sorted(json.dumps({name: word(value) for name, value in row.items()}, default=list) for row in rows)


def wanted(store: Store, table: str) -> list[str]:
    return plain(store.rows(f"select * from stored_{table}"))


def rows_of(found: Any) -> list[dict[str, Any]]:
    """The rows of what a reader calls a table."""
    if isinstance(found, duckdb.DuckDBPyRelation):
        found = found.to_arrow_table()
    rows: list[dict[str, Any]] = found.to_dicts() if hasattr(found, "to_dicts") else found.to_pylist()
    return rows


def test_there_are_blocks_to_run() -> None:
    words = " ".join(CODE)
    for reader in ("deltalake import DeltaTable", "polars", "ray", "daft", "deltalake, duckdb", "set variable"):
        assert reader in words
    assert all(len(code.splitlines()) == 3 for code in CODE.values())


@pytest.mark.parametrize("table", FOLDERS)
@pytest.mark.parametrize("first", [line for line in CODE if "ray" not in line and not line.startswith("set")])
def test_readers(many: Store, first: str, table: str) -> None:
    if "daft" in first and find_spec("daft") is None:
        pytest.skip("Daft is not installed: it asks for an older pyarrow")
    names: dict[str, Any] = {}
    exec(CODE[first].replace("store/labels", f"store/{FOLDERS[table]}"), names)
    rows = rows_of(names["labels"])
    assert plain(rows) == wanted(many, table)
    assert len(rows) == {"labels": 18, "images": 9, "classes": 3, "models": 2, "reviews": 1}[table]


def test_an_older_version(many: Store) -> None:
    (first,) = [code for line, code in CODE.items() if line == "from deltalake import DeltaTable"]
    older = first.splitlines()[1].split("# or ")[1].split(":")[0]
    names: dict[str, Any] = {}
    exec("\n".join([first.splitlines()[0], f"labels = {older}.to_pyarrow_table()"]), names)
    assert {row["generation"] for row in rows_of(names["labels"])} == {0}


@pytest.mark.long
def test_ray(many: Store) -> None:
    pytest.importorskip("ray")
    tables = ("labels", "images")
    code = [CODE["import ray"].replace('labels"', f'{table}"') for table in tables]
    environment = os.environ | {"RAY_USAGE_STATS_ENABLED": "0"}
    done = subprocess.run(
        [sys.executable, "-c", APART], input=json.dumps(code), capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    found = [json.loads(line[5:]) for line in done.stdout.splitlines() if line.startswith("ROWS ")]
    for table, rows in zip(tables, found, strict=True):
        assert plain(rows) == wanted(many, table)


@pytest.mark.parametrize("table", ["labels", "images", "metrics"])
def test_a_duckdb_shell_reads_the_log(many: Store, table: str) -> None:
    (code,) = [code for line, code in CODE.items() if line.startswith("set variable")]
    with duckdb.connect() as con:
        rows = rows_of(con.sql(code.replace("store/labels", f"store/{table}")))
    assert plain(rows) == wanted(many, table)
    assert rows
