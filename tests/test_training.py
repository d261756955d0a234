"""Training: the same run gives the same weights; what is saved, registered and refused."""

import json
import re
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Answer
from pictures import NOISY, OWN, Watched, teach, weights_hash
from safetensors.torch import load_file

from curator.commands import models
from curator.curation import building
from curator.delivery import packing
from curator.delivery.shards import Form
from curator.errors import CuratorError, InputError
from curator.loading import loader
from curator.loading.rows import Rows
from curator.storage.store import Store
from curator.teachers.labeling import label


@pytest.fixture(scope="module")
def made(taught_once: Store) -> Store:
    return taught_once


def weights(store: Store, model: str) -> dict[str, torch.Tensor]:
    return load_file(store.path / "models" / model / "weights.safetensors")


def row(store: Store, model: str) -> dict[str, Any]:
    return store.rows("select * from models where model = $m", m=model)[0]


@pytest.mark.long
def test_the_same_run_gives_the_same_weights(store: Store) -> None:
    for name in ("a", "b"):
        teach(store, *NOISY, name=name, manifest="m", threads=1 if name == "a" else 3)
    teach(store, *NOISY, "seed=1", name="c", manifest="m")
    assert weights_hash(store, "a") == weights_hash(store, "b")
    assert weights_hash(store, "a") != weights_hash(store, "c")


def test_noise_is_on_in_training_and_off_elsewhere(store: Store) -> None:
    teach(store, *OWN, "noise.dropout=0.5", "noise.drop_path=0.5", name="own")
    store.delta("labels").delete()
    label(store, "own")
    training = [zeros for is_training, zeros in Watched.seen if is_training]
    evaluation = [zeros for is_training, zeros in Watched.seen if not is_training]
    assert len(training) == 20
    assert all(20 < zeros < 80 for zeros in training)  # of 100, half on average
    assert len(set(training)) > 5
    assert evaluation
    assert not any(evaluation)


def test_dropout_and_stochastic_depth_of_a_timm_network_change_the_training(made: Store, store: Store) -> None:
    for name, changes in {"plain": [], "drop": ["noise.dropout=0.5"], "path": ["noise.drop_path=0.5"]}.items():
        teach(store, "schedule.steps=3", *changes, name=name)
    assert len({weights_hash(store, name) for name in ("plain", "drop", "path")}) == 3


def test_the_average_is_what_is_saved(store: Store) -> None:
    """The raw weights after 1 .. 4 steps, averaged by hand, are what a run of 4 steps with an average saves."""
    for steps in range(1, 5):
        teach(store, f"schedule.steps={steps}", "average.decay=0", name=f"raw{steps}")
    teach(store, "schedule.steps=4", "average.decay=0.9", "average.warmup=false", name="averaged")
    raw = [weights(store, f"raw{steps}") for steps in range(1, 5)]
    average = weights(store, "averaged")
    assert not all(torch.equal(average[name], raw[-1][name]) for name in average)
    for name in average:
        if average[name].is_floating_point():
            expected = raw[0][name].double()
            for later in raw[1:]:
                # timm's first two updates take the weights as they are
                expected = later[name] if later is raw[1] else 0.9 * expected + 0.1 * later[name]
            torch.testing.assert_close(average[name].double(), expected.double(), rtol=1e-5, atol=1e-6)


def test_a_student(store: Store, curator: Callable[..., Answer]) -> None:
    done = teach(store, name=None, manifest="m")  # type: ignore[arg-type]
    assert (done.model, done.generation, done.steps) == ("g1-recipe", 1, 20)
    found = row(store, "g1-recipe")
    assert (found["generation"], found["parents"], found["manifest"]) == (1, ["teacher"], "m")
    assert row(store, "teacher")["parents"] == []
    assert row(store, "teacher")["manifest"] is None
    assert json.loads(found["recipe"])["schedule"]["pseudo_ratio"] == 2
    label(store, "g1-recipe", ["unlabeled"])
    building.build(store, "n", {"per_class": 2, "min_confidence": 0.1})
    assert teach(store, "schedule.steps=1", name="third", manifest="n").generation == 2


def test_soft_labels_are_sharpened_by_the_manifests_temperature(store: Store) -> None:
    """One step over everything, without noise: the first loss depends on the targets alone."""
    losses = {}
    for name, options in {"one": {}, "other": {"seed": 1}, "sharp": {"temperature": 0.5}}.items():
        rows = building.build(store, name, {"per_class": 12, "min_confidence": 0.1} | options).rows
        everything = ["schedule.labeled_batch=12", f"schedule.pseudo_ratio={rows // 12}", "schedule.steps=1"]
        plain = ["noise.crop_scale=[1, 1]", "noise.crop_ratio=[1, 1]", "noise.flip=0"]
        losses[name] = teach(store, *OWN, *everything, *plain, name=name, manifest=name).loss
    assert losses["one"] == pytest.approx(losses["other"], rel=1e-5)
    assert losses["one"] != pytest.approx(losses["sharp"], rel=1e-3)


def test_the_command_line(store: Store, curator: Callable[..., Answer]) -> None:
    arguments = ["--recipe", store.root / "recipe.toml", "--set", "schedule.steps=3", "--store", store.path]
    answer = curator("train", *arguments, "--manifest", "m", "--name", "student", "--json")
    assert answer.code == 0
    document = answer.json
    assert document.keys() >= {"model", "generation", "steps", "top1", "images_per_second"}
    assert (document["model"], document["generation"], document["steps"]) == ("student", 1, 3)
    assert 0 <= document["top1"] <= 1
    assert document["images_per_second"] > 0
    assert "test_resnet, 0.37M parameters, cpu, float32" in answer.err
    assert "training student: 3 steps of 18 images (6 labeled, 12 manifest) at 16 px" in answer.err
    answer = curator("train", *arguments, "--name", "another")
    assert answer.code == 0
    assert answer.out.startswith("model 'another', generation 0: 3 steps, top-1 ")
    answer = curator("train", *arguments, "--name", "fourth", "--threads", "0")
    assert answer.code == 2


def test_figures_are_in_the_store(store: Store) -> None:
    done = teach(store, "schedule.steps=60", "schedule.warmup_steps=10", name="long")
    rows = store.rows("select step, epoch, name, value from metrics where model = 'long' order by step, name")
    assert [(r["step"], r["name"]) for r in rows] == [
        (1, "learning_rate"), (1, "loss"), (51, "learning_rate"), (51, "loss"), (60, "ece"), (60, "images_per_second"),
        (60, "input_bound"), (60, "learning_rate"), (60, "loader_augment"), (60, "loader_collate"),
        (60, "loader_decode"), (60, "loader_read"), (60, "loss"), (60, "top1"), (60, "top5"),
    ]  # fmt: skip
    assert [r["value"] for r in rows if r["name"] == "learning_rate"] == pytest.approx([3e-5, 3e-3, 3e-3])
    assert [r["epoch"] for r in rows if r["name"] == "loss"] == pytest.approx([0.5, 25.5, 30])
    loss = [r["value"] for r in rows if r["name"] == "loss"]
    assert loss[0] > loss[-1] == done.loss
    assert json.loads(row(store, "long")["metrics"])["top1"] == done.top1


@pytest.mark.long
def test_starting_from_another_models_weights(store: Store) -> None:
    nothing = ["schedule.steps=1", "optimizer.learning_rate=1e-12", "average.decay=0"]
    teach(store, *nothing, name="warm", init="teacher")
    warm, teacher = weights(store, "warm"), weights(store, "teacher")
    for name in warm:
        if "running" not in name and "num_batches" not in name:
            torch.testing.assert_close(warm[name], teacher[name], rtol=0, atol=1e-9)
    assert row(store, "warm")["parents"] == ["teacher"]
    teach(store, *nothing, name="both", init="warm", manifest="m")
    assert row(store, "both")["parents"] == ["teacher", "warm"]
    teach(store, *nothing, name="same", init="teacher", manifest="m")
    assert row(store, "same")["parents"] == ["teacher"]
    assert [row(store, name)["generation"] for name in ("warm", "both", "same")] == [0, 1, 1]
    teach(store, *nothing, name="finetuned", init="both")
    assert row(store, "finetuned")["generation"] == 1
    with pytest.raises(InputError, match="the weights of 'teacher' do not fit the architecture 'test_efficientnet'"):
        teach(store, "network.architecture=test_efficientnet", name="x", init="teacher")
    with pytest.raises(InputError, match="there is no model 'techer'; did you mean 'teacher'"):
        teach(store, name="x", init="techer")
    assert not (store.path / "models" / "x").exists()


def test_a_name_is_taken_once(store: Store) -> None:
    before = weights_hash(store, "teacher")
    with pytest.raises(InputError, match="the model 'teacher' exists\n  mend: give another --name"):
        teach(store, "seed=1")
    with pytest.raises(InputError, match="the model 'teacher' exists and is finished"):
        teach(store, resume=True)
    with pytest.raises(InputError, match="'a/b' cannot be the name of a model"):
        teach(store, name="a/b")
    assert weights_hash(store, "teacher") == before
    assert len(store.rows("select 1 from models")) == 1


def test_a_loss_that_is_not_finite_stops_the_run(store: Store, curator: Callable[..., Answer]) -> None:
    arguments = ["--recipe", store.root / "recipe.toml", "--name", "wild", "--store", store.path]
    answer = curator("train", *arguments, "--set", "optimizer.learning_rate=1e30")
    assert answer.code == 2
    assert answer.out == ""
    assert "Traceback" not in answer.err
    said = answer.err.splitlines()[-2]
    assert said.startswith("error: the loss of step ")
    assert " is nan at learning rate 1e+30; image_ids of the batch begin with " in said
    ids = {str(r["image_id"]) for r in store.rows("select image_id from images where split = 'labeled'")}
    assert set(said.rsplit(" with ")[1].split(", ")) <= ids
    assert not store.rows("select 1 from models where model = 'wild'")
    assert not store.rows("select 1 from metrics where model = 'wild'")
    assert not (store.path / "models" / "wild").exists()


def test_a_last_step_that_ruins_the_weights_registers_nothing(store: Store) -> None:
    changes = ["schedule.steps=1", "average.decay=0"]
    with pytest.raises(CuratorError, match="the network gives NaN for"):
        teach(store, *changes, "optimizer.learning_rate=1e30", name="wild")
    store.delta("images").delete("split = 'holdout'")  # now nobody looks at the answers
    changes += ["optimizer.name=sgd", "optimizer.weight_decay=1e3", "optimizer.learning_rate=1e38"]
    with pytest.raises(CuratorError, match="the last step left weights that are not finite"):
        teach(store, *changes, name="wild")
    assert not store.rows("select 1 from models where model = 'wild'")


def test_missing_inputs(store: Store, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no manifest 'mm'"):
        teach(store, name="x", manifest="mm")
    with pytest.raises(InputError, match=r"takes no pseudo-labeled images\n  mend: --set schedule.pseudo_ratio=1"):
        teach(store, "schedule.pseudo_ratio=0", name="x", manifest="m")
    with pytest.raises(InputError, match="the warm-up of 50 steps is as long as the run of 2 steps"):
        teach(store, "schedule.epochs=1", "schedule.warmup_steps=50", name="x")
    empty = Store.create(tmp_path / "empty")
    (tmp_path / "recipe.toml").write_bytes((store.root / "recipe.toml").read_bytes())
    with pytest.raises(InputError, match="the store has no classes yet"):
        teach(empty)
    empty.define_classes(["a", "b"])
    with pytest.raises(InputError, match="there are no labeled images to train on"):
        teach(empty)
    assert not (store.path / "models" / "x").exists()


def test_epochs_are_passes_over_the_labeled_images(store: Store) -> None:
    assert teach(store, *OWN, "schedule.epochs=3", name="x").steps == 6  # 3 passes of 12 images in batches of 6


def test_threads_are_what_was_asked_for(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    class Noted(ThreadPoolExecutor):
        # an executor starts a thread only where none is idle, so the threads alive say less than what was asked for
        def __init__(self, workers: int, *more: object) -> None:
            asked.append(workers)
            super().__init__(workers, *more)

    monkeypatch.setattr(loader, "ThreadPoolExecutor", Noted)
    for threads in (1, 3):
        teach(store, *OWN, name=f"t{threads}", threads=threads)
    assert asked == [1, 3]


def test_a_run_says_where_its_images_come_from_and_who_sets_the_pace(
    store: Store, curator: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    packing.pack(store, None, Form(16, 90))
    arguments = ["--recipe", store.root / "recipe.toml", "--set", OWN[0], "--store", store.path]
    monkeypatch.setattr(models, "_INPUT_BOUND", -1.0)
    answer = curator("train", *arguments, "--name", "a")
    assert "12 of 12 images are read from the pack 16-q90" in answer.err
    assert re.search(
        r"waiting for images: the loader sets the pace \(read \d+%, decode \d+%, augment \d+%, c", answer.out
    )
    assert json.loads(row(store, "a")["metrics"])["pack"] == "16-q90"
    monkeypatch.setattr(models, "_INPUT_BOUND", 1.0)
    answer = curator("train", *arguments, "--name", "b", "--pack", "none")
    assert "pack" not in answer.err
    assert answer.out.strip().endswith("of the time spent waiting for images")
    assert weights_hash(store, "a") != weights_hash(store, "b")
    answer = curator("train", *arguments, "--name", "c", "--pack", "32-q90")
    assert answer.code == 2
    assert "there is no pack '32-q90'" in answer.err


def test_an_unreadable_image_is_named(store: Store, curator: Callable[..., Answer]) -> None:
    (store.root / "labeled" / "disc" / "1.png").write_bytes(b"no picture")
    arguments = ["--recipe", store.root / "recipe.toml", "--set", OWN[0], "--store", store.path]
    answer = curator("train", *arguments, "--json", "--name", "a")
    assert answer.code == 0
    assert answer.json["failed"] == 1
    image_id = store.rows("select image_id from images where uri = 'labeled/disc/1.png'")[0]["image_id"]
    assert answer.json["problems"] == [f"image {image_id}, labeled/disc/1.png: not an image"]
    assert f"not readable, left out: image {image_id}, labeled/disc/1.png" in answer.err
    figures = store.rows("select name, value from metrics where model = 'a' and name like 'unreadable%'")
    assert figures == [{"name": f"unreadable:{image_id}", "value": 1}]
    shutil.rmtree(store.root / "labeled")
    answer = curator("train", *arguments, "--name", "b")
    assert answer.code == 2
    assert "more than the budget of 2" in answer.err


def test_starting_from_a_file(store: Store, tmp_path: Path) -> None:
    """Of the tool, or of timm; the weights of a body have names without "body."."""
    ours = store.path / "models" / "teacher" / "weights.safetensors"
    rate = ["optimizer.learning_rate=1e-30", "optimizer.weight_decay=0", "average.decay=0", "schedule.steps=1"]
    weights = load_file(ours)
    theirs = tmp_path / "theirs.pth"
    torch.save({name.removeprefix("body."): tensor for name, tensor in weights.items()}, theirs)
    for number, file in enumerate((ours, theirs)):
        done = teach(store, *rate, name=f"f{number}", init=str(file))
        assert (done.generation, row(store, f"f{number}")["parents"]) == (0, [])
        made = load_file(store.path / "models" / f"f{number}" / "weights.safetensors")
        learned = [name for name, tensor in weights.items() if name.endswith("weight") and tensor.ndim > 1]
        assert learned
        assert all(torch.equal(made[name], weights[name]) for name in learned)
    with pytest.raises(InputError, match=r"there is no file 'gone\.pth'"):
        teach(store, name="x", init="gone.pth")
    (tmp_path / "bad.safetensors").write_bytes(b"nothing of the kind")
    with pytest.raises(InputError, match=r"(?i)cannot be read .*header ?too ?large"):
        teach(store, name="x", init=str(tmp_path / "bad.safetensors"))
    with pytest.raises(InputError, match="do not fit the architecture 'pictures:Watched'"):
        teach(store, *OWN, name="x", init=str(theirs))


def test_without_a_holdout_there_is_no_top1(store: Store, curator: Callable[..., Answer]) -> None:
    shutil.rmtree(store.root / "holdout")
    arguments = ["--recipe", store.root / "recipe.toml", "--set", OWN[0], "--store", store.path]
    answer = curator("train", *arguments, "--json", "--name", "a")
    assert answer.code == 0
    assert answer.json["top1"] is None
    assert "not evaluated: no holdout image can be read" in answer.err
    store.delta("images").delete("split = 'holdout'")
    answer = curator("train", *arguments, "--name", "b")
    assert answer.code == 0
    assert "no holdout to evaluate on" in answer.out


def test_holdout_and_pool_are_not_trained_on(store: Store) -> None:
    ids = {r["image_id"] for r in store.rows("select image_id from images where split = 'labeled'")}
    assert set(Rows.labeled(store).records["image_id"].tolist()) == ids
