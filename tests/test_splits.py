"""Labeling split by split: what one run left behind never shows as a piece of a split that the next did not ask for."""

import signal
from collections.abc import Callable

import pytest
from conftest import Answer
from pictures import start, wait_for
from test_labeling import RUN, check_whole, made, parts

from curator.storage import additions
from curator.storage.store import Store
from curator.teachers.labeling import label

__all__ = ["made"]


def counts(store: Store) -> dict[str, int]:
    rows = store.rows("select split, count(*) as n from labels group by split")
    return {row["split"]: row["n"] for row in rows}


def test_a_killed_run_shows_no_piece_of_another_split(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLOW_SECONDS", "0.02")
    with start(RUN, store.path) as process:
        wait_for(lambda: len(parts(store)) >= 10, process)  # the holdout, the labeled split and a part of the pool
        process.send_signal(signal.SIGKILL)
        process.wait()
    monkeypatch.setenv("SLOW_SECONDS", "0")
    assert label(store, "teacher", ["holdout"]).resumed == 3
    assert counts(store) == {"holdout": 3}
    done = label(store, "teacher", ["labeled"])
    assert (done.images, counts(store)) == (6, {"holdout": 3, "labeled": 6})
    assert label(store, "teacher").resumed > 0
    check_whole(store)


def test_build_manifest_says_what_has_no_label(store: Store, curator: Callable[..., Answer]) -> None:
    label(store, "teacher", ["holdout"])
    answer = curator("build-manifest", "m", "--per-class", 2, "--store", store.path)
    assert answer.code == 2
    assert "of 0 labeled pool images" in answer.err
    label(store, "teacher")
    (store.root / "pool" / "new.png").write_bytes((store.root / "pool" / "0001.png").read_bytes())
    assert curator("add-images", store.root / "pool", "--split", "unlabeled", "--store", store.path).code == 0
    answer = curator("build-manifest", "m", "--per-class", 2, "--min-confidence", 0.1, "--store", store.path)
    assert "1 readable pool image has no label of generation 0" in answer.out


def test_a_refused_run_leaves_no_folder(store: Store, curator: Callable[..., Answer]) -> None:
    label(store, "teacher", ["holdout"])
    row = store.delta("models").to_pyarrow_table()
    other = row.set_column(0, "model", [["other"]])
    additions.append(store, "models", other)
    answer = curator("label", "--model", "other", "--store", store.path)
    assert answer.code == 2
    assert "a generation has one teacher" in answer.err
    assert [folder.name[:12] for folder in (store.path / "labels").glob("g*")] == ["g000-teacher"]
