"""Resuming: a run that was stopped, killed or out of disk space goes on to the weights of a run that never was."""

import datetime as dt
import json
import shutil
import signal
import time
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pytest
from conftest import Answer
from pictures import NOISY, OWN, Watched, on_a_small_disk, start, teach, wait_for, weights_hash

from curator.decisions.reviews import add_review
from curator.delivery import packing
from curator.delivery.shards import Form
from curator.errors import CuratorError, InputError, StoreError
from curator.networks import checkpoints
from curator.pictures.images import add_images
from curator.schema import METRICS
from curator.storage import additions
from curator.storage.store import Store


@pytest.fixture(scope="module")
def made(taught_once: Store) -> Store:
    return taught_once


def stopped(store: Store, *changes: str, at: int = 10, **options: Any) -> None:
    """Leaves a run of the watched network behind that was stopped after `at` - 1 steps, each with a checkpoint."""
    Watched.seen.clear()
    Watched.stop_at = at
    with pytest.raises(KeyboardInterrupt):
        teach(store, *OWN, *changes, name="late", checkpoint_seconds=0, **options)
    Watched.stop_at = -1


@pytest.mark.long
def test_killed_and_resumed_is_as_never_stopped(store: Store) -> None:
    changes = [*NOISY, "schedule.steps=60", "schedule.decay=cosine"]
    code = """
        import sys, torch
        from curator.storage.store import Store
        from curator.runs.training import train
        torch.set_num_threads(1)
        train(Store(sys.argv[1]), sys.argv[2], "m", "late", changes=sys.argv[3:], checkpoint_seconds=0.05)
    """
    folder = store.path / "models" / "late"
    with start(code, store.path, store.root / "recipe.toml", *changes) as process:
        wait_for(lambda: bool(checkpoints.steps(folder)), process)
        with pytest.raises(StoreError, match="another run is training 'late'"):
            teach(store, *changes, name="late", manifest="m")
        time.sleep(0.12)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert not store.rows("select 1 from models where model = 'late'")
    found = checkpoints.load(folder)
    assert found is not None
    assert 0 < found.step < 60
    teach(store, *changes, name="late", manifest="m", resume=True)
    teach(store, *changes, name="whole", manifest="m")
    assert weights_hash(store, "late") == weights_hash(store, "whole")
    assert [file.name for file in folder.iterdir()] == ["weights.safetensors"]
    query = "select step, name, value from metrics where model = $m and name in ('loss', 'learning_rate') order by all"
    assert store.rows(query, m="late") == store.rows(query, m="whole")


@pytest.mark.long
def test_images_that_could_not_be_read_count_after_a_stop_too(store: Store) -> None:
    """And a run does not go on with other pictures."""
    (store.root / "labeled" / "bar" / "0.png").unlink()
    (store.root / "labeled" / "bar" / "1.png").unlink()
    budget = "max_failures=0.17"  # of 12 images, 2
    stopped(store, budget)
    known = store.rows("select name from metrics where model = 'late' and starts_with(name, 'unreadable:')")
    assert len(known) == 2
    (store.root / "labeled" / "disc" / "0.png").unlink()
    with pytest.raises(CuratorError, match="3 images could not be read, more than the budget of 2"):
        teach(store, *OWN, budget, name="late", resume=True)
    packing.pack(store, None, Form(16, 90))
    with pytest.raises(InputError, match="belongs to a run with another pack"):
        teach(store, *OWN, budget, name="late", resume=True)


@pytest.mark.long
def test_stopped_at_any_step_and_resumed(store: Store) -> None:
    noise = ["noise.dropout=0.3", "noise.drop_path=0.3"]
    teach(store, *OWN, *noise, name="whole")
    for at in (1, 2, 19, 20):
        stopped(store, *noise, at=at)
        teach(store, *OWN, *noise, name="late", resume=True)
        assert weights_hash(store, "late") == weights_hash(store, "whole")
        store.delta("models").delete("model = 'late'")
        counts = "select count(*) as n, count(distinct (step, name)) as d from metrics where model = 'late'"
        figures = store.rows(counts)[0]
        assert figures["n"] == figures["d"]


@pytest.mark.long
def test_reviews_that_came_in_between_are_of_the_next_training(store: Store) -> None:
    """Rows and holdout stay those that the run began with, whatever was decided before it was stopped and after."""
    images = store.rows("select uri, image_id from images where split <> 'unlabeled' order by uri")
    known = {row["uri"]: row["image_id"] for row in images}
    add_review(store, known["labeled/bar/0.png"], "reject")
    add_review(store, known["labeled/bar/1.png"], "relabel", "disc")
    changes = ["evaluation.every=7"]
    teach(store, *OWN, *changes, name="whole")
    stopped(store, *changes)
    add_review(store, known["labeled/bar/0.png"], "skip")
    add_review(store, known["labeled/bar/2.png"], "reject")
    add_review(store, known["holdout/bar/0.png"], "reject")
    late = teach(store, *OWN, *changes, name="late", resume=True)
    assert weights_hash(store, "late") == weights_hash(store, "whole")
    query = "select step, name, value from metrics where model = $m and starts_with(name, 'holdout_') order by all"
    assert store.rows(query, m="late") == store.rows(query, m="whole")
    rows = store.rows("select model, metrics from models where model in ('whole', 'late') order by model")
    assert [json.loads(row["metrics"])["versions"] for row in rows] == [{"reviews": 2}] * 2
    new = teach(store, *OWN, *changes, name="new")
    assert weights_hash(store, "new") != weights_hash(store, "late")
    assert new.steps == late.steps
    row = store.rows("select metrics from models where model = 'new'")[0]
    assert json.loads(row["metrics"])["versions"] == {"reviews": 5}


def test_figures_of_a_run_that_died_before_it_was_registered_are_taken_back(store: Store) -> None:
    stopped(store)
    late = {"model": "late", "step": 20, "epoch": 10.0, "name": "loss", "value": 99.0, "at": dt.datetime.now(dt.UTC)}
    additions.append(store, "metrics", pa.Table.from_pylist([late], METRICS.schema))
    done = teach(store, *OWN, name="late", resume=True)
    rows = store.rows("select step, name, value from metrics where model = 'late' and name = 'loss' order by step")
    assert [row["step"] for row in rows] == [1, 20]
    assert rows[1]["value"] == done.loss


@pytest.mark.long
def test_figures_before_a_checkpoint_are_there_whenever_the_run_dies(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Right before a checkpoint is written, and right after."""
    changes = ["evaluation.every=3"]
    teach(store, *OWN, *changes, name="whole")
    query = "select step, name, value from metrics where model = $m and name not similar to $n order by all"
    want = store.rows(query, m="whole", n="images_per_second|input_bound|loader_.*")
    save = checkpoints.save
    for number, after in ((3, True), (7, False), (8, True)):
        seen = []

        def dies(*arguments: Any, number: int = number, after: bool = after, seen: list[int] = seen) -> None:
            seen.append(arguments[1])
            if len(seen) < number or after:
                save(*arguments)
            if len(seen) == number:
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(checkpoints, "save", dies)
            with pytest.raises(KeyboardInterrupt):
                teach(store, *OWN, *changes, name="late", checkpoint_seconds=0)
        teach(store, *OWN, *changes, name="late", resume=True)
        assert store.rows(query, m="late", n="images_per_second|input_bound|loader_.*") == want
        store.delta("models").delete("model = 'late'")
        store.delta("metrics").delete("model = 'late'")
        shutil.rmtree(store.path / "models" / "late")


@pytest.mark.long
def test_an_unfinished_run_is_not_thrown_away(store: Store, curator: Callable[..., Answer]) -> None:
    stopped(store)
    with pytest.raises(InputError, match="an unfinished run of 'late' has the checkpoint") as caught:
        teach(store, *OWN, name="late")
    assert "--resume" in caught.value.mend
    for changes, options, what in (
        (["seed=1"], {}, "recipe"),
        ([], {"manifest": "m"}, "manifest"),
        ([], {"init": "own"}, "--init"),
        (["schedule.steps=30"], {"manifest": "m"}, "recipe and another manifest"),
    ):
        if "init" in options:
            teach(store, *OWN, "schedule.steps=1", name="own")
        with pytest.raises(InputError, match=f"belongs to a run with another {what}"):
            teach(store, *OWN, *changes, name="late", resume=True, **options)
    (store.root / "labeled" / "bar" / "99.png").write_bytes((store.root / "pool" / "0000.png").read_bytes())
    add_images(store, str(store.root / "labeled"), "labeled")
    with pytest.raises(InputError, match="another set of labeled images"):
        teach(store, *OWN, name="late", resume=True)
    (checkpoint,) = checkpoints.steps(store.path / "models" / "late")
    (checkpoint / "state.pt").write_bytes((checkpoint / "state.pt").read_bytes()[:1000])
    arguments = ["--recipe", store.root / "recipe.toml", "--set", OWN[0], "--store", store.path]
    answer = curator("train", *arguments, "--name", "late", "--resume")
    assert answer.code == 2
    assert "is damaged" in answer.err
    shutil.rmtree(checkpoint)
    teach(store, *OWN, name="late")
    counts = store.rows("select count(*) as n, count(distinct (step, name)) as d from metrics where model = 'late'")[0]
    assert counts["n"] == counts["d"]


def test_ctrl_c(store: Store, curator: Callable[..., Answer]) -> None:
    arguments = ["--recipe", store.root / "recipe.toml", "--set", OWN[0], "--name", "own", "--store", store.path]
    Watched.stop_at = 5
    answer = curator("train", *arguments)
    assert answer.code == 130
    assert "Traceback" not in answer.err
    assert not (store.path / "models" / "own").exists()
    assert curator("train", *arguments, "--resume").code == 0  # nothing was saved yet, so from the beginning


@pytest.mark.long
def test_a_full_disk_keeps_the_last_checkpoint(store: Store) -> None:
    code = """
        import shutil, sys
        from pathlib import Path
        import torch
        from curator.cli import _mendable
        from curator.errors import CuratorError
        from curator.storage.store import Store
        from curator.runs.training import train
        torch.set_num_threads(1)
        disk = Path(sys.argv[1])
        shutil.copytree(sys.argv[2], disk / "world")
        store = Store(disk / "world" / "store")
        options = {"changes": sys.argv[3:], "checkpoint_seconds": 0}
        filler = disk / "filler"
        filler.write_bytes(bytes(shutil.disk_usage(disk).free - 9_000_000))
        folder = store.path / "models" / "full"
        try:
            train(store, str(disk / "world" / "recipe.toml"), name="full", **options)
        except Exception as error:
            print(type(_mendable(error)).__name__, *sorted(file.name for file in folder.iterdir()))
        filler.unlink()
        train(store, str(disk / "world" / "recipe.toml"), name="full", resume=True, **options)
        row = store.rows("select weights_hash from models where model = 'full'")
        print(row[0]["weights_hash"])
    """
    done = on_a_small_disk("40m", code, store.root, "schedule.steps=4")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    teach(store, "schedule.steps=4", name="whole")
    assert done.stdout.splitlines() == ["DiskFull checkpoint-000000001", weights_hash(store, "whole")]
