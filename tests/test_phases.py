"""Phases: which rows at which steps, fine-tuning and pretraining, and stopping and going on anywhere between them."""

import json
import signal
import time

import pytest
import torch
from pictures import OWN, Watched, start, teach, wait_for, weights_hash
from safetensors.torch import load_file

from curator.loading.rows import Rows
from curator.networks import checkpoints, recipes
from curator.noise.augment import Augmentation, CentreCrop
from curator.runs import phases
from curator.storage.store import Store

FINETUNE = ["finetune.resolution=24", "finetune.steps=5", "finetune.learning_rate=1e-3"]
PRETRAIN = ["schedule.mode=pretrain", "schedule.pretrain=0.6"]


@pytest.fixture(scope="module")
def made(taught_once: Store) -> Store:
    return taught_once


def planned(store: Store, *changes: str, manifest: bool = True) -> list[phases.Phase]:
    plan = recipes.load(str(store.root / "recipe.toml"), list(changes))[1]
    return phases.of(plan, Rows.labeled(store), Rows.manifest(store, "m") if manifest else None)


def test_joint_batches_then_larger_ones(made: Store) -> None:
    joint, last = planned(made, *FINETUNE, 'finetune.frozen=["conv1"]', "finetune.labeled_batch=4")
    assert (joint.name, joint.begin, joint.end) == ("training", 0, 20)
    assert [(rows.name.split()[0], count) for rows, count in joint.streams] == [("labeled", 6), ("manifest", 12)]
    assert all(isinstance(noise, Augmentation) and noise.size == 16 for noise in joint.noise)
    assert (last.name, last.begin, last.end, last.learning_rate) == ("fine-tuning", 20, 25, 1e-3)
    assert [(rows.name, count) for rows, count in last.streams] == [("labeled", 4)]
    assert last.noise == [CentreCrop(24, 1.0)]
    assert last.frozen == ("conv1",)
    assert last.seed != joint.seed


def test_pseudo_rows_first(made: Store) -> None:
    first, second = planned(made, *PRETRAIN)
    assert [(p.name, p.begin, p.end) for p in (first, second)] == [("pretraining", 0, 12), ("training", 12, 20)]
    assert [(rows.name.split()[0], count) for rows, count in first.streams] == [("manifest", 12)]
    assert [(rows.name, count) for rows, count in second.streams] == [("labeled", 6)]
    (alone,) = planned(made, *PRETRAIN, manifest=False)
    assert (alone.name, alone.begin, alone.end) == ("training", 0, 20)


@pytest.mark.parametrize(
    ("rows", "kinds"),
    [
        ("all", [Augmentation, Augmentation]),
        ("labeled", [Augmentation, CentreCrop]),
        ("pseudo", [CentreCrop, Augmentation]),
        ("none", [CentreCrop, CentreCrop]),
    ],
)
def test_whose_pictures_are_augmented(made: Store, rows: str, kinds: list[type]) -> None:
    (phase,) = planned(made, f"noise.augment={rows}")
    assert [type(noise) for noise in phase.noise] == kinds


@pytest.mark.long
def test_stopped_anywhere_and_resumed(store: Store) -> None:
    """In each of three phases, at their ends too."""
    changes = [*OWN, *PRETRAIN, *FINETUNE, "noise.dropout=0.2"]
    done = teach(store, *changes, name="whole", manifest="m")
    assert done.steps == 25
    for at in (2, 12, 13, 20, 21, 25):
        Watched.seen.clear()
        Watched.stop_at = at
        with pytest.raises(KeyboardInterrupt):
            teach(store, *changes, name="late", manifest="m", checkpoint_seconds=0)
        Watched.stop_at = -1
        assert teach(store, *changes, name="late", manifest="m", resume=True).steps == 25
        assert weights_hash(store, "late") == weights_hash(store, "whole")
        store.delta("models").delete("model = 'late'")


def test_frozen_layers_are_those_of_the_training(store: Store) -> None:
    more = [*FINETUNE, 'finetune.frozen=["conv1", "bn1", "layer1"]', "average.decay=0"]
    teach(store, "average.decay=0", name="without")
    teach(store, *more, name="with")
    a, b = (load_file(store.path / "models" / name / "weights.safetensors") for name in ("without", "with"))
    same = {name.split(".")[1] for name in a if torch.equal(a[name], b[name])}
    other = {name.split(".")[1] for name in a if not torch.equal(a[name], b[name])}
    assert {"conv1", "bn1", "layer1"} <= same
    assert not {"conv1", "bn1", "layer1"} & other
    assert "fc" in other


@pytest.mark.long
def test_sigterm_saves_and_exits(store: Store) -> None:
    code = """
        import sys
        from curator.cli import main
        main(sys.argv[1:])
    """
    arguments = [
        "train",
        "--recipe",
        store.root / "recipe.toml",
        "--name",
        "late",
        "--store",
        store.path,
        "--manifest",
        "m",
    ]
    folder = store.path / "models" / "late"
    metrics = "select max(step) as n from metrics where model = 'late'"
    with start(code, *arguments, "--set", "schedule.steps=3000") as process:
        wait_for(folder.exists, process)
        time.sleep(4)  # it takes thousands of steps, and the first of them within a second or two
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "go on with --resume" in err
    found = checkpoints.load(folder)
    assert found is not None
    assert 0 < found.step < 3000
    assert store.rows(metrics)[0]["n"] <= found.step
    assert json.dumps(found.state["run"])
