"""The command that starts the app."""

from __future__ import annotations

from typing import Annotated

import typer

from curator.commands import DEFAULT_STORE, JsonOption, QuietOption, StoreOption
from curator.commands import app as commands


@commands.command()
def app(
    port: Annotated[
        int | None,
        typer.Option(min=1, max=65_535, help="Port to listen on.", show_default="the first free from 8501 on"),
    ] = None,
    address: Annotated[str, typer.Option(help="Address to listen on; only this machine reaches the default.")] = (
        "127.0.0.1"
    ),
    store: StoreOption = DEFAULT_STORE,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Starts the pages to look at the store and to review images, until Ctrl-C.

    Whoever reaches the address can look at every image and add decisions: there is no password.

    Example: curator app --port 8600
    """
    import sys

    from curator import progress
    from curator.reports import render
    from curator.serving.server import server
    from curator.storage.store import Store

    found = server(Store(store), port, address)
    if not found.is_local:
        progress.say(f"listening on {address}: whoever reaches it can look at every image and add decisions")
    render.answer({"url": found.url, "store": str(store)}, json, f"the app is at {found.url} (Ctrl-C stops it)")
    sys.stdout.flush()
    raise typer.Exit(found.run())
