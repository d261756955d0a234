"""Commands that find images which repeat each other, and pool images that show the holdout."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from curator.commands import DEFAULT_STORE, JsonOption, QuietOption, StoreOption, completion, quality
from curator.errors import plural
from curator.reports import render

if TYPE_CHECKING:
    from curator.repeats.duplicates import Found

_MANY = 0.1  # share of the images with a twin by hash from which on a doubt is worth a word
_SHOWN = 5  # unreadable pictures that are named


@quality.command(
    "leaks",
    help="Finds pool and labeled images that show a holdout image, and exits with 1 where there are some.\n\n"
    "It is the scan of `quality duplicates`; build-manifest leaves out what the newest scan found.\n\n"
    "Example: curator quality leaks",
)
@quality.command(
    "duplicates",
    help="Finds images that repeat each other: the same bytes, or pictures that are near each other by their "
    "perceptual hashes (mirrored, too) or embeddings, and copies by a look at both.\n\n"
    "Example: curator quality duplicates --distance 8",
)
def find_duplicates(
    context: typer.Context,
    distance: Annotated[
        int | None, typer.Option(help="Most differing bits of two perceptual hashes, of 64.", show_default="10")
    ] = None,
    embeddings: Annotated[
        str | None,
        typer.Option(
            help="Compare as well what `curator label --embeddings` stored of this model.",
            autocompletion=completion.models,
        ),
    ] = None,
    cosine: Annotated[float | None, typer.Option(help="Least cosine of two embeddings.", show_default="0.8")] = None,
    confirm: Annotated[
        bool,
        typer.Option("--confirm/--no-confirm", help="Look at both pictures, and drop pairs that are no copies."),
    ] = True,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Keep nothing in the store.")] = False,
    store: StoreOption = DEFAULT_STORE,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """One scan; `leaks` shows the leaks alone, and answers with its exit code."""
    from curator.errors import AnswerIsNo, InputError
    from curator.repeats.duplicates import COSINE, DISTANCE, Rule, find
    from curator.storage.store import Store

    if cosine is not None and embeddings is None:
        raise InputError("--cosine is about embeddings, and none are compared", "add --embeddings MODEL")
    leaks_only = context.info_name == "leaks"
    rule = Rule(DISTANCE if distance is None else distance, embeddings, COSINE if cosine is None else cosine, confirm)
    found = find(Store(store), rule, leaks_only=leaks_only, dry_run=dry_run)
    show = plural(found.leaks, "shows", "show")
    shown = f"{found.leaks or 'no'} {plural(found.leaks, 'image')} outside the holdout {show} a holdout image"
    lines = [shown]
    if not leaks_only:
        of = f"{found.scan.images} {plural(found.scan.images, 'image')}"
        lines = [
            f"{found.duplicates} of {of} {plural(found.duplicates, 'repeats', 'repeat')} another one; they form "
            f"{found.groups} {plural(found.groups, 'group')}",
            f"{found.leaks} outside the holdout {show} a holdout image, "
            f"{found.labeled_twins} of the pool a labeled image",
            f"{found.spare} of the pool would go if each group kept one image",
        ]
    render.answer(found.document, json, "\n".join([*lines, *_looks(found), *_tables(found)]))
    if leaks_only and found.leaks:
        raise AnswerIsNo(
            shown,
            "what is trained on them is evaluated on what it has seen: take them out of the labeled split; "
            "of the pool, build-manifest leaves them out",
        )


def _looks(found: Found) -> list[str]:
    """What looking at the pictures changed."""
    from curator.errors import printable
    from curator.repeats.duplicates import NEAREST

    scan = found.scan
    lines = []
    if scan.compared:
        lines.append(
            f"looked at {scan.compared} {plural(scan.compared, 'pair')} of pictures near each other: {scan.rejected} "
            f"{plural(scan.rejected, 'is', 'are')} no copies, "
            f"which leaves {scan.cleared} {plural(scan.cleared, 'image')} without a twin"
        )
    if scan.crowded:
        lines.append(
            f"{scan.crowded} {plural(scan.crowded, 'image has', 'images have')} more than {NEAREST} others near in a "
            f"split; the nearest {NEAREST} were looked at"
        )
    if scan.unconfirmed:
        count = plural(scan.unconfirmed, "pair counts", "pairs count")
        lines.append(f"{scan.unconfirmed} {count} as copies unseen, because a picture cannot be read:")
        lines += [f"  {printable(problem['uri'])}: {problem['problem']}" for problem in scan.problems[:_SHOWN]]
    return lines


def _tables(found: Found) -> list[str]:
    scan, model = found.scan, found.scan.rule.model
    lines = []
    if found.kinds:
        lines += ["", render.table(found.kinds)]
    if found.examples:
        shown = ("uri", "split", "twin_uri", "twin_split", "kind", "distance")
        lines += ["", render.table(found.examples[:10], shown)]
    gaps = [
        (scan.not_checked, "was", "were", "never scanned (add-images --no-scan): no hash"),
        (scan.plain, "is", "are", "too plain for a perceptual hash; only bytes were compared"),
        (
            scan.images - scan.embedded - scan.unreadable if model else 0,
            *("has", "have", f"no embedding of '{model}'"),
        ),
    ]
    lines += [
        f"not checked: {count} {plural(count, f'image {one}', f'images {more}')} {why}"
        for count, one, more, why in gaps
        if count
    ]
    alike = sum(row["images"] for row in found.kinds if row["kind"] in ("phash", "mirror"))
    if alike > _MANY * scan.images and not scan.rule.confirm:
        lines.append(
            f"{alike / scan.images:.0%} of all images have a twin by their hash, and no picture was looked at. If the "
            "examples are no copies, scan without --no-confirm before build-manifest goes by it"
        )
    if not found.written:
        lines.append("dry run: nothing was kept")
    return lines
