"""Commands about what generations disagree on, what people should look at first, and images from elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from curator.commands import DEFAULT_STORE, JsonOption, QuietOption, StoreOption, completion, quality
from curator.errors import plural
from curator.reports import render

GenerationOption = Annotated[
    int | None, typer.Option(help="Generation.", show_default="the newest", autocompletion=completion.generations)
]
_PLACE = ("shard", "byte_offset", "byte_length")  # of a picture inside a tar file: --json has it


@quality.command("disagreement")
def show_disagreement(
    generation: GenerationOption = None,
    split: Annotated[str, typer.Option(help="Whose images: unlabeled, labeled or holdout.")] = "unlabeled",
    class_name: Annotated[
        str | None, typer.Option("--class", help="Only this class, before or after.", autocompletion=completion.classes)
    ] = None,
    image_id: Annotated[
        int | None, typer.Option(help="What each generation said of one image.", min=0, max=2**63 - 1)
    ] = None,
    limit: Annotated[int, typer.Option(help="Most rows of each list.", min=1)] = 20,
    store: StoreOption = DEFAULT_STORE,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Compares a generation with the one before it: which classes flip, how confidences drift, and on which images.

    Example: curator quality disagreement --class cat
    """
    from curator.quality import disagreement
    from curator.storage.store import Store

    if image_id is not None:
        rows = disagreement.history(Store(store), image_id)
        shown = ("generation", "model", "class_name", "confidence", "margin", "entropy")
        render.answer({"image_id": image_id, "generations": rows}, json, render.table(rows, shown))
        return
    found = disagreement.between(Store(store), generation, split, class_name, limit)
    totals, held = found.totals, found.holdout
    share = f" ({totals['flipped'] / totals['images']:.1%})" if totals["images"] else ""
    text = [
        f"generation {found.generation} against {found.previous}, {split}: {totals['flipped']:,} of "
        f"{totals['images']:,} {plural(totals['images'], 'image')}{share} changed class",
        render.fields({name.replace("_", " "): totals[name] for name in totals if name not in ("images", "flipped")}),
    ]
    if held["images"]:
        text.append(
            f"holdout: {held['right_before']:,} of {held['images']:,} right before, {held['right_after']:,} now; "
            f"{held['mended']:,} mended, {held['broken']:,} broken"
        )
    moved = [row for row in found.classes if row["left_it"] or row["came"]][:limit]
    images = [{name: row[name] for name in row if name not in _PLACE} for row in found.images]
    for title, lines in (
        ("classes that changed most:", moved),
        ("from class to class:", found.flips),
        ("confusion on the holdout:", found.confusion),
        ("images:", images),
    ):
        if lines:
            text.append(render.table(lines, title=title))
    document = {"generation": found.generation, "previous": found.previous, "split": split} | totals
    lists = {"classes": found.classes, "flips": found.flips, "images": found.images}
    render.answer(document | lists | {"holdout": held | {"confusion": found.confusion}}, json, "\n\n".join(text))


@quality.command()
def queue(
    limit: Annotated[int, typer.Option(help="Most images.", min=1, max=100_000)] = 50,
    class_name: Annotated[
        str | None, typer.Option("--class", help="Only this class.", autocompletion=completion.classes)
    ] = None,
    reason: Annotated[str | None, typer.Option(help="Only leak, label, flip, doubt or 'close call'.")] = None,
    store: StoreOption = DEFAULT_STORE,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Lists the images that are most worth a person's time, with the reason; decide with curator review.

    Example: curator quality queue --limit 20
    """
    from curator.quality import worklist
    from curator.storage.store import Store

    found = worklist.worklist(Store(store), limit, class_name, reason)
    of = f"manifest {found.manifest}" if found.manifest else f"generation {found.generation}, no manifest yet"
    counts = worklist.summary(found)
    said = ", ".join(f"{number} {reason}" for reason, number in counts.items())
    text = f"nothing to look at ({of})"
    if found.images:
        text = f"{len(found.images)} {plural(len(found.images), 'image')} to look at ({of}): {said}"
        text += "\n\n" + render.table(found.images)
    render.answer({**found._asdict(), "reasons": counts}, json, text)


@quality.command()
def audit(
    generation: GenerationOption = None,
    per_class: Annotated[int, typer.Option(help="Images to draw of each class.", min=5, max=100_000)] = 50,
    seed: Annotated[
        int, typer.Option(help="Seed of the draw; another one for another sample.", min=-(2**63), max=2**63 - 1)
    ] = 0,
    min_confidence: Annotated[float, typer.Option(help="Only images with a confidence above this.")] = 0.3,
    class_name: Annotated[
        str | None, typer.Option("--class", help="Only this class.", autocompletion=completion.classes)
    ] = None,
    limit: Annotated[int, typer.Option(help="Most images to list.", min=1)] = 20,
    sheet: Annotated[
        Path | None, typer.Option(help="Write the images to decide on as CSV, for curator review --from.")
    ] = None,
    store: StoreOption = DEFAULT_STORE,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Estimates each class's precision from people's decisions on a random sample, which it draws and keeps.

    Example: curator quality audit --class cat --sheet cats.csv
    """
    from curator.quality import audit as audits
    from curator.storage.store import Store

    most = limit if sheet is None else audits.EVERY
    found = audits.audit(Store(store), generation, per_class, seed, min_confidence, class_name, most)
    if sheet is not None:
        audits.write_sheet(found, sheet)
    key, total = found.key, found.total
    drawn, classes = sum(row["drawn"] for row in found.classes), len(found.classes)
    text = [
        f"generation {key.generation}, seed {key.seed}: {drawn:,} {plural(drawn, 'image')} of {classes:,} "
        f"{plural(classes, 'class', 'classes')} drawn {'now' if found.is_new else 'before'}, "
        f"{total['decided']:,} decided"
    ]
    if total["decided"]:
        text[0] += f": {total['precision']:.1%} of their classes right ({total['low']:.1%} to {total['high']:.1%})"
    decided = sorted((row for row in found.classes if row["decided"]), key=lambda row: row["precision"])
    if decided:
        text.append(render.table(decided[:limit], title="least precise classes:"))
    if sheet is not None:
        images = plural(len(found.open), "image")
        text.append(f"{len(found.open):,} {images} to decide on: {sheet}; then: curator review --from {sheet}")
    elif found.open:
        text.append(render.table(found.open[:limit], title="to decide on, in this order:"))
    document = key._asdict() | {"drawn_now": found.is_new, "total": total, "classes": found.classes}
    render.answer(document | {"open": found.open[:limit]}, json, "\n\n".join(text))


@quality.command()
def domain(
    generation: GenerationOption = None,
    depth: Annotated[int, typer.Option(help="Folders of a path that make a source.", min=0)] = 1,
    min_confidence: Annotated[float, typer.Option(help="Up to this a confidence is low.")] = 0.3,
    limit: Annotated[int, typer.Option(help="Most rows of each list.", min=1)] = 20,
    store: StoreOption = DEFAULT_STORE,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Finds what in the pool is from elsewhere: sources that the teacher is unsure of, images like no class.

    Example: curator quality domain --depth 2
    """
    from curator.quality import domain as domains
    from curator.storage.store import Store

    found = domains.domain(Store(store), generation, depth, min_confidence, limit)
    text = [
        f"generation {found.generation}: high is an entropy above {found.usual:.4g} nats ({_usual(found.usual_of)})",
        render.table(found.sources[:limit], title="sources, the most high entropies first:"),
        render.table(found.images, title="images that are least like any class:"),
    ]
    if found.far:
        text.append(render.table(found.far, title="images farthest from the mean of every class:"))
    render.answer(found._asdict(), json, "\n\n".join(text))


def _usual(of: str) -> str:
    return f"one in twenty images of the {of} split has more" if of in ("holdout", "labeled") else of
