"""The recipes that come with the tool: the paper's figures, networks that can be built, and the list of them."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Answer

from curator.commands.recipes import SIZES, _duration, answer_estimate
from curator.configuration import keys
from curator.networks import network, recipes
from curator.networks.recipes import Recipe
from curator.runs import estimate

IMAGENET = 1_281_167

# Xie et al., CVPR 2020, and the code released with it; the crop is size / (size + 32).
# name: resolution, dropout, RandAugment's magnitude, epochs, epochs until the rate is multiplied by 0.97, ratio
PAPER = {
    "b0": (224, 0.2, 0, 700, 4.8, 1),
    "b1": (240, 0.2, 0, 700, 4.8, 3),
    "b2": (260, 0.3, 6, 700, 4.8, 3),
    "b3": (300, 0.3, 12, 700, 4.8, 3),
    "b4": (380, 0.4, 15, 700, 4.8, 3),
    "b5": (456, 0.4, 18, 350, 2.4, 3),
    "b6": (528, 0.5, 24, 350, 2.4, 3),
    "b7": (600, 0.5, 27, 350, 2.4, 3),
    "l2": (475, 0.5, 27, 350, 2.4, 14),
}
# Tan and Le, "EfficientNet", ICML 2019, table 2, and for L2 the paper: millions of parameters.
PARAMETERS = {"b0": 5.3, "b1": 7.8, "b2": 9.2, "b3": 12, "b4": 19, "b5": 30, "b6": 43, "b7": 66, "l2": 480}
PAIRS = sorted({name.rpartition("-")[0] for name in recipes.shipped()})


def loaded(name: str) -> Recipe:
    return recipes.load(name)[1]


@pytest.mark.parametrize("size", PAPER)
@pytest.mark.parametrize("role", ["teacher", "student"])
def test_the_papers_figures(size: str, role: str) -> None:
    resolution, dropout, magnitude, epochs, decay_epochs, ratio = PAPER[size]
    recipe = loaded(f"efficientnet-{size}-{role}")
    wanted, noise, schedule, optimizer = recipe.network, recipe.noise, recipe.schedule, recipe.optimizer
    assert wanted.architecture == f"tf_efficientnet_{size}"
    assert wanted.resolution == resolution
    assert wanted.test_crop == pytest.approx(resolution / (resolution + 32), abs=5e-5)
    assert (noise.dropout, noise.drop_path) == (dropout, 0.2)
    assert (noise.randaugment_ops, noise.randaugment_magnitude) == ((2, magnitude) if magnitude else (0, 0))
    assert (noise.crop_scale, noise.flip, noise.mixup, noise.cutmix) == ((0.08, 1.0), 0.5, 0, 0)
    assert (schedule.epochs, schedule.labeled_batch, schedule.warmup_epochs) == (epochs, 2048, 5)
    assert (schedule.decay, schedule.decay_rate, schedule.decay_epochs) == ("exponential", 0.97, decay_epochs)
    assert (schedule.mode, schedule.pseudo_ratio) == ("joint", ratio if role == "student" else 0)
    assert (optimizer.name, optimizer.alpha, optimizer.momentum, optimizer.eps) == ("rmsproptf", 0.9, 0.9, 1e-3)
    assert (recipe.learning_rate, optimizer.base_batch, optimizer.weight_decay) == (0.128, 2048, 1e-5)
    assert (recipe.loss.form, recipe.loss.label_smoothing) == ("mean", 0.1)
    assert recipe.average.decay == 0.9999


@pytest.mark.parametrize("role", ["teacher", "student"])
def test_the_papers_fine_tuning(role: str) -> None:
    recipe = loaded(f"efficientnet-l2-{role}")
    finetune = recipe.finetune
    assert finetune is not None
    assert (finetune.resolution, finetune.epochs, recipe.network.test_resolution) == (800, 1.5, 800)
    assert recipe.test_crop == pytest.approx(800 / 832, abs=5e-5)
    assert finetune.frozen
    # where the schedule ends
    assert recipe.finetune_rate == pytest.approx(0.128 * 0.97 ** int(350 / 2.4), rel=0.05)
    assert recipe.steps(IMAGENET) == round(350 * IMAGENET / 2048)
    assert recipe.finetune_steps(IMAGENET) == round(1.5 * IMAGENET / 2048)


def test_the_frozen_layers_are_there() -> None:
    changes = ["network.architecture=tf_efficientnet_b0", "network.resolution=64"]  # built of the same modules
    _, recipe = recipes.load("efficientnet-l2-student", changes)
    assert recipe.finetune is not None
    names = {name for name, _ in network.build(recipe, 10).body.named_modules()}
    assert {*recipe.finetune.frozen} <= names


@pytest.mark.parametrize("name", PAIRS)
def test_a_student_is_its_teacher_with_noise_and_pseudo_labels(name: str) -> None:
    teacher, student = loaded(f"{name}-teacher"), loaded(f"{name}-student")
    assert student.network == teacher.network
    assert student.finetune == teacher.finetune
    assert student.schedule.pseudo_ratio > 0
    assert student.noise.dropout > 0
    assert student.noise.drop_path > 0


def test_a_smaller_batch_has_a_smaller_rate() -> None:
    _, recipe = recipes.load("efficientnet-b0-teacher", ["schedule.labeled_batch=256"])
    assert recipe.learning_rate == pytest.approx(0.016)


@pytest.mark.parametrize("name", PAIRS)
def test_every_network_is_built_and_has_the_size_that_the_list_says(name: str) -> None:
    recipe = loaded(f"{name}-teacher")
    found = estimate.size(recipe)
    assert tuple(found) == SIZES[recipe.network.architecture, recipe.network.resolution]
    size = name.removeprefix("efficientnet-")
    if size in PARAMETERS:
        assert found.parameters / 1e6 == pytest.approx(PARAMETERS[size], rel=0.02)


@pytest.mark.parametrize("name", recipes.shipped())
def test_written_out_it_is_the_same_recipe(name: str, tmp_path: Path, curator: Callable[..., Answer]) -> None:
    answer = curator("recipes", name)
    (tmp_path / "mine.toml").write_text(answer.out, "utf-8")
    assert (answer.code, answer.err) == (0, "")
    assert recipes.load(str(tmp_path / "mine.toml"))[1] == loaded(name)


def test_a_recipe_written_out_follows_a_new_resolution(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(recipes.to_toml(loaded("efficientnet-b0-teacher")), "utf-8")
    _, recipe = recipes.load(str(tmp_path / "mine.toml"), ["network.resolution=128"])
    assert recipe.network.test_resolution == 128


def test_the_list(curator: Callable[..., Answer]) -> None:
    found = curator("recipes", "--json").json["recipes"]
    assert [row["recipe"] for row in found] == recipes.shipped()
    assert next(row for row in found if row["recipe"] == "efficientnet-l2-student") == {
        "recipe": "efficientnet-l2-student",
        "title": "EfficientNet-L2 at 475 px, fine-tuned at 800 px, noisy student",
        "architecture": "tf_efficientnet_l2",
        "parameters": 480_309_308,
        "resolution": 475,
        "test_resolution": 800,
        "multiply_adds": 170_892_857_680,
        "labeled_batch": 2048,
        "pseudo_ratio": 14,
        "epochs": 350.0,
        "steps": None,
    }
    lines = curator("recipes").out.splitlines()
    columns = [
        "recipe",
        "architecture",
        "parameters",
        "train px",
        "test px",
        "multiply-adds",
        "batch",
        "ratio",
        "length",
    ]
    figures = ["tf_efficientnet_l2", "480.3 M", "475", "800", "170.893 G", "2048 + 28672", "14", "350 epochs"]
    assert re.split(r"  +", lines[0]) == columns
    assert re.split(r"  +", next(line for line in lines if "l2-student" in line))[1:] == figures


def test_one_recipe_as_json(curator: Callable[..., Answer]) -> None:
    answer = curator("recipes", "efficientnet-b2-student", "--json").json
    assert answer["recipe"] == "efficientnet-b2-student"
    assert answer["resolved"] == loaded("efficientnet-b2-student").model_dump(mode="json")
    unknown = curator("recipes", "efficientnet-b8-student")
    assert (unknown.code, unknown.out) == (2, "")
    assert "did you mean 'efficientnet-b" in unknown.err


def test_every_key_is_in_the_docs() -> None:
    text = (Path(__file__).parent.parent / "docs" / "recipes.md").read_text("utf-8")
    table = text[text.index("## Keys") : text.index("## The paper's noise")]
    words = set(re.findall(r"`(\w+)`", table)) | set(re.findall(r"\*\*(\w+)\*\*", table))
    missing = [".".join(key) for key in keys(Recipe) if key[-1] not in words]
    assert not missing


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.123, "0.12 s"), (119, "120 s"), (1234, "21 min"), (7300, "2 h"), (90000, "25 h"), (5e6, "58 days")],
)
def test_times_in_two_figures(seconds: float, text: str) -> None:
    assert _duration(seconds) == text


def test_the_answer_of_a_dry_run(capsys: pytest.CaptureFixture[str]) -> None:
    recipe = loaded("tiny-student")
    phase = estimate.PhaseEstimate("training", 32, 1200, 32, 96, 153600, 80.0, "steps of 32 and 128 rows at 32 px")
    found = estimate.Estimate(
        "tiny-student", recipe, 10, estimate.Size(373658, 4099008), "cpu", "float32", [phase], 80.0, ["a note"]
    )
    answer_estimate(found, False)
    out = capsys.readouterr().out
    assert out.startswith(
        recipes.to_toml(recipe) + "\ntest_resnet, 10 classes: 0.37M parameters, 0.0041G multiply-adds"
    )
    assert re.split("  +", out.splitlines()[-4])[1:5] == ["32", "1200", "32 labeled + 96 pseudo", "153600"]
    assert out.splitlines()[-3] == "a note"
    assert out.endswith("about 80 s on this cpu in float32, if images come as fast; nothing was trained\n")
    answer_estimate(found, True)
    document = json.loads(capsys.readouterr().out)
    assert document["phases"][0]["seconds"] == 80.0
    assert document["resolved"] == recipe.model_dump(mode="json")
