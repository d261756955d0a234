"""Evaluation: figures against values computed by hand, and what is said where there is nothing to evaluate on."""

import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Answer
from pictures import CLASSES, picture, teach, world, write
from torch import nn

from curator.curation.account import wilson
from curator.errors import InputError
from curator.measures.robustness import evaluate
from curator.networks import inference, network
from curator.pictures.images import add_images
from curator.storage.store import Store
from curator.teachers.labeling import label

# The class of each grey picture, by its brightness, and the probabilities that `Known` gives it. Seven classes.
PROBS = {
    0: (0, [0.42, 0.20, 0.15, 0.08, 0.05, 0.06, 0.04]),  # right
    32: (1, [0.62, 0.20, 0.05, 0.05, 0.04, 0.02, 0.02]),  # second
    64: (6, [0.30, 0.20, 0.15, 0.12, 0.10, 0.08, 0.05]),  # seventh: not among the five
    96: (4, [0.05, 0.05, 0.05, 0.05, 0.68, 0.06, 0.06]),  # right
    128: (5, [0.30, 0.25, 0.20, 0.11, 0.05, 0.04, 0.05]),  # seventh
    160: (3, [0.30, 0.25, 0.20, 0.15, 0.05, 0.04, 0.01]),  # fourth
    192: (2, [0.02, 0.02, 0.90, 0.02, 0.02, 0.01, 0.01]),  # right
    224: (4, [0.22, 0.21, 0.20, 0.19, 0.18, 0.00001, 0.0]),  # fifth
}
CHANGES = ["network.architecture=test_evaluation:Known", "schedule.steps=1", "optimizer.learning_rate=1e-12"]


class Known(nn.Module):
    """Gives each of the grey pictures its probabilities above."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(num_classes))
        self.register_buffer("logits", torch.log(torch.tensor([p for _, p in PROBS.values()]) + 1e-30))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        number = ((x.mean(dim=(1, 2, 3)) * 0.5 + 0.5) * 255 / 32).round().long()
        return self.logits[number] + self.shift


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A holdout of the grey pictures, and the model that knows them."""
    root = tmp_path_factory.mktemp("known")
    world(root / "recipe", labeled=1, pool=0, holdout=0)
    for brightness, (truth, _) in PROBS.items():
        write(root / "holdout" / f"c{truth}" / f"{brightness}.png", np.full((16, 16, 3), brightness, np.uint8))
    write(root / "labeled" / "c0" / "x.png", np.full((16, 16, 3), 7, np.uint8))
    shutil.copy(root / "recipe" / "recipe.toml", root)
    store = Store.create(root / "store", [f"c{i}" for i in range(7)])
    add_images(store, str(root / "labeled"), "labeled")
    add_images(store, str(root / "holdout"), "holdout")
    teach(store, *CHANGES, name="known")
    return store


@pytest.fixture
def store(known: Store, tmp_path: Path) -> Store:
    shutil.copytree(known.root, tmp_path / "copy")
    return Store(tmp_path / "copy" / "store")


def test_figures_by_hand(known: Store) -> None:
    found = evaluate(known, "known").clean
    assert (found.model, found.generation, found.images, found.failed) == ("known", 0, 8, 0)
    assert found.top1 == 3 / 8
    assert found.top5 == 6 / 8
    top = [0.42, 0.62, 0.30, 0.68, 0.30, 0.30, 0.90, 0.22]
    assert found.confidence == pytest.approx(sum(top) / 8, abs=1e-4)
    # 15 bins: .22 | .30 .30 .30 | .42 | .62 | .68 | .90, where 10 would put .62 and .68 together
    gaps = [abs(0 - 0.22), abs(0 - 0.90), abs(1 - 0.42), abs(0 - 0.62), abs(1 - 0.68), abs(1 - 0.90)]
    assert found.ece == pytest.approx(sum(gaps) / 8, abs=1e-4)
    assert (found.top1_low, found.top1_high) == wilson(3, 8)


def test_the_command_line(known: Store, curator: Callable[..., Answer]) -> None:
    answer = curator("evaluate", "--model", "known", "--store", known.path, "--json")
    assert answer.code == 0
    assert answer.json.keys() >= {"top1", "top5", "ece"}
    assert (answer.json["top1"], answer.json["top5"], answer.json["images"]) == (0.375, 0.75, 8)
    answer = curator("evaluate", "--model", "known", "--store", known.path)
    assert answer.out.startswith("known: top-1 37.50% (95 % interval 13.68% to 69.43%), top-5 75.00%, ECE 0.3")
    assert answer.out.endswith(", 8 holdout images\n")


def test_training_registers_the_same_figures(known: Store) -> None:
    figures = known.rows("select name, value from metrics where model = 'known' and name in ('top1', 'top5', 'ece')")
    found = evaluate(known, "known").clean
    assert {row["name"]: row["value"] for row in figures} == {
        "top1": found.top1,
        "top5": found.top5,
        "ece": pytest.approx(found.ece),
    }


def test_labels_of_the_holdout_say_the_same(store: Store) -> None:
    label(store, "known", ["holdout"])
    row = store.rows(
        "select avg((l.label = i.label)::INT) as top1, avg(list_contains(l.top_classes[:5], i.label)::INT) as top5,"
        " avg(l.confidence) as confidence from labels as l join images as i using (image_id) where l.split = 'holdout'"
    )[0]
    found = evaluate(store, "known").clean
    assert (row["top1"], row["top5"]) == (found.top1, found.top5)
    assert row["confidence"] == pytest.approx(found.confidence)


def test_unreadable_images_do_not_count_and_are_counted(store: Store, curator: Callable[..., Answer]) -> None:
    (store.root / "holdout" / "c0" / "0.png").unlink()
    found = evaluate(store, "known").clean
    assert (found.images, found.failed, found.top1) == (7, 1, 2 / 7)
    answer = curator("evaluate", "--model", "known", "--store", store.path)
    assert answer.out.endswith("7 holdout images; 1 more could not be read and does not count\n")


def test_nothing_to_evaluate_on(store: Store, curator: Callable[..., Answer]) -> None:
    shutil.rmtree(store.root / "holdout")
    answer = curator("evaluate", "--model", "known", "--store", store.path)
    assert answer.code == 2
    assert "error: no holdout image can be read" in answer.err
    store.delta("images").delete("split = 'holdout'")
    answer = curator("evaluate", "--model", "known", "--store", store.path)
    assert answer.code == 2
    assert "error: the store has no holdout images" in answer.err
    assert "mend: curator add-images FOLDER --split holdout" in answer.err


def test_fewer_than_five_classes(tmp_path: Path) -> None:
    store = world(tmp_path, labeled=2, pool=0, holdout=3)
    teach(store, "schedule.steps=1")
    found = evaluate(store, "teacher").clean
    assert (found.top5, found.images) == (1, 9)
    assert found.top1 < 1
    assert len(CLASSES) == 3


def test_more_images_than_a_batch(tmp_path: Path) -> None:
    store = world(tmp_path, labeled=1, pool=0, holdout=50)
    teach(store, "network.architecture=pictures:Slow", "schedule.steps=1")
    found = evaluate(store, "teacher", threads=2).clean
    assert found.images == 150
    write(tmp_path / "holdout" / "bar" / "x.png", picture(0, 9999))
    add_images(store, str(tmp_path / "holdout"), "holdout")
    assert evaluate(store, "teacher").clean.images == 151


@pytest.mark.parametrize(
    ("right", "total", "low", "high"),
    [
        # 81 of 263 is the example of Newcombe (Statistics in Medicine 17, 1998), who gives .2553 to .3662
        (0, 10, 0.0, 0.2775328),
        (1, 10, 0.0178762, 0.4041500),
        (5, 10, 0.2365931, 0.7634069),
        (10, 10, 0.7224672, 1.0),
        (81, 263, 0.2552905, 0.3662179),
        (900, 1000, 0.8798505, 0.9170906),
    ],
)
def test_wilson(right: int, total: int, low: float, high: float) -> None:
    assert wilson(right, total) == pytest.approx((low, high), abs=2e-5)


def test_wilson_solves_its_equation() -> None:
    z = 1.959964
    for right, total in ((1, 3), (7, 50), (999, 1000)):
        for bound in wilson(right, total):
            assert abs(right / total - bound) == pytest.approx(z * math.sqrt(bound * (1 - bound) / total), rel=1e-6)
    assert wilson(0, 0) == (0.0, 1.0)


def test_pictures_have_the_test_resolution(known: Store) -> None:
    _, recipe, _ = network.load(known, "known")
    con = known.connect()
    table = con.sql("select uri, shard, byte_offset, byte_length from stored_images").to_arrow_table()
    con.close()
    assert inference.pictures(known.root, table, recipe).pixels.shape == (9, 16, 16, 3)
    larger = recipe.model_copy(update={"network": recipe.network.model_copy(update={"test_resolution": 24})})
    assert inference.pictures(known.root, table, larger).pixels.shape == (9, 24, 24, 3)


def test_a_device_that_is_not_there(known: Store) -> None:
    with pytest.raises(InputError, match="the device 'nowhere' cannot be used"):
        evaluate(known, "known", device="nowhere")
    assert evaluate(known, "known", device="cpu").clean.images == 8
