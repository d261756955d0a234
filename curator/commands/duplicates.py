"""Commands that find images which repeat each other, and pool images that show the holdout."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from curator import render
from curator.commands import DEFAULT_STORE, JsonOption, QuietOption, StoreOption, quality

if TYPE_CHECKING:
    from curator.duplicates import Found

_MANY = 0.1  # share of the images with a twin by hash from which on a doubt is worth a word

DistanceOption = Annotated[
    int | None, typer.Option(help="Most differing bits of two perceptual hashes, of 64.", show_default="10")
]
EmbeddingsOption = Annotated[
    str | None, typer.Option(help="Compare as well what `curator label --embeddings` stored of this model.")
]
CosineOption = Annotated[float | None, typer.Option(help="Least cosine of two embeddings.", show_default="0.8")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Keep nothing in the store.")]


@quality.command()
def duplicates(
    distance: DistanceOption = None,
    embeddings: EmbeddingsOption = None,
    cosine: CosineOption = None,
    dry_run: DryRunOption = False,
    store: StoreOption = DEFAULT_STORE,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Finds images that repeat each other: the same bytes, close perceptual hashes, mirrored too, or embeddings.

    Example: curator quality duplicates --distance 8
    """
    found = _find(store, distance, embeddings, cosine, False, dry_run)
    lines = [
        f"{found.duplicates} of {found.scan.images} images repeat another one; they form {found.groups} groups",
        f"{found.leaks} outside the holdout show a holdout image, {found.labeled_twins} of the pool a labeled image",
        f"{found.spare} of the pool would go if each group kept one image",
    ]
    render.answer(found.document, json, "\n".join([*lines, *_tables(found)]))


@quality.command()
def leaks(
    distance: DistanceOption = None,
    embeddings: EmbeddingsOption = None,
    cosine: CosineOption = None,
    dry_run: DryRunOption = False,
    store: StoreOption = DEFAULT_STORE,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Finds pool and labeled images that show a holdout image, and exits with 1 where there are some.

    It is the scan of `quality duplicates`; build-manifest leaves out what the newest scan found.

    Example: curator quality leaks
    """
    from curator.errors import AnswerIsNo

    found = _find(store, distance, embeddings, cosine, True, dry_run)
    first = f"{found.leaks or 'no'} images outside the holdout show a holdout image"
    render.answer(found.document, json, "\n".join([first, *_tables(found)]))
    if found.leaks:
        raise AnswerIsNo(
            first,
            "what is trained on them is evaluated on what it has seen: take them out of the labeled split; "
            "of the pool, build-manifest leaves them out",
        )


def _find(
    store: Path, distance: int | None, model: str | None, cosine: float | None, leaks_only: bool, dry_run: bool
) -> Found:
    from curator.duplicates import COSINE, DISTANCE, Rule, find
    from curator.errors import InputError
    from curator.store import Store

    if cosine is not None and model is None:
        raise InputError("--cosine is about embeddings, and none are compared", "add --embeddings MODEL")
    rule = Rule(DISTANCE if distance is None else distance, model, COSINE if cosine is None else cosine)
    return find(Store(store), rule, leaks_only=leaks_only, dry_run=dry_run)


def _tables(found: Found) -> list[str]:
    scan, model = found.scan, found.scan.rule.model
    lines = []
    if found.kinds:
        lines += ["", render.table(found.kinds)]
    if found.examples:
        shown = ("uri", "split", "twin_uri", "twin_split", "kind", "distance")
        lines += ["", render.table(found.examples[:10], shown)]
    gaps = [
        (scan.not_checked, "were never scanned (add-images --no-scan), so they have no hash"),
        (scan.plain, "are too plain for a perceptual hash; only their bytes were compared"),
        (
            model and scan.images - scan.embedded - scan.unreadable,
            f"have no embedding of '{scan.rule.model}'",
        ),
    ]
    lines += [f"not checked: {count} images {why}" for count, why in gaps if count]
    alike = sum(row["images"] for row in found.kinds if row["kind"] in ("phash", "mirror"))
    if alike > _MANY * scan.images:
        lines.append(
            f"{alike / scan.images:.0%} of all images have a twin by their hash. If the examples are no copies, the "
            "pictures are too simple for this distance: scan with a lower --distance before build-manifest goes by it"
        )
    if not found.written:
        lines.append("dry run: nothing was kept")
    return lines
