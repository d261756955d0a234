"""Recipes: what is trained and how, as TOML files of `models/` or of the user, checked as a whole.

All mistakes of a recipe are reported at once, each with its line and the mend.
"""

from __future__ import annotations

import difflib
import json
import re
import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from curator.errors import InputError, some, suggestion

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Section(BaseModel):
    """A table of a recipe: fixed keys, fixed values."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False)


class Network(Section):
    """The network."""

    architecture: str  # a timm name, or package.module:function that takes num_classes and returns a module
    resolution: Annotated[int, Field(ge=8, le=2048)]  # side of the square input in pixels
    test_crop: Annotated[float, Field(gt=0, le=1)] = 0.875  # share of the short side that the evaluation crop keeps
    arguments: dict[str, Any] = {}  # passed to timm.create_model


class Noise(Section):
    """What makes the student's task harder than the teacher's; everything off by default."""

    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0  # before the last layer
    drop_path: Annotated[float, Field(ge=0, lt=1)] = 0.0  # stochastic depth at the last block, linear in depth
    randaugment_ops: Annotated[int, Field(ge=0, le=4)] = 0  # operations per image
    randaugment_magnitude: Annotated[float, Field(ge=0, le=30)] = 0.0  # 10 is the full published range
    operations: tuple[str, ...] | None = None  # RandAugment operations to draw from; all by default
    crop_scale: tuple[Share, Share] = (0.08, 1.0)  # area of the random crop
    crop_ratio: tuple[Positive, Positive] = (3 / 4, 4 / 3)  # aspect of the random crop
    flip: Share = 0.5  # probability of a horizontal flip
    cutout: Share = 0.0  # side of a grey square, as a share of the image's


class Schedule(Section):
    """How long, in which batches. Exactly one of steps and epochs."""

    steps: Annotated[int, Field(ge=1)] | None = None
    epochs: Positive | None = None  # passes over the labeled images
    labeled_batch: Annotated[int, Field(ge=1)]  # labeled images of a step
    pseudo_ratio: Annotated[int, Field(ge=0)] = 1  # pseudo-labeled images for each labeled one
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    decay: Literal["cosine", "constant"] = "cosine"


class Optimizer(Section):
    """timm's optimisers by name."""

    name: str = "adamw"
    learning_rate: Positive = 1e-3
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    momentum: Share = 0.9


class Loss(Section):
    """Cross-entropy on labeled rows, soft cross-entropy on pseudo rows.

    `mean`: mean over labeled + mean over pseudo, as the paper writes it. `ratio`: labeled + ratio x pseudo, as the
    released code computes it. `mean` is the default because its scale does not change with the ratio.
    """

    form: Literal["mean", "ratio"] = "mean"
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0  # labeled rows only


class Average(Section):
    """Exponential moving average of weights and BatchNorm statistics; evaluation and labeling use it."""

    decay: Annotated[float, Field(ge=0, lt=1)] = 0.9999  # 0 switches it off
    warmup: bool = True  # min(decay, step / (step + 9)), so that short runs forget their start


class Recipe(Section):
    """A whole recipe."""

    title: str
    seed: Annotated[int, Field(ge=0)] = 0
    max_failures: Share = 0.001  # share of the images that may turn out unreadable during training
    network: Network
    noise: Noise = Noise()
    schedule: Schedule
    optimizer: Optimizer = Optimizer()
    loss: Loss = Loss()
    average: Average = Average()

    def steps(self, labeled: int) -> int:
        """Optimiser steps of a run with that many labeled images."""
        if self.schedule.steps is not None:
            return self.schedule.steps
        return max(1, round(float(self.schedule.epochs or 0) * labeled / self.schedule.labeled_batch))


def shipped() -> list[str]:
    """Names of the recipes that come with the tool."""
    return sorted(f.name.removesuffix(".toml") for f in files("curator.models").iterdir() if f.name.endswith(".toml"))


def load(recipe: str, changes: list[str] | None = None) -> tuple[str, Recipe]:
    """A recipe by the name of a shipped one, or by path.

    Args:
        recipe: A shipped name, or the path of a `.toml` file.
        changes: KEY=VALUE with dotted keys, e.g. "schedule.steps=100".

    Returns:
        Its short name and the recipe.

    Raises:
        InputError: There is no such recipe, or it has mistakes; all of them are listed.
    """
    if recipe in shipped():
        name, text = recipe, files("curator.models").joinpath(f"{recipe}.toml").read_text("utf-8")
    else:
        path = Path(recipe)
        if not path.is_file():
            raise InputError(
                f"there is no recipe '{recipe}'{suggestion(recipe, shipped())}",
                f"give the path of a .toml file, or one of {', '.join(shipped())}",
            )
        name, text = path.stem, path.read_text("utf-8")
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"the recipe '{recipe}' is not TOML ({error})", "correct that line") from None
    for change in changes or []:
        _set(data, change)
    return name, check(data, recipe, text)


def from_json(text: str) -> Recipe:
    """A recipe as `models` keeps it."""
    return Recipe(**json.loads(text))


def check(data: dict[str, Any], source: str, text: str = "") -> Recipe:
    """Builds a recipe from its data.

    Raises:
        InputError: Every unknown key, bad value and contradiction, each with its line.
    """
    mistakes: list[str] = []
    good = _valid_part(Recipe, data, "", text, mistakes)
    sections: dict[str, dict[str, Any]] = {
        name: good.get(name, {}) for name in ("network", "noise", "schedule", "loss", "average")
    }
    mistakes += [f"{_line(text, at)}{message}" for at, message in _contradictions(sections, mistakes)]
    if mistakes:
        raise InputError(
            f"the recipe '{source}' has {len(mistakes)} mistake{'s' * (len(mistakes) > 1)}:\n    "
            + "\n    ".join(mistakes),
            "correct the file, or the --set options",
        )
    return Recipe(**data)


def _valid_part(
    section: type[BaseModel], data: dict[str, Any], at: str, text: str, mistakes: list[str]
) -> dict[str, Any]:
    """The data without what is wrong in it; what is wrong goes into `mistakes`."""
    try:
        section(**data)
    except ValidationError as error:
        for problem in error.errors():
            path = [str(part) for part in problem["loc"]]
            mistakes.append(_line(text, ".".join(path)) + _say(section, path, problem))
            _remove(data := json.loads(json.dumps(data)), path)
    return data


def _say(section: type[BaseModel], path: list[str], problem: Any) -> str:
    where = ".".join(path)
    if problem["type"] == "extra_forbidden":
        fields = section.model_fields
        for part in path[:-1]:
            inner = fields[part].annotation
            fields = inner.model_fields if isinstance(inner, type) and issubclass(inner, BaseModel) else {}
        known = sorted(fields)
        close = difflib.get_close_matches(path[-1], known, n=1)
        return f"unknown key '{where}'" + (
            f"; did you mean '{close[0]}'?" if close else f"; known are {some(known, 20)}"
        )
    if problem["type"] == "missing":
        return f"'{where}' is missing"
    message = problem["msg"].replace("Input should be", "should be")
    return f"'{where}' = {problem['input']!r}: {message}"


def _contradictions(part: dict[str, dict[str, Any]], mistakes: list[str]) -> list[tuple[str, str]]:
    """Keys that do not fit together, as (key, message); a key that is wrong by itself is left out of the judgement."""
    noise, schedule, loss = part["noise"], part["schedule"], part["loss"]
    found: list[tuple[str, str]] = []
    ops, magnitude = noise.get("randaugment_ops", 0), noise.get("randaugment_magnitude", 0)
    if not ops and (magnitude or noise.get("operations")):
        found.append(("noise.randaugment_ops", "'noise.randaugment_magnitude' or 'operations' without randaugment_ops"))
    if ops and not magnitude:
        found.append(("noise.randaugment_ops", "'noise.randaugment_ops' without a randaugment_magnitude above 0"))
    for name in ("crop_scale", "crop_ratio"):
        low, high = noise.get(name, (0, 1))
        if low > high or (name in noise and low == 0):
            found.append((f"noise.{name}", f"'noise.{name}' = [{low}, {high}]: should be 0 < first <= second"))
    both = [name for name in ("steps", "epochs") if schedule.get(name) is not None]
    if len(both) != 1 and not any("schedule.steps" in m or "schedule.epochs" in m for m in mistakes):
        found.append(("schedule.steps", "give exactly one of 'schedule.steps' and 'schedule.epochs'"))
    steps = schedule.get("steps")
    if steps is not None and schedule.get("warmup_steps", 0) >= steps:
        found.append(("schedule.warmup_steps", f"'schedule.warmup_steps' is not below the {steps} steps of the run"))
    if loss.get("form") == "ratio" and schedule.get("pseudo_ratio", 1) == 0:
        found.append(("loss.form", "'loss.form' = 'ratio' with 'schedule.pseudo_ratio' = 0"))
    if noise.get("operations") is not None:
        from curator.augment import OPERATIONS

        strange = [name for name in noise["operations"] if name not in OPERATIONS]
        found += [("noise.operations", f"unknown operation '{n}'{suggestion(n, OPERATIONS)}") for n in strange]
    return found


def _remove(data: dict[str, Any], path: list[str]) -> None:
    for part in path[:-1]:
        if not isinstance(data.get(part), dict):
            data.pop(part, None)
            return
        data = data[part]
    data.pop(path[-1], None)


def _line(text: str, path: str) -> str:
    """Where a dotted key stands in TOML text, as "line N: ", or nothing where it does not."""
    *tables, name = path.split(".")
    table = ""
    for number, line in enumerate(text.splitlines(), start=1):
        if header := re.match(r"\s*\[([^\[\]]+)\]", line):
            table = header.group(1).strip()
        elif table == ".".join(tables) and re.match(rf"\s*{re.escape(name)}\s*=", line):
            return f"line {number}: "
    return ""


def _set(data: dict[str, Any], change: str) -> None:
    key, equals, value = change.partition("=")
    if not equals or not key.strip():
        raise InputError(f"--set {change} is not KEY=VALUE", "e.g. --set schedule.steps=100")
    try:
        parsed = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        parsed = value  # a bare word is text
    *tables, name = key.strip().split(".")
    for table in tables:
        data = data.setdefault(table, {})
        if not isinstance(data, dict):
            raise InputError(f"--set {change}: '{table}' is not a table of a recipe", "e.g. --set noise.dropout=0.2")
    data[name] = parsed
