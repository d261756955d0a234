"""Commands that make a store and fill it with images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from curator.commands import DEFAULT_STORE, JsonOption, QuietOption, StoreOption, app
from curator.reports import render


@app.command()
def init(
    classes: Annotated[Path | None, typer.Option(help="Text file with one class name a line.")] = None,
    root: Annotated[
        Path | None,
        typer.Option(help="Folder that relative uris start from.", metavar="DIR", show_default="the store's parent"),
    ] = None,
    keep_classes: Annotated[
        str | None, typer.Option(help="Classes that each soft label keeps, a number or 'all'.", show_default="20")
    ] = None,
    store: StoreOption = DEFAULT_STORE,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Creates a store.

    Without a class file the first labeled import defines the classes, sorted by name.

    Example: curator init --classes classes.txt
    """
    from curator.errors import InputError, plural
    from curator.names import MOST_CLASSES
    from curator.pictures.listings import read_class_file
    from curator.storage.store import Store

    try:
        kept = MOST_CLASSES if keep_classes == "all" else int(keep_classes) if keep_classes is not None else None
    except ValueError:
        what = f"--keep-classes {keep_classes!r} is not a number"
        raise InputError(what, f"give a number from 1 to {MOST_CLASSES}, or 'all'") from None
    made = Store.create(store, None if classes is None else read_class_file(classes), root, kept)
    names = made.classes()
    document = {
        "store": str(store),
        "root": str(made.root),
        "classes": len(names),
        "kept_classes": made.settings.kept_classes,
    }
    render.answer(
        document,
        json,
        f"store '{store}', {len(names) or 'no'} {plural(len(names), 'class', 'classes')}, "
        f"relative uris start from {made.root}",
    )


@app.command("add-images")
def add_images(
    source: Annotated[str, typer.Argument(help="Folder, .tar shards (a glob in quotes), or .parquet/.csv listing.")],
    split: Annotated[str | None, typer.Option(help="labeled, unlabeled or holdout.")] = None,
    labels: Annotated[
        str | None, typer.Option(help="'folder' (a class per sub-folder) or a table file with uri and label.")
    ] = None,
    scan: Annotated[bool, typer.Option(help="Read each image for size, hashes and readability.")] = True,
    base: Annotated[str, typer.Option(help="Put before the uris of a listing.")] = "",
    store: StoreOption = DEFAULT_STORE,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Adds images to one split of the store. Run again, it goes on where it was stopped.

    Example: curator add-images photos/pool --split unlabeled
    """
    from curator.errors import plural, printable
    from curator.pictures import images
    from curator.storage.store import Store

    done = images.add_images(Store(store), source, split, labels, scan, base)
    there = f"{done.already_present} {plural(done.already_present, 'was', 'were')} there already"
    lines = [f"added {done.added} of {done.total} {plural(done.total, 'image')}, {there}"]
    if done.known_unreadable:
        lines.append(f"of those, {done.known_unreadable} cannot be read and will not be labeled or trained on")
    if done.known_unscanned:
        was = plural(done.known_unscanned, "was", "were")
        lines.append(
            f"of those, {done.known_unscanned} {was} added without a scan, which later runs do not make up for"
        )
    if done.repeated:
        lines.append(f"{done.repeated} {plural(done.repeated, 'row names', 'rows name')} an image of an earlier row")
    if done.unreadable:
        lines.append(f"{done.unreadable} cannot be read and will not be labeled or trained on:")
        lines += [f"  {printable(problem['uri'])}: {printable(problem['problem'])}" for problem in done.problems]
        if done.unreadable > len(done.problems):
            lines.append(
                f"  and {done.unreadable - len(done.problems)} more, all of them in: "
                "curator sql \"select uri, problem from images where status = 'unreadable'\""
            )
    if done.leaks:
        have = plural(done.leaks, "image outside the holdout has", "images outside the holdout have")
        left = plural(done.leaks, "it is", "they are")
        lines.append(f"{done.leaks} {have} the same bytes as a holdout image; {left} left out")
    render.answer(done._asdict(), json, "\n".join(lines))
