"""Networks: built from a recipe with optimiser and average, fed with uint8 pixels, saved and found again by hash."""

from __future__ import annotations

import hashlib
import importlib
import os
import pickle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from curator.errors import CuratorError, InputError, suggestion
from curator.recipes import Recipe, from_json

if TYPE_CHECKING:
    from curator.store import Store


def _timm() -> Any:
    try:
        return importlib.import_module("timm")
    except ImportError as error:
        raise CuratorError(
            f"training and labeling need torch and timm ({error})", "pip install 'curator[train]'"
        ) from None


class Network(nn.Module):
    """A classifier of uint8 pictures; the normalisation is part of it, so that nothing outside can forget it.

    Args:
        body: Takes float32 [B, 3, H, W], normalised, and returns logits [B, C].
        mean: Of each channel, for pixels in [0, 1].
        std: Of each channel.
    """

    scale: torch.Tensor
    shift: torch.Tensor

    def __init__(self, body: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.body = body
        self.register_buffer("scale", 1 / (255 * torch.tensor(std)).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("shift", -(torch.tensor(mean) / torch.tensor(std)).view(1, -1, 1, 1), persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits float32 [B, C] of images uint8 [B, H, W, 3]."""
        # The permuted view of a [B, H, W, 3] tensor is channels_last already; nothing is copied but to float.
        pixels = images.permute(0, 3, 1, 2).to(self.scale.dtype) * self.scale + self.shift
        logits: torch.Tensor = self.body(pixels)
        return logits


def leave_a_core() -> None:
    """Keeps one core for the threads that read and decode.

    torch's threads wait by spinning, so a core that both fight for is lost to both. On 2 cores with other work on them,
    training made 1,700 images/s with one torch thread and 325 to 463 with two.
    """
    torch.set_num_threads(max(1, (os.cpu_count() or 1) - 1))


def build(recipe: Recipe, classes: int) -> Network:
    """A new network with random weights from the recipe's seed.

    Raises:
        InputError: The architecture is unknown, or does not take the recipe's arguments, pictures or classes.
    """
    wanted = recipe.network
    torch.manual_seed(recipe.seed)
    arguments: dict[str, Any] = dict(wanted.arguments)
    if recipe.noise.dropout:
        arguments["drop_rate"] = recipe.noise.dropout
    if recipe.noise.drop_path:
        arguments["drop_path_rate"] = recipe.noise.drop_path
    try:
        if ":" in wanted.architecture:
            module, _, function = wanted.architecture.partition(":")
            body = getattr(importlib.import_module(module), function)(num_classes=classes, **arguments)
            config: dict[str, Any] = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
        else:
            timm = _timm()
            if not timm.is_model(wanted.architecture):
                known = timm.list_models()
                raise InputError(
                    f"the architecture '{wanted.architecture}' is unknown{suggestion(wanted.architecture, known)}",
                    "give a name that timm.list_models() knows, or package.module:function",
                )
            body = timm.create_model(wanted.architecture, num_classes=classes, **arguments)
            config = body.default_cfg
        network = Network(body, tuple(config["mean"]), tuple(config["std"])).to(memory_format=torch.channels_last)
        with torch.no_grad():  # not inference mode, whose tensors a network may keep and could not train with
            size = wanted.resolution
            answer = network.eval()(torch.zeros(2, size, size, 3, dtype=torch.uint8))
        if answer.shape != (2, classes):
            raise TypeError(f"it answers two pictures with {tuple(answer.shape)} and not (2, {classes}) numbers")
    # An architecture may be anybody's code, and timm's raise whatever the mistake trips.
    except (TypeError, ValueError, ImportError, AttributeError, AssertionError, RuntimeError, OSError) as error:
        what = f"at {wanted.resolution} pixels and with {arguments or 'no arguments'}"
        raise InputError(
            f"the architecture '{wanted.architecture}' cannot be made {what} ({str(error).rstrip('.')})",
            "correct network.architecture, network.resolution, network.arguments or the noise of the recipe",
        ) from None
    return network.train()


def optimizer(network: nn.Module, recipe: Recipe, steps: int) -> tuple[torch.optim.Optimizer, Any]:
    """An optimiser of timm and a schedule of its learning rate that counts steps.

    Raises:
        InputError: The optimiser is unknown or cannot be made, or the warm-up is as long as the run.
    """
    from timm.optim import create_optimizer_v2  # type: ignore[attr-defined]
    from timm.scheduler import create_scheduler_v2  # type: ignore[attr-defined]

    wanted, schedule = recipe.optimizer, recipe.schedule
    if schedule.warmup_steps >= steps:
        raise InputError(
            f"the warm-up of {schedule.warmup_steps} steps is as long as the run of {steps} steps",
            f"--set schedule.warmup_steps={steps // 10}, or a longer run",
        )
    try:
        made = create_optimizer_v2(
            network,
            opt=wanted.name,
            lr=wanted.learning_rate,
            weight_decay=wanted.weight_decay,
            momentum=wanted.momentum,
        )
    except (ValueError, TypeError, AssertionError) as error:
        raise InputError(
            f"the optimiser '{wanted.name}' cannot be made ({error})", "see timm.optim.list_optimizers()"
        ) from None
    scheduler, _ = create_scheduler_v2(
        made,
        sched="cosine" if schedule.decay == "cosine" else "step",
        num_epochs=steps,
        decay_epochs=steps + 1,
        warmup_epochs=schedule.warmup_steps,
        warmup_lr=wanted.learning_rate / 100,
        min_lr=0.0,
        step_on_epochs=False,
        updates_per_epoch=1,
    )
    scheduler.step_update(0)
    return made, scheduler


def average(network: nn.Module, recipe: Recipe) -> Any:
    """The exponential moving average of timm, or None where the recipe switches it off."""
    from timm.utils import ModelEmaV3  # type: ignore[attr-defined]

    wanted = recipe.average
    if not wanted.decay:
        return None
    return ModelEmaV3(network, decay=wanted.decay, use_warmup=wanted.warmup, warmup_gamma=9.0, warmup_power=1.0)


def save(network: nn.Module, path: Path) -> str:
    """Writes the weights and returns their sha256; the file is there whole or not at all."""
    from safetensors.torch import save_file

    # Copies, because the format refuses tensors that share memory, as tied weights do.
    tensors = {
        name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in network.state_dict().items()
    }
    unfinished = path.with_suffix(".unfinished")
    try:
        save_file(tensors, unfinished)
        unfinished.chmod(0o644)  # safetensors writes for the owner alone
        with unfinished.open("rb") as file:
            os.fsync(file.fileno())
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        unfinished.rename(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return digest


def save_state(state: dict[str, Any], path: Path) -> None:
    """Writes a run's checkpoint, whole or not at all."""
    unfinished = path.with_suffix(".unfinished")
    try:
        with unfinished.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        unfinished.rename(path)
    except RuntimeError as error:  # how torch reports that the disk is full
        raise (error.__context__ if isinstance(error.__context__, OSError) else error) from None
    finally:
        unfinished.unlink(missing_ok=True)


def load_state(path: Path) -> dict[str, Any]:
    """Reads a run's checkpoint.

    Raises:
        InputError: It is damaged.
    """
    try:
        state: dict[str, Any] = torch.load(path, weights_only=True)
    except (RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise InputError(
            f"the checkpoint at {path} is damaged ({str(error).splitlines()[0]})",
            "delete it and train from the beginning",
        ) from None
    return state


def load(store: Store, model: str) -> tuple[Network, Recipe, dict[str, Any]]:
    """A registered model, in eval mode.

    Returns:
        The network, its recipe and its row of the models table.

    Raises:
        InputError: There is no such model, it has no weights, or they are not the ones it was registered with.
    """
    from safetensors.torch import load_file

    rows = store.rows("select * from models where model = $model", model=model)
    if not rows:
        known = [row["model"] for row in store.rows("select model from models")]
        raise InputError(
            f"there is no model '{model}'{suggestion(model, known)}",
            f"the models are {', '.join(known)}" if known else "curator train --recipe tiny-teacher",
        )
    row = rows[0]
    if row["weights"] is None:
        raise InputError(f"the model '{model}' was named by an import and has no weights", "use a model trained here")
    path = store.path / row["weights"]
    if not path.is_file():
        raise InputError(f"the weights of '{model}' are missing at {path}", "restore the file, or train again")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != row["weights_hash"]:
        raise InputError(
            f"the weights at {path} are not those that '{model}' was registered with (sha256 {digest[:12]}, not "
            f"{row['weights_hash'][:12]})",
            "restore the file, or train again under another name",
        )
    recipe = from_json(row["recipe"])
    network = build(recipe, len(store.classes()))
    network.load_state_dict(load_file(path))
    return network.eval(), recipe, row
