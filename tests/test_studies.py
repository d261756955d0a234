"""The studies under benchmarks/: every file is whole, arms become plans, differences become verdicts."""

import json
import math
import sys
import tomllib
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks" / "studies"
sys.path.insert(0, str(FOLDER))

import study  # noqa: E402
import tables  # noqa: E402
from study import Arm  # noqa: E402

from curator.networks import recipes  # noqa: E402
from curator.rounds.plans import Plan  # noqa: E402

NAMES = [*study.names(), str(FOLDER / "tuning.toml")]  # the last one is no study of the paper


@pytest.mark.parametrize("name", NAMES, ids=lambda name: Path(name).stem)
def test_each_file_is_a_study_whose_arms_are_plans(name: str) -> None:
    found = study.read(name)
    for arm in found.arms:
        plan = Plan.model_validate_json(json.dumps(tomllib.loads(study.plan(arm, "x", 3, 0.5))))
        assert len(plan.rounds) == max(1, arm.generation)
        recipe = recipes.load(plan.rounds[0].recipe, [*plan.rounds[0].changes])[1]
        assert recipe.seed == 3
        assert plan.teacher.model == (None if arm.labels == "teacher" else arm.labels)


def test_an_arm_that_stands_in_two_studies_is_the_same() -> None:
    known: dict[str, Arm] = {}
    for name in study.names():
        for arm in study.read(name).arms:
            assert known.setdefault(arm.name, arm) == arm


def test_steps_are_scaled_and_the_rest_stays() -> None:
    changes = study.changes("student", ("schedule.steps=600", "noise.dropout=0.5"), 1, 0.5)
    assert changes == ["schedule.steps=300", "noise.dropout=0.5", "seed=1"]
    assert study.changes("teacher", (), 0, 2.0) == [f"schedule.steps={2 * study.STEPS['teacher']}", "seed=0"]


def test_arms_with_another_pool_or_teacher_have_another_store() -> None:
    places = [
        Arm(name="a"),
        Arm(name="b", student=("seed=1",)),
        Arm(name="c", imbalance=5),
        Arm(name="d", teacher=("x=1",)),
    ]
    assert [arm.place == "plain" for arm in places] == [True, True, False, False]
    assert len({arm.place for arm in places}) == 3
    assert [arm.usual for arm in places] == [True, False, True, True]


@pytest.mark.parametrize(
    ("apart", "by", "said"),
    [
        ([0.010, 0.012, 0.011], "higher", "agrees"),
        ([-0.010, -0.012, -0.011], "higher", "disagrees"),
        ([0.010, -0.012, 0.011], "higher", "too noisy to say"),
        ([0.010], "higher", "too noisy to say"),
        ([0.0005, -0.0005, 0.0002], "same", "agrees"),
        ([0.010, 0.012, 0.011], "same", "disagrees"),
        ([0.003, 0.0031, 0.0029], "same", "agrees"),
        ([0.010, -0.012, 0.011], "same", "too noisy to say"),
    ],
)
def test_verdicts(apart: list[float], by: str, said: str) -> None:
    assert tables.verdict(apart, by) == said


def test_the_interval_is_students() -> None:
    """Of 1, 2, 3 by the table: t of 97.5 % and 2 degrees of freedom is 4.3027, the deviation is 1."""
    low, high = tables.interval([1.0, 2.0, 3.0])
    assert (low, high) == pytest.approx((2 - 4.3027 / math.sqrt(3), 2 + 4.3027 / math.sqrt(3)), abs=1e-4)
