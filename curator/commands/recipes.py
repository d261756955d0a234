"""The command that lists recipes and writes one out, and the answer of `train --dry-run`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from curator.commands import DEFAULT_STORE, JsonOption, QuietOption, StoreOption, app, completion
from curator.reports import render

if TYPE_CHECKING:
    from curator.networks.recipes import Recipe
    from curator.runs.estimate import Estimate

# Parameters and multiply-adds of the shipped recipes' networks, at their training resolution and with 1000 classes:
# `estimate.size` needs torch and ten seconds for all of them. tests/test_shipped_recipes.py holds them to it.
SIZES = {
    ("convnext_tiny", 224): (28_589_128, 4_455_531_264),
    ("resnet50", 224): (25_557_032, 4_089_184_256),
    ("test_resnet", 32): (469_688, 4_194_048),
    ("tf_efficientnet_b0", 224): (5_288_548, 385_814_752),
    ("tf_efficientnet_b1", 240): (7_794_184, 686_802_832),
    ("tf_efficientnet_b2", 260): (9_109_994, 993_561_872),
    ("tf_efficientnet_b3", 300): (12_233_232, 1_827_141_392),
    ("tf_efficientnet_b4", 380): (19_341_616, 4_393_771_024),
    ("tf_efficientnet_b5", 456): (30_389_784, 10_266_384_752),
    ("tf_efficientnet_b6", 528): (43_040_704, 19_067_593_536),
    ("tf_efficientnet_b7", 600): (66_347_960, 37_745_884_192),
    ("tf_efficientnet_l2", 475): (480_309_308, 170_892_857_680),
    ("tf_efficientnet_lite0", 224): (4_652_008, 385_187_552),
}


@app.command()
def recipes(
    name: Annotated[
        str | None,
        typer.Argument(help="Recipe to write out whole, by name or path.", autocompletion=completion.recipes),
    ] = None,
    store: StoreOption = DEFAULT_STORE,  # recipes are the tool's, but every command takes it but demo
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Lists the recipes that come with the tool, or writes one out as a file for `train --recipe`.

    Example: curator recipes efficientnet-b0-student > mine.toml
    """
    from curator.networks.recipes import load, shipped, to_toml

    if name is not None:
        short, recipe = load(name)
        render.answer({"recipe": short, "resolved": recipe.model_dump(mode="json")}, json, to_toml(recipe).rstrip())
        return
    rows = [_figures(*load(short)) for short in shipped()]
    notes = (
        "multiply-adds: of one picture, forward, at train px, 1000 classes; training takes about three times as many",
        "batch: images of a step, labeled + pseudo-labeled",
    )
    render.answer({"recipes": rows}, json, "\n".join([render.table([*map(_line, rows)]), "", *notes]))


def _figures(name: str, recipe: Recipe) -> dict[str, Any]:
    network, schedule = recipe.network, recipe.schedule
    parameters, multiply_adds = SIZES[network.architecture, network.resolution]
    return {
        "recipe": name,
        "title": recipe.title,
        "architecture": network.architecture,
        "parameters": parameters,
        "resolution": network.resolution,
        "test_resolution": network.test_resolution,
        "multiply_adds": multiply_adds,
        "labeled_batch": schedule.labeled_batch,
        "pseudo_ratio": schedule.pseudo_ratio,
        "epochs": schedule.epochs,
        "steps": schedule.steps,
    }


def _line(figures: dict[str, Any]) -> dict[str, Any]:
    """A recipe's figures in few columns."""
    labeled, ratio = figures["labeled_batch"], figures["pseudo_ratio"]
    return {
        "recipe": figures["recipe"],
        "architecture": figures["architecture"],
        "parameters": f"{figures['parameters'] / 1e6:5.1f} M",
        "train px": figures["resolution"],
        "test px": figures["test_resolution"],
        "multiply-adds": f"{figures['multiply_adds'] / 1e9:7.3f} G",
        "batch": f"{labeled} + {labeled * ratio}" if ratio else f"{labeled}",
        "ratio": ratio,
        "length": f"{figures['epochs']:g} epochs" if figures["epochs"] else f"{figures['steps']} steps",
    }


def answer_estimate(found: Estimate, json: bool) -> None:
    """Prints what training would take: the resolved recipe, size, phases and time."""
    from curator.networks.recipes import to_toml

    phases = [
        {
            "phase": phase.name,
            "px": phase.resolution,
            "steps": phase.steps,
            "images a step": f"{phase.labeled} labeled + {phase.pseudo} pseudo" if phase.pseudo else phase.labeled,
            "images": phase.images,
            "time": "-" if phase.seconds is None else _duration(phase.seconds),
            "measured": phase.how,
        }
        for phase in found.phases
    ]
    total = "not measured" if found.seconds is None else f"about {_duration(found.seconds)}"
    size = (
        f"{found.size.parameters / 1e6:.2f}M parameters, {found.size.multiply_adds / 1e9:.3g}G multiply-adds a picture"
    )
    lines = [
        to_toml(found.resolved),
        f"{found.resolved.network.architecture}, {found.classes} classes: {size}\n",
        render.table(phases),
        *found.notes,
        f"\n{total} on this {found.device} in {found.precision}, if images come as fast; nothing was trained",
    ]
    nested = {"resolved": found.resolved.model_dump(mode="json"), "size": found.size._asdict()}
    document = found._asdict() | nested | {"phases": [phase._asdict() for phase in found.phases]}
    render.answer(document, json, "\n".join(lines))


def _duration(seconds: float) -> str:
    """Two figures of a time are as many as an estimate has."""
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{float(f'{seconds / length:.2g}'):g} {unit}"
    return f"{float(f'{seconds:.2g}'):g} s"
