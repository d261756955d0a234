"""The command that writes a page about a manifest, or about models that were evaluated."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from curator.commands import DEFAULT_STORE, JsonOption, QuietOption, StoreOption, app, completion
from curator.errors import InputError, plural
from curator.reports import render


@app.command()
def report(
    name: Annotated[
        str | None, typer.Argument(help="Name of the manifest.", autocompletion=completion.manifests)
    ] = None,
    model: Annotated[
        list[str] | None, typer.Option(help="Model whose evaluation to show instead; repeatable, side by side.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="File to write.", metavar="FILE", show_default="NAME.html")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it exists.")] = False,
    store: StoreOption = DEFAULT_STORE,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Writes one HTML page with plots and pictures, to judge a manifest by, or with --model the figures of models.

    Example: curator report g0-130000
    """
    if (name is None) == (not model):
        what = "a manifest and models do not fit on one page" if model else "neither a manifest nor a model is named"
        raise InputError(what, "curator report MANIFEST, or curator report --model MODEL")
    from curator.measures import evaluation_report
    from curator.reports.report import write
    from curator.storage.store import Store

    if model:
        shown = evaluation_report.write(Store(store), model, output, force)
        told = f"{shown.path}: {shown.bytes / 1e6:.2f} MB, {', '.join(shown.suites)}"
        render.answer(shown._asdict(), json, told)
        return
    written = write(Store(store), str(name), output, force)
    pictures = f"{written.pictures} {plural(written.pictures, 'picture')}"
    text = f"{written.path}: {written.bytes / 1e6:.2f} MB, {pictures}"
    if written.unreadable:
        text += f"; {written.unreadable} more cannot be read, and the page says why"
    render.answer(written._asdict(), json, text)
