"""The command that hands manifests on to other tools."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from curator.commands import DEFAULT_STORE, JsonOption, QuietOption, StoreOption, app, completion
from curator.reports import render


@app.command()
def export(
    name: Annotated[str, typer.Argument(help="Name of the manifest.", autocompletion=completion.manifests)],
    destination: Annotated[Path, typer.Argument(help="File or folder to write.", metavar="DEST")],
    form: Annotated[
        str, typer.Option("--format", help="csv, jsonl, parquet, folder, webdataset or huggingface.", metavar="F")
    ],
    shard_rows: Annotated[
        int | None, typer.Option(help="Most samples of a file of webdataset or huggingface.", show_default="10000")
    ] = None,
    shard_bytes: Annotated[
        int | None, typer.Option(help="Most bytes of such a file.", show_default="1000000000")
    ] = None,
    repeat_copies: Annotated[
        bool, typer.Option("--repeat-copies", help="Write each copy as a sample (webdataset, huggingface).")
    ] = False,
    extract: Annotated[
        bool, typer.Option("--extract", help="Write pictures that lie in tar shards as files (folder).")
    ] = False,
    store: StoreOption = DEFAULT_STORE,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Writes a manifest in a form that other tools read; exits 1 when images had to be left out.

    Example: curator export g0-130000 --format webdataset shards
    """
    from curator.delivery import exports
    from curator.errors import AnswerIsNo, plural, printable
    from curator.storage.store import Store

    done = exports.export(
        Store(store), name, form, destination, shard_rows=shard_rows, shard_bytes=shard_bytes,
        repeat_copies=repeat_copies, extract=extract,
    )  # fmt: skip
    lines = [f"{name}: {done.rows} {plural(done.rows, 'row')}, {done.copies} with copies, as {form}"]
    if done.images:
        what = plural(done.images, "link" if form == "folder" else "sample")
        lines.append(f"{done.images} {what} in {done.files} {plural(done.files, 'file')}")
    lines.append(done.path)
    if done.unreadable:
        lines.append(f"left out, because not readable: {done.unreadable} {plural(done.unreadable, 'image')}")
        lines += [f"  {printable(problem['uri'])}: {printable(problem['problem'])}" for problem in done.problems]
        if done.unreadable > len(done.problems):
            lines.append(f"  and {done.unreadable - len(done.problems)} more")
    render.answer(done._asdict(), json, "\n".join(lines))
    if done.unreadable:
        raise AnswerIsNo(
            f"the export lacks {done.unreadable} of the {done.rows + done.unreadable} images of the manifest, so its "
            "classes are not balanced as they were",
            "bring the pictures back and export to another destination; or reject them (curator review) and build the "
            "manifest again",
        )
