"""Recipes: what comes with the tool loads; every mistake is told at once, with its line and what was meant."""

from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Answer
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import RECIPE

from curator.errors import InputError
from curator.networks import recipes

ALL_WRONG = """\
titel = "everything is wrong here"
seed = 2020-01-01
steps = 5

[network]  # a comment
architecture = 5
resolution = "big"

[noise]
dropout = 1
drop_pth = 0.1
randaugment_magnitude = 9
crop_scale = [0.5, 2]
crop_ratio = [2, 1]
operations = ["rotat", "xyz"]

[schedule]
steps = 10
epochs = 2.0
warmup_steps = 10
labeled_batch = true

[optimiser]
name = "adamw"

[loss]
form = "ratoi"
"""
TOLD = """\
the recipe 'FILE' has 19 mistakes:
    'title' is missing
    line 1: unknown key 'titel'; did you mean 'title'?
    line 2: 'seed' = '2020-01-01': should be a whole number
    line 3: unknown key 'steps'; did you mean 'schedule.steps'?
    line 6: 'network.architecture' = 5: should be text
    line 7: 'network.resolution' = 'big': should be a whole number
    line 10: 'noise.dropout' = 1: should be below 1
    line 11: unknown key 'noise.drop_pth'; did you mean 'noise.drop_path'?
    line 12: 'noise.randaugment_magnitude' has no effect without 'noise.randaugment_ops' (0 to switch it off)
    line 13: 'noise.crop_scale' item 2 = 2: should be at most 1
    line 14: 'noise.crop_ratio' = [2, 1]: should be 0 < first <= second
    line 15: 'noise.operations' has no effect without 'noise.randaugment_ops' (0 to switch it off)
    line 15: 'noise.operations': 'rotat' is unknown; did you mean 'rotate'?
    line 15: 'noise.operations': 'xyz' is unknown; known are autocontrast, equalize, invert, rotate, posterize, \
solarize, solarize_add, color, contrast, brightness, sharpness, shear_x, shear_y, translate_x, translate_y
    line 19: of 'schedule.steps' and 'schedule.epochs', both are given: give one
    line 20: 'schedule.warmup_steps' = 10: should be below the 10 steps of the run
    line 21: 'schedule.labeled_batch' = True: should be a whole number
    line 23: unknown key 'optimiser'; did you mean 'optimizer'?
    line 27: 'loss.form' = 'ratoi': should be 'mean' or 'ratio'
  mend: correct the file, or the --set options"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.toml"
    path.write_text(RECIPE, "utf-8")
    return path


def mistakes(file: Path, text: str, changes: list[str] | None = None) -> list[str]:
    """The listed mistakes of a recipe."""
    file.write_text(text, "utf-8")
    with pytest.raises(InputError) as caught:
        recipes.load(str(file), changes)
    head, *listed = caught.value.what.splitlines()
    assert head == f"the recipe '{file}' has {len(listed)} mistake{'s' * (len(listed) > 1)}:"
    return [line.strip() for line in listed]


@pytest.mark.parametrize("name", recipes.shipped())
def test_every_recipe_that_comes_with_the_tool_loads(name: str) -> None:
    short, recipe = recipes.load(name)
    assert short == name
    assert recipe.title
    assert recipe.steps(1000) >= 1
    assert recipes.from_json(recipe.model_dump_json()) == recipe


def test_there_are_a_teacher_and_a_student() -> None:
    assert {"tiny-teacher", "tiny-student"} <= set(recipes.shipped())


def test_a_recipe_by_path(file: Path) -> None:
    name, recipe = recipes.load(str(file))
    assert name == "mine"
    assert (recipe.network.architecture, recipe.schedule.labeled_batch) == ("test_resnet", 6)
    assert recipe.noise.crop_scale == (0.6, 1.0)
    assert recipes.from_json(recipe.model_dump_json()) == recipe


def test_all_mistakes_at_once(file: Path) -> None:
    file.write_text(ALL_WRONG, "utf-8")
    with pytest.raises(InputError) as caught:
        recipes.load(str(file))
    assert str(caught.value) == TOLD.replace("FILE", str(file))


def test_the_command_line_says_them_and_ends_with_2(file: Path, tmp_path: Path, curator: Callable[..., Answer]) -> None:
    file.write_text(ALL_WRONG, "utf-8")
    assert curator("init", "--store", tmp_path / "store").code == 0
    answer = curator("train", "--recipe", file, "--store", tmp_path / "store")
    assert answer.code == 2
    assert answer.out == ""
    assert "error: " + TOLD.replace("FILE", str(file)) + "\n" == answer.err


def test_what_is_missing(file: Path) -> None:
    assert mistakes(file, "") == ["'network' is missing", "'schedule' is missing", "'title' is missing"]
    assert mistakes(file, 'title = "x"\n[network]\n\n[schedule]\n') == [
        "line 2: 'network.architecture' is missing",
        "line 2: 'network.resolution' is missing",
        "line 4: 'schedule.labeled_batch' is missing",
        "line 4: of 'schedule.steps' and 'schedule.epochs', neither is given: give one",
    ]


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("resolution = 16", "resolution = 16.0", "'network.resolution' = 16.0: should be a whole number"),
        ("resolution = 16", 'resolution = "16"', "'network.resolution' = '16': should be a whole number"),
        ("resolution = 16", "resolution = 4", "'network.resolution' = 4: should be at least 8"),
        ("test_crop = 1.0", "test_crop = 0", "'network.test_crop' = 0: should be above 0"),
        ("test_crop = 1.0", "arguments = 3", "'network.arguments' = 3: should be a table"),
        ("steps = 20", "steps = true", "'schedule.steps' = True: should be a whole number"),
        ("steps = 20", "steps = -1", "'schedule.steps' = -1: should be at least 0"),
        ("steps = 20", "epochs = -1", "'schedule.epochs' = -1: should be above 0"),
        ("steps = 20", "epochs = inf", "'schedule.epochs' = inf: should be a finite number"),
        ("pseudo_ratio = 2", "pseudo_ratio = -1", "'schedule.pseudo_ratio' = -1: should be at least 0"),
        (
            'decay = "constant"',
            'decay = "linear"',
            "'schedule.decay' = 'linear': should be 'cosine', 'constant' or 'exponential'",
        ),
        ("learning_rate = 3e-3", "learning_rate = nan", "'optimizer.learning_rate' = nan: should be a finite number"),
        ("learning_rate = 3e-3", 'learning_rate = "1"', "'optimizer.learning_rate' = '1': should be a number"),
        ("decay = 0.9", "decay = 1", "'average.decay' = 1: should be below 1"),
        ("decay = 0.9", "warmup = 1", "'average.warmup' = 1: should be true or false"),
        ("[0.6, 1.0]", "[0.6]", "'noise.crop_scale' = [0.6]: should have two items"),
        ("[0.6, 1.0]", "[0.1, 0.2, 0.3]", "'noise.crop_scale' = [0.1, 0.2, 0.3]: should have two items"),
        ("[0.6, 1.0]", "0.6", "'noise.crop_scale' = 0.6: should be a list"),
        ("[0.6, 1.0]", '[0.6, "1"]', "'noise.crop_scale' item 2 = '1': should be a number"),
        ("[0.6, 1.0]", "[0, 1]", "'noise.crop_scale' = [0, 1]: should be 0 < first <= second"),
        ("crop_scale = [0.6, 1.0]", "randaugment_ops = 5", "'noise.randaugment_ops' = 5: should be at most 4"),
        ("flip = 0.5", "flop = 0", "unknown key 'noise.flop'; did you mean 'noise.flip'?"),
        ("label_smoothing = 0.1", "xyz = 1", "unknown key 'loss.xyz'; known are form, label_smoothing"),
        ("label_smoothing = 0.1", "dropout = 0.1", "unknown key 'loss.dropout'; did you mean 'noise.dropout'?"),
    ],
)  # fmt: skip
def test_one_mistake(file: Path, old: str, new: str, told: str) -> None:
    text = RECIPE.replace(old, new)
    line = next(i for i, line in enumerate(text.splitlines(), 1) if new in line)
    assert mistakes(file, text) == [f"line {line}: {told}"]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (["noise.randaugment_ops=2"], "'noise.randaugment_ops' needs a 'noise.randaugment_magnitude' above 0"),
        (
            ["noise.randaugment_magnitude=9"],
            "'noise.randaugment_magnitude' has no effect without 'noise.randaugment_ops' (0 to switch it off)",
        ),
        (["schedule.warmup_steps=20"], "'schedule.warmup_steps' = 20: should be below the 20 steps of the run"),
        (
            ["schedule.steps=5", "schedule.epochs=5"],
            "of 'schedule.steps' and 'schedule.epochs', both are given: give one",
        ),
        (
            ["loss.form=ratio", "schedule.pseudo_ratio=0"],
            "'loss.form' = 'ratio' does not go with 'schedule.pseudo_ratio' = 0",
        ),
        (["network.arguments.drop_rate=0.1"], "'network.arguments.drop_rate': give 'noise.dropout' instead"),
        (["network.arguments.num_classes=3"], "'network.arguments.num_classes': the store says how many there are"),
    ],
)
def test_contradictions(file: Path, changes: list[str], told: str) -> None:
    assert mistakes(file, RECIPE, changes) == [f"--set: {told}"]


def test_an_explicit_zero_switches_randaugment_off() -> None:
    _, recipe = recipes.load("tiny-student", ["noise.randaugment_ops=0"])
    assert recipe.noise.randaugment_ops == 0


def test_lines_are_found_however_the_table_is_written(file: Path) -> None:
    text = (
        'title = "x"\nnetwork.architecture = "y"\nnetwork.resolution = 0\nschedule = { steps = 1, labeled_batch = 0 }\n'
    )
    assert mistakes(file, text + '["noise"]\n  "flip" = 2 # no\n') == [
        "line 3: 'network.resolution' = 0: should be at least 8",
        "line 4: 'schedule.labeled_batch' = 0: should be at least 1",
        "line 6: 'noise.flip' = 2: should be at most 1",
    ]


def test_set_changes_numbers_lists_words_and_nested_tables(file: Path) -> None:
    changes = [
        "seed=7", "network.resolution = 24", "noise.crop_scale=[0.5, 0.9]", "optimizer.name=sgd",
        "optimizer.learning_rate=1e-2", "noise.randaugment_ops=1", "noise.randaugment_magnitude=5",
        'noise.operations=["rotate", "invert"]', "average.warmup=false", "network.arguments.global_pool=max",
        "network.arguments.deep.er=[1]", 'title="two words"', "schedule.warmup_steps=0",
    ]  # fmt: skip
    _, recipe = recipes.load(str(file), changes)
    assert (recipe.seed, recipe.network.resolution, recipe.noise.crop_scale) == (7, 24, (0.5, 0.9))
    assert (recipe.optimizer.name, recipe.optimizer.learning_rate) == ("sgd", 0.01)
    assert recipe.noise.operations == ("rotate", "invert")
    assert recipe.average.warmup is False
    assert recipe.network.arguments == {"global_pool": "max", "deep": {"er": [1]}}
    assert recipe.title == "two words"
    assert recipe.schedule.warmup_steps == 0
    assert recipes.from_json(recipe.model_dump_json()) == recipe
    assert recipes.load(str(file), ["title=two words"])[1].title == "two words"


def test_the_last_set_wins(file: Path) -> None:
    assert recipes.load(str(file), ["seed=1", "seed=2"])[1].seed == 2


def test_a_wrong_set_is_not_blamed_on_the_file(file: Path) -> None:
    changes = ["network.resolution=.5", "noise=5", "schedule.stepps=3", "loss.form=mean\nx=1"]
    assert mistakes(file, RECIPE, changes) == [
        "--set: 'loss.form' = 'mean\\nx=1': should be 'mean' or 'ratio'",
        "--set: 'network.resolution' = '.5': should be a whole number",
        "--set: 'noise' = 5: should be a table",
        "--set: unknown key 'schedule.stepps'; did you mean 'schedule.steps'?",
    ]


@pytest.mark.parametrize("change", ["seed", "=3", "noise.=3", ".seed=1", ""])
def test_set_needs_a_key_and_a_value(change: str) -> None:
    with pytest.raises(InputError, match=r"is not KEY=VALUE\n  mend: e\.g\. --set schedule.steps=100"):
        recipes.load("tiny-teacher", [change])


def test_set_below_something_that_is_no_table() -> None:
    with pytest.raises(InputError, match=r"--set title\.x=1: 'title' is not a table"):
        recipes.load("tiny-teacher", ["title.x=1"])


def test_steps_and_epochs(file: Path) -> None:
    _, recipe = recipes.load(str(file))
    assert recipe.steps(1000) == 20
    _, recipe = recipes.load(str(file), ["schedule.epochs=2.5"])
    assert recipe.schedule.steps is None
    assert recipe.steps(60) == 25  # 2.5 passes of 60 images in batches of 6
    assert recipe.steps(1) == 1
    file.write_text(RECIPE.replace("steps = 20", "epochs = 2.5"), "utf-8")
    assert recipes.load(str(file), ["schedule.steps=3"])[1].steps(60) == 3


def test_an_unknown_recipe(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no recipe 'tiny-teachr'; did you mean 'tiny-teacher'") as caught:
        recipes.load("tiny-teachr")
    assert ".toml file" in caught.value.mend
    assert "tiny-student" in caught.value.mend
    with pytest.raises(InputError, match="there is no recipe"):
        recipes.load(str(tmp_path))


def test_not_toml(file: Path) -> None:
    file.write_text("[network\n", "utf-8")
    with pytest.raises(InputError, match=r"is not TOML \(.*line 1"):
        recipes.load(str(file))
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="is not text in UTF-8"):
        recipes.load(str(file))


values = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=4), st.lists(st.integers(), max_size=3)
)
sections = st.dictionaries(
    st.sampled_from(["steps", "epochs", "form", "dropout", "crop_scale", "operations", "arguments", "resolution", "x"]),
    values | st.dictionaries(st.sampled_from(["drop_rate", "y"]), values, max_size=2),
    max_size=4,
)


@settings(max_examples=200, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["title", "seed", "network", "noise", "schedule", "loss", "average", "nosie"]),
        sections | values,
        max_size=6,
    )
)
def test_whatever_is_given_is_refused_with_a_list(data: dict[str, object]) -> None:
    # "schedule.labeled_batch" is never there, so every one of these is wrong somehow
    with pytest.raises(InputError, match="mistake"):
        recipes.check(data, "made up")
