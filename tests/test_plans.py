"""Plans that are wrong, in one way or in many at once, and those that come with the tool."""

from pathlib import Path

import pytest
from rounds import PLAN, copy, planned, refused, undone

from curator.errors import InputError
from curator.rounds import plans
from curator.storage.store import Store


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return undone(tmp_path_factory.mktemp("bare"))


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


def test_a_calibrated_selection_without_a_holdout(store: Store, tmp_path: Path) -> None:
    text = PLAN.replace('recipe = "recipe.toml"', 'model = "outside"', 1)
    text = text.replace("min_confidence", "calibrated = true\nmin_confidence")
    with pytest.raises(InputError, match="the store has no holdout to fit a temperature on"):
        plans.load(store, planned(tmp_path, text))
