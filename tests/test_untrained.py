"""A run of no steps: weights that were trained elsewhere become a model of the store as they are."""

from collections.abc import Callable

import pytest
import torch
from conftest import Answer
from pictures import teach, weights_hash
from safetensors.torch import load_file

from curator.errors import InputError
from curator.storage.store import Store
from curator.teachers.labeling import label

NONE = "schedule.steps=0"
FINETUNED = ["finetune.resolution=24", "finetune.steps=2", "finetune.learning_rate=1e-3"]


@pytest.fixture(scope="module")
def made(taught_once: Store) -> Store:
    return taught_once


def body(store: Store) -> dict[str, torch.Tensor]:
    """The teacher's weights as timm saves them, without the normalisation around."""
    kept = load_file(store.path / "models" / "teacher" / "weights.safetensors")
    return {name.removeprefix("body."): tensor for name, tensor in kept.items() if name.startswith("body.")}


def test_a_file_of_weights_becomes_a_teacher_without_labeled_images(store: Store) -> None:
    torch.save(body(store), store.root / "elsewhere.pth")
    store.delta("images").delete("split = 'labeled'")
    store.delta("labels").delete()
    done = teach(store, NONE, name="elsewhere", init=str(store.root / "elsewhere.pth"))
    assert (done.generation, done.steps, done.loss, done.images_per_second) == (0, 0, None, 0.0)
    rows = {r["model"]: r for r in store.rows("select model, weights_hash, parents, manifest, metrics from models")}
    assert rows["elsewhere"]["weights_hash"] == rows["teacher"]["weights_hash"]
    assert (rows["elsewhere"]["parents"], rows["elsewhere"]["manifest"]) == ([], None)
    assert "NaN" not in rows["elsewhere"]["metrics"]
    assert label(store, "elsewhere").images == store.rows("select count(*) as n from images")[0]["n"]


def test_a_model_of_the_store_under_another_name(store: Store) -> None:
    assert teach(store, NONE, name="twin", init="teacher").top1 is not None
    assert weights_hash(store, "twin") == weights_hash(store, "teacher")


def test_fine_tuning_alone_learns(store: Store) -> None:
    done = teach(store, NONE, *FINETUNED, name="tuned", init="teacher")
    assert done.steps == 2
    assert weights_hash(store, "tuned") != weights_hash(store, "teacher")


def test_what_cannot_be(store: Store) -> None:
    with pytest.raises(InputError, match="weights that are there already, and none are given"):
        teach(store, NONE, name="no")
    with pytest.raises(InputError, match="learns nothing from --manifest"):
        teach(store, NONE, name="no", init="teacher", manifest="m")
    assert not (store.path / "models" / "no").exists()


def test_the_command(store: Store, curator: Callable[..., Answer]) -> None:
    about = ["train", "--recipe", store.root / "recipe.toml", "--store", store.path, "--set", NONE, "--name", "x"]
    answer = curator(*about, "--init", "teacher")
    assert answer.code == 0
    assert "model 'x', generation 0: 0 steps, top-1" in answer.out
    answer = curator(*about, "--dry-run")
    assert answer.code == 0
