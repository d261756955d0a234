"""The command that runs a whole plan."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from curator.commands import DEFAULT_STORE, JsonOption, QuietOption, StoreOption, app, completion
from curator.errors import plural
from curator.reports import render

if TYPE_CHECKING:
    from curator.rounds.evolution import Evolution


@app.command()
def evolve(
    plan: Annotated[
        str,
        typer.Option(help="Name of a plan that comes with the tool, or a .toml file.", autocompletion=completion.plans),
    ],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what there is to do; write nothing.")] = False,
    threads: Annotated[int | None, typer.Option(min=1, help="Decoding threads.", show_default="one a core")] = None,
    device: Annotated[str, typer.Option(help="Where to compute: cpu, cuda, cuda:1, ... or auto.")] = "auto",
    tensorboard: Annotated[
        Path | None, typer.Option(help="Folder for TensorBoard's event files.", metavar="DIR")
    ] = None,
    store: StoreOption = DEFAULT_STORE,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Runs a plan: teacher, soft labels, manifest, student, and the same again with the student as the teacher.

    Run again, it goes on where it was stopped.

    Example: curator evolve --plan digits
    """
    from curator.rounds import evolution
    from curator.storage.store import Store

    done = evolution.evolve(Store(store), plan, dry_run, threads, device, tensorboard=tensorboard)
    document = {
        "plan": done.plan,
        "generations": done.generations,
        "controls": done.controls,
        "steps": [step._asdict() for step in done.steps],
    }
    render.answer(document, json, _steps(done) if dry_run else _table(done))


def _steps(done: Evolution) -> str:
    rows = [
        {"step": number, "generation": step.generation, "what": step.step, "name": step.name}
        | {"state": "done" if step.done else "to do"}
        for number, step in enumerate(done.steps, start=1)
    ]
    left = sum(not step.done for step in done.steps)
    return render.table(rows) + f"\n\n{done.plan}: {left} of {len(rows)} {plural(len(rows), 'step')} to do"


def _table(done: Evolution) -> str:
    return render.table([_row(figures) for figures in [*done.generations, *done.controls]])


def _row(figures: dict[str, Any]) -> dict[str, Any]:
    return {
        "generation": figures.get("generation", "control"),
        "model": figures["model"],
        "recipe": figures["recipe"],
        "steps": figures["steps"],
        "top-1": _percent(figures["top1"]),
        "95 % interval": _interval(figures["top1_low"], figures["top1_high"]),
        "ECE": None if figures["ece"] is None else f"{figures['ece']:.3f}",
        "manifest": figures.get("manifest"),
        "rows": figures.get("rows"),
        "images": figures.get("unique_images"),
        "pseudo labels right": _percent(figures.get("precision")),
        "their interval": _interval(figures.get("precision_low"), figures.get("precision_high")),
        "seconds": figures.get("seconds"),
    }


def _percent(share: float | None) -> str | None:
    return None if share is None else f"{share:.2%}"


def _interval(low: float | None, high: float | None) -> str | None:
    return None if low is None or high is None else f"{low:.1%} to {high:.1%}"
