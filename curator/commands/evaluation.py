"""The command that evaluates a model; torch is loaded only when it runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from curator import progress
from curator.commands import DEFAULT_STORE, JsonOption, QuietOption, StoreOption, app, completion
from curator.commands.models import DeviceOption
from curator.errors import InputError, plural
from curator.reports import render

if TYPE_CHECKING:
    from curator.measures.robustness import Findings


@app.command()
def evaluate(
    model: Annotated[str, typer.Option(help="The model.", autocompletion=completion.models)],
    attack: Annotated[list[str] | None, typer.Option(help="Attack to withstand: fgsm or pgd; repeatable.")] = None,
    eps: Annotated[
        list[float] | None,
        typer.Option(help="Most that an attack changes a value of 0..255; repeatable.", show_default="1 2 4 8 16"),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of pgd.", show_default="10")] = None,
    corruptions: Annotated[
        bool, typer.Option("--corruptions", help="Test 15 kinds of corruption in 5 severities, as in ImageNet-C.")
    ] = False,
    perturbations: Annotated[
        bool,
        typer.Option("--perturbations", help="Test how steady answers are in 10 kinds of film, as in ImageNet-P."),
    ] = False,
    outside: Annotated[
        str | None, typer.Option(help="Pictures of none of the classes.", metavar="FOLDER", show_default=False)
    ] = None,
    baseline: Annotated[
        str | None,
        typer.Option(
            help="Model that was evaluated before, to divide errors and flips by.", autocompletion=completion.models
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Images of a sample of the holdout.", show_default="all")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the sample, the noise and the intervals.")] = 0,
    classes: Annotated[bool, typer.Option("--classes", help="Show the accuracy of each class.")] = False,
    show: Annotated[
        Path | None, typer.Option(help="PNG to write: one picture under every corruption.", metavar="FILE")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads that compute.", show_default="one a core")] = None,
    device: DeviceOption = "auto",
    store: StoreOption = DEFAULT_STORE,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Accuracy, calibration and robustness of a model on the holdout, with 95 % intervals, kept in the store.

    Example: curator evaluate --model g1-tiny-student --attack fgsm --eps 2 --eps 4 --corruptions
    """
    if not attack and (eps or steps is not None):
        raise InputError("an eps or steps are given and no attack", "add --attack fgsm or --attack pgd")
    if show is not None and not corruptions:
        raise InputError("--show shows corruptions, and they are not asked for", "add --corruptions")
    from curator.measures import contact_sheet, robustness
    from curator.storage.store import Store

    wanted = robustness.Wanted(
        attacks=attack or (),
        corruptions=corruptions,
        perturbations=perturbations,
        outside=outside,
        baseline=baseline,
        limit=limit,
        seed=seed,
    )
    wanted = wanted._replace(eps=eps or wanted.eps, steps=wanted.steps if steps is None else steps)
    wanted.check()
    opened = Store(store)
    if show is not None:
        contact_sheet.write(opened, model, show, limit, seed)
    try:
        found = robustness.evaluate(opened, model, wanted, threads, device)
    except KeyboardInterrupt:
        progress.say("the figures of each kind that was finished are kept; a new run begins with the first")
        raise
    render.answer(found.document(), json, _text(found, classes))


def _text(found: Findings, classes: bool) -> str:
    done = found.clean
    text = (
        f"{done.model}: top-1 {done.top1:.2%} (95 % interval {done.top1_low:.2%} to {done.top1_high:.2%}), "
        f"top-5 {done.top5:.2%}, ECE {done.ece:.3f}, {done.images} holdout {plural(done.images, 'image')}"
    )
    if done.failed:
        text += f"; {done.failed} more could not be read and {plural(done.failed, 'does', 'do')} not count"
    parts = [text]
    if classes:
        rows = sorted(found.classes, key=lambda row: (row["top1"], row["label"]))
        columns = {row["class_name"]: {"images": row["images"], "top-1": _share(row, "top1")} for row in rows}
        parts.append(_table("class", columns))
    for name, levels in found.attacks.items():
        columns = {f"{row['eps']:g}": {"top-1": _share(row, "top1"), "ECE": f"{row['ece']:.3f}"} for row in levels}
        parts.append(_table(f"{name}, eps", columns))
    if found.corruptions is not None:
        parts.append(_corruptions(found.corruptions))
    if found.perturbations is not None:
        told = found.perturbations
        columns = {kind: {"flips": _share(row, "flip_probability")} for kind, row in told["kinds"].items()}
        mean = f"mean flip probability {_share(told, 'mean_flip_probability')}"
        parts.append(_table("film", columns) + f"\n{mean}{_ratio(told, 'mean_flip_rate', 'mean flip rate')}")
    if found.outside is not None:
        parts.append(_outside(found.outside))
    return "\n\n".join(parts)


def _corruptions(told: Mapping[str, Any]) -> str:
    columns = {
        kind: {f"severity {row['severity']}": f"{1 - row['top1']:.1%}" for row in rows}
        for kind, rows in told["kinds"].items()
    }
    text = f"mean error {_share(told, 'mean_error')}, with the parameters of {told['parameters']}"
    text += _ratio(told, "mce", "mean corruption error") + _ratio(
        told, "relative_mce", "relative mean corruption error"
    )
    return _table("wrong under", columns) + f"\n{text}"


def _outside(told: Mapping[str, Any]) -> str:
    above = ", ".join(f"{_share(told, name)} above {name[6:]}" for name in told if _is_share_above(name))
    pictures = f"{told['images']} {plural(told['images'], 'picture')}"
    lines = [f"{pictures} outside: mean confidence {_share(told, 'confidence')}", above]
    if told["failed"]:
        lines[0] += f"; {told['failed']} more could not be read"
    for score in ("confidence", "energy"):
        false = _share(told, f"fpr95_{score}")
        lines.append(f"told from the holdout by {score}: AUROC {_share(told, f'auroc_{score}')}, FPR at 95 % {false}")
    return "\n".join(lines)


def _is_share_above(name: str) -> bool:
    return name.startswith("above_") and not name.endswith(("_low", "_high"))


def _ratio(told: Mapping[str, Any], name: str, words: str) -> str:
    """A line for a figure relative to a baseline, or nothing where there is none."""
    if name not in told:
        return ""
    if told[name] is None:
        return f"\n{words} undefined, since '{told['baseline']}' has a kind without a fault"
    wide = f" ({told[f'{name}_low']:.1f} to {told[f'{name}_high']:.1f})" if f"{name}_low" in told else ""
    return f"\n{words} {told[name]:.1f} % of '{told['baseline']}'{wide}"


def _share(row: Mapping[str, Any], name: str) -> str:
    return f"{row[name]:.1%} ({row[f'{name}_low']:.1%} to {row[f'{name}_high']:.1%})"


def _table(first: str, rows: Mapping[str, Mapping[str, Any]]) -> str:
    return render.table([{first: name} | dict(row) for name, row in rows.items()])
