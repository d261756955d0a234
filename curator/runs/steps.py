"""One step of training: a batch becomes gradients, in one go or in parts, on one rank or on many.

    batch -> device -> mixing -> parts: forward (one pass for labeled and pseudo rows), joint loss, backward
        -> gradients of all ranks -> weights

Means are over the rows that count in the whole batch, whatever parts and ranks it was cut into.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from curator import draws
from curator.errors import CuratorError
from curator.loading.batches import Batch
from curator.networks.network import Network
from curator.networks.recipes import Recipe
from curator.noise.mixing import Mixing, mix
from curator.ranks import Ranks
from curator.runs.losses import joint_loss
from curator.runs.optimization import Optimization

# torch 2.14 has another name for it and warns of the old one.
_NAMES = inspect.signature(DistributedDataParallel.__init__).parameters
_BUFFERS: Any = "forward_sync_buffers" if "forward_sync_buffers" in _NAMES else "broadcast_buffers"


class Steps:
    """Takes the steps of a phase.

    Args:
        network: The network, on the device of this rank.
        optimization: The moving parts of the phase.
        recipe: The recipe.
        ranks: The processes of the run.
    """

    def __init__(self, network: Network, optimization: Optimization, recipe: Recipe, ranks: Ranks) -> None:
        self.optimization, self.recipe, self.ranks = optimization, recipe, ranks
        self.mixing = Mixing(recipe.noise.mixup, recipe.noise.cutmix, recipe.noise.mix)
        self.forward: Any = network
        if ranks.world > 1:
            devices = [ranks.device] if ranks.device.type == "cuda" else None
            # Statistics of BatchNorm are those of the first rank, which writes them; nothing else reads them.
            self.forward = DistributedDataParallel(network, device_ids=devices, **dict[str, Any]({_BUFFERS: False}))
        self.wrapped = self.forward
        if recipe.compute.compile:
            self.forward = torch.compile(self.forward)

    def take(self, batch: Batch) -> float:
        """One step.

        Args:
            batch: This rank's part.

        Returns:
            The loss over all ranks.

        Raises:
            CuratorError: It is not finite; the weights were not moved.
        """
        seed, ranks = self.recipe.seed, self.ranks
        # Dropout and stochastic depth draw from torch's generator, which is set anew for each step and rank.
        own = ("rank", ranks.rank) if ranks.rank else ()
        torch.manual_seed(int(draws.key(seed, "step", batch.step, *own) >> 1))
        images, targets, weight, labeled = self._on_device(batch)
        counts = self._counts(weight, labeled)
        if not any(counts):  # nothing of it could be read on any rank, within the budget
            self.optimization.skip(batch.step)
            return float("nan")
        images, targets = mix(self.mixing, images, targets, labeled, draws.key(seed, "mix", batch.step, *own))
        parts = [*_parts(len(images), labeled, self.recipe.compute.accumulate)]
        total = torch.zeros((), device=ranks.device)
        for number, (rows, front) in enumerate(parts):
            with self._alone(number + 1 < len(parts)):
                with self.optimization.autocast():
                    logits = self.forward(images[rows])
                loss = joint_loss(
                    logits,
                    targets[rows],
                    weight[rows],
                    front,
                    self.recipe.loss.form,
                    self.recipe.loss.label_smoothing,
                    self.recipe.schedule.pseudo_ratio,
                    counts,
                )
                # DistributedDataParallel takes the mean over ranks, and the counts are of all of them.
                self.optimization.scaler.scale(loss * ranks.world).backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        if ranks.world > 1:
            distributed.all_reduce(total)
        if not torch.isfinite(total):
            raise CuratorError(
                f"the loss of step {batch.step} is {total.item()} at learning rate {self.optimization.rate:.4g}; "
                f"image_ids of the batch begin with {', '.join(map(str, batch.image_ids[:5]))}",
                "train again with a lower optimizer.learning_rate, under another --name if there is a checkpoint",
            )
        self.optimization.step(batch.step)
        return float(total.item())

    def _on_device(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, int]:
        images, targets, weight, labeled = batch.images, batch.targets, batch.weight, batch.labeled
        if self.ranks.world > 1 and not len(images):
            # A rank must take part in every exchange of gradients: with two pictures that weigh nothing.
            images, classes = images.new_zeros((2, *images.shape[1:])), targets.shape[1]
            targets, weight, labeled = targets.new_full((2, classes), 1 / classes), weight.new_zeros(2), 0
        device = self.ranks.device
        return images.to(device), targets.to(device), weight.to(device), labeled

    def _counts(self, weight: torch.Tensor, labeled: int) -> tuple[int, int]:
        """Rows that count, labeled and pseudo, over all ranks."""
        there = weight > 0
        counts = torch.stack([there[:labeled].sum(), there[labeled:].sum()])
        if self.ranks.world > 1:
            distributed.all_reduce(counts)
        first, second = counts.tolist()
        return int(first), int(second)

    def _alone(self, more: bool) -> AbstractContextManager[Any]:
        """Keeps gradients to this rank while more parts of the batch are to come."""
        return self.wrapped.no_sync() if more and self.ranks.world > 1 else nullcontext()


def _parts(rows: int, labeled: int, parts: int) -> Iterator[tuple[Any, int]]:
    """Rows of each part of a batch, labeled ones in front, and how many these are."""
    if parts == 1:
        yield slice(None), labeled
        return
    for number in range(parts):
        begin, end = labeled * number // parts, labeled * (number + 1) // parts
        first = labeled + (rows - labeled) * number // parts
        last = labeled + (rows - labeled) * (number + 1) // parts
        if end - begin + last - first:
            yield torch.cat([torch.arange(begin, end), torch.arange(first, last)]), end - begin
