"""Commands that train, label and demonstrate; torch is loaded only when one of them runs."""

from __future__ import annotations

import sys
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from typing import Annotated

import typer

from curator.commands import DEFAULT_STORE, JsonOption, QuietOption, StoreOption, app, completion
from curator.errors import plural
from curator.reports import render

DeviceOption = Annotated[str, typer.Option(help="Where to compute: cpu, cuda, mps; 'auto' is a GPU if there is one.")]
_INPUT_BOUND = 0.1  # share of the time from which on waiting is worth a word


@app.command()
def train(
    recipe: Annotated[
        str,
        typer.Option(
            help="Name of a recipe that comes with the tool, or a .toml file.", autocompletion=completion.recipes
        ),
    ],
    manifest: Annotated[
        str | None,
        typer.Option(help="Manifest to train on together with the labeled split.", autocompletion=completion.manifests),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the model.", show_default="g<generation>-<recipe>")] = None,
    init: Annotated[
        str | None, typer.Option(help="Model, or file of weights, to start from.", autocompletion=completion.models)
    ] = None,
    change: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change of the recipe, e.g. schedule.steps=100."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the run's last checkpoint.")] = False,
    threads: Annotated[int | None, typer.Option(min=1, help="Loader threads.", show_default="one a core")] = None,
    pack: Annotated[
        str, typer.Option(help="Pack to read images from; 'auto' for the one that fits, or 'none'.")
    ] = "auto",
    device: DeviceOption = "auto",
    tensorboard: Annotated[
        Path | None, typer.Option(help="Folder for TensorBoard's event files.", metavar="DIR")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what training would take; train nothing.")] = False,
    store: StoreOption = DEFAULT_STORE,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Trains a teacher on the labeled split or, with a manifest, a noisy student.

    Example: curator train --recipe tiny-student --manifest g0-300
    """
    from curator.storage.store import Store

    source = None if pack == "none" else pack
    if dry_run:
        from curator.commands.recipes import answer_estimate
        from curator.names import check_name
        from curator.runs import estimate

        if name is not None:
            check_name("model", name)
        answer_estimate(estimate.estimate(Store(store), recipe, manifest, change, source, device), json)
        return
    from curator import progress
    from curator.runs import training

    try:
        done = training.train(
            Store(store),
            recipe,
            manifest,
            name,
            init,
            change,
            resume,
            threads,
            pack=source,
            device=device,
            tensorboard=tensorboard,
        )
    except KeyboardInterrupt:
        if not resume:
            progress.say("go on with --resume")
        raise
    top1 = "no holdout to evaluate on" if done.top1 is None else f"top-1 {done.top1:.2%} on the holdout"
    if done.step < done.steps:
        top1 += f", which chose the weights of step {done.step} and so flatters them"
    elif done.best_top1 is not None and done.best_step != done.step:
        top1 += f"; {done.best_top1:.2%} at step {done.best_step}"
    steps = f"{done.steps} {plural(done.steps, 'step')}"
    lines = [f"model '{done.model}', generation {done.generation}: {steps}, {top1}"]
    if done.steps:
        waited = f"{done.input_bound:.0%} of the time spent waiting for images"
        lines.append(f"{done.images_per_second:.0f} images/s, {waited}")
    if done.input_bound > _INPUT_BOUND:
        work = ", ".join(f"{stage} {share:.0%}" for stage, share in done.loader.items())
        lines[-1] += f": the loader sets the pace ({work})"
    if done.failed:
        lines.append(f"{done.failed} {plural(done.failed, 'image')} could not be read and did not count:")
        lines += [f"  {problem}" for problem in done.problems]
    render.answer(done._asdict(), json, "\n".join(lines))


@app.command()
def label(
    model: Annotated[str, typer.Option(help="The teacher.", autocompletion=completion.models)],
    split: Annotated[list[str] | None, typer.Option(help="Split to label.", show_default="all")] = None,
    batch_size: Annotated[int, typer.Option(help="Images of a forward pass.")] = 64,
    threads: Annotated[int | None, typer.Option(min=1, help="Decoding threads.", show_default="one a core")] = None,
    engine: Annotated[str, typer.Option(help="What computes: auto, torch or onnxruntime.")] = "auto",
    device: DeviceOption = "auto",
    part_seconds: Annotated[
        float, typer.Option(min=0, help="Work in a part: what a kill can lose of each process, in seconds.")
    ] = 30.0,
    embeddings: Annotated[
        bool, typer.Option("--embeddings", help="Store the features of each image, too, for quality duplicates.")
    ] = False,
    store: StoreOption = DEFAULT_STORE,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Gives soft labels to every image that the model has not labeled yet. Run again, it goes on where it stopped.

    Example: curator label --model g0-tiny-teacher
    """
    from curator.storage.store import Store
    from curator.teachers import labeling

    kept = None
    if not embeddings:
        done = labeling.label(Store(store), model, split, batch_size, threads, part_seconds, engine, device)
    else:
        from curator.ranks import join
        from curator.teachers.embedding import embed

        with join(device):  # for both: a process joins the ranks of its run once
            done = labeling.label(Store(store), model, split, batch_size, threads, part_seconds, engine, device)
            kept = embed(Store(store), model, split, batch_size, threads, device=device)
    rate = f"{done.images_per_second:.0f} images/s"
    images = f"{done.images} {plural(done.images, 'image')}"
    lines = [f"generation {done.generation}: {images} labeled by '{model}', {rate}"]
    if done.already_labeled:
        lines.append(f"{done.already_labeled} {plural(done.already_labeled, 'was', 'were')} labeled before")
    if done.failed:
        have = plural(done.failed, "image could not be read and has", "images could not be read and have")
        lines += [f"{done.failed} {have} no label:", *(f"  {problem}" for problem in done.problems)]
    document = done._asdict()
    if kept is not None:
        document["embeddings"] = kept._asdict()
        rate = f"{kept.images_per_second:.0f} images/s"
        were = plural(kept.already_there, "was", "were")
        embedded = f"{kept.images} {plural(kept.images, 'embedding')} of {kept.dimensions} values"
        lines.append(f"{embedded}, {rate}; {kept.already_there} {were} there")
    render.answer(document, json, "\n".join(lines))


@app.command()
def demo(
    folder: Annotated[Path, typer.Argument(help="New folder for the pictures and the store.")] = Path("demo"),
    tune: Annotated[
        bool,
        typer.Option("--tune", help="Report on images outside the holdout, to try settings without looking at it."),
    ] = False,
    seed: Annotated[int, typer.Option(help="Seed of the split, with --tune.")] = 0,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Runs the whole route on 5,000 handwritten digits: teacher, soft labels, manifest, noisy student.

    The store is FOLDER/store.

    Example: curator demo demo
    """
    from curator.rounds import demo

    with redirect_stdout(sys.stderr) if json else nullcontext():
        rows = demo.play(lambda arguments: app(arguments, standalone_mode=False), folder, tune, seed)
    if json:
        render.answer({"folder": str(folder), "figures": rows}, json)
