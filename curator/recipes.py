"""Recipes: what is trained and how, as TOML files of `models/` or of the user, checked as a whole.

All mistakes of a recipe are reported at once, each with its line, or with "--set" where it was given there.
"""

from __future__ import annotations

import copy
import difflib
import json
import re
import sys
import tomllib
from collections.abc import Collection, Iterable, Iterator
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from curator.errors import InputError, some, suggestion

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Section(BaseModel):
    """A table of a recipe: fixed keys, fixed values."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


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
        changes: KEY=VALUE with dotted keys, e.g. "schedule.steps=100". Of steps and epochs, the one that is given here
            takes the place of the other.

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
        try:
            name, text = path.stem, path.read_text("utf-8")
        except UnicodeDecodeError:
            raise InputError(f"the recipe '{recipe}' is not text in UTF-8", "give a .toml file") from None
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"the recipe '{recipe}' is not TOML ({error})", "correct that line") from None
    changed = [_set(data, change) for change in changes or []]
    for given, other in (("steps", "epochs"), ("epochs", "steps")):
        if f"schedule.{given}" in changed and f"schedule.{other}" not in changed:
            data["schedule"].pop(other, None)
    return name, check(data, recipe, text, changed)


def from_json(text: str) -> Recipe:
    """A recipe as `models` keeps it."""
    return Recipe.model_validate_json(text)


def check(data: dict[str, Any], source: str, text: str = "", changed: Iterable[str] = ()) -> Recipe:
    """Builds a recipe from its data.

    Args:
        data: The recipe as TOML gives it.
        source: Its name or path, for the message.
        text: The TOML text, for the line numbers.
        changed: Dotted keys that do not come from the text.

    Raises:
        InputError: Every unknown key, bad value and contradiction, each with its line.
    """
    mistakes: dict[tuple[str, ...], str] = {}
    good = copy.deepcopy(data)
    try:
        # Through JSON, where a list is a tuple and a table a section, and yet no text is a number.
        recipe = Recipe.model_validate_json(json.dumps(data, default=str))
    except ValidationError as error:
        for problem in error.errors():
            path = tuple(str(part) for part in problem["loc"])
            mistakes[path] = _say(path, problem)
            _remove(good, path)
    for at, message in _contradictions(good, mistakes.keys()):
        mistakes[at] = message
    if mistakes:
        lines, given = _lines(text), {tuple(key.split(".")) for key in changed}
        listed = sorted((*_where(path, lines, given), message) for path, message in mistakes.items())
        raise InputError(
            f"the recipe '{source}' has {len(mistakes)} mistake{'s' * (len(mistakes) > 1)}:"
            + "".join(f"\n    {where}{message}" for _, where, message in listed),
            "correct the file, or the --set options",
        )
    return recipe


_PLAIN_WORDS = {
    "int_type": "should be a whole number",
    "float_type": "should be a number",
    "string_type": "should be text",
    "bool_type": "should be true or false",
    "tuple_type": "should be a list",
    "model_type": "should be a table",
    "dict_type": "should be a table",
    "too_long": "should have two items",
}
_SHORTER = [("greater than", "above"), ("less than", "below"), ("above or equal to", "at least")]
_SHORTER += [("below or equal to", "at most")]


def _say(path: tuple[str, ...], problem: Any) -> str:
    """One of pydantic's problems in the words of a recipe."""
    where, item = ".".join(path), ""
    if problem["type"] == "extra_forbidden":
        return f"unknown key '{where}'{_meant(path)}"
    if path[-1].isdigit():
        where, item = ".".join(path[:-1]), f" item {int(path[-1]) + 1}"
        if problem["type"] == "missing":
            return f"'{where}' = {problem['input']}: should have two items"
    elif problem["type"] == "missing":
        return f"'{where}' is missing"
    message = _PLAIN_WORDS.get(problem["type"], problem["msg"].replace("Input should be", "should be"))
    for long, short in _SHORTER:
        message = message.replace(long, short)
    return f"'{where}'{item} = {problem['input']!r}: {message}"


def _keys() -> list[tuple[str, ...]]:
    """All keys of a recipe."""
    found: list[tuple[str, ...]] = []
    for name, field in Recipe.model_fields.items():
        inner = field.annotation
        found.append((name,))
        if isinstance(inner, type) and issubclass(inner, Section):
            found += [(name, key) for key in inner.model_fields]
    return found


def _meant(path: tuple[str, ...]) -> str:
    """What an unknown key may have been meant as: a like one of the same table, or the same one of another table."""
    beside = [key[-1] for key in _keys() if key[:-1] == path[:-1]]
    close = difflib.get_close_matches(path[-1], beside, n=1)
    meant = [(*path[:-1], *close)] if close else [key for key in _keys() if key[-1] == path[-1]]
    return f"; did you mean '{'.'.join(meant[0])}'?" if meant else f"; known are {some(sorted(beside), 20)}"


def _contradictions(data: dict[str, Any], wrong: Collection[tuple[str, ...]]) -> Iterator[tuple[tuple[str, ...], str]]:
    """Keys that do not fit together, as (key, message).

    Args:
        data: A recipe's data without what is wrong by itself.
        wrong: The keys that were.
    """
    noise, schedule, loss, network = (data.get(name, {}) for name in ("noise", "schedule", "loss", "network"))
    ops = noise.get("randaugment_ops")
    if ops is None and ("noise", "randaugment_ops") not in wrong:
        for key in ("randaugment_magnitude", "operations"):
            if noise.get(key):
                yield (
                    ("noise", key),
                    f"'noise.{key}' has no effect without 'noise.randaugment_ops' (0 to switch it off)",
                )
    if ops and not noise.get("randaugment_magnitude") and ("noise", "randaugment_magnitude") not in wrong:
        yield ("noise", "randaugment_ops"), "'noise.randaugment_ops' needs a 'noise.randaugment_magnitude' above 0"
    for key in ("crop_scale", "crop_ratio"):
        low, high = noise.get(key, (1, 1))
        if not 0 < low <= high:
            yield ("noise", key), f"'noise.{key}' = [{low}, {high}]: should be 0 < first <= second"
    both = [key for key in ("steps", "epochs") if key in schedule or ("schedule", key) in wrong]
    if len(both) != 1 and ("schedule",) not in wrong:
        verb = "both are given" if both else "neither is given"
        yield ("schedule", "epochs" if both else ""), f"of 'schedule.steps' and 'schedule.epochs', {verb}: give one"
    steps, warmup = schedule.get("steps"), schedule.get("warmup_steps", 0)
    if steps is not None and warmup >= steps:
        yield (
            ("schedule", "warmup_steps"),
            f"'schedule.warmup_steps' = {warmup}: should be below the {steps} steps of the run",
        )
    if loss.get("form") == "ratio" and schedule.get("pseudo_ratio") == 0:
        yield ("loss", "form"), "'loss.form' = 'ratio' does not go with 'schedule.pseudo_ratio' = 0"
    for argument, key in (("drop_rate", "noise.dropout"), ("drop_path_rate", "noise.drop_path")):
        if argument in network.get("arguments", {}):
            yield ("network", "arguments", argument), f"'network.arguments.{argument}': give '{key}' instead"
    if "num_classes" in network.get("arguments", {}):
        yield (
            ("network", "arguments", "num_classes"),
            "'network.arguments.num_classes': the store says how many there are",
        )
    if noise.get("operations") is not None:
        from curator.augment import OPERATIONS

        for name in noise["operations"]:
            if name not in OPERATIONS:
                close = suggestion(name, OPERATIONS) or f"; known are {some(OPERATIONS, 20)}"
                yield ("noise", "operations", name), f"'noise.operations': '{name}' is unknown{close}"


def _remove(data: dict[str, Any], path: tuple[str, ...]) -> None:
    """Takes a key out of the data; a wrong item takes its list with it."""
    for part in path[:-1]:
        if not isinstance(data.get(part), dict):
            data.pop(part, None)
            return
        data = data[part]
    data.pop(path[-1], None)


def _lines(text: str) -> dict[tuple[str, ...], int]:
    """Where the tables and keys of TOML text stand; what is written in another way than usual is not found."""
    found: dict[tuple[str, ...], int] = {}
    table: tuple[str, ...] = ()
    for number, line in enumerate(text.splitlines(), start=1):
        if header := re.match(r"\s*\[([^\[\]]+)\]\s*(#|$)", line):
            table = _parts(header.group(1))
            found.setdefault(table, number)
        elif key := re.match(r"""([\w."' -]+)=""", line):
            found.setdefault(table + _parts(key.group(1)), number)
    return found


def _parts(key: str) -> tuple[str, ...]:
    return tuple(part.strip(" \t\"'") for part in key.split("."))


def _where(path: tuple[str, ...], lines: dict[tuple[str, ...], int], given: set[tuple[str, ...]]) -> tuple[int, str]:
    """The line of a key, or of the table that it belongs into, as a number and as "line N: ", "--set: " or nothing."""
    for end in range(len(path), 0, -1):
        if path[:end] in given:
            return sys.maxsize, "--set: "
        if path[:end] in lines:
            return lines[path[:end]], f"line {lines[path[:end]]}: "
    return 0, ""


def _set(data: dict[str, Any], change: str) -> str:
    """Makes a change KEY=VALUE in the data and returns the key."""
    key, equals, value = change.partition("=")
    *tables, name = path = [part.strip() for part in key.split(".")]
    if not equals or not all(path):
        raise InputError(f"--set {change} is not KEY=VALUE", "e.g. --set schedule.steps=100")
    try:
        parsed = tomllib.loads(f"value = {value}")
    except tomllib.TOMLDecodeError:
        parsed = {}
    for table in tables:
        data = data.setdefault(table, {})
        if not isinstance(data, dict):
            raise InputError(f"--set {change}: '{table}' is not a table of a recipe", "e.g. --set noise.dropout=0.2")
    data[name] = parsed["value"] if len(parsed) == 1 else value.strip()  # a bare word is text
    return ".".join(path)
