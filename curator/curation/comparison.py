"""Two manifests compared: which images came, went, changed their class or their copies.

    the files of A and B (image_id, label, copies) -> sql/diff.sql -> counts per class -> totals

Manifests of one store are compared whatever they were built from: only the rows count, not the lineage.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from curator import queries
from curator.curation import manifests
from curator.errors import AnswerIsNo
from curator.storage.store import Store

if TYPE_CHECKING:
    import duckdb

CHANGES = ("added", "removed", "relabeled", "copies_changed")
COUNTS = (*CHANGES, "same")


class Difference(NamedTuple):
    """What lies between two manifests, in images (copies are not counted out)."""

    before: str
    after: str
    classes: list[dict[str, Any]]

    @property
    def totals(self) -> dict[str, int]:
        """The counts over all classes, by name."""
        return {name: sum(found[name] for found in self.classes) for name in COUNTS}

    @property
    def differs(self) -> bool:
        """Whether anything was added, removed, relabeled or got other copies."""
        return any(number for name, number in self.totals.items() if name != "same")

    def expect_none(self) -> None:
        """Makes sure that the manifests hold the same.

        Raises:
            AnswerIsNo: They do not.
        """
        if self.differs:
            counts = ", ".join(f"{number} {name.replace('_', ' ')}" for name, number in self.totals.items())
            raise AnswerIsNo(
                f"the manifests '{self.before}' and '{self.after}' differ: {counts}",
                f"curator show {self.before}, and curator show {self.after}, to see the options of each",
            )


def diff(store: Store, before: str, after: str) -> Difference:
    """Compares two manifests, image by image.

    Args:
        store: The store.
        before: Name of the one.
        after: Name of the other.

    Raises:
        InputError: There is no manifest of such a name, or its files are not all there.
    """
    with _joined(store, before, after) as con:
        found = queries.rows(con, queries.text("diff"))
        names = {row["label"]: row["class_name"] for row in queries.rows(con, "select * from classes")}
    # The numbers of classes are of no use to a reader who has their names.
    return Difference(before, after, [{"class_name": _name(names, row.pop("label")), **row} for row in found])


def images(store: Store, before: str, after: str, change: str, most: int) -> list[dict[str, Any]]:
    """Some of the images that differ between two manifests, see sql/diff_images.sql.

    Args:
        store: The store.
        before: Name of the one.
        after: Name of the other.
        change: One of CHANGES.
        most: How many are given.

    Raises:
        InputError: There is no manifest of such a name, or its files are not all there.
    """
    with _joined(store, before, after) as con:
        return queries.rows(con, queries.text("diff_images"), change=change, limit=most)


@contextlib.contextmanager
def _joined(store: Store, before: str, after: str) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection with the rows of both, as `before` and `after`."""
    paths = {
        view: manifests.files(manifests.find(store, name)) for view, name in (("before", before), ("after", after))
    }
    with contextlib.closing(store.connect()) as con:
        # Only counts or a few rows leave the join, so the order of its rows is worth no memory.
        con.execute("set preserve_insertion_order = false")
        for view, files in paths.items():
            con.read_parquet([str(file) for file in files]).create_view(view)
        yield con


def _name(names: dict[int, str], label: int) -> str:
    # Files that somebody else wrote may hold a class that the store does not know.
    return names.get(label, str(label))
