"""Networks: built from a recipe, fed with uint8 pixels, saved and found again with their hash."""

from __future__ import annotations

import hashlib
import importlib
import os
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


def build(recipe: Recipe, classes: int) -> Network:
    """A new network with random weights from the recipe's seed.

    Raises:
        InputError: The architecture is unknown, or does not take the recipe's arguments.
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
    except (TypeError, ImportError, AttributeError) as error:
        raise InputError(
            f"the architecture '{wanted.architecture}' cannot be made with {arguments or 'no arguments'} ({error})",
            "correct network.architecture, network.arguments or the noise of the recipe",
        ) from None
    return Network(body, tuple(config["mean"]), tuple(config["std"])).to(memory_format=torch.channels_last)


def save(network: nn.Module, path: Path) -> str:
    """Writes the weights and returns their sha256; the file is there whole or not at all."""
    from safetensors.torch import save_file

    unfinished = path.with_suffix(".unfinished")
    save_file({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, unfinished)
    with unfinished.open("rb") as file:
        os.fsync(file.fileno())
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    unfinished.rename(path)
    return digest


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
