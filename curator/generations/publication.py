"""What follows when a generation was published: the tables that are worked out of its labels are made."""

from __future__ import annotations

from curator import progress
from curator.errors import CuratorError
from curator.generations import browse, drift
from curator.storage.store import Store


def follow(store: Store, generation: int) -> None:
    """Makes the tables of a generation that was just published.

    The labels are there whatever comes of this: where it fails, the commands that are named make them.
    """
    import duckdb

    for keep, what, command in (
        (drift.keep, "compared with the generation before it", "curator quality disagreement"),
        (browse.keep, "sorted for the app", browse.COMMAND),
    ):
        try:
            keep(store, generation)
        except (CuratorError, OSError, duckdb.Error) as error:
            said = str(error).splitlines()[0]
            progress.say(f"not {what} ({said}); {command} does it")
