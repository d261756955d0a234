"""Networks: built from a recipe, fed with uint8 pixels, saved and found again by hash."""

from __future__ import annotations

import hashlib
import importlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from curator.errors import CuratorError, InputError, absent, suggestion
from curator.networks import checkpoints
from curator.networks.recipes import Recipe, from_json

if TYPE_CHECKING:
    from curator.storage.store import Store


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
    training made 1,700 images/s with one torch thread and 325 to 463 with two. Ranks of one machine share its cores.
    """
    own = (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    torch.set_num_threads(max(1, own - 1))


def build(recipe: Recipe, classes: int, pretrained: bool = False) -> Network:
    """A new network with random weights from the recipe's seed.

    Args:
        recipe: The recipe.
        classes: C.
        pretrained: Whether to begin with timm's weights, all but those of the last layer, which timm downloads.

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
            body = timm.create_model(wanted.architecture, num_classes=classes, pretrained=pretrained, **arguments)
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
            "correct network.architecture, network.resolution, network.arguments or the noise of the recipe"
            + ", or --set network.pretrained=false where timm's weights cannot be had" * pretrained,
        ) from None
    return network.train()


def begin_from(store: Store, init: str, network: Network, recipe: Recipe) -> int | None:
    """Takes the weights of a registered model, or of a file, into a network.

    Args:
        store: The store.
        init: Name of a model, or path of a .safetensors, .pt or .pth file with weights of the body, as timm saves them.
        network: The network to change.
        recipe: Its recipe, for the message.

    Returns:
        The generation of the model; None for a file.

    Raises:
        InputError: There is no such model or file, or its weights do not fit.
    """
    path, generation = Path(init), None
    try:
        if path.suffix in (".safetensors", ".pt", ".pth"):
            target: nn.Module = network.body
            weights = _read_weights(path)
            if all(name.startswith("body.") for name in weights):  # written by curator
                target = network
            target.load_state_dict(weights)
        else:
            initial, _, row = load(store, init)
            generation = int(row["generation"])
            network.load_state_dict(initial.state_dict())
    except FileNotFoundError:
        raise InputError(f"there is no file '{init}'", "--init takes the name of a model, or a file") from None
    except (RuntimeError, TypeError) as error:
        raise InputError(
            f"the weights of '{init}' do not fit the architecture '{recipe.network.architecture}' "
            f"({str(error).strip().splitlines()[0]})",
            "start from a model of the same architecture, arguments and classes, or leave --init out",
        ) from None
    return generation


def _read_weights(path: Path) -> dict[str, torch.Tensor]:
    """The state dictionary in a file of somebody else's.

    Raises:
        InputError: The file is damaged, or holds something else, such as objects whose making would run a program.
    """
    mend = "give the tensors of a state dictionary, best as .safetensors"
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            found: Any = load_file(path)
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever the damage trips
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise InputError(f"the weights '{path}' cannot be read ({checkpoints.reason(error)})", mend) from None
    weights = found.get("state_dict", found) if isinstance(found, dict) else None
    if not isinstance(weights, dict) or not all(
        isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in weights.items()
    ):
        raise InputError(f"'{path}' holds something else than named tensors", mend)
    return weights


def save(network: nn.Module, path: Path) -> str:
    """Writes the weights and returns their sha256; the file is there whole or not at all."""
    unfinished = path.with_suffix(".unfinished")
    try:
        checkpoints.write_tensors(network.state_dict(), unfinished)
        digest = checkpoints.synced(unfinished)
        unfinished.rename(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return digest


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
        raise absent("model", model, known, "curator train --recipe tiny-teacher")
    row = rows[0]
    if row["weights"] is None:
        raise InputError(f"the model '{model}' was named by an import and has no weights", "use a model trained here")
    path, where = store.place.bring(row["weights"]), store.place.uri(row["weights"])
    if store.place.far and path.is_file() and _sha256(path) != row["weights_hash"]:
        path.unlink()  # of a run of this name that was given up on this machine
        store.place.bring(row["weights"])
    if not path.is_file():
        raise InputError(f"the weights of '{model}' are missing at {where}", "restore the file, or train again")
    digest = _sha256(path)
    if digest != row["weights_hash"]:
        raise InputError(
            f"the weights at {where} are not those that '{model}' was registered with (sha256 {digest[:12]}, not "
            f"{row['weights_hash'][:12]})",
            "restore the file, or train again under another name",
        )
    recipe = from_json(row["recipe"])
    network = build(recipe, len(store.classes()))
    network.load_state_dict(load_file(path))
    return network.eval(), recipe, row
