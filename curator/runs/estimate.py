"""What a recipe costs: parameters and multiply-adds from its shapes alone, and time from a few steps taken for real.

    recipe -> network without memory (torch's meta device) -> parameters, multiply-adds
    recipe + rows -> phases -> steps on random pixels, first few rows, then more
        -> seconds = fixed + rows x each -> all steps of the run

What is measured is the network on one device, without the loader and without torch.compile.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from curator import progress, ranks
from curator.curation import manifests
from curator.delivery import packs
from curator.loading.batches import Batch
from curator.loading.rows import Rows
from curator.networks import network, recipes
from curator.networks.recipes import Recipe
from curator.ranks import Ranks
from curator.runs import assignment, optimization, phases
from curator.runs.optimization import Optimization
from curator.runs.phases import Phase
from curator.runs.steps import Steps
from curator.storage.store import Store

CLASSES = 1000  # that networks are compared with
_FEW, _MORE = 2, 4  # rows of the first step measured, and how many times as many the next one has
_LONG = 0.5  # seconds; after a step that takes longer no larger one is measured
_REPEATS = 3  # of a step, at least
_CPU_WORK = 2.5e9  # multiply-adds of the first forward pass, at most: half a second of a CPU
_COPIES = 6  # of the weights: themselves, gradients, average, two of the optimiser, one to go back to


class Size(NamedTuple):
    """A network by its shapes.

    Attributes:
        parameters: Numbers that are learned.
        multiply_adds: Of convolutions and matrix products, for one picture in one forward pass.
    """

    parameters: int
    multiply_adds: int


class Pace(NamedTuple):
    """How long a step takes.

    Attributes:
        fixed: Seconds, however many rows it has; None where nothing was measured.
        each: Seconds for a row.
        how: What was measured and how it was scaled, or why nothing was.
    """

    fixed: float | None
    each: float
    how: str


class PhaseEstimate(NamedTuple):
    """What a phase of a run takes.

    Attributes:
        name: The phase.
        resolution: Of its pictures, in pixels.
        steps: Of the optimiser.
        labeled: Labeled images of a step.
        pseudo: Pseudo-labeled images of a step.
        images: In all its steps.
        seconds: Of all its steps; None where nothing was measured.
        how: See `Pace`.
    """

    name: str
    resolution: int
    steps: int
    labeled: int
    pseudo: int
    images: int
    seconds: float | None
    how: str


class Estimate(NamedTuple):
    """What a run takes; seconds are None where a phase was not measured, `notes` those of `Rows.labeled`."""

    recipe: str
    resolved: Recipe
    classes: int
    size: Size
    device: str
    precision: str
    phases: list[PhaseEstimate]
    seconds: float | None
    notes: list[str]


def size(recipe: Recipe, classes: int = CLASSES) -> Size:
    """Parameters and multiply-adds of a recipe's network at its training resolution; no weights are made.

    Raises:
        InputError: The architecture is unknown, or does not take the recipe's arguments, pictures or classes.
    """
    # As JSON, because the arguments of an architecture are no key of a cache; what stays is all that shapes depend on.
    return _size(recipe.network.model_dump_json(include={"architecture", "resolution", "arguments"}), classes)


@cache
def _size(wanted: str, classes: int) -> Size:
    recipe = recipes.from_json(f'{{"title": "", "network": {wanted}, "schedule": {{"labeled_batch": 2}}}}')
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        made = network.build(recipe, classes)  # which shows it two pictures
    operations_of_a_multiply_add = 2
    return Size(
        sum(p.numel() for p in made.parameters()), counter.get_total_flops() // operations_of_a_multiply_add // 2
    )


def estimate(
    store: Store,
    recipe: str,
    manifest: str | None = None,
    changes: list[str] | None = None,
    pack: str | None = "auto",
    device: str = "auto",
) -> Estimate:
    """What training would take; nothing is written but the index of rows that training reads too.

    Args:
        store: The store.
        recipe: Name of a shipped recipe, or path of a `.toml` file.
        manifest: Manifest to train on with the labeled split.
        changes: KEY=VALUE changes of the recipe.
        pack: The pack that images would be read from, see `training.train`.
        device: Where to compute; "auto" is a GPU where there is one.

    Raises:
        InputError: The recipe, manifest or device is not usable.
    """
    name, plan = recipes.load(recipe, changes)
    classes = assignment.expect_usable(store, plan, manifest)
    chosen = packs.chosen(store, pack, max(plan.network.resolution, plan.network.test_resolution))
    taken, notes = list[Phase](), list[str]()
    if not plan.untrained:
        labeled, pseudo = Rows.labeled(store, chosen), None
        if manifest is not None:
            manifests.find(store, manifest)
            pseudo = Rows.manifest(store, manifest, chosen)
        taken, notes = phases.of(plan, labeled, pseudo), labeled.notes
    mine = Ranks(0, 1, ranks.device_of(device))
    network.leave_a_core()
    shapes = size(plan, classes)
    trial = _Trial(plan, classes, mine)
    found = []
    with progress.progress("measuring", None, "phases") as advance:
        for phase in taken:
            batch = sum(count for _, count in phase.streams)
            first = sum(count for rows, count in phase.streams if rows.name == "labeled")
            steps, pace = phase.end - phase.begin, trial.pace(phase, batch)
            seconds = None if pace.fixed is None else steps * (pace.fixed + pace.each * batch)
            shown = (phase.noise[0].size, steps, first, batch - first, steps * batch)
            found.append(PhaseEstimate(phase.name, *shown, seconds, pace.how))
            advance(1, phase.name)
    whole = [each.seconds for each in found if each.seconds is not None]
    total = math.fsum(whole) if len(whole) == len(found) else None
    return Estimate(name, plan, classes, shapes, mine.device.type, trial.precision, found, total, notes)


class _Trial:
    """Takes steps of a recipe on random pixels.

    Args:
        recipe: The recipe.
        classes: C.
        mine: This process and its device.
    """

    def __init__(self, recipe: Recipe, classes: int, mine: Ranks) -> None:
        self.parts = recipe.compute.accumulate
        compute = recipe.compute.model_copy(update={"compile": False, "accumulate": 1})
        self.recipe = recipe.model_copy(update={"compute": compute})
        self.classes, self.mine = classes, mine
        self.precision: str = recipe.compute.precision
        self.known: dict[tuple[int, tuple[str, ...]], Pace] = {}

    def pace(self, phase: Phase, batch: int) -> Pace:
        """How long a step of a phase takes; measured once for phases that differ in their rows only."""
        key = (phase.noise[0].size, phase.frozen)
        if key not in self.known:
            self.known[key] = self._measure(phase, max(_FEW, math.ceil(batch / self.parts)))
        return self.known[key]

    def _at(self, resolution: int) -> Recipe:
        """The recipe at another size of pictures."""
        wanted = self.recipe.network.model_copy(update={"resolution": resolution})
        return self.recipe.model_copy(update={"network": wanted})

    def _measure(self, phase: Phase, most: int) -> Pace:
        full = phase.noise[0].size
        shapes = size(self._at(full), self.classes)
        on_cpu = self.mine.device.type == "cpu"
        needed = 4 * _COPIES * shapes.parameters
        if on_cpu and needed > os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 3:
            return Pace(None, 0.0, f"not measured: weights and what belongs to them take {needed / 1e9:.0f} GB")
        side = full
        if on_cpu and (excess := _FEW * shapes.multiply_adds / _CPU_WORK) > 1:
            side = max(32, round(full / math.sqrt(excess) / 32) * 32)
        recipe = self._at(side)
        scale = shapes.multiply_adds / size(recipe, self.classes).multiply_adds
        taken = dict(self._steps(recipe, phase, most))
        if not taken:
            return Pace(None, 0.0, f"not measured: not even {_FEW} rows fit into the memory of the device")
        (last, seconds), *before = [*taken.items()][::-1]
        few, less = before[0] if before else (0, 0.0)
        each = max(0.0, (seconds - less) / (last - few))
        how = f"steps of {' and '.join(str(rows) for rows in [*taken][-2:])} rows at {side} px"
        how += f", scaled to {full} px by the multiply-adds" * (side != full)
        return Pace(max(0.0, seconds - each * last), each * scale, how)

    def _steps(self, recipe: Recipe, phase: Phase, most: int) -> Iterator[tuple[int, float]]:
        """Rows and seconds of steps, of few rows and more, as far as time and memory allow."""
        made = network.build(recipe, self.classes).to(self.mine.device).to(memory_format=torch.channels_last)
        self.precision = optimization.precision(recipe, made, self.mine.device, _FEW)
        # A rate of nearly nothing: random labels teach nothing, and must not blow up the weights.
        still = phase._replace(learning_rate=1e-12)
        moving = Optimization(made, recipe, still, self.precision, self.mine.device)
        steps = Steps(made, moving, recipe, self.mine)
        moving.train()
        rows = _FEW
        while True:
            batch = self._batch(rows, recipe.network.resolution, phase)
            try:
                took = _seconds(steps, batch)
            except torch.OutOfMemoryError:
                return
            yield rows, took
            if rows == most or (took > _LONG and rows > _FEW):  # two of them tell what rows cost and what the rest
                return
            rows = min(most, rows * _MORE)

    def _batch(self, rows: int, side: int, phase: Phase) -> Batch:
        pixels = torch.from_numpy(np.random.default_rng(rows).integers(0, 256, (rows, side, side, 3), np.uint8))
        targets = torch.full((rows, self.classes), 1 / self.classes)
        return Batch(phase.begin, pixels, targets, torch.ones(rows), rows, np.arange(rows))


def _seconds(steps: Steps, batch: Batch) -> float:
    """Of the fastest of some steps, short ones more often, and not the first, which makes what later ones use."""
    took: list[float] = []
    while len(took) < _REPEATS or (sum(took) < _LONG and len(took) < 10 * _REPEATS):
        began = time.perf_counter()
        steps.take(batch)
        took.append(time.perf_counter() - began)
    return min(took[1:])
