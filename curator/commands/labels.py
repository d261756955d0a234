"""Commands that bring soft labels and decisions into the store."""

from __future__ import annotations

from typing import Annotated

import typer

from curator.commands import DEFAULT_STORE, JsonOption, QuietOption, StoreOption, app, completion
from curator.errors import plural
from curator.reports import render


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
    from curator.generations import labels
    from curator.storage.store import Store

    done = labels.import_labels(Store(store), file, generation, model, max_rejected)
    images, rows = plural(done.images, "image"), plural(done.rejected, "row")
    text = f"generation {generation}: {done.images} {images} labeled by '{model}', {done.rejected} {rows} rejected"
    render.answer(done._asdict() | {"problems": done.problems[:20]}, json, "\n".join([text, *done.problems[:20]]))


@app.command()
def review(
    image_id: Annotated[int | None, typer.Option(help="The image.")] = None,
    decision: Annotated[str | None, typer.Option(help="accept, reject, relabel or skip.")] = None,
    new_label: Annotated[
        str | None, typer.Option(help="Class name or index, for a relabel.", autocompletion=completion.classes)
    ] = None,
    file: Annotated[
        str | None,
        typer.Option(
            "--from", help="CSV of image_id or uri, generation, decision, new_label, reviewer, reason.", metavar="FILE"
        ),
    ] = None,
    reviewer: Annotated[str | None, typer.Option(help="Who decides.", show_default="login name")] = None,
    reason: Annotated[str | None, typer.Option(help="Free text.")] = None,
    generation: Annotated[
        int | None,
        typer.Option(
            help="Whose label was judged.",
            show_default="the newest of the image",
            autocompletion=completion.generations,
        ),
    ] = None,
    store: StoreOption = DEFAULT_STORE,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Records a decision on one image, or those of a file at once; the latest of an image counts in build-manifest.

    Example: curator review --image-id 42 --decision relabel --new-label cat
    """
    from curator.decisions import reviews
    from curator.errors import InputError
    from curator.storage.store import Store

    if file is not None:
        if (image_id, decision, new_label, reason, generation) != (None,) * 5:
            raise InputError("--from takes the decisions from the file", "give the file, or one image and its decision")
        taken = reviews.add_reviews(Store(store), file, reviewer)
        counts = ", ".join(f"{number} {name}" for name, number in taken.decisions.items() if number)
        text = f"{taken.recorded} {plural(taken.recorded, 'decision')} recorded" + (f": {counts}" if counts else "")
        if taken.undecided:
            text += f"; {taken.undecided} {plural(taken.undecided, 'line')} without one"
        render.answer(taken._asdict(), json, text)
        return
    if image_id is None or decision is None:
        raise InputError("no image and decision are given", "--image-id I --decision accept, or --from FILE.csv")
    there = Store(store)
    row = reviews.add_review(there, image_id, decision, new_label, reviewer, reason, generation)
    to = "" if row["new_label"] is None else f" to '{there.classes()[row['new_label']]}'"
    render.answer(row, json, f"{decision} of image {image_id}{to} recorded")


@app.command()
def index(
    generation: Annotated[
        int | None,
        typer.Option(
            help="Only this generation.", show_default="all that have labels", autocompletion=completion.generations
        ),
    ] = None,
    store: StoreOption = DEFAULT_STORE,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Sorts the labels for the app, where that did not happen when they were published; a page then takes milliseconds.

    Example: curator index
    """
    from curator.quality import gallery
    from curator.storage.store import Store

    rows = gallery.index(Store(store), generation)
    render.answer({"generations": rows}, json, render.table(rows))
