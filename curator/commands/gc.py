"""The command that removes what nothing in a store references."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from curator.commands import DEFAULT_STORE, JsonOption, QuietOption, StoreOption, app
from curator.errors import plural, printable
from curator.reports import render

if TYPE_CHECKING:
    from curator.upkeep.leftovers import Leftover

_AGE = "1d"
_EXAMPLES = 3


@app.command()
def gc(
    delete: Annotated[bool, typer.Option("--delete", help="Remove it; without this nothing is removed.")] = False,
    unfinished: Annotated[
        bool, typer.Option("--unfinished", help="Also what a stopped label, train or quality folds would go on from.")
    ] = False,
    older_than: Annotated[str, typer.Option(help="Only what is older than this, e.g. 12h or 7d.")] = _AGE,
    alone: Annotated[
        bool, typer.Option("--alone", help="Nothing else uses the store now: allows --older-than below 1h.")
    ] = False,
    store: StoreOption = DEFAULT_STORE,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Lists files of the store that nothing references, such as those of killed commands; --delete removes them.

    Example: curator gc --older-than 7d
    """
    from curator.storage.store import Store
    from curator.upkeep import leftovers

    age = leftovers.seconds(older_than)
    if delete and not alone:
        leftovers.expect_age(age)
    there = Store(store)
    found = leftovers.find(there, age)
    chosen = found.leftovers + (found.unfinished if unfinished else [])
    gone = leftovers.remove(there, chosen) if delete else chosen
    kinds: dict[str, list[Leftover]] = {}
    for each in (gone if delete else found.leftovers) + ([] if delete and unfinished else found.unfinished):
        kinds.setdefault(each.kind, []).append(each)
    document = {
        "removed" if delete else "would_remove": len(gone),
        "bytes": sum(each.bytes for each in gone),
        "kinds": [{"kind": kind} | _counts(several) for kind, several in kinds.items()],
        "kept_unknown": _counts(found.unknown),
    }
    again = f"curator gc --delete{' --unfinished' * unfinished}"
    if age != leftovers.seconds(_AGE):
        again += f" --older-than {older_than.strip()}"
    if age < leftovers.FLOOR:
        again += " --alone"
    render.answer(document, json, _text(document, delete, unfinished, again))


def _counts(several: Sequence[Leftover]) -> dict[str, Any]:
    oldest = min((each.time for each in several), default=None)
    return {
        "files": len(several),
        "bytes": sum(each.bytes for each in several),
        "oldest": None if oldest is None else dt.datetime.fromtimestamp(oldest, dt.UTC).isoformat(timespec="seconds"),
        "examples": [each.name for each in several[:_EXAMPLES]],
    }


def _text(document: dict[str, Any], delete: bool, unfinished: bool, again: str) -> str:
    from curator.upkeep.leftovers import UNFINISHED

    number = document["removed" if delete else "would_remove"]
    rows = [kind | {"examples": printable(", ".join(kind["examples"]))} for kind in document["kinds"]]
    parts = [render.table(rows)] if rows else []
    files, bytes_ = plural(number, "file"), plural(document["bytes"], "byte")
    said = f"{'removed' if delete else 'nothing references'} {number} {files}, {document['bytes']} {bytes_}"
    if number and not delete:
        said += f"; {again} removes {plural(number, 'it', 'them')}"
        said += ", where nothing else uses the store" * again.endswith("--alone")
    parts.append(said)
    if not unfinished and any(kind["kind"] in UNFINISHED for kind in document["kinds"]):
        parts.append("unfinished work is kept: the same command goes on from it; --unfinished gives it up")
    if unknown := document["kept_unknown"]["files"]:
        examples = printable(", ".join(document["kept_unknown"]["examples"]))
        are = plural(unknown, "file is none of curator's and stays", "files are none of curator's and stay")
        parts.append(f"{unknown} {are}: {examples}")
    return "\n".join(parts)
