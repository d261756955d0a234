"""The command that copies the pictures of a training into a few large files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from curator.commands import DEFAULT_STORE, JsonOption, QuietOption, StoreOption, app, completion
from curator.errors import plural
from curator.reports import render

if TYPE_CHECKING:
    from curator.delivery.packing import Packed
    from curator.storage.store import Store


@app.command()
def pack(
    manifest: Annotated[
        str | None,
        typer.Argument(
            help="Manifest to pack beside the labeled split; with --verify, name of a pack.",
            autocompletion=completion.manifests,
        ),
    ] = None,
    size: Annotated[
        int | None, typer.Option(help="Short side in pixels; smaller pictures stay as they are.", show_default="256")
    ] = None,
    quality: Annotated[int | None, typer.Option(help="Quality of the JPEG, 1 to 100.", show_default="90")] = None,
    original: Annotated[bool, typer.Option("--original", help="Copy the bytes as they are.")] = False,
    shard_rows: Annotated[int | None, typer.Option(help="Most pictures of a file.", show_default="10000")] = None,
    shard_bytes: Annotated[int | None, typer.Option(help="Most bytes of a file.", show_default="1000000000")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count only; write nothing.")] = False,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify",
            help="Read a whole pack, named or told by --size, --quality, --original, and say what is damaged.",
        ),
    ] = False,
    store: StoreOption = DEFAULT_STORE,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Packs the pictures that a training reads, at its size. Run again, it goes on where it was stopped.

    Example: curator pack g0-130000 --size 256 --quality 90
    """
    from curator.curation import manifests
    from curator.delivery import exports, packing
    from curator.delivery.shards import Form
    from curator.errors import InputError
    from curator.loading import records
    from curator.storage.store import Store

    form = Form.of(size, quality, original)
    if verify:
        if manifest is not None and (original or (size, quality) != (None, None)):
            what = "--verify takes a pack by its name or by its settings, and here are both"
            raise InputError(what, f"curator pack {manifest} --verify")
        _verify(Store(store), form.name if manifest is None else manifest, json)
        return
    there = Store(store)
    done = packing.pack(
        there, manifest, form, dry_run=dry_run,
        shard_rows=exports.SHARD_ROWS if shard_rows is None else shard_rows,
        shard_bytes=exports.SHARD_BYTES if shard_bytes is None else shard_bytes,
    )  # fmt: skip
    if manifest is not None and done.bytes is not None:  # now, so that a training begins at once
        records.lay_out(there, manifests.find(there, manifest), done.pack)
    render.answer(done._asdict(), json, _text(done))


def _text(done: Packed) -> str:
    from curator.errors import printable

    images = f"{done.images} {plural(done.images, 'image')}"
    there = f"{done.already_packed} of {done.total} {plural(done.already_packed, 'was', 'were')} there already"
    if done.bytes is None:
        lines = [f"{done.pack}: {images} to pack, {there}"]
    else:
        lines = [f"{done.pack}: {images} packed, {there}"]
        if done.images:
            lines.append(f"{done.bytes / 1e6:.1f} MB, where the originals have {done.source_bytes / 1e6:.1f} MB")
        lines.append(done.path)
    if done.unreadable:
        lines.append(f"{done.unreadable} cannot be read and {plural(done.unreadable, 'is', 'are')} not in it:")
        lines += [f"  {printable(problem['uri'])}: {printable(problem['problem'])}" for problem in done.problems]
        if done.unreadable > len(done.problems):
            lines.append(f"  and {done.unreadable - len(done.problems)} more")
    return "\n".join(lines)


def _verify(store: Store, name: str, json: bool) -> None:
    from curator.delivery import packs
    from curator.errors import AnswerIsNo, printable

    done = packs.verify(store, name)
    images, files = plural(done.images, "image"), plural(done.shards, "file")
    lines = [f"{name}: {done.images} {images} in {done.shards} {files}, {done.damaged or 'nothing'} damaged"]
    lines += [
        f"  {problem['shard']}, {problem['image_id'] or 'the file'}: {printable(problem['problem'])}"
        for problem in done.problems
    ]
    render.answer(done._asdict(), json, "\n".join(lines))
    if done.damaged:
        raise AnswerIsNo(
            f"damaged files of the pack: {len(done.damaged_shards)} of {done.shards}",
            f"{store.place.removal(done.damaged_shards)}; then run the `curator pack` that made it, which packs their "
            "images again",
        )
