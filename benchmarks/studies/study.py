"""Studies: TOML files of `plans/`, each with arms that differ in one thing, and claims about pairs of arms.

plans/NAME.toml --checked--> Study: arms, claims
arm -> how its store is made (pool, teacher), its plan for `curator evolve`, which of the plan's models is asked for
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from curator import configuration
from curator.configuration import Section

FOLDER = Path(__file__).parent
PLANS = FOLDER / "plans"
SELECTION: dict[str, Any] = {"per_class": 4000, "min_confidence": 0.3}


class Arm(Section):
    """One way to do it. What is not said is as in the arm "student"."""

    name: str
    teacher: tuple[str, ...] = ()  # KEY=VALUE changes of the teacher's recipe
    student: tuple[str, ...] = ()  # of the student's
    selection: dict[str, Any] = {}  # options of build-manifest
    init: str = "scratch"
    labels: Literal["teacher", "noisy", "truth", "misplaced", "random"] = "teacher"  # see answers.py
    imbalance: Annotated[float, Field(ge=1)] = 1.0  # of the pool: images of the largest class for each of the smallest
    generation: Annotated[int, Field(ge=0)] = 1  # 0 is the teacher itself, 2 the student's student
    manifest: bool = True  # false: labeled images alone

    @property
    def place(self) -> str:
        """What tells its store from those of other arms with the same seed."""
        parts = [*self.teacher, *([f"imbalance={self.imbalance:g}"] if self.imbalance > 1 else [])]
        return "-".join(parts).translate(str.maketrans(dict.fromkeys("[]=., \"'/", "_"))) or "plain"

    @property
    def usual(self) -> bool:
        """Whether nothing but its generation differs from the arm "student"."""
        return self == Arm(name=self.name, generation=self.generation, teacher=self.teacher, imbalance=self.imbalance)


class Claim(Section):
    """What the paper found of two arms."""

    better: str
    than: str
    paper: str  # the figures, or the direction alone
    by: Literal["higher", "same"] = "higher"  # "same": the paper found no difference


class Study(Section):
    """A study."""

    title: str
    question: str
    arms: Annotated[tuple[Arm, ...], Field(min_length=1)]
    claims: tuple[Claim, ...] = ()
    robustness: bool = False  # whether corruptions and attacks are asked for too
    note: str = ""


def names() -> list[str]:
    """All studies."""
    return sorted(file.stem for file in PLANS.glob("*.toml"))


def read(name: str) -> Study:
    """A study by its name, or by the path of its file.

    Raises:
        InputError: It has mistakes.
    """
    file = Path(name) if name.endswith(".toml") else PLANS / f"{name}.toml"
    text = configuration.read(file, "study")
    found = configuration.check(Study, configuration.parse(text, file.name, "study"), "study", file.name, text)
    known = {arm.name for arm in found.arms}
    for claim in found.claims:
        assert {claim.better, claim.than} <= known, f"{file.name}: no arm {claim.better} or {claim.than}"
    return found


def plan(arm: Arm, called: str, seed: int, steps: float) -> str:
    """The text of the plan that trains an arm, for `curator evolve`.

    Args:
        arm: The arm, one with a manifest.
        called: Name of its models and manifests.
        seed: Of the recipes and the selection.
        steps: What all numbers of steps are multiplied by.
    """
    lines = [f"title = {_of(arm.name)}", f"name = {_of(called)}", "", "[teacher]"]
    selection = SELECTION | {"seed": seed} | arm.selection
    if arm.labels == "teacher":
        lines += [f"recipe = {_of(str(FOLDER / 'teacher.toml'))}", 'name = "teacher"']
        lines += [f"changes = {_of(changes('teacher', arm.teacher, seed, steps))}"]
    else:  # the images that the usual student has, with other labels
        selection = {"per_class": selection["per_class"], "min_confidence": 0.0, "policy": "images-of"}
        selection |= {"settings": {"manifest": "g0-student"}, "seed": seed}
        lines += [f"model = {_of(arm.labels)}"]
    lines += ["", "[selection]", *(f"{key} = {_of(value)}" for key, value in selection.items())]
    for number in range(1, max(arm.generation, 1) + 1):
        lines += ["", "[[rounds]]", f"recipe = {_of(str(FOLDER / 'student.toml'))}", f"init = {_of(arm.init)}"]
        lines += [f"changes = {_of(changes('student', arm.student, seed, steps))}"]
        lines += [f"name = {_of(model(called, number))}", f"manifest = {_of(f'g{number - 1}-{called}')}"]
    return "\n".join(lines) + "\n"


def model(called: str, generation: int) -> str:
    """Name of an arm's model of a generation above 0."""
    return called if generation == 1 else f"{called}-{generation}"


def changes(recipe: str, own: tuple[str, ...], seed: int, steps: float) -> list[str]:
    """Changes of a recipe of the studies: the arm's, the seed, and its steps times so many."""
    said = dict(change.split("=", 1) for change in own)
    said["schedule.steps"] = str(round(int(said.get("schedule.steps", STEPS[recipe])) * steps))
    return [f"{key}={value}" for key, value in (said | {"seed": str(seed)}).items()]


STEPS = {"teacher": 2400, "student": 1200}


def _of(value: Any) -> str:
    """A value in TOML, whose strings, numbers, truths and lists are those of JSON."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {_of(each)}" for key, each in value.items()) + "}"
    return json.dumps(value)
