"""One person's decisions in a row, image by image, while others decide at the same time.

    images to decide on, reviews --follow--> the latest review of each --decide, undo--> another row of reviews

For who shows images and takes decisions; each step takes a few hundredths of a second, however large the store is.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from typing import NamedTuple

import pyarrow.compute as pc

from curator.decisions.reviews import Review, login, record
from curator.errors import InputError, StoreError
from curator.schema import DECISIONS, REVIEWS
from curator.storage.delta import paths_of
from curator.storage.store import Look, Store


class Made(NamedTuple):
    """A decision of this session.

    Attributes:
        row: The row that was written.
        before: The image's latest review until then; None where there was none.
        unseen: Whether somebody else wrote that one after the session had last followed, so it was not on show.
    """

    row: Review
    before: Review | None
    unseen: bool = False


class Session:
    """A list of images, and what becomes of it.

    Args:
        store: The store.
        image_ids: The images, in the order in which they are to be looked at.
        generation: A skip on this generation, or a later one, takes an image off the list; None where no skip does that
            but those of the session itself, as in an audit.
        made: Decisions of the session on images of an earlier list.

    Attributes:
        image_ids: The images.
        latest: The latest review of each image that has any.
        made: The decisions of the session that are not undone, in their order.
    """

    def __init__(
        self, store: Store, image_ids: Iterable[int], generation: int | None = None, made: Iterable[Made] = ()
    ) -> None:
        self.store, self.generation = store, generation
        self.image_ids = list(image_ids)
        self.latest: dict[int, Review] = {}
        self.made = list(made)
        self._table = store.delta("reviews")
        self._read: set[str] = set()
        self._wanted = pc.field("image_id").isin([*self.image_ids, *(each.row["image_id"] for each in self.made)])
        self.follow()

    @property
    def seen(self) -> Look:
        """The table of reviews as far as it was read."""
        return Look.at(self._table)

    def follow(self) -> None:
        """Takes in what was decided in the meantime, by others too.

        Raises:
            StoreError: The table of reviews cannot be read.
        """
        self.store.follow("reviews", self._table)
        for row in self._unread():
            self._take_in(row)

    def _unread(self) -> list[Review]:
        """The rows of the table's files that were not read yet, most often those of single decisions."""
        files = set(paths_of(self._table))
        found: list[Review] = []
        try:
            for file in files - self._read:
                found += self.store.parquet(file, filters=self._wanted, schema=REVIEWS.schema).to_pylist()
        except OSError as error:
            raise self.store.unreadable("reviews", error) from None
        self._read = files
        return found

    def _take_in(self, row: Review) -> None:
        known = self.latest.get(row["image_id"])
        if known is None or _turn(known) < _turn(row):
            self.latest[row["image_id"]] = row

    def is_open(self, image_id: int) -> bool:
        """Whether the image is still to be decided on."""
        latest = self.latest.get(image_id)
        if latest is None or latest["decision"] != "skip":
            return latest is None
        if self.generation is not None and latest["generation"] is not None:
            return bool(latest["generation"] < self.generation)
        return not any(made.row["image_id"] == image_id for made in self.made)

    def next_open(self, after: int = -1) -> int | None:
        """The place of the next image to decide on, the last followed by the first; None where all are done."""
        count = len(self.image_ids)
        places = ((after + 1 + step) % count for step in range(count))
        return next((place for place in places if self.is_open(self.image_ids[place])), None)

    def decide(
        self,
        image_id: int,
        decision: str,
        new_label: int | None = None,
        generation: int | None = None,
        reviewer: str | None = None,
        reason: str | None = None,
    ) -> Made:
        """Records a decision on an image of the list, see `reviews.record`."""
        known = self.latest.get(image_id)
        there = set(paths_of(self._table))
        after = None if known is None else known["decided_at"]
        row = record(self.store, image_id, generation, decision, new_label, reviewer, reason, self._table, after)
        # Its commit has brought the table to what others had decided by then.
        fresh = set(paths_of(self._table)) - there
        if len(fresh) == 1:  # its own
            self._read |= fresh
        with suppress(StoreError):  # it is recorded, and theirs are read the next time
            for theirs in self._unread():
                if theirs != row:
                    self._take_in(theirs)
        before = self.latest.get(image_id)
        made = Made(row, before, before != known)
        self.made.append(made)
        self._take_in(row)
        return made

    def undo(self, reviewer: str | None = None) -> int | None:
        """Takes the last decision of the session back, by one more row: what was in force before it, or else a skip.

        The skip is of no generation, so the image is looked at again. Where somebody else's decision is in force again,
        the reason says whose.

        Args:
            reviewer: Who takes it back, as in `reviews.record`.

        Returns:
            The image; None where there is no decision to take back.

        Raises:
            InputError: The image was decided on since. It stays as it is, and the next undo is of the decision before.
            StoreError: The table of reviews cannot be read; the decision can still be taken back.
        """
        if not self.made:
            return None
        row, before, _ = self.made[-1]
        self.follow()
        image_id: int = row["image_id"]
        latest = self.latest[image_id]
        if latest != row:
            self.made.pop()
            said = ", ".join(filter(None, (latest["decision"], latest["reason"])))
            raise InputError(
                f"{latest['reviewer']} has decided on image {image_id} since ({said}); that stays",
                "look at the image again, and decide",
            )
        who = reviewer or login()
        back = before or row | {"decision": "skip", "new_label": None, "generation": None, "reason": None}
        reason = back["reason"]
        if before and before["reviewer"] != who:
            reason = f"{before['reviewer']}'s decision again" + (f": {reason}" if reason else "")
        now = record(
            self.store, image_id, back["generation"], back["decision"], back["new_label"], who, reason, self._table,
            latest["decided_at"],
        )  # fmt: skip
        # an earlier decision of the session is now in force by the new row
        self.made = [made._replace(row=now) if made.row == before else made for made in self.made[:-1]]
        self._take_in(now)
        return image_id

    def counts(self) -> dict[str, int]:
        """How many decisions of each kind the session made."""
        return {decision: sum(made.row["decision"] == decision for made in self.made) for decision in DECISIONS}


def _turn(row: Review) -> tuple[object, ...]:
    """The order of an image's reviews, the latest highest, as in sql/decisions.sql."""
    return row["decided_at"], row["decision"], -(row["new_label"] or 0)
