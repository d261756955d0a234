"""Evolution: whole plans on the tiny picture world: run, run again, killed and changed."""

import json
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from conftest import Answer
from pictures import start, wait_for
from rounds import PLAN, copy, everything, planned, refused, undone

from curator.commands import evolve
from curator.curation import account, manifests
from curator.rounds import evolution
from curator.storage.store import Store

STEPS = [
    *["train g0-plan", "label g0-plan", "build-manifest g0-plan", "train g1-plan", "train labels-only"],
    *["label g1-plan", "build-manifest g1-plan", "train g2-plan"],
]
KILLED = """
    import sys, torch
    from curator.rounds import evolution
    from curator.storage.store import Store
    torch.set_num_threads(1)
    evolution.evolve(Store(sys.argv[1]), sys.argv[2], checkpoint_seconds=0.02, part_seconds=0)
"""


def hashes(store: Store) -> dict[str, str]:
    """What a model and a manifest of each name hold."""
    models = store.rows("select model as name, weights_hash as hash from models")
    built = store.rows("select 'manifest ' || name as name, sha256 as hash from manifests")
    return {row["name"]: row["hash"] for row in [*models, *built]}


def found(steps: list[evolution.Step], done: bool) -> list[str]:
    return [f"{step.step} {step.name}" for step in steps if step.done is done]


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return undone(tmp_path_factory.mktemp("bare"))


@pytest.fixture(scope="module")
def grown(bare: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, evolution.Evolution]:
    """The same world after the plan."""
    root = tmp_path_factory.mktemp("grown") / "world"
    shutil.copytree(bare, root)
    return root, evolution.evolve(Store(root / "store"), str(root / "plan.toml"))


def test_the_loop(grown: tuple[Path, evolution.Evolution]) -> None:
    root, done = grown
    store = Store(root / "store")
    assert done.plan == "plan"
    assert found(done.steps, False) == STEPS
    rows = {row["model"]: row for row in store.rows("select * from models")}
    generations = {name: row["generation"] for name, row in rows.items()}
    assert generations == {"g0-plan": 0, "g1-plan": 1, "labels-only": 0, "g2-plan": 2}
    for number, figures in enumerate(done.generations):
        row, kept = rows[f"g{number}-plan"], json.loads(rows[f"g{number}-plan"]["metrics"])
        assert figures["generation"] == row["generation"] == number
        assert figures["model"] == row["model"]
        assert figures["parents"] == row["parents"] == ([f"g{number - 1}-plan"] if number else [])
        assert figures["manifest"] == row["manifest"] == (f"g{number - 1}-plan" if number else None)
        assert (figures["top1"], figures["ece"]) == (kept["top1"], kept["ece"])
        assert figures["top1_low"] < figures["top1"] <= figures["top1_high"]
        assert figures["seconds"] > 0
        if number:
            manifest = manifests.find(store, figures["manifest"])
            assert manifest.lineage["model"]["model"] == f"g{number - 1}-plan"
            assert (figures["rows"], figures["unique_images"]) == (manifest.rows, manifest.unique_images)
            assert figures["precision"] * figures["precision_images"] == account.precision(manifest)[0] > 0
    assert [figures["control"] for figures in done.generations] == [None, "labels-only", None]
    (control,) = done.controls
    assert control["steps"] == done.generations[1]["steps"] == 40
    assert rows["labels-only"]["recipe"] == rows["g1-plan"]["recipe"]
    assert rows["labels-only"]["manifest"] is None
    assert json.loads(rows["g1-plan"]["recipe"])["noise"]["flip"] == 0
    assert json.loads(rows["g2-plan"]["recipe"])["schedule"]["pseudo_ratio"] == 3
    first, again = (manifests.find(store, f"g{number}-plan").lineage["parameters"] for number in (0, 1))
    assert (first["policy"], first["settings"], first["min_confidence"]) == ("percentile", {"step": 0.4}, 0.35)
    assert (again["policy"], again["settings"]) == ("images-of", {"manifest": "g0-plan"})
    assert max(figures["top1"] for figures in done.generations) > 0.5


def test_images_of_an_earlier_selection_with_new_labels(grown: tuple[Path, evolution.Evolution]) -> None:
    folder = grown[0] / "store" / "manifests"
    first, again = (
        sorted(pq.read_table(folder / name).to_pylist(), key=lambda row: row["image_id"])
        for name in ("g0-plan", "g1-plan")
    )
    kept = ("image_id", "uri", "label", "copies", "weight")
    assert [[row[key] for key in kept] for row in again] == [[row[key] for key in kept] for row in first]
    assert max(row["copies"] for row in first) > min(row["copies"] for row in first), "the world has no short class"
    assert {row["generation"] for row in again} == {1}
    assert [row["top_probs"] for row in again] != [row["top_probs"] for row in first]
    labels = Store(grown[0] / "store").rows("select image_id, top_probs from labels where generation = 1")
    by_image = {row["image_id"]: row["top_probs"] for row in labels}
    assert all(row["top_probs"] == by_image[row["image_id"]] for row in again)
    assert len(first) < len(labels)
    assert all(verdict.ok for verdict in manifests.check(Store(grown[0] / "store")))


def test_run_again_it_does_nothing(
    grown: tuple[Path, evolution.Evolution], tmp_path: Path, curator: Callable[..., Answer]
) -> None:
    store = copy(grown[0], tmp_path)
    before = everything(store.path)
    answer = curator("evolve", "--plan", tmp_path / "world" / "plan.toml", "--store", store.path, "--json")
    assert answer.code == 0, answer.err
    assert everything(store.path) == before
    assert answer.err.count("done before") == len(STEPS)
    assert answer.json["generations"] == [figures | {"seconds": 0.0} for figures in grown[1].generations]
    assert all(step["done"] for step in answer.json["steps"])
    table = evolve._table(grown[1])
    assert [line.split()[:3] for line in table.splitlines()[2:]] == [
        *([str(number), f"g{number}-plan", "recipe"] for number in range(3)),
        ["control", "labels-only", "recipe"],
    ]


def test_a_dry_run_writes_nothing(bare: Path, tmp_path: Path, curator: Callable[..., Answer]) -> None:
    store = copy(bare, tmp_path)
    before = everything(tmp_path)
    call = ("evolve", "--plan", tmp_path / "world" / "plan.toml", "--store", store.path, "--dry-run")
    answer = curator(*call)
    assert answer.code == 0, answer.err
    assert everything(tmp_path) == before
    assert answer.out.count("to do") == len(STEPS) + 1
    assert [f"{step['step']} {step['name']}" for step in curator(*call, "--json").json["steps"]] == STEPS


@pytest.mark.long
def test_killed_twice_it_goes_on_to_the_same_models(
    grown: tuple[Path, evolution.Evolution], tmp_path: Path, curator: Callable[..., Answer]
) -> None:
    store = copy(grown[0], tmp_path)
    plan = tmp_path / "world" / "plan.toml"
    _take_back(store)
    with _killed(store, plan, lambda: any((store.path / "labels").glob("g001-*/part-*"))):
        assert not store.rows("select 1 from labels where generation = 1")
        assert found(evolution.evolve(store, str(plan), dry_run=True).steps, False) == STEPS[5:]
    with _killed(store, plan, lambda: any((store.path / "models" / "g2-plan").glob("checkpoint-*"))):
        assert found(evolution.evolve(store, str(plan), dry_run=True).steps, False) == STEPS[7:]
    answer = curator("evolve", "--plan", plan, "--store", store.path)
    assert answer.code == 0, answer.err
    assert "going on at step" in answer.err
    assert hashes(store) == hashes(Store(grown[0] / "store"))


def _take_back(store: Store) -> None:
    """Makes a store forget what came after the training of the second model."""
    store.delta("models").delete("model = 'g2-plan'")
    store.delta("manifests").delete("name = 'g1-plan'")
    store.delta("labels").delete("generation = 1")
    for folder in (store.path / "models" / "g2-plan", store.path / "manifests" / "g1-plan"):
        shutil.rmtree(folder)
    for folder in (store.path / "labels").glob("g001-*"):
        shutil.rmtree(folder)


@contextmanager
def _killed(store: Store, plan: Path, reached: Callable[[], bool]) -> Iterator[None]:
    """Runs a plan in a process of its own, with a slow network, and kills it where it has reached something."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLOW_SECONDS", "0.1")
        with start(KILLED, store.path, plan) as process:
            wait_for(reached, process)
            process.send_signal(signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL
    assert reached(), "nothing was left to go on from"
    yield


def test_a_changed_plan_is_refused(grown: tuple[Path, evolution.Evolution], tmp_path: Path) -> None:
    store = copy(grown[0], tmp_path)
    changed = PLAN.replace("noise.flip=0.0", "noise.flip=0.25").replace("step = 0.4", "step = 0.5")
    said = refused(store, changed.replace('init = "teacher"\n', ""))
    assert [line.strip() for line in said.splitlines()[1:-1]] == [
        "build-manifest g0-plan: settings {'step': 0.4} -> {'step': 0.5}",
        "train g1-plan: noise.flip 0.0 -> 0.25",
        "train labels-only: noise.flip 0.0 -> 0.25",
        "train g2-plan: init g1-plan -> None",
    ]
    assert "put the plan back as it was" in said
    # The last student under another name is another model, and nothing stands against it.
    another = PLAN.replace("pseudo_ratio = 3", 'pseudo_ratio = 4\nname = "wider"')
    assert found(evolution.evolve(store, planned(store.root, another), dry_run=True).steps, False) == ["train wider"]
    # A generation has one teacher.
    assert "generation 0 was labeled by the model 'g0-plan'" in refused(store, 'name = "new"\n' + PLAN)


CALIBRATED = """\
title = "calibrated, and with what else build-manifest offers"
name = "sure"

[teacher]
model = "g1-plan"

[selection]
per_class = 12
min_confidence = 0.35
calibrated = true
dedup = true
accepted = true
near_leaks = "keep"

[[rounds]]
recipe = "recipe.toml"
"""


@pytest.mark.long
def test_a_calibrated_selection_and_event_files(
    grown: tuple[Path, evolution.Evolution], tmp_path: Path, curator: Callable[..., Answer]
) -> None:
    """The temperature of the round's teacher is fitted before its labels are selected from."""
    store = copy(grown[0], tmp_path)
    plan, events = planned(store.root, CALIBRATED), tmp_path / "events"
    call = ("evolve", "--plan", plan, "--store", store.path, "--tensorboard", events, "--json")
    answer = curator(*call)
    assert answer.code == 0, answer.err
    steps = [f"{step['step']} {step['name']}" for step in answer.json["steps"]]
    assert steps == ["label g1-plan", "calibrate g1-plan", "build-manifest g1-sure", "train g2-sure"]
    assert [step["done"] for step in answer.json["steps"]] == [True, False, False, False]
    (fitted,) = store.rows("select model, generation, temperature from calibrations")
    assert (fitted["model"], fitted["generation"]) == ("g1-plan", 1)
    said = manifests.find(store, "g1-sure").lineage["parameters"]
    assert said["calibration"] == fitted["temperature"]
    assert (said["dedup"], said["accepted"], said["near_leaks"]) == (True, True, "keep")
    assert [place.name for place in events.iterdir()] == ["g2-sure"]
    assert [*(events / "g2-sure").glob("events.out.tfevents.*")]
    before = everything(store.path)
    again = curator(*call)
    assert all(step["done"] for step in again.json["steps"])
    assert everything(store.path) == before
    # the other way about, the manifest that is there was built otherwise
    uncalibrated = CALIBRATED.replace("calibrated = true\n", "")
    assert f"calibration {fitted['temperature']} -> None" in refused(store, uncalibrated)
    text = PLAN.replace("per_class = 12", "per_class = 12\ncalibrated = true")
    assert "build-manifest g0-plan: calibrated False -> True" in refused(store, text)


def test_a_first_teacher_from_outside(store: Store, tmp_path: Path) -> None:
    """Its labels came by import-labels, and it has no weights."""
    text = PLAN.replace('recipe = "recipe.toml"', 'model = "outside"', 1)
    done = evolution.evolve(store, planned(tmp_path, text[: text.rindex("[[rounds]]")]), dry_run=True)
    assert found(done.steps, True) == ["label outside"]
    assert found(done.steps, False) == ["build-manifest g0-plan", "train g1-plan", "train labels-only"]
    assert [figures["parents"] for figures in done.generations] == [[], ["outside"]]
    assert [figures["generation"] for figures in done.generations] == [0, 1]
    assert done.generations[0]["top1"] is None


def test_a_first_teacher_that_the_store_has(grown: tuple[Path, evolution.Evolution], tmp_path: Path) -> None:
    """A plan may begin with any generation, here with one that is labeled already."""
    store = copy(grown[0], tmp_path)
    text = PLAN.replace('recipe = "recipe.toml"', 'model = "g1-plan"', 1)
    plan = planned(
        store.root, 'name = "more"\n' + text[: text.rindex("[[rounds]]")].replace('control = "labels-only"', "")
    )
    done = evolution.evolve(store, plan, dry_run=True)
    assert found(done.steps, True) == ["label g1-plan"]
    assert found(done.steps, False) == ["build-manifest g1-more", "train g2-more"]
    assert [figures["generation"] for figures in done.generations] == [1, 2]
