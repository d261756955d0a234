"""What a run would take: steps and images of each phase as training has them, and time from real steps."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import Answer
from pictures import judged
from torch import nn

from curator.decisions.reviews import add_review
from curator.errors import InputError
from curator.networks import recipes
from curator.runs import estimate
from curator.storage.store import Store

SMALL = ["finetune={resolution=24, steps=4, learning_rate=1e-4, labeled_batch=5, frozen=['conv1']}"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """15 labeled images of three classes, and the manifest "m"."""
    return judged(tmp_path_factory.mktemp("world"))


def recipe_of(store: Store) -> str:
    return str(store.root / "recipe.toml")


def everything(store: Store) -> list[tuple[str, int]]:
    """What is in the store, without the index of rows."""
    files = (path for path in store.path.rglob("*") if path.is_file() and "rows" not in path.parts)
    return sorted((str(path), path.stat().st_mtime_ns) for path in files)


class Counted(nn.Module):
    """A network whose multiply-adds can be counted by hand: 3 x 3 of 3 to 4 channels, then 4 to C."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.conv(x).mean(dim=(2, 3)))


def test_size_is_counted_rightly(world: Store) -> None:
    _, recipe = recipes.load(recipe_of(world), ["network.architecture=test_estimate:Counted"])
    found = estimate.size(recipe, classes=7)
    assert found.parameters == 4 * 27 + 4 + 4 * 7 + 7
    assert found.multiply_adds == 16 * 16 * 4 * 27 + 4 * 7


def test_phases_and_images(world: Store) -> None:
    before = everything(world)
    found = estimate.estimate(world, recipe_of(world), "m", SMALL)
    assert everything(world) == before
    assert (found.recipe, found.resolved) == recipes.load(recipe_of(world), SMALL)
    assert (found.classes, found.device) == (3, "cpu" if not torch.cuda.is_available() else "cuda")
    assert found.size == estimate.size(found.resolved, 3)
    # 20 steps of 6 labeled and 12 pseudo-labeled images, then 4 of 5 larger ones
    assert [phase[:6] for phase in found.phases] == [("training", 16, 20, 6, 12, 360), ("fine-tuning", 24, 4, 5, 0, 20)]
    assert found.seconds == pytest.approx(sum(phase.seconds or 0 for phase in found.phases))
    assert found.seconds is not None
    assert found.seconds > 0
    assert found.phases[0].how == "steps of 8 and 18 rows at 16 px"
    assert found.phases[1].how == "steps of 2 and 5 rows at 24 px"


def test_epochs_without_a_manifest(world: Store) -> None:
    found = estimate.estimate(world, recipe_of(world), None, ["schedule.epochs=4", "compute.accumulate=3"])
    assert [phase[:6] for phase in found.phases] == [("training", 16, 10, 6, 0, 60)]  # 4 passes of 15
    assert found.phases[0].how == "steps of 2 rows at 16 px"  # a third of the batch goes through the network at once


def test_pretraining(world: Store) -> None:
    found = estimate.estimate(world, recipe_of(world), "m", ["schedule.mode=pretrain", "schedule.pretrain=0.5"])
    assert [phase[:6] for phase in found.phases] == [
        ("pretraining", 16, 10, 0, 12, 120),
        ("training", 16, 10, 6, 0, 60),
    ]


def test_what_a_step_takes_apart_from_its_rows_is_counted_once(world: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLOW_SECONDS", "0.05")  # for a batch of any size
    changes = ["network.architecture=pictures:Slow", "schedule.steps=100", "schedule.labeled_batch=4000"]
    monkeypatch.setattr(estimate, "_LONG", 0.04)
    found = estimate.estimate(world, recipe_of(world), None, changes, device="cpu")
    assert found.phases[0].how == "steps of 2 and 8 rows at 16 px"
    assert found.seconds is not None
    # 100 steps of 4000 rows, where a millisecond of noise counts 67 s; 10,000 if each pair of rows took 0.05 s
    assert 5 <= found.seconds < 3000


def test_what_is_too_large_is_shrunk(world: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = estimate.estimate(world, recipe_of(world), None, ["network.resolution=128"], device="cpu")
    monkeypatch.setattr(estimate, "_CPU_WORK", 1e7)
    found = estimate.estimate(world, recipe_of(world), None, ["network.resolution=128"], device="cpu")
    assert whole.phases[0].how == "steps of 2 and 6 rows at 128 px"
    assert found.phases[0].how == "steps of 2 and 6 rows at 32 px, scaled to 128 px by the multiply-adds"
    assert found.seconds is not None
    assert found.seconds > 0


def test_what_does_not_fit_is_not_measured(world: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "_COPIES", 10**9)
    found = estimate.estimate(world, recipe_of(world), device="cpu")
    assert found.seconds is None
    assert found.phases[0].seconds is None
    assert found.phases[0].how.startswith("not measured: weights and what belongs to them take ")


@pytest.mark.parametrize(
    ("recipe", "manifest", "changes", "told"),
    [
        ("tiny-teachr", None, [], "did you mean 'tiny-teacher'"),
        ("tiny-teacher", "nothing", [], "there is no manifest 'nothing'"),
        ("tiny-teacher", "m", ["schedule.pseudo_ratio=0"], "takes no pseudo-labeled images"),
        ("tiny-teacher", None, ["network.architecture=test_resnt"], "did you mean 'test_resnet'"),
        ("tiny-teacher", None, ["optimizer.name=adamm"], "the optimiser 'adamm' cannot be made"),
    ],
)  # fmt: skip
def test_what_training_refuses(world: Store, recipe: str, manifest: str, changes: list[str], told: str) -> None:
    with pytest.raises(InputError, match=told):
        estimate.estimate(world, recipe, manifest, changes)


def test_a_name_that_training_refuses(world: Store, curator: Callable[..., Answer]) -> None:
    call = ("train", "--recipe", recipe_of(world), "--name", "two words", "--store", world.path)
    for more in ((), ("--dry-run",)):
        done = curator(*call, *more)
        assert (done.code, "two words" in done.err) == (2, True), done.err


def test_a_store_without_classes(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the store has no classes yet"):
        estimate.estimate(Store.create(tmp_path / "store"), "tiny-teacher")


def test_decisions_about_labeled_images_are_counted(world: Store, tmp_path: Path) -> None:
    shutil.copytree(world.root, tmp_path / "copy")
    store = Store(tmp_path / "copy" / "store")
    assert estimate.estimate(store, recipe_of(store)).notes == []
    rows = store.rows("select image_id from images where split = 'labeled' limit 2")
    first, second = (row["image_id"] for row in rows)
    add_review(store, first, "reject")
    add_review(store, second, "relabel", store.classes()[-1])
    found = estimate.estimate(store, recipe_of(store)).notes
    assert found == ["reviews of labeled images: 1 count for another class, 1 are left out"]
