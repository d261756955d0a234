"""Recipes: what is trained and how, as TOML files of `models/` or of the user, and what their keys come to.

    base ... -> file -> --set -> contradictions, checks -> Recipe -> steps, rates, sizes of a run

All mistakes of a recipe are reported at once, each with its line, or with "--set" where it was given there.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from curator import configuration
from curator.configuration import Section
from curator.errors import InputError, suggestion
from curator.networks import contradictions

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
AtLeastZero = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Side = Annotated[int, Field(ge=8, le=2048)]  # of a square input, in pixels
Crop = Annotated[float, Field(gt=0, le=1)]  # share of the short side that the evaluation crop keeps
Count = Annotated[int, Field(ge=1)]


class Network(Section):
    """The network."""

    architecture: str  # a timm name, or package.module:function that takes num_classes and returns a module
    resolution: Side  # of the pictures that it is trained on
    test_crop: Crop = 0.875
    # Of the pictures that it labels and is evaluated on: `finetune.resolution`, or `resolution` where there is none.
    test_resolution: Side = Field(default_factory=lambda before: before.get("resolution", 0))
    pretrained: bool = False  # begin with timm's weights
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
    mixup: AtLeastZero = 0.0  # alpha of the Beta distribution that two images' shares come from; 0 switches it off
    cutmix: AtLeastZero = 0.0  # the same for a rectangle of one image in another
    mix: Share = 1.0  # probability that a batch is mixed
    augment: Literal["all", "labeled", "pseudo", "none"] = "all"  # rows with random pictures; others: the centre crop


class Schedule(Section):
    """How long, in which batches. Exactly one of steps and epochs, and not both warm-ups."""

    steps: Annotated[int, Field(ge=0)] | None = None  # 0: the weights that the run begins with, as they are
    epochs: Positive | None = None  # passes over the labeled images
    labeled_batch: Count  # labeled images of a step
    pseudo_ratio: Annotated[int, Field(ge=0)] = 1  # pseudo-labeled images for each labeled one
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    warmup_epochs: AtLeastZero | None = None
    decay: Literal["cosine", "constant", "exponential"] = "cosine"
    decay_rate: Annotated[float, Field(gt=0, le=1)] = 0.97  # exponential: what the rate is multiplied by ...
    decay_epochs: Positive = 2.4  # ... every so many epochs
    # `joint`: both kinds of rows in every step. `pretrain`: pseudo-labeled rows alone, then labeled rows alone.
    mode: Literal["joint", "pretrain"] = "joint"
    pretrain: Annotated[float, Field(gt=0, lt=1)] = 0.8  # the share of the steps that takes pseudo-labeled rows


class Optimizer(Section):
    """timm's optimisers by name."""

    name: str = "adamw"
    learning_rate: Positive = 1e-3
    base_batch: Count | None = None  # the labeled batch that rates are for, scaled linearly; absent: as given
    weight_decay: AtLeastZero = 0.05
    momentum: Share = 0.9
    alpha: Share | None = None  # RMSProp's decay; absent: the optimiser's own
    eps: Positive | None = None  # absent: the optimiser's own
    clip: Positive | None = None  # largest norm of the gradient; absent: any


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


class Compute(Section):
    """How the numbers are computed, not which ones."""

    # "auto" may choose differently on another machine, or on a busy one; a resumed run keeps what was chosen.
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "float32"
    compile: bool = False  # torch.compile
    accumulate: Count = 1  # forward passes that a step's batch is cut into, where memory is short
    sync_batchnorm: bool = False  # statistics over all processes' rows
    keep_checkpoints: Count = 1


class Evaluation(Section):
    """The holdout while a run goes on, and which weights it registers."""

    every: Annotated[int, Field(ge=0)] = 0  # steps between two evaluations; 0: at the end only
    # "best": those of the evaluation with the highest top-1. The holdout then flatters the model that it chose.
    keep: Literal["last", "best"] = "last"


class Finetune(Section):
    """A last phase at a larger resolution: labeled images alone, without noise, a part of the network fixed.

    It mends that objects look larger in random crops than in the centre crops of a test (Touvron et al., "Fixing the
    train-test resolution discrepancy", NeurIPS 2019). Exactly one of steps and epochs.
    """

    resolution: Side
    steps: Count | None = None
    epochs: Positive | None = None
    labeled_batch: Count | None = None  # absent: the schedule's
    learning_rate: Positive  # for `optimizer.base_batch`, as the schedule's
    frozen: tuple[str, ...] = ()  # modules whose weights and BatchNorm statistics stay, all that is in them too
    test_crop: Crop | None = None  # absent: the network's


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
    compute: Compute = Compute()
    evaluation: Evaluation = Evaluation()
    finetune: Finetune | None = None

    @property
    def untrained(self) -> bool:
        """Whether nothing is learned: the weights that the run begins with are registered as they are."""
        return self.schedule.steps == 0 and self.finetune is None

    def steps(self, labeled: int) -> int:
        """Optimiser steps with that many labeled images, those of the fine-tuning not among them."""
        return _steps(self.schedule, self.schedule.labeled_batch, labeled)

    def finetune_steps(self, labeled: int) -> int:
        """Optimiser steps of the fine-tuning; 0 where there is none."""
        return 0 if self.finetune is None else _steps(self.finetune, self.finetune_batch, labeled)

    def pretrain_steps(self, labeled: int) -> int:
        """The first steps of a student, which take pseudo-labeled rows alone; 0 for joint training."""
        return max(1, round(self.schedule.pretrain * self.steps(labeled))) if self.schedule.mode == "pretrain" else 0

    def warmup_steps(self, labeled: int) -> int:
        """Steps until the learning rate is reached."""
        if self.schedule.warmup_epochs is None:
            return self.schedule.warmup_steps
        return round(self.schedule.warmup_epochs * labeled / self.schedule.labeled_batch)

    @property
    def learning_rate(self) -> float:
        """The highest learning rate of the schedule, for its batch."""
        return self._scaled(self.optimizer.learning_rate, self.schedule.labeled_batch)

    @property
    def finetune_rate(self) -> float:
        """The learning rate of the fine-tuning, for its batch; 0 where there is none."""
        return 0.0 if self.finetune is None else self._scaled(self.finetune.learning_rate, self.finetune_batch)

    @property
    def finetune_batch(self) -> int:
        """Labeled images of a step of the fine-tuning."""
        return (self.finetune and self.finetune.labeled_batch) or self.schedule.labeled_batch

    @property
    def test_crop(self) -> float:
        """Share of the short side that labeling and evaluation keep, after a fine-tuning the one that it was for."""
        return (self.finetune and self.finetune.test_crop) or self.network.test_crop

    def _scaled(self, rate: float, batch: int) -> float:
        return rate if self.optimizer.base_batch is None else rate * batch / self.optimizer.base_batch


def _steps(length: Schedule | Finetune, batch: int, labeled: int) -> int:
    if length.steps is not None:
        return length.steps
    return max(1, round(float(length.epochs or 0) * labeled / batch))


def shipped() -> list[str]:
    """Names of the recipes that come with the tool."""
    return sorted(f.name.removesuffix(".toml") for f in files("curator.models").iterdir() if f.name.endswith(".toml"))


def load(recipe: str, changes: list[str] | None = None) -> tuple[str, Recipe]:
    """A recipe by the name of a shipped one, or by path.

    A file's `base` names the recipe, shipped or beside it, whose keys count where the file gives none.

    Args:
        recipe: A shipped name, or the path of a `.toml` file.
        changes: KEY=VALUE with dotted keys, e.g. "schedule.steps=100". Of two keys that say the same, as steps and
            epochs do, the one that is given here takes the place of the other; `finetune=false` leaves that phase out.

    Returns:
        Its short name and the recipe.

    Raises:
        InputError: There is no such recipe, or it has mistakes; all of them are listed.
    """
    name, text, data = _read(recipe)
    changed = [configuration.change(data, change, "recipe") for change in changes or []]
    contradictions.give_way(data, changed)
    return name, check(data, recipe, text, changed)


def _read(recipe: str, below: tuple[str, ...] = (), folder: Path | None = None) -> tuple[str, str, dict[str, Any]]:
    """The short name, text and data of a recipe, its bases' data included.

    Args:
        recipe: Its name or path.
        below: The files that it is a base of.
        folder: Where the path of a base begins.
    """
    if recipe in shipped():
        source, name, text = recipe, recipe, files("curator.models").joinpath(f"{recipe}.toml").read_text("utf-8")
    else:
        path = (folder or Path()) / recipe
        if not path.is_file():
            raise InputError(
                f"there is no recipe '{recipe}'{suggestion(recipe, shipped())}"
                + (f" (the base of '{below[-1]}')" if below else ""),
                f"give the path of a .toml file, or one of {', '.join(shipped())}",
            )
        source, name, text = str(path), path.stem, configuration.read(path, "recipe")
        folder = path.parent
    if source in below:
        raise InputError(
            f"the recipe '{source}' is a base of itself ({' -> '.join([*below, source])})", "cut the chain"
        )
    data = configuration.parse(text, source, "recipe")
    base = data.pop("base", None)
    if base is None:
        return name, text, data
    if not isinstance(base, str):
        raise InputError(f"the recipe '{source}': 'base' = {base!r}: should be text", "give a recipe's name or path")
    merged = _read(base, (*below, source), folder)[2]
    _lay(merged, data)
    contradictions.give_way(merged, [".".join(key) for key in _dotted(data)])
    return name, text, merged


def _lay(below: dict[str, Any], above: dict[str, Any]) -> None:
    """Puts one recipe's data over another's, in place."""
    for key, value in above.items():
        if isinstance(value, dict) and isinstance(below.get(key), dict):
            _lay(below[key], value)
        else:
            below[key] = value


def _dotted(data: dict[str, Any]) -> Iterable[tuple[str, ...]]:
    for key, value in data.items():
        if isinstance(value, dict):
            yield from ((key, *rest) for rest in _dotted(value))
        else:
            yield (key,)


def from_json(text: str) -> Recipe:
    """A recipe as `models` keeps it; one of an older version lacks keys, which have their defaults."""
    return Recipe.model_validate_json(text)


def to_toml(recipe: Recipe) -> str:
    """A recipe as a file with every key that means something in it; `load` makes the same recipe of it."""
    data = recipe.model_dump(mode="json", exclude_none=True)
    given = [key for key, _ in contradictions.FOLLOWERS]
    given += ["schedule.warmup_epochs"] * (recipe.schedule.warmup_epochs is not None)
    contradictions.give_way(data, given)
    if recipe.network.test_resolution == (recipe.finetune or recipe.network).resolution:
        del data["network"]["test_resolution"]  # so that it follows when the others are changed
    return configuration.toml(data)


def check(data: dict[str, Any], source: str, text: str = "", changed: Iterable[str] = ()) -> Recipe:
    """Builds a recipe from its data.

    Args:
        data: The recipe as TOML gives it, its base's keys included.
        source: Its name or path, for the message.
        text: The TOML text, for the line numbers.
        changed: Dotted keys that do not come from the text.

    Raises:
        InputError: Every unknown key, bad value and contradiction, each with its line.
    """
    if data.get("finetune") is False:
        data = {key: value for key, value in data.items() if key != "finetune"}
    network, finetune = data.get("network"), data.get("finetune")
    if isinstance(network, dict) and isinstance(finetune, dict) and isinstance(finetune.get("resolution"), int):
        data = data | {"network": {"test_resolution": finetune["resolution"]} | network}
    return configuration.check(Recipe, data, "recipe", source, text, changed, contradictions.find)
