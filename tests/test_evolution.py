"""Evolution: whole plans on the tiny picture world: run, run again, killed, changed, and wrong in many ways."""

import hashlib
import json
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from conftest import Answer
from pictures import RECIPE, start, wait_for, world

from curator.commands import evolve
from curator.curation import account, manifests
from curator.errors import InputError
from curator.rounds import evolution, plans
from curator.storage.store import Store

# A network that starts fast and learns fast enough to tell the classes apart.
FAST = RECIPE.replace("test_resnet", "pictures:Slow").replace("3e-3", "3e-2").replace("steps = 20", "steps = 40")
PLAN = """\
title = "two rounds and a control"

[teacher]
recipe = "recipe.toml"

[selection]
per_class = 12
min_confidence = 0.35

[[rounds]]
recipe = "recipe.toml"
changes = ["noise.flip=0.0"]
selection = { policy = "percentile", settings = { step = 0.4 } }
control = "labels-only"

[[rounds]]
recipe = "recipe.toml"
pseudo_ratio = 3
init = "teacher"
reselect = false
"""
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


def planned(root: Path, text: str = PLAN) -> str:
    """Writes plan and recipe beside the store."""
    (root / "recipe.toml").write_text(FAST, "utf-8")
    (root / "plan.toml").write_text(text, "utf-8")
    return str(root / "plan.toml")


def hashes(store: Store) -> dict[str, str]:
    """What a model and a manifest of each name hold."""
    models = store.rows("select model as name, weights_hash as hash from models")
    built = store.rows("select 'manifest ' || name as name, sha256 as hash from manifests")
    return {row["name"]: row["hash"] for row in [*models, *built]}


def everything(root: Path) -> dict[str, str]:
    """Every file below a folder with the hash of its bytes."""
    files = (path for path in root.rglob("*") if path.is_file())
    return {path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def found(steps: list[evolution.Step], done: bool) -> list[str]:
    return [f"{step.step} {step.name}" for step in steps if step.done is done]


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """More pictures than one batch of labeling takes, and nothing done."""
    root = tmp_path_factory.mktemp("bare")
    world(root, labeled=6, pool=24, holdout=6)
    planned(root)
    return root


@pytest.fixture(scope="module")
def grown(bare: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, evolution.Evolution]:
    """The same world after the plan."""
    root = tmp_path_factory.mktemp("grown") / "world"
    shutil.copytree(bare, root)
    return root, evolution.evolve(Store(root / "store"), str(root / "plan.toml"))


def copy(root: Path, to: Path) -> Store:
    shutil.copytree(root, to / "world")
    return Store(to / "world" / "store")


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


def refused(store: Store, text: str) -> str:
    """What is said against a plan; nothing may be written."""
    before = everything(store.path)
    with pytest.raises(InputError) as error:
        evolution.evolve(store, planned(store.root, text))
    assert everything(store.path) == before
    return str(error.value)


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


def test_a_selection_that_is_taken_again_keeps_what_decides_how_often(bare: Path, tmp_path: Path) -> None:
    """Near leaks that were let in are let in again, or others would be copied more."""
    said = "per_class = 12\nnear_leaks = 'keep'\nfill = 'copies'\nmax_copies = 9\ntemperature = 2.0"
    text = PLAN.replace("per_class = 12", said)
    _, first, again = (g.options for g in plans.load(copy(bare, tmp_path), planned(tmp_path, text))[1])
    kept = {"per_class": 12, "near_leaks": "keep", "fill": "copies", "max_copies": 9, "temperature": 2.0}
    assert first.items() >= kept.items()
    assert {name: again[name] for name in kept} == kept
    assert again["policy"] == "images-of"


def test_all_mistakes_of_a_plan_at_once(bare: Path, tmp_path: Path) -> None:
    text = """\
title = "much is wrong"
colour = "red"

[teacher]
recipe = "tiny-teecher"
model = "nobody"

[selection]
per_class = 12
policy = "threshhold"

[[rounds]]
recipe = "recipe.toml"
changes = ["noise.flip=2", "noise.dropuot=0.1"]
reselect = false
init = "g0-plam"

[[rounds]]
recipe = "recipe.toml"
pseudo_ratio = 0
init = "teacher"
selection.per_class = -1
selection.policy = "top"
name = "a b"

[[rounds]]
pseudo_ratio = "many"
selection.where = "confidense > 0.5"
selection.policy = "top"

[[rounds]]
recipe = "tiny-student"
init = "teacher"
name = "same"
control = "same"
selection.policy = "threshold"
selection.settings = { treshold = 0.9 }
reselect = true

[[rounds]]
recipe = "tiny-student"
selection.per_class = 3
reselect = false
"""
    said = refused(copy(bare, tmp_path), text)
    for line, words in (
        (2, "unknown key 'colour'"),
        (4, "of 'teacher.recipe' and 'teacher.model', both are given: give one"),
        (5, "there is no recipe 'tiny-teecher'; did you mean 'tiny-teacher'?"),
        (6, "'teacher.model' = 'nobody': there is no such model"),
        (13, "has 2 mistakes"),
        (15, "there is no selection before it to take again"),
        (16, "'rounds.0.init' = 'g0-plam': it is neither 'scratch' nor 'teacher', and there is no such model"),
        (20, "'rounds.1.pseudo_ratio': the student takes no pseudo-labeled images"),
        (22, "--per-class -1 is not at least 1"),
        (24, "'a b' cannot be the name of a model"),
        (26, "'rounds.2.recipe' is missing"),
        (27, "'rounds.2.pseudo_ratio' = 'many': should be a whole number"),
        (28, "--where names the unknown column 'confidense'; did you mean 'confidence'?"),
        (34, "another model of the plan has that name"),
        (36, "the policy threshold has no parameter 'treshold'; did you mean 'threshold'?"),
        (42, "'reselect' = false takes an earlier selection again"),
    ):
        told = [each for each in said.splitlines() if each.strip().startswith(f"line {line}: ")]
        assert any(words in each for each in told), (line, words, said)
    assert "'noise.dropuot'; did you mean 'noise.dropout'?" in said
    assert "'noise.flip' = 2" in said


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (PLAN.replace("per_class = 12\n", ""), "'selection.per_class' is missing"),
        (PLAN.replace('recipe = "recipe.toml"\nchanges', 'recipe = "tiny-student"\nchanges'), "do not fit"),
        (
            PLAN.replace("min_confidence", "targets = 'hard'\nmin_confidence"),
            "takes the earlier classes for hard targets",
        ),
        (PLAN.replace('"labels-only"', '"g0-plan"'), "another model of the plan has that name"),
        (PLAN.replace("percentile", "./mine.sql"), "the policy '{root}/mine.sql' cannot be read"),
        (PLAN[: PLAN.index("[[")].replace("[teacher]", "rounds = []\n[teacher]"), "should have at least 1 item"),
        (PLAN[: PLAN.index("[[")].replace("[teacher]", "rounds = 3\n[teacher]"), "'rounds' = 3: should be a list"),
        ("title = ", "is not TOML"),
        ("", "'rounds' is missing"),
        (PLAN.replace("min_confidence", "calibrated = 'yes'\nmin_confidence"), "'selection.calibrated' = 'yes'"),
    ],
)
def test_a_mistake_of_a_plan(bare: Path, tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(InputError) as error:
        plans.load(Store(bare / "store"), planned(tmp_path, text))
    assert words.format(root=tmp_path) in str(error.value)


def test_plans_that_come_with_the_tool(bare: Path) -> None:
    store = Store(bare / "store")
    assert plans.shipped() == ["digits", "noisy-student"]
    for name in plans.shipped():
        models = [generation.model for generation in plans.load(store, name)[1]]
        assert len(models) == 4
    trained = [generation.training for generation in plans.load(store, "noisy-student")[1]]
    networks = [each.recipe.network.architecture for each in trained if each is not None]
    assert ["b7" in networks[0], *("l2" in each for each in networks[1:])] == [True] * 4
    assert [each.recipe.schedule.pseudo_ratio for each in trained[1:] if each is not None] == [14, 14, 28]
    with pytest.raises(InputError, match="there is no plan 'digit'; did you mean 'digits'"):
        plans.load(store, "digit")


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


def test_a_calibrated_selection_without_a_holdout(store: Store, tmp_path: Path) -> None:
    text = PLAN.replace('recipe = "recipe.toml"', 'model = "outside"', 1)
    text = text.replace("min_confidence", "calibrated = true\nmin_confidence")
    with pytest.raises(InputError, match="the store has no holdout to fit a temperature on"):
        plans.load(store, planned(tmp_path, text))


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
