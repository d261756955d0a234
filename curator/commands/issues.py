"""Commands about wrong labels of the labeled split, and about how far confidences can be believed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from curator.commands import DEFAULT_STORE, JsonOption, QuietOption, StoreOption, completion, quality
from curator.commands.models import DeviceOption
from curator.errors import plural
from curator.reports import render

if TYPE_CHECKING:
    from curator.quality.calibration import Calibration
    from curator.quality.issues import Issues
    from curator.storage.store import Store

_WORST = 10  # classes that are named


@quality.command()
def folds(
    context: typer.Context,
    recipe: Annotated[
        str | None,
        typer.Option(
            help="Name of a recipe that comes with the tool, or a .toml file.", autocompletion=completion.recipes
        ),
    ] = None,
    file: Annotated[
        str | None,
        typer.Option("--from", help="Take the labels of another tool instead, as import-labels does.", metavar="FILE"),
    ] = None,
    count: Annotated[int, typer.Option("--folds", metavar="K", help="Parts of the labeled split.")] = 5,
    name: Annotated[
        str | None, typer.Option(help="Name of the run.", show_default="<recipe>-<K>, or that of the file")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the folds; the recipe has that of the training.")] = 0,
    change: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change of the recipe, e.g. schedule.steps=100."),
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Loader threads.", show_default="one a core")] = None,
    pack: Annotated[
        str, typer.Option(help="Pack to read images from; 'auto' for the one that fits, or 'none'.")
    ] = "auto",
    device: DeviceOption = "auto",
    store: StoreOption = DEFAULT_STORE,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Labels the labeled split with models trained without the image. Run again, it goes on where it stopped.

    Example: curator quality folds --recipe tiny-teacher --folds 5
    """
    from curator.errors import InputError, printable
    from curator.storage.store import Store

    if file is not None:
        _import_held_out(context, Store(store), file, name, json)
        return
    if recipe is None:
        raise InputError(
            "neither a recipe to train by nor a file of labels is given", "--recipe tiny-teacher, or --from FILE"
        )
    from curator.runs import folds

    done = folds.run(Store(store), recipe, count, name, seed, change, threads, None if pack == "none" else pack, device)
    images = f"{done.images} {plural(done.images, 'image')}"
    lines = [f"run '{done.run}': {done.folds} folds, {done.trained} of them now, {images} labeled"]
    if done.top1 is not None:
        lines.append(f"the most probable class is the given one for {done.top1:.1%} of them")
    if done.unknown:
        lines.append(
            f"{done.unknown} {plural(done.unknown, 'image is of a class', 'images are of classes')} that the fold's "
            f"model never saw; --folds {count * 2} helps"
        )
    if done.failed:
        lines.append(f"{done.failed} {plural(done.failed, 'image')} cannot be read:")
        lines += [f"  {printable(problem)}" for problem in done.problems]
    render.answer(done._asdict(), json, "\n".join(lines))


def _import_held_out(context: typer.Context, store: Store, file: str, name: str | None, json: bool) -> None:
    from curator.errors import InputError
    from curator.generations import held_out

    options = {"recipe": "--recipe", "count": "--folds", "seed": "--seed", "change": "--set", "threads": "--threads"}
    options |= {"pack": "--pack", "device": "--device"}
    defaults = (None, "DEFAULT")
    of_training = [
        option
        for key, option in options.items()
        if getattr(context.get_parameter_source(key), "name", None) not in defaults
    ]
    if of_training:
        raise InputError(f"{', '.join(of_training)} has no meaning beside --from", "leave it out; nothing is trained")
    done = held_out.import_held_out(store, file, name)
    text = f"run '{done.run}': {done.images} {plural(done.images, 'image')} labeled by another tool"
    if done.top1 is not None:
        text += f"; the most probable class is the given one for {done.top1:.1%} of them"
    if done.missing:
        are = plural(
            done.missing, "labeled image is not in the file, and is", "labeled images are not in the file, and are"
        )
        text += f"\n{done.missing} {are} not judged"
    render.answer(done._asdict(), json, text)


@quality.command()
def issues(
    run: Annotated[str | None, typer.Option(help="Run of `quality folds`.", show_default="the only one")] = None,
    generation: Annotated[
        int | None,
        typer.Option(
            help="Judge the pool labels of this generation by the next one instead.",
            autocompletion=completion.generations,
        ),
    ] = None,
    by: Annotated[str, typer.Option(help="Whom to suspect: noise-rate or joint.")] = "noise-rate",
    order: Annotated[str, typer.Option(help="Order of the suspects: self-confidence or margin.")] = "self-confidence",
    limit: Annotated[int, typer.Option(min=0, help="Suspects to show.")] = 20,
    cells: Annotated[int, typer.Option(min=0, help="Cells of the confident joint to show.")] = 10,
    csv: Annotated[Path | None, typer.Option(help="File to write all suspects to.")] = None,
    store: StoreOption = DEFAULT_STORE,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Finds images whose given label is probably wrong, by confident learning.

    Example: curator quality issues --csv suspects.csv
    """
    from curator.quality import issues
    from curator.storage.store import Store

    found = issues.find(Store(store), run, generation, by, order, limit, cells, csv)
    render.answer(found._asdict(), json, _issues(found))


def _issues(found: Issues) -> str:
    lines = [
        f"{found.source}: {found.images} {plural(found.images, 'image')}, {found.suspects} "
        f"{plural(found.suspects, 'suspect')} ({found.by}); "
        f"an estimated {found.noise:.1%} of the labels are wrong"
    ]
    if found.decided:
        were = plural(found.decided, "was", "were")
        lines.append(f"{found.decided} of the images {were} decided upon by people, and not named")
    if found.unjudged:
        have = plural(found.unjudged, "labeled image has", "labeled images have")
        lines.append(f"{found.unjudged} {have} no out-of-sample label: curator quality folds, as before")
    if found.cells:
        lines += ["", "given for another class most often (images that confidently are it; estimated of all):"]
        lines.append(render.table(found.cells))
    if found.rows:
        shown = [
            {
                "image_id": row["image_id"],
                "uri": row["uri"],
                "given": row["given_class"],
                "suggested": row["suggested_class"],
                "self-confidence": row["self_confidence"],
                "margin": row["margin"],
            }
            for row in found.rows
        ]
        lines += ["", render.table(shown)]
    if found.suspects > len(found.rows):
        lines.append(f"{len(found.rows)} of {found.suspects}; --limit {found.suspects} or --csv FILE gives all")
    if found.csv:
        lines.append(f"all suspects: {found.csv}")
    return "\n".join(lines)


@quality.command()
def calibration(
    model: Annotated[
        str | None,
        typer.Option(
            help="A model that labeled the holdout.",
            show_default="that of the newest generation",
            autocompletion=completion.models,
        ),
    ] = None,
    min_confidence: Annotated[float, typer.Option(help="Confidence above which classes are judged.")] = 0.3,
    plot: Annotated[Path | None, typer.Option(help="Picture to write the diagram to: .png, .svg or .pdf.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Store no temperature.")] = False,
    store: StoreOption = DEFAULT_STORE,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Says how far a model's confidences can be believed, and fits the temperature that corrects them.

    Example: curator quality calibration --model g0-tiny-teacher --plot reliability.png
    """
    from curator.quality import calibration, reliability
    from curator.storage.store import Store

    if plot is not None:
        reliability.check(plot)
    found = calibration.calibrate(Store(store), model, min_confidence, dry_run)
    if plot is not None:
        reliability.draw(found, plot)
    render.answer(found._asdict() | {"plot": plot and str(plot)}, json, _calibration(found, plot, dry_run))


def _calibration(found: Calibration, plot: Path | None, dry_run: bool) -> str:
    rows = [
        {
            "confidence": f"{row['low']:.2f} to {row['high']:.2f}",
            "images": row["images"],
            "mean": row["confidence"],
            "right": f"{row['accuracy']:.1%}",
            "95 % interval": f"{row['accuracy_low']:.1%} to {row['accuracy_high']:.1%}",
        }
        for row in found.bins
    ]
    kept = "stored" if found.stored else "not stored" if dry_run else "stored before"
    says = "overconfident" if found.temperature > 1 else "underconfident"
    lines = [
        f"'{found.model}', generation {found.generation}: {found.images} holdout {plural(found.images, 'image')}, "
        f"{found.top1:.2%} right at a mean confidence of {found.confidence:.2%}",
        f"temperature {found.temperature:.4f} ({says}), {kept}",
        f"NLL {found.nll_before:.4f} before, {found.nll_after:.4f} after; ECE {found.ece_before:.4f} before, "
        f"{found.ece_after:.4f} after (cross-fitted)",
        "",
        render.table(rows),
    ]
    if found.is_at_an_end:
        lines.insert(
            2,
            "  the holdout sets no bound to that temperature, as where every image is right; do not use it before "
            "there are more images with --split holdout",
        )
    judged = [row for row in found.classes if row["images"]]
    worst = sorted(judged, key=lambda row: (row["precision_low"], row["label"]))[:_WORST]
    shown = [
        {
            "class": row["class_name"],
            "images": row["images"],
            "precision": f"{row['precision']:.1%}",
            "95 % interval": f"{row['precision_low']:.1%} to {row['precision_high']:.1%}",
        }
        for row in worst
    ]
    of = f"the {len(worst)} least certain of {len(judged)} classes" if len(judged) > len(worst) else "classes"
    lines += ["", f"precision above a confidence of {found.min_confidence:g}, {of}:", render.table(shown)]
    if plot is not None:
        lines.append(f"diagram: {plot}")
    return "\n".join(lines)
