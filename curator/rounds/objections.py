"""Objections to a plan: what of it does not fit together, is no sound recipe or selection, or is not in the store.

data of the plan, keys that are wrong by themselves, the store -> (key, message) of everything else that is wrong
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from curator.configuration import Key
from curator.curation import manifests, policies, selection, usersql
from curator.curation.parameters import Parameters
from curator.errors import InputError, suggestion
from curator.names import check_name
from curator.networks import recipes
from curator.networks.recipes import Recipe
from curator.schema import IMAGES, LABELS
from curator.storage.store import Store

SCRATCH, TEACHER = "scratch", "teacher"  # what a round's init may be besides the name of a model


def recipe_of(table: Mapping[str, Any], folder: Path) -> tuple[str, list[str], Recipe]:
    """The recipe of a plan's teacher or round.

    Args:
        table: Its keys recipe, changes and pseudo_ratio.
        folder: Where recipes lie that are files.

    Returns:
        Its name or path, its changes, and the recipe that they come to.

    Raises:
        InputError: There is none of that name, or it has mistakes.
    """
    source, changes = str(table["recipe"]), [*table.get("changes", ())]
    if table.get("pseudo_ratio") is not None:
        changes.append(f"schedule.pseudo_ratio={table['pseudo_ratio']}")
    if source.endswith(".toml"):
        source = str(folder / source)
    return source, changes, recipes.load(source, changes)[1]


def options_of(plan: Mapping[str, Any], own: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The options of a round's selection, in the form in which a manifest records them.

    Args:
        plan: Those of every round.
        own: Those of this one.
        folder: Where policies lie that are files.

    Raises:
        InputError: The file of a policy cannot be read.
    """
    options: dict[str, Any] = {}
    for given in (plan, own):
        if str(given.get("policy")).endswith(".sql"):
            given = {**given, "policy": str(folder / given["policy"])}
        options = policies.resolve(options, given)
    return options


class Objections:
    """What is wrong with one plan for one store.

    Args:
        data: The plan as TOML gives it.
        wrong: The keys that are wrong by themselves.
        name: The plan's short name.
        folder: Where the files lie that it names.
        models: Rows of the models table by name.
        store: The store.
    """

    def __init__(
        self,
        data: dict[str, Any],
        wrong: Collection[Key],
        name: str,
        folder: Path,
        models: Mapping[str, Any],
        store: Store,
    ) -> None:
        self._data, self._wrong, self._folder = data, wrong, folder
        self._models, self._store = models, store
        self._name = str(self._table().get("name", name))
        self._names: set[str] = set()  # of models, so far
        self._controls: dict[str, Any] = {}  # what each control is trained by, so far

    def all(self) -> Iterator[tuple[Key, str]]:
        """Everything that is wrong, as (key, message)."""
        if (said := _told(check_name, "plan", f"g0-{self._name}")) is not None:
            yield ("name",), said.replace(f"g0-{self._name}", self._name) + ": give the plan another 'name'"
        recipe = None
        if "teacher" in self._data and ("teacher",) not in self._wrong:
            teacher = self._table("teacher")
            yield from self._of_teacher(teacher)
            recipe = self._recipe(teacher) or self._registered(teacher.get("model"))
        rounds = self._data.get("rounds")
        for number in range(len(rounds) if isinstance(rounds, list) else 0):
            table = self._table("rounds", number)
            key = ("rounds", str(number))
            yield from self._of_recipe(key, table)
            yield from self._of_names(key, table)
            yield from self._of_init(key, table, recipe)
            yield from self._of_selection(number, table)
            recipe = self._recipe(table)

    def _of_teacher(self, table: dict[str, Any]) -> Iterator[tuple[Key, str]]:
        given = [key for key in ("recipe", "model") if key in table or ("teacher", key) in self._wrong]
        if len(given) != 1:
            verb = "both are given" if given else "neither is given"
            yield ("teacher",), f"of 'teacher.recipe' and 'teacher.model', {verb}: give one"
        if "model" in table:
            if table["model"] not in self._models:
                yield ("teacher", "model"), f"'teacher.model' = '{table['model']}': {self._unknown(table['model'])}"
            for key in sorted({"changes", "name"} & table.keys()):
                yield ("teacher", key), f"'teacher.{key}' has no effect beside 'teacher.model'"
        yield from self._of_recipe(("teacher",), table)
        if "model" not in table:
            yield from self._of_names(("teacher",), table)

    def _of_recipe(self, key: Key, table: dict[str, Any]) -> Iterator[tuple[Key, str]]:
        if "recipe" in table and (said := _told(recipe_of, table, self._folder)) is not None:
            yield (*key, "recipe"), said.replace("\n", "\n    ")
        recipe = self._recipe(table)
        if key != ("teacher",) and recipe is not None and not recipe.schedule.pseudo_ratio:
            at = "pseudo_ratio" if "pseudo_ratio" in table else "recipe"
            yield (*key, at), f"'{'.'.join(key)}.{at}': the student takes no pseudo-labeled images"

    def _of_names(self, key: Key, table: dict[str, Any]) -> Iterator[tuple[Key, str]]:
        for name in ("name", "control", "manifest"):
            if name in table and (said := _told(check_name, "model", table[name])) is not None:
                yield (*key, name), said
        model = table.get("name", f"g{0 if key == ('teacher',) else int(key[1]) + 1}-{self._name}")
        control, trained_by = table.get("control"), (self._recipe(table), table.get("init", SCRATCH))
        if model in self._names | self._controls.keys() | {control}:
            yield (*key, "name"), f"'{'.'.join(key)}.name' = '{model}': another model of the plan has that name"
        self._names.add(model)
        if control is not None and (control in self._names or self._controls.get(control, trained_by) != trained_by):
            what = f"'{'.'.join(key)}.control' = '{control}'"
            yield (*key, "control"), f"{what}: another model of the plan has that name, by another recipe or start"
        if control is not None:
            self._controls[control] = trained_by

    def _of_init(self, key: Key, table: dict[str, Any], teacher: Recipe | None) -> Iterator[tuple[Key, str]]:
        """A model to start from that there is not, or whose weights do not fit."""
        init, recipe = table.get("init", SCRATCH), self._recipe(table)
        named = f"'{'.'.join(key)}.init' = '{init}'"
        if init not in (SCRATCH, TEACHER) and init not in self._models:
            yield (*key, "init"), f"{named}: it is neither '{SCRATCH}' nor '{TEACHER}', and {self._unknown(init)}"
        elif init != SCRATCH and recipe is not None:
            source = teacher if init == TEACHER else self._registered(init)
            if source is None:
                return
            there, wanted = source.network, recipe.network
            if (there.architecture, there.arguments) != (wanted.architecture, wanted.arguments):
                what = f"the weights of '{there.architecture}' do not fit '{wanted.architecture}' with these arguments"
                yield (*key, "init"), f"{named}: {what}"

    def _of_selection(self, number: int, table: dict[str, Any]) -> Iterator[tuple[Key, str]]:
        plan, own = self._table("selection"), self._table("rounds", number, "selection")
        # Where the table has no line of its own, its first key has one.
        at: Key = ("rounds", str(number), "selection", *[*own][:1]) if own else ("selection",)
        again = ("rounds", str(number), "reselect")
        targets = plan.get("targets", "soft")
        if table.get("reselect", True):
            if (said := _told(self._examine, plan, own)) is not None:
                yield at, said
        elif not number:
            yield again, f"'{'.'.join(again)}' = false: there is no selection before it to take again"
        elif own:
            yield at, f"'{'.'.join(at[:3])}' has no effect: 'reselect' = false takes an earlier selection again"
        elif targets != "soft":
            what = "takes the earlier classes for hard targets, and so nothing from this round's teacher"
            yield again, f"'{'.'.join(again)}' = false {what}: give 'targets' = 'soft', or reselect"

    def _examine(self, plan: dict[str, Any], own: dict[str, Any]) -> None:
        """Makes sure that a selection can be run, as far as that can be said before there are labels."""
        options = options_of(plan, own, self._folder)
        if "per_class" not in options:
            raise InputError("'selection.per_class' is missing")
        # which temperature will be fitted is not known yet, and changes no query
        calibration = 1.0 if options.pop("calibrated", False) else None
        parameters = Parameters(generation=0, calibration=calibration, **options)
        with closing(self._store.connect()) as con:
            holdout = "select 1 from stored_images where split = 'holdout' limit 1"
            if calibration is not None and not con.sql(holdout).fetchall():
                raise InputError("'selection.calibrated' = true: the store has no holdout to fit a temperature on")
            selection.prepare(con, parameters)
            manifests.read_earlier(self._store, con, parameters)
            if parameters.where is not None:
                columns = dict.fromkeys([*LABELS.schema.names, *IMAGES.schema.names, "class_name"])
                usersql.check_expression(con, parameters.where, columns, selection.INPUTS)
            selection.eligible(con, parameters)

    def _table(self, *path: str | int) -> dict[str, Any]:
        """A table of the plan without the keys that are wrong by themselves; an empty one where there is none."""
        data: Any = self._data
        for part in path:
            inside = isinstance(data, list) or part in data
            data = data[part] if inside else {}
        at = tuple(map(str, path))
        wrong = {key[len(at)] for key in self._wrong if key[: len(at)] == at and len(key) > len(at)}
        return {k: v for k, v in data.items() if k not in wrong} if isinstance(data, dict) else {}

    def _recipe(self, table: dict[str, Any]) -> Recipe | None:
        """The recipe of a table, if it is sound."""
        try:
            return recipe_of(table, self._folder)[2]
        except (InputError, KeyError):
            return None

    def _registered(self, model: str | None) -> Recipe | None:
        """The recipe of a model of the store, if it was trained here."""
        text = self._models.get(model or "", {}).get("recipe")
        return None if text is None else recipes.from_json(text)

    def _unknown(self, model: str) -> str:
        return f"there is no such model{suggestion(model, self._models)}"


def _told(check: Callable[..., object], *arguments: Any) -> str | None:
    """What a check has to say against something, or None."""
    try:
        check(*arguments)
    except InputError as error:
        return error.what
    return None
