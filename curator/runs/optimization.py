"""What moves the weights in a phase: optimiser, schedule, average, precision, and what is frozen.

    phase + network -> parameters that learn -> timm's optimiser and schedule, counting steps -> averaged weights

A `precision` of "auto" is settled here too, by what a device is made for or by a short trial.
"""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from curator.errors import InputError
from curator.networks.network import Network
from curator.networks.recipes import Recipe
from curator.runs.losses import joint_loss
from curator.runs.phases import Phase

_DTYPES = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
_TRIAL_ROWS, _TRIAL_STEPS = 32, 3


class Optimization:
    """The moving parts of a phase.

    Args:
        network: The network; parameters of frozen modules stop learning.
        recipe: The recipe.
        phase: The phase.
        precision: A resolved one, see `precision`.
        device: Where the network is.

    Raises:
        InputError: The optimiser is unknown or cannot be made, a frozen module is not there, or the warm-up is as long
            as the phase.
    """

    def __init__(self, network: Network, recipe: Recipe, phase: Phase, precision: str, device: torch.device) -> None:
        self.network, self.clip = network, recipe.optimizer.clip
        self.frozen = _freeze(network, phase.frozen)
        self.optimizer, self.scheduler = _optimizer(network, recipe, phase)
        self.average = _average(network, recipe)
        self.device, self.dtype = device, _DTYPES[precision]
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == "float16")
        self.begin = phase.begin

    @property
    def rate(self) -> float:
        """The learning rate of the next step."""
        return float(self.optimizer.param_groups[0]["lr"])

    def train(self) -> None:
        """Puts the network into training mode, but not what is frozen: its BatchNorm statistics stay too."""
        self.network.train()
        for module in self.frozen:
            module.eval()

    def autocast(self) -> AbstractContextManager[Any]:
        """The context of a forward pass."""
        return nullcontext() if self.dtype is None else torch.autocast(self.device.type, self.dtype)

    def step(self, number: int) -> None:
        """Moves the weights along their gradients, at the end of step `number` of the run."""
        if self.clip is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.network.parameters(), self.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.skip(number)
        if self.average is not None:
            self.average.update(self.network, step=number - self.begin)

    def skip(self, number: int) -> None:
        """Counts a step without moving anything."""
        self.scheduler.step_update(number + 1 - self.begin)

    def state_dict(self) -> dict[str, Any]:
        """All but weights and average."""
        return {"optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up a state that `state_dict` gave."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])


def _freeze(network: Network, frozen: tuple[str, ...]) -> list[nn.Module]:
    found = []
    for wanted in frozen:
        inside = [module for name, module in network.body.named_modules() if name == wanted]
        if not inside:
            known = [name for name, _ in network.body.named_children()]
            raise InputError(
                f"the network has no module '{wanted}' that could be frozen", f"its first ones are {', '.join(known)}"
            )
        found += inside
    for parameter in network.parameters():
        parameter.requires_grad_(True)
    for module in found:
        module.requires_grad_(False)
    return found


def _optimizer(network: nn.Module, recipe: Recipe, phase: Phase) -> tuple[torch.optim.Optimizer, Any]:
    from timm.optim import create_optimizer_v2  # type: ignore[attr-defined]
    from timm.scheduler import create_scheduler_v2  # type: ignore[attr-defined]

    wanted, schedule, steps = recipe.optimizer, recipe.schedule, phase.end - phase.begin
    if phase.warmup >= steps:
        raise InputError(
            f"the warm-up of {phase.warmup} steps is as long as the run of {steps} steps",
            f"--set schedule.warmup_steps={steps // 10}, or a longer run",
        )
    more = {name: value for name in ("alpha", "eps") if (value := getattr(wanted, name)) is not None}
    try:
        made = create_optimizer_v2(
            network,
            opt=wanted.name,
            lr=phase.learning_rate,
            weight_decay=wanted.weight_decay,
            momentum=wanted.momentum,
            **more,
        )
    except (ValueError, TypeError, AssertionError) as error:
        raise InputError(
            f"the optimiser '{wanted.name}' cannot be made ({error})", "see timm.optim.list_optimizers()"
        ) from None
    never = steps + 1
    exponential = schedule.decay == "exponential"
    scheduler, _ = create_scheduler_v2(
        made,
        sched="cosine" if schedule.decay == "cosine" else "step",
        num_epochs=steps,
        decay_epochs=max(1, round(schedule.decay_epochs * phase.epoch)) if exponential else never,
        decay_rate=schedule.decay_rate,
        warmup_epochs=phase.warmup,
        warmup_lr=phase.learning_rate / 100,
        min_lr=0.0,
        step_on_epochs=False,
        updates_per_epoch=1,
    )
    scheduler.step_update(0)
    return made, scheduler


def _average(network: nn.Module, recipe: Recipe) -> Any:
    """The exponential moving average of timm, or None where the recipe switches it off."""
    from timm.utils import ModelEmaV3  # type: ignore[attr-defined]

    wanted = recipe.average
    if not wanted.decay:
        return None
    return ModelEmaV3(network, decay=wanted.decay, use_warmup=wanted.warmup, warmup_gamma=9.0, warmup_power=1.0)


def precision(recipe: Recipe, network: Network, device: torch.device, batch: int) -> str:
    """The precision to train in: the recipe's, or for "auto" what a GPU is made for, and on a CPU the faster one.

    Args:
        recipe: The recipe.
        network: The network, on its device; its weights are not changed.
        device: The device.
        batch: Rows of a step.

    Raises:
        InputError: float16 on a CPU.
    """
    wanted = recipe.compute.precision
    if wanted == "float16" and device.type == "cpu":
        raise InputError("float16 does not train on a CPU", "--set compute.precision=bfloat16, or float32")
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float16"
    if device.type != "cpu":
        return "float32"
    seconds = {name: _trial(network, recipe, name, min(batch, _TRIAL_ROWS)) for name in ("float32", "bfloat16")}
    return min(seconds, key=lambda name: seconds[name])


def _trial(network: Network, recipe: Recipe, name: str, rows: int) -> float:
    """Seconds of the fastest of some forward and backward passes on grey pictures."""
    state = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    size = recipe.network.resolution
    images, weight = torch.full((rows, size, size, 3), 128, dtype=torch.uint8), torch.ones(rows)
    dtype, found = _DTYPES[name], []
    for _ in range(_TRIAL_STEPS):
        began = time.perf_counter()
        with nullcontext() if dtype is None else torch.autocast("cpu", dtype):
            logits = network(images)
        targets = torch.full_like(logits, 1 / logits.shape[1])
        joint_loss(logits, targets, weight, rows).backward()  # type: ignore[no-untyped-call]
        found.append(time.perf_counter() - began)
    network.zero_grad(set_to_none=True)
    network.load_state_dict(state)
    return min(found[1:])
