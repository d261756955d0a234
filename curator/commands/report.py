"""The command that writes a page about a manifest."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from curator import render
from curator.commands import DEFAULT_STORE, JsonOption, QuietOption, StoreOption, app


@app.command()
def report(
    name: Annotated[str, typer.Argument(help="Name of the manifest.")],
    output: Annotated[
        Path | None, typer.Option(help="File to write.", metavar="FILE", show_default="NAME.html")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it exists.")] = False,
    store: StoreOption = DEFAULT_STORE,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Writes one HTML page with plots and pictures, to judge a manifest by.

    Example: curator report g0-130000
    """
    from curator.report import write
    from curator.store import Store

    written = write(Store(store), name, output, force)
    text = f"{written.path}: {written.bytes / 1e6:.2f} MB, {written.pictures} pictures"
    if written.unreadable:
        text += f"; {written.unreadable} more cannot be read, and the page says why"
    render.answer(written._asdict(), json, text)
