"""Plans: the whole loop as one TOML file, checked as a whole against recipes, policies and the store.

plan.toml -> sections -> the generations that it comes to, one for the first teacher and one for each round
                |
                +-> or all its mistakes, each with its line (objections.py)
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import Field

from curator import configuration
from curator.configuration import Section
from curator.errors import InputError, suggestion
from curator.networks.recipes import Recipe
from curator.rounds.objections import SCRATCH, TEACHER, Objections, options_of, recipe_of
from curator.storage.store import Store


class Teacher(Section):
    """The model of the first generation. Exactly one of recipe and model."""

    recipe: str | None = None  # it is trained on the labeled images
    changes: tuple[str, ...] = ()  # KEY=VALUE changes of the recipe
    name: str | None = None  # of the model that is trained; g0-PLAN by default
    model: str | None = None  # one that the store has: trained before, or known by its imported labels


class Selection(Section):
    """Options of build-manifest, by their names; what is not said has its default."""

    per_class: int | None = None
    min_confidence: float | None = None
    policy: str | None = None
    settings: dict[str, int | float | str] | None = None  # parameters of the policy
    targets: str | None = None
    hard_from: float | None = None
    temperature: float | None = None
    fill: str | None = None
    max_copies: int | None = None
    dedup: bool | None = None
    accepted: bool | None = None
    calibrated: bool | None = None
    near_leaks: str | None = None
    where: str | None = None
    seed: int | None = None


class Round(Section):
    """One student, taught by the generation before it."""

    recipe: str
    changes: tuple[str, ...] = ()
    pseudo_ratio: int | None = None  # pseudo-labeled images for each labeled one; the recipe's by default
    init: str = SCRATCH  # weights to start from: none, those of the round's "teacher", or of a model
    reselect: bool = True  # false: the images of the last selection, with the soft labels of the round's teacher
    selection: Selection = Selection()  # what differs from the plan's
    name: str | None = None  # of the model; gN-PLAN by default
    manifest: str | None = None  # its name; gN-PLAN by default, where N is the generation of the labels
    control: str | None = None  # name of a model to train by the same recipe, and so as many steps, without a manifest


class Plan(Section):
    """A whole plan."""

    title: str
    name: str | None = None  # in the names of models and manifests; that of the file by default
    teacher: Teacher
    selection: Selection = Selection()  # of every round
    rounds: Annotated[tuple[Round, ...], Field(min_length=1)]


class Training(NamedTuple):
    """A model as it is to be trained.

    Attributes:
        model: Its name.
        source: Its recipe, as `training.train` takes it, with `changes`.
        recipe: The recipe that both come to.
        manifest: The manifest, or None for the labeled images alone.
        init: The model whose weights it starts from.
        parents: The models whose labels or weights it uses.
    """

    model: str
    source: str
    changes: list[str]
    recipe: Recipe
    manifest: str | None = None
    init: str | None = None
    parents: tuple[str, ...] = ()


class Generation(NamedTuple):
    """A model, and what it comes from.

    Attributes:
        number: The generation.
        model: Its name.
        training: How it is trained; None for one that the store has.
        options: Those of the manifest that it is trained on, as `building.build` takes them.
        control: A model that is trained for comparison.
    """

    number: int
    model: str
    training: Training | None
    options: dict[str, Any]
    control: Training | None


def shipped() -> list[str]:
    """Names of the plans that come with the tool."""
    there = files("curator.models").joinpath("plans").iterdir()
    return sorted(file.name.removesuffix(".toml") for file in there if file.name.endswith(".toml"))


def load(store: Store, plan: str) -> tuple[str, list[Generation]]:
    """A plan by the name of a shipped one, or by path.

    Args:
        store: The store that it is for.
        plan: A shipped name, or the path of a `.toml` file. Files that it names lie beside it.

    Returns:
        Its short name and its generations, the first teacher's first.

    Raises:
        InputError: There is no such plan, or it has mistakes; all of them are listed.
    """
    if plan in shipped():
        name, folder = plan, Path()
        text = files("curator.models").joinpath("plans", f"{plan}.toml").read_text("utf-8")
    else:
        path = Path(plan)
        if not path.is_file():
            raise InputError(
                f"there is no plan '{plan}'{suggestion(plan, shipped())}",
                f"give the path of a .toml file, or one of {', '.join(shipped())}",
            )
        name, folder, text = path.stem, path.parent, configuration.read(path, "plan")
    data = configuration.parse(text, plan, "plan")
    models = {row["model"]: row for row in store.rows("select model, generation, recipe from models")}

    def object_to(_: object, wrong: Any) -> Any:
        return Objections(data, wrong, name, folder, models, store).all()

    checked = configuration.check(Plan, data, "plan", plan, text, contradictions=object_to)
    first = models[checked.teacher.model]["generation"] if checked.teacher.model is not None else 0
    return checked.name or name, _generations(checked, checked.name or name, first, folder)


def _generations(plan: Plan, name: str, number: int, folder: Path) -> list[Generation]:
    """What a plan without mistakes comes to."""
    first = plan.teacher
    model, training = first.model or first.name or f"g0-{name}", None
    if first.model is None:
        training = Training(model, *recipe_of(first.model_dump(), folder))
    found = [Generation(number, model, training, {}, None)]
    options: dict[str, Any] = {}  # of the last selection
    selected = ""  # its manifest
    for this in plan.rounds:
        teacher, number = found[-1].model, found[-1].number
        manifest = this.manifest or f"g{number}-{name}"
        if this.reselect:
            options, selected = options_of(_said(plan.selection), _said(this.selection), folder), manifest
        init = {SCRATCH: None, TEACHER: teacher}.get(this.init, this.init)
        recipe = recipe_of(this.model_dump(), folder)
        starts = () if init is None else (init,)
        trained = Training(
            this.name or f"g{number + 1}-{name}", *recipe, manifest, init, tuple(dict.fromkeys((teacher, *starts)))
        )
        control = None if this.control is None else Training(this.control, *recipe, None, init, starts)
        own = options if this.reselect else _again(options, selected)
        found.append(Generation(number + 1, trained.model, trained, own | {"generation": number}, control))
    return found


def _said(selection: Selection) -> dict[str, Any]:
    return selection.model_dump(exclude_unset=True)


def _again(options: dict[str, Any], manifest: str) -> dict[str, Any]:
    """Options that take the images of a manifest once more, each as often, with another generation's soft labels."""
    names = ("per_class", "fill", "max_copies", "temperature", "near_leaks")
    kept = {name: options[name] for name in names if name in options}
    return kept | {"policy": "images-of", "settings": {"manifest": manifest}, "min_confidence": 0.0}
