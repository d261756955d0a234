"""The reference pages: fresh, and true of what the commands answer."""

from __future__ import annotations

import runpy
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import Answer

from curator.storage.store import Store

ROOT = Path(__file__).resolve().parent.parent
REFERENCE: dict[str, Any] = runpy.run_path(str(ROOT / "docs" / "reference.py"))
ANSWERS: dict[str, dict[str, str]] = REFERENCE["ANSWERS"]
SHORT = "--set schedule.steps=2"
# A call of each command, in an order in which they work; behind it, under which conditions of ANSWERS its keys stand.
CALLS = (
    ("init --store new", ""),
    ("add-images pool --split unlabeled", ""),
    ("import-labels labels.parquet --generation 1 --model outside", ""),
    (f"train --recipe recipe.toml --name again {SHORT}", ""),
    (f"train --recipe recipe.toml --dry-run {SHORT}", "with --dry-run"),
    ("label --model teacher --engine torch", ""),
    ("label --model teacher --engine torch --embeddings", "|with --embeddings also"),
    ("build-manifest second --per-class 5 --min-confidence 0.1 --generation 0", ""),
    ("build-manifest third --per-class 5 --min-confidence 0.1 --generation 0 --explain", "|with --explain also"),
    ("manifests", ""),
    ("show m", ""),
    ("diff m second", ""),
    ("check", ""),
    ("report m", ""),
    ("export m --format csv m.csv", ""),
    ("pack m --size 16", ""),
    ("pack 16-q90 --verify", "with --verify"),
    ("evaluate --model teacher", ""),
    ("report --model teacher", "with --model"),
    ("recipes", ""),
    ("recipes tiny-teacher", "with NAME"),
    ("evolve --plan plan.toml --dry-run", ""),
    ("review --image-id {image} --decision accept", ""),
    ("review --from decisions.csv", "with --from"),
    ("quality duplicates", ""),
    ("quality leaks", ""),
    (f"quality folds --recipe recipe.toml --folds 2 {SHORT}", ""),
    ("quality issues", ""),
    ("quality calibration --model teacher", ""),
    ("quality disagreement", ""),
    ("quality disagreement --image-id {image}", "with --image-id"),
    ("quality queue", ""),
    ("quality audit", ""),
    ("quality domain", ""),
    ("index", ""),
    ("doctor", ""),
    ("gc", ""),
    ("gc --delete --older-than 7d", "with --delete"),
)
PLAN = """
title = "a plan"
[teacher]
model = "teacher"
[selection]
per_class = 5
[[rounds]]
recipe = "recipe.toml"
"""


def test_the_pages_are_fresh() -> None:
    for name, text in REFERENCE["pages"]().items():
        there = (ROOT / "docs" / name).read_text("utf-8")
        assert there == text.rstrip("\n") + "\n", f"docs/{name} is stale; write it again with: make reference"


def test_every_command_has_a_section() -> None:
    found = {command.name for command in REFERENCE["commands"]()}
    assert not set(ANSWERS) - found
    assert not set(REFERENCE["NO"]) - found
    assert not set(REFERENCE["MARKS"]) - found


@pytest.mark.long
def test_the_keys_of_answers(
    taught_once: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, curator: Callable[..., Answer]
) -> None:
    shutil.copytree(taught_once.root, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    store = Store("store")
    pool = store.rows("select image_id, uri from images where split = 'unlabeled' order by uri")
    probs = pa.array([[0.7, 0.2, 0.1]] * len(pool), pa.list_(pa.float32()))
    pq.write_table(pa.table({"uri": [row["uri"] for row in pool], "probs": probs}), "labels.parquet")
    Path("decisions.csv").write_text(f"uri,decision\n{pool[1]['uri']},reject\n", "utf-8")
    Path("plan.toml").write_text(PLAN, "utf-8")
    for line, when in CALLS:
        answer = curator(*shlex.split(line.format(image=pool[0]["image_id"])), "--json")
        assert answer.code == 0, f"{line}: {answer.err}"
        name = " ".join(line.split()[:2]) if line.startswith("quality") else line.split()[0]
        wanted = [key for condition in when.split("|") for key in ANSWERS[name][condition].split()]
        assert sorted(answer.json) == sorted(wanted), line
    said = {line.split()[0] if not line.startswith("quality") else " ".join(line.split()[:2]) for line, _ in CALLS}
    assert set(ANSWERS) - said == {"sql", "app", "demo"}  # a list of rows; tests/test_app.py and test_demo.py run these
