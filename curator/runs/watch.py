"""The holdout while a run goes on: its weights evaluated every so many steps, and the best of them kept.

    weights to be registered --every N steps--> a copy, in eval mode --holdout--> top-1, top-5, ECE -> figures
                                                          +-> above all before: best-000000300 beside the checkpoints

Nothing of it reaches the training: what is evaluated is a copy, and each step sets its own random numbers.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from curator import progress
from curator.errors import InputError
from curator.loading.rows import holdout_rows
from curator.measures.evaluation import evaluate_network
from curator.networks import checkpoints
from curator.networks.network import Network
from curator.networks.recipes import Recipe
from curator.runs.journal import Journal
from curator.storage.store import Store, Versions

_NAMES = ("top1", "top5", "ece")


class Best(NamedTuple):
    """The best evaluation: the steps that were done, and its figures."""

    step: int
    figures: Mapping[str, float]


class _Stopped(Exception):
    """An evaluation was given up, because the run is to stop."""


class Watch:
    """The evaluations of one run; the first rank alone makes them.

    Args:
        store: The store.
        recipe: The recipe.
        model: The run.
        generation: Its generation.
        folder: Of the run.
        threads: Threads that read and decode.
        versions: Table versions to read; the newest for a table that is not named.

    Raises:
        InputError: The recipe wants evaluations, and there is no holdout.
    """

    def __init__(
        self,
        store: Store,
        recipe: Recipe,
        model: str,
        generation: int,
        folder: Path,
        threads: int | None,
        versions: Versions,
    ) -> None:
        self.store, self.recipe, self.folder = store, recipe, folder
        self.model, self.generation, self.threads, self.versions = model, generation, threads, versions
        self.every, self.keep = recipe.evaluation.every, recipe.evaluation.keep
        self.images = int(store.rows(f"select count(*) as n from ({holdout_rows()})", versions)[0]["n"])
        self.best: Best | None = None
        self._last = 0  # the step of the last evaluation
        self._top1: float | None = None
        if self.every and not self.images:
            raise InputError(
                f"evaluation.every = {self.every}, and the store has no holdout images",
                "curator add-images FOLDER --split holdout, or --set evaluation.every=0",
            )

    @property
    def identity(self) -> dict[str, int]:
        """What a resumed run must have in common with its checkpoint: on another holdout, figures do not compare."""
        return {"holdout": self.images} if self.every else {}

    @property
    def note(self) -> str:
        """The figures in a few words, to be shown beside the progress."""
        if self._top1 is None or self.best is None:
            return ""
        return f", holdout top-1 {self._top1:.2%} (best {self.best.figures['top1']:.2%} at step {self.best.step})"

    def go_on(self, step: int) -> None:
        """Takes back what was found out behind a step; the metrics behind it are gone already."""
        checkpoints.take_back(self.folder, step)
        found = checkpoints.load_best(self.folder)
        self.best = found and Best(found.step, found.state)
        query = "select step, value from metrics where model = $model and name = 'holdout_top1' order by step desc"
        for row in self.store.rows(query, model=self.model)[:1]:
            self._last, self._top1 = row["step"], row["value"]

    def look(self, step: int, network: Network, stopped: Callable[[], bool]) -> dict[str, float]:
        """Evaluates weights where it is time to, and keeps them where they are the best.

        Args:
            step: Steps that are done.
            network: It is not changed, nor its mode.
            stopped: Whether the run is to stop: then the evaluation is given up, for the resumed run to make.

        Returns:
            Figures for the journal; none where it is not time, or the holdout cannot be read.
        """
        if not self.every or step % self.every or step <= self._last:
            return {}

        def advance(images: int) -> None:
            if stopped():
                raise _Stopped

        shown = copy.deepcopy(network).eval()
        try:
            figures = self._evaluate(shown, advance)
        except _Stopped:
            return {}
        if self._note(step, figures):
            checkpoints.save_best(self.folder, step, shown.state_dict(), figures)
        return _named(figures)

    def conclude(self, step: int, network: Network, journal: Journal) -> tuple[int, dict[str, float]]:
        """Evaluates the last weights and puts into the network those that the recipe keeps.

        Args:
            step: Steps of the run.
            network: The last weights, in eval mode.
            journal: It is told of the last weights, which may not be the ones that are kept.

        Returns:
            The step of the weights that are kept, and their figures.
        """
        figures = self._evaluate(network) if self.images else {}
        if self.every:
            self._note(step, figures)
            journal.add(step, _named(figures))
            if self.keep == "best" and self.best is not None and self.best.step < step:
                found = checkpoints.load_best(self.folder)
                if found is not None:
                    network.load_state_dict(found.weights["network"])
                    return found.step, found.state
        return step, figures

    def _evaluate(self, network: Network, advance: Callable[[int], None] | None = None) -> dict[str, float]:
        try:
            found = evaluate_network(
                self.store, network, self.recipe, self.model, self.generation, self.threads, advance, self.versions
            )
        except InputError as error:  # no reason to lose the training
            progress.say(f"not evaluated: {error.what}")
            return {}
        return {name: getattr(found, name) for name in _NAMES}

    def _note(self, step: int, figures: Mapping[str, float]) -> bool:
        """Takes an evaluation to account; whether it is the best so far. Of equal ones, the first is."""
        self._last = step
        if not figures:
            return False
        self._top1 = figures["top1"]
        if self.best is not None and self.best.figures["top1"] >= figures["top1"]:
            return False
        self.best = Best(step, figures)
        return True


def _named(figures: Mapping[str, float]) -> dict[str, float]:
    return {f"holdout_{name}": value for name, value in figures.items()}
