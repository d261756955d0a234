"""Commands that bring soft labels and decisions into the store."""

from __future__ import annotations

from typing import Annotated

import typer

from curator import render
from curator.commands import DEFAULT_STORE, JsonOption, QuietOption, StoreOption, app


@app.command("import-labels")
def import_labels(
    file: Annotated[str, typer.Argument(help="Parquet or Arrow file, or a folder of Parquet files.")],
    generation: Annotated[int, typer.Option(help="Generation of the model that gave the labels.")],
    model: Annotated[str, typer.Option(help="Name of that model; registered if it is new.")],
    max_rejected: Annotated[int, typer.Option(help="Rows that may be left out as unusable.")] = 0,
    store: StoreOption = DEFAULT_STORE,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Takes soft labels from another tool: image_id or uri, and probs, logits, or top_classes and top_probs.

    Example: curator import-labels labels.parquet --generation 0 --model big-teacher
    """
    from curator import labels
    from curator.store import Store

    done = labels.import_labels(Store(store), file, generation, model, max_rejected)
    text = f"generation {generation}: {done.images} images labeled by '{model}', {done.rejected} rows rejected"
    render.answer(done._asdict() | {"problems": done.problems[:20]}, json, "\n".join([text, *done.problems[:20]]))


@app.command()
def review(
    image_id: Annotated[int, typer.Option(help="The image.")],
    decision: Annotated[str, typer.Option(help="accept, reject, relabel or skip.")],
    new_label: Annotated[str | None, typer.Option(help="Class name or index, for a relabel.")] = None,
    reviewer: Annotated[str | None, typer.Option(help="Who decides.", show_default="login name")] = None,
    reason: Annotated[str | None, typer.Option(help="Free text.")] = None,
    store: StoreOption = DEFAULT_STORE,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Records a decision on one image; the latest decision of an image counts in the next build-manifest.

    Example: curator review --image-id 42 --decision relabel --new-label cat
    """
    from curator import reviews
    from curator.store import Store

    row = reviews.add_review(Store(store), image_id, decision, new_label, reviewer, reason)
    render.answer(row, json, f"{decision} of image {image_id} recorded")
