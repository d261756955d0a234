"""The command that verifies a whole store, and mends what can be mended."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from curator.commands import DEFAULT_STORE, JsonOption, QuietOption, StoreOption, app
from curator.reports import render

if TYPE_CHECKING:
    from curator.upkeep.integrity import Health


@app.command()
def doctor(
    quick: Annotated[bool, typer.Option("--quick", help="Leave out reading every page of the tables.")] = False,
    mend: Annotated[
        bool, typer.Option("--mend", help="Mend what can be mended without loss; without it nothing is written.")
    ] = False,
    store: StoreOption = DEFAULT_STORE,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Verifies a whole store: logs, files, pages, references, hashes; exits 1 when something is wrong.

    Example: curator doctor --mend
    """
    from curator.errors import AnswerIsNo, some
    from curator.upkeep import integrity, mending

    health = mending.mend(store, not quick) if mend else integrity.examine(store, not quick)
    render.answer(health.document, json, _text(store, health))
    if not health.ok:
        names = [found.check for found in health.wrong]
        raise AnswerIsNo(
            f"{len(names)} of {len(health.findings)} checks found something ({some(names)})",
            "what each one needs stands below it; docs/doctor.md says more",
        )


def _text(store: str, health: Health) -> str:
    parts = [f"mended: {done}" for done in health.mended]
    parts.append(f"{store}: {'sound' if health.ok else 'not sound'}, {len(health.findings)} checks")
    for found in health.wrong:
        shown = "" if found.offending == len(found.rows) else f", the first {len(found.rows)}"
        table = render.table(found.rows, title=f"{found.check}: {found.offending} found{shown}")
        parts.append(f"{table}\nmend: {found.mend}")
    if health.not_run:
        parts.append(f"not asked, because they read what is damaged: {', '.join(health.not_run)}")
    return "\n\n".join(parts)
