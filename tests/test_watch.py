"""Evaluations on the way: they change nothing in the training, and the best weights are kept, found and chosen."""

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Answer
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import NOISY, OWN, Watched, picture, start, teach, wait_for, weights_hash, write
from safetensors.torch import load_file
from test_ranks import run

from curator.errors import CuratorError, InputError
from curator.measures.evaluation import evaluate_network
from curator.networks import checkpoints, network
from curator.pictures.images import add_images
from curator.runs import watch
from curator.storage.store import Store

EVERY = ["evaluation.every=3"]
BEST = [*EVERY, "evaluation.keep=best"]


@pytest.fixture(scope="module")
def made(taught_once: Store) -> Store:
    return taught_once


def figures(store: Store, model: str, name: str = "holdout_top1") -> dict[int, float]:
    """The figures of a name, by step; none is there twice."""
    rows = store.rows("select step, value from metrics where model = $m and name = $n order by step", m=model, n=name)
    found = {row["step"]: row["value"] for row in rows}
    assert len(found) == len(rows)
    return found


def scripted(monkeypatch: pytest.MonkeyPatch, top1: dict[int, float]) -> None:
    """Gives each evaluation a top-1 by its number: the network's own figures cannot be chosen."""
    count = iter(top1.values())

    def evaluate(*arguments: Any) -> Any:
        return evaluate_network(*arguments)._replace(top1=next(count))

    monkeypatch.setattr(watch, "evaluate_network", evaluate)


@pytest.mark.long
@pytest.mark.parametrize(
    ("kind", "average"),
    [
        (NOISY, "average.decay=0.9"),
        (NOISY, "average.decay=0"),
        ([*OWN, "noise.dropout=0.4", "noise.drop_path=0.3"], "average.decay=0"),
    ],
)
def test_evaluations_change_nothing_in_the_training(store: Store, kind: list[str], average: str) -> None:
    """Weights, BatchNorm statistics, losses and draws of the dropout are those of a run without them, bit for bit."""
    changes = [*kind, average, "schedule.steps=5", "schedule.decay=cosine"]
    zeros = {}
    for name, more in {"without": [], "with": ["evaluation.every=1"]}.items():
        Watched.seen.clear()
        teach(store, *changes, *more, name=name, manifest="m")
        zeros[name] = [count for training, count in Watched.seen if training]
    assert zeros["with"] == zeros["without"]
    assert weights_hash(store, "with") == weights_hash(store, "without")
    assert figures(store, "with", "loss") == figures(store, "without", "loss")
    assert [*figures(store, "with")] == [1, 2, 3, 4, 5]
    assert not figures(store, "without")


def test_frozen_layers_stay_frozen_after_an_evaluation(store: Store) -> None:
    changes = ["schedule.steps=3", "average.decay=0", "finetune.resolution=24", "finetune.steps=4"]
    changes += ["finetune.learning_rate=1e-3", 'finetune.frozen=["conv1", "bn1"]']
    for name, more in {"without": [], "with": ["evaluation.every=1"]}.items():
        teach(store, *changes, *more, name=name)
    assert weights_hash(store, "with") == weights_hash(store, "without")


def test_what_is_evaluated_are_the_weights_that_would_be_registered(store: Store) -> None:
    """Those of a run that ends there: the average, in eval mode."""
    teach(store, *NOISY, "schedule.steps=10", "evaluation.every=4", name="long")
    found = {name: figures(store, "long", f"holdout_{name}") for name in ("top1", "top5", "ece")}
    assert [*found["top1"]] == [4, 8, 10]
    teach(store, *NOISY, "schedule.steps=8", name="short")
    ended = json.loads(store.rows("select metrics from models where model = 'short'")[0]["metrics"])
    assert {name: values[8] for name, values in found.items()} == {name: ended[name] for name in found}
    last = json.loads(store.rows("select metrics from models where model = 'long'")[0]["metrics"])
    assert {name: values[10] for name, values in found.items()} == {name: last[name] for name in found}


@pytest.mark.long
def test_stopped_and_resumed_is_as_never_stopped(store: Store) -> None:
    changes = [*OWN, "noise.dropout=0.3", "schedule.steps=8", *BEST]
    whole = teach(store, *changes, name="whole")
    for at in (3, 4, 8):
        name = f"late{at}"
        Watched.seen.clear()
        Watched.stop_at = at
        with pytest.raises(KeyboardInterrupt):
            teach(store, *changes, name=name, checkpoint_seconds=0)
        Watched.stop_at = -1
        late = teach(store, *changes, name=name, resume=True)
        assert (late.step, late.best_step, late.best_top1) == (whole.step, whole.best_step, whole.best_top1)
        assert weights_hash(store, name) == weights_hash(store, "whole")
        for figure in ("holdout_top1", "holdout_ece", "top1"):
            assert figures(store, name, figure) == figures(store, "whole", figure)
        assert [file.name for file in (store.path / "models" / name).iterdir()] == ["weights.safetensors"]


@pytest.mark.long
def test_killed_and_resumed_knows_the_best(store: Store) -> None:
    changes = [*NOISY, *BEST, "schedule.steps=40", "compute.keep_checkpoints=2"]
    code = """
        import sys, torch
        from curator.storage.store import Store
        from curator.runs.training import train
        torch.set_num_threads(1)
        train(Store(sys.argv[1]), sys.argv[2], "m", "late", changes=sys.argv[3:], checkpoint_seconds=0.02)
    """
    folder = store.path / "models" / "late"
    with start(code, store.path, store.root / "recipe.toml", *changes) as process:
        wait_for(lambda: len(checkpoints.steps(folder)) > 1 and bool(checkpoints.bests(folder)), process)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    late = teach(store, *changes, name="late", manifest="m", resume=True)
    whole = teach(store, *changes, name="whole", manifest="m")
    assert (late.step, late.best_top1) == (whole.step, whole.best_top1)
    assert weights_hash(store, "late") == weights_hash(store, "whole")
    assert figures(store, "late") == figures(store, "whole")


@pytest.mark.long
def test_two_ranks_stay_in_step(store: Store) -> None:
    changes = ["network.architecture=pictures:Slow", "schedule.steps=7", "noise.mixup=0.2"]
    run(store, 2, "without", *changes)
    answer = run(store, 2, "with", *changes, *BEST)
    assert [*figures(store, "with")] == [3, 6, 7]
    assert figures(store, "with", "loss") == figures(store, "without", "loss")
    assert answer["best_top1"] == max(figures(store, "with").values())
    assert answer["step"] == answer["best_step"]
    if answer["step"] == 7:
        assert weights_hash(store, "with") == weights_hash(store, "without")


@pytest.mark.long
def test_the_best_is_registered_where_the_recipe_says_so(
    store: Store, monkeypatch: pytest.MonkeyPatch, curator: Callable[..., Answer]
) -> None:
    """Of equal ones, the first."""
    arguments = ["--recipe", store.root / "recipe.toml", "--store", store.path, "--set", "schedule.steps=12"]
    for change in EVERY:
        arguments += ["--set", change]
    teach(store, "schedule.steps=6", name="short")
    top1 = {3: 0.2, 6: 0.9, 9: 0.9, 12: 0.5}
    scripted(monkeypatch, top1)
    answer = curator("train", *arguments, "--name", "best", "--set", "evaluation.keep=best", "--json")
    assert answer.code == 0, answer.err
    shown = {key: answer.json[key] for key in ("steps", "step", "top1", "best_step", "best_top1")}
    assert shown == {"steps": 12, "step": 6, "top1": 0.9, "best_step": 6, "best_top1": 0.9}
    assert weights_hash(store, "best") == weights_hash(store, "short")
    assert figures(store, "best") == top1
    assert figures(store, "best", "top1") == {12: 0.9}
    known = json.loads(store.rows("select metrics from models where model = 'best'")[0]["metrics"])
    assert (known["steps"], known["step"], known["top1"]) == (12, 6, 0.9)
    assert [file.name for file in (store.path / "models" / "best").iterdir()] == ["weights.safetensors"]
    found, recipe, _ = network.load(store, "best")
    assert evaluate_network(store, found, recipe, "best", 0).images == 6

    scripted(monkeypatch, top1)
    answer = curator("train", *arguments, "--name", "last")
    assert "top-1 50.00% on the holdout; 90.00% at step 6" in answer.out
    folder = store.path / "models" / "last"
    assert sorted(file.name for file in folder.iterdir()) == ["best-000000006", "weights.safetensors"]
    kept, short = (load_file(place) for place in (
        folder / "best-000000006" / "network.safetensors", store.path / "models" / "short" / "weights.safetensors"
    ))  # fmt: skip
    assert all(torch.equal(kept[name], tensor) for name, tensor in short.items())
    assert weights_hash(store, "last") != weights_hash(store, "short")
    monkeypatch.undo()
    teach(store, "schedule.steps=1", name="begun", init=str(folder / "best-000000006" / "network.safetensors"))

    scripted(monkeypatch, top1)
    answer = curator("train", *arguments, "--name", "again", "--set", "evaluation.keep=best")
    assert "12 steps, top-1 90.00% on the holdout, which chose the weights of step 6 and so flatters them" in answer.out


def test_last_weights_that_are_the_best_are_kept_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for keep in ("last", "best"):
        scripted(monkeypatch, {3: 0.2, 6: 0.3})
        done = teach(store, "schedule.steps=6", *EVERY, f"evaluation.keep={keep}", name=keep)
        monkeypatch.undo()
        assert (done.step, done.best_step) == (6, 6)
        assert [file.name for file in (store.path / "models" / keep).iterdir()] == ["weights.safetensors"]


@pytest.mark.long
@pytest.mark.parametrize("phases", [[], ["schedule.mode=pretrain", "schedule.pretrain=0.375"]])
def test_an_evaluation_gives_way_to_a_stop_and_is_made_up_for(
    store: Store, phases: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of a phase, and at its end."""
    changes = [*OWN, *EVERY, "schedule.steps=8", *phases]
    whole = teach(store, *changes, name="whole", manifest="m")
    real = watch.evaluate_network

    def stopping(*arguments: Any) -> Any:
        signal.raise_signal(signal.SIGTERM)
        return real(*arguments)

    monkeypatch.setattr(watch, "evaluate_network", stopping)
    with pytest.raises(KeyboardInterrupt):
        teach(store, *changes, name="late", manifest="m")
    found = checkpoints.load(store.path / "models" / "late")
    assert found is not None
    assert found.step == 3
    assert not figures(store, "late")
    with pytest.raises(KeyboardInterrupt):  # once more, while it is made up for
        teach(store, *changes, name="late", manifest="m", resume=True)
    assert not figures(store, "late")
    monkeypatch.undo()
    late = teach(store, *changes, name="late", manifest="m", resume=True)
    assert late.best_top1 == whole.best_top1
    assert figures(store, "late") == figures(store, "whole")
    assert weights_hash(store, "late") == weights_hash(store, "whole")


def test_the_progress_line(store: Store, monkeypatch: pytest.MonkeyPatch, curator: Callable[..., Answer]) -> None:
    from curator import progress

    monkeypatch.setattr(progress, "_LINE_EVERY_S", 0.0)
    scripted(monkeypatch, {3: 0.5, 6: 0.25, 8: 0.1})
    arguments = ["--recipe", store.root / "recipe.toml", "--store", store.path, "--name", "a", "--set"]
    answer = curator("train", *arguments, "schedule.steps=8", "--set", EVERY[0])
    lines = [line for line in answer.err.splitlines() if line.startswith("training a: ") and " of 8 steps" in line]
    said = {int(line.split()[2]): line.partition("images/s")[2] for line in lines}
    assert said[2] == ""
    assert said[3] == said[5] == ", holdout top-1 50.00% (best 50.00% at step 3)"
    assert said[6] == said[8] == ", holdout top-1 25.00% (best 50.00% at step 3)"
    assert answer.err.count("evaluating a") <= 1  # only the last has a bar of its own


def test_what_cannot_be(store: Store) -> None:
    with pytest.raises(InputError, match=r"'evaluation.keep' = 'best' needs an 'evaluation.every' above 0"):
        teach(store, "evaluation.keep=best", name="x")
    with pytest.raises(InputError, match=r"'evaluation.every' = -1: should be at least 0"):
        teach(store, "evaluation.every=-1", name="x")
    with pytest.raises(InputError, match=r"'evaluation.keep' = 'first': should be 'last' or 'best'"):
        teach(store, "evaluation.keep=first", name="x")
    store.delta("images").delete("split = 'holdout'")
    with pytest.raises(InputError, match=r"every = 3, and the store has no holdout images\n  mend: curator add-images"):
        teach(store, *EVERY, name="x")
    assert not (store.path / "models" / "x").exists()
    assert teach(store, "schedule.steps=1", name="x").top1 is None


def test_a_holdout_that_cannot_be_read_does_not_end_the_run(store: Store) -> None:
    shutil.rmtree(store.root / "holdout")
    done = teach(store, *OWN, *BEST, "schedule.steps=4", name="x")
    assert (done.top1, done.step, done.best_step) == (None, 4, None)
    assert not figures(store, "x")


def test_weights_that_are_no_numbers_end_the_run_at_their_evaluation(store: Store) -> None:
    changes = ["optimizer.name=sgd", "optimizer.learning_rate=1e30", "average.decay=0", "evaluation.every=1"]
    with pytest.raises(CuratorError, match="the network gives NaN for"):
        teach(store, *OWN, *changes, name="wild")


def test_another_holdout_is_another_run(store: Store) -> None:
    Watched.stop_at = 5
    with pytest.raises(KeyboardInterrupt):
        teach(store, *OWN, *EVERY, name="late", checkpoint_seconds=0)
    Watched.stop_at = -1
    write(store.root / "holdout" / "bar" / "more.png", picture(0, 77))
    add_images(store, str(store.root / "holdout"), "holdout")
    with pytest.raises(InputError, match="belongs to a run with another holdout"):
        teach(store, *OWN, *EVERY, name="late", resume=True)


def test_a_run_from_the_beginning_forgets_an_earlier_best(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = store.path / "models" / "x"
    folder.mkdir()
    checkpoints.save_best(folder, 4, {"w": torch.ones(1)}, {"top1": 1.0, "top5": 1.0, "ece": 0.0})
    scripted(monkeypatch, {3: 0.1, 4: 0.05})
    done = teach(store, *OWN, *BEST, "schedule.steps=4", name="x")
    assert (done.step, done.best_top1) == (3, 0.1)


WEIGHTS = {"w": torch.ones(2)}


@settings(max_examples=60, deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=12), st.integers(1, 3))
def test_the_best_of_every_checkpoint_that_is_kept_is_there(made: Store, is_best: list[bool], keep: int) -> None:
    """Steps are new bests, or checkpoints; after each, any checkpoint can be gone on from with what it knew."""
    folder = made.root / "scratch"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    best, known = 0, {}
    for step, new in enumerate(is_best, start=1):
        if new:
            checkpoints.save_best(folder, step, WEIGHTS, {"top1": step / 100})
            best = step
        else:
            checkpoints.save(folder, step, {}, {}, keep)
            known[step] = best
        there = {int(place.name[-9:]) for place in checkpoints.bests(folder)}
        kept = [*known.values()][-keep:]
        assert there == {*kept, best} - {0}
    if known:
        last = [*known][-1]
        checkpoints.take_back(folder, last)
        found = checkpoints.load_best(folder)
        assert (found and found.step) == (known[last] or None)
        assert found is None or found.state == {"top1": known[last] / 100}
    checkpoints.remove(folder)
    assert not [*folder.iterdir()]


def test_damaged_best_weights_are_named(tmp_path: Path) -> None:
    place = checkpoints.save_best(tmp_path, 5, WEIGHTS, {"top1": 0.5})
    assert sorted(file.name for file in place.iterdir()) == ["hashes.json", "network.safetensors", "state.pt"]
    data = bytearray((place / "network.safetensors").read_bytes())
    data[-1] ^= 1
    (place / "network.safetensors").write_bytes(data)
    with pytest.raises(InputError, match=f"the best weights at {place} are damaged") as caught:
        checkpoints.load_best(tmp_path)
    assert caught.value.mend.startswith(f"rm -r {place}")
    checkpoints.remove(tmp_path, best=False)
    assert place.exists()
