"""The phases of a run: which rows, under which noise, from which step to which.

    recipe + labeled rows + a manifest's rows
        -> training                  joint batches; or, without a manifest, labeled rows alone
        -> pretraining, training     pseudo rows first, then labeled rows (schedule.mode = "pretrain")
        -> ..., fine-tuning          labeled rows, larger, without noise, first layers frozen ([finetune])

Each phase has an optimiser and a schedule of its own; a later one starts from the averaged weights of the one before.
"""

from __future__ import annotations

from typing import NamedTuple

from curator import draws
from curator.loading.loader import Noise, augmentation
from curator.loading.rows import Rows
from curator.networks.recipes import Recipe
from curator.noise.augment import CentreCrop


class Phase(NamedTuple):
    """Some steps of a run.

    Attributes:
        name: What to call it.
        begin: Its first step.
        end: The step after its last.
        streams: Rows with how many of them a step takes, labeled ones first; all ranks together.
        noise: Of each stream.
        seed: Of order and augmentation.
        learning_rate: At its highest.
        warmup: Steps in which it rises.
        epoch: Steps of a pass over the labeled rows.
        frozen: Modules of the body that do not learn, with all that is inside them.
    """

    name: str
    begin: int
    end: int
    streams: list[tuple[Rows, int]]
    noise: list[Noise]
    seed: int
    learning_rate: float
    warmup: int
    epoch: float
    frozen: tuple[str, ...] = ()


def of(recipe: Recipe, labeled: Rows, pseudo: Rows | None) -> list[Phase]:
    """The phases of a run in their order.

    Args:
        recipe: The recipe.
        labeled: Rows of the labeled split.
        pseudo: Rows of the manifest, if there is one.
    """
    schedule, n = recipe.schedule, len(labeled)
    steps, epoch = recipe.steps(n), n / schedule.labeled_batch
    noisy = augmentation(recipe)
    plain = CentreCrop(recipe.network.resolution, recipe.network.test_crop)
    on_labeled: Noise = noisy if recipe.noise.augment in ("all", "labeled") else plain
    on_pseudo: Noise = noisy if recipe.noise.augment in ("all", "pseudo") else plain
    streams, noise = [(labeled, schedule.labeled_batch)], [on_labeled]
    found: list[Phase] = []
    rate, warmup, begin = recipe.learning_rate, recipe.warmup_steps(n), 0
    if pseudo is not None:
        taught, count = (pseudo, schedule.labeled_batch * schedule.pseudo_ratio), recipe.pretrain_steps(n)
        if count:
            begin = min(count, steps - 1)
            found.append(Phase("pretraining", 0, begin, [taught], [on_pseudo], recipe.seed, rate, warmup, epoch))
            warmup = 0
        else:
            streams.append(taught)
            noise.append(on_pseudo)
    seed = _seed(recipe, len(found))
    if steps:
        found.append(Phase("training", begin, steps, streams, noise, seed, rate, warmup, epoch))
    last = recipe.finetune
    if last is not None:
        batch = recipe.finetune_batch
        found.append(
            Phase(
                "fine-tuning",
                steps,
                steps + recipe.finetune_steps(n),
                [(labeled, batch)],
                [CentreCrop(last.resolution, recipe.test_crop)],
                _seed(recipe, len(found)),
                recipe.finetune_rate,
                0,
                n / batch,
                last.frozen,
            )
        )
    return found


def _seed(recipe: Recipe, number: int) -> int:
    """The seed of a phase: each has an order of its own."""
    return int(draws.key(recipe.seed, "phase", number) >> 1) if number else recipe.seed
