"""Adding rows to the images table while other imports do the same: no image twice, and none lost.

Each chunk is one commit. A commit that lost the race is made again, without the images that the winner brought.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from curator.storage import delta
from curator.storage.delta import CommitRaced, paths_of
from curator.storage.store import Store

if TYPE_CHECKING:
    import deltalake

_MOST_RACES = 20
_COMPARED = ["image_id", "uri", "split", "label"]


class ImageCommits:
    """Commits chunks of rows, and leaves out those that another import added since this one looked.

    Args:
        store: The store.
        table: The images table at the version that the source was compared with.

    Attributes:
        added: Rows committed.
        problems: The unreadable ones among them.
    """

    def __init__(self, store: Store, table: deltalake.DeltaTable) -> None:
        self._store = store
        self._table = table
        self._compared = set(paths_of(table))
        self.added = 0
        self.problems: list[dict[str, str]] = []

    def add(self, rows: pa.Table) -> None:
        """Adds rows in one commit.

        Raises:
            CommitRaced: Another import gave one of the images another split or label.
        """
        for _ in range(_MOST_RACES):
            for path in sorted(set(paths_of(self._table)) - self._compared):
                rows = _left_to_add(rows, self._store.parquet(path, _COMPARED))
            if not rows.num_rows:
                return
            write = partial(delta.write, rows)
            try:
                file = delta.put(self._store.place, "images", self._table, write, "images")
            except CommitRaced:
                self._table = self._store.delta("images")
            else:
                # publish leaves the table at the version that it was; without a look at the new one every later
                # chunk would race against this one
                self._table = self._store.delta("images")
                self._compared.update(path for path in paths_of(self._table) if path.endswith(file.name))
                self.added += rows.num_rows
                bad = rows.filter(pc.is_valid(rows["problem"]))
                self.problems += bad.select(["uri", "problem"]).to_pylist()
                return
        raise CommitRaced("other imports kept committing first", "run the same command again; it goes on where it was")


def _left_to_add(rows: pa.Table, theirs: pa.Table) -> pa.Table:
    """The rows that are not among those that another import committed."""
    same = theirs.filter(
        pc.or_(
            pc.is_in(theirs["image_id"], rows["image_id"]),
            pc.is_in(theirs["uri"], rows["uri"]),
        )
    )
    mine = {row["uri"]: row for row in rows.select(_COMPARED).to_pylist()} if same.num_rows else {}
    for row in same.to_pylist():
        if mine.get(row["uri"]) != row:
            raise CommitRaced(
                f"another import added {row['uri']} at the same time, with another split, label or id",
                "run the same command again; it says what does not fit",
            )
    return rows.filter(pc.invert(pc.is_in(rows["uri"], same["uri"])))
