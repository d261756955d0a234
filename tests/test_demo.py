"""The demo: its split of the digits, and the whole of it with short runs in place of real ones."""

import csv
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import Answer

from curator import cli
from curator.commands import app
from curator.rounds import demo


def names(folder: Path, part: str) -> set[str]:
    return {path.relative_to(folder / part).as_posix() for path in (folder / part).rglob("*.png")}


def test_the_split(tmp_path: Path) -> None:
    digits = demo._digits()
    assert np.bincount(digits[1]).tolist() == [500] * 10
    truth = demo.write_split(digits, tmp_path / "a", tune=False, seed=0)
    counts = {part: len(names(tmp_path / "a", part)) for part in ("labeled", "unlabeled", "holdout")}
    assert counts == {"labeled": 100, "unlabeled": 3900, "holdout": 1000}
    assert not names(tmp_path / "a", "labeled") & names(tmp_path / "a", "holdout")
    assert truth.keys() == {f"unlabeled/{name}" for name in names(tmp_path / "a", "unlabeled")}
    with (tmp_path / "a" / "truth.csv").open() as file:
        assert {row["uri"]: int(row["label"]) for row in csv.DictReader(file)} == truth
    # the order of the names says nothing of the classes: neighbours agree about once in ten
    ordered = [label for _, label in sorted(truth.items())]
    assert 0.07 < np.mean(np.diff(ordered) == 0) < 0.13


@pytest.mark.long
def test_tuning_never_sees_the_holdout(tmp_path: Path) -> None:
    digits = demo._digits()
    demo.write_split(digits, tmp_path / "real", tune=False, seed=0)
    held = {path.read_bytes() for path in (tmp_path / "real" / "holdout").rglob("*.png")}
    for seed in (0, 1):
        folder = tmp_path / str(seed)
        demo.write_split(digits, folder, tune=True, seed=seed)
        used = {path.read_bytes() for path in folder.rglob("*.png")}
        assert len(used) == 4000
        assert not used & held


def test_the_whole_demo_with_short_runs(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CURATOR_STORE", str(tmp_path / "mine"))

    def short(arguments: list[str]) -> object:
        more = ["--set", "schedule.steps=12", "--set", "schedule.warmup_steps=0"] if arguments[0] == "train" else []
        # a teacher of twelve steps is sure of nothing
        more += ["--min-confidence", "0.1"] if arguments[0] == "build-manifest" else []
        return app(arguments + more, standalone_mode=False)

    rows = demo.play(short, tmp_path / "demo")
    out = capfd.readouterr().out
    assert [row["what"] for row in rows] == [
        "teacher", "labels-only", "student", "pseudo labels, whole pool", "pseudo labels, selected",
    ]  # fmt: skip
    assert [row["images"] for row in rows[:4]] == [1000, 1000, 1000, 3900]
    shown = [line.split()[2] for line in out.splitlines() if line.startswith("$ curator")]
    first = ["init", *["add-images"] * 3, "train", "label", "build-manifest"]
    assert shown == [*first, "train", "train", *["evaluate"] * 3, "sql"]
    assert Path.cwd() != tmp_path / "demo"
    # a store of the user's own is left alone, and the commands to try next are about the demo's
    assert not (tmp_path / "mine").exists()
    assert os.environ["CURATOR_STORE"] == str(tmp_path / "mine")
    assert f"  cd {tmp_path / 'demo'}\n  unset CURATOR_STORE\n" in out


def test_it_leaves_other_folders_alone(tmp_path: Path, curator: Callable[..., Answer]) -> None:
    (tmp_path / "mine").mkdir()
    answer = curator("demo", tmp_path / "mine")
    assert answer.code == 2
    assert "exists and is not a demo" in answer.err
    assert cli.run(["demo", "--help"]) == 0
