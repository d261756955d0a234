"""The command for ad hoc questions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from curator.commands import DEFAULT_STORE, JsonOption, QuietOption, StoreOption, app
from curator.reports import render


@app.command()
def sql(
    query: Annotated[str | None, typer.Argument(help="One SQL statement.")] = None,
    file: Annotated[Path | None, typer.Option("-f", "--file", help="Read the statement from a file.")] = None,
    form: Annotated[
        str | None, typer.Option("--format", help="table, json, jsonl, csv or parquet.", show_default="table")
    ] = None,
    timeout: Annotated[float, typer.Option(help="Seconds until the query is stopped.")] = 300.0,
    memory: Annotated[str, typer.Option(help="Most memory the query may use.")] = "2GB",
    store: StoreOption = DEFAULT_STORE,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Answers a read-only SQL question over images, labels, reviews, models, metrics, classes and manifests.

    The rows of each manifest stand in a view of its own name.

    Example: curator sql "select class_name, count(*), avg(confidence) from labels group by all order by 2 desc"
    """
    from curator.errors import InputError, suggestion
    from curator.serving import sandbox
    from curator.storage.store import Store

    if (query is None) == (file is None):
        raise InputError("give either a query or a file", 'curator sql "select ...", or curator sql -f query.sql')
    if json and form not in (None, "json"):
        raise InputError(f"--json and --format {form} are two forms of one answer", f"give --json or --format {form}")
    form = form or "table"
    if form not in render.FORMATS:
        raise InputError(f"the format '{form}' is unknown{suggestion(form, render.FORMATS)}", ", ".join(render.FORMATS))
    if file is not None:
        try:
            query = file.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"'{file}' cannot be read ({error})", "give a text file with one statement") from None
    answer = sandbox.ask(Store(store), str(query), memory, timeout)
    render.stream(answer.table, "json" if json else form)
