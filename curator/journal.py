"""What a run writes into the metrics table: losses, learning rates, images that could not be read, last figures.

    loss, learning rate (every 50 steps) + unreadable images + figures at the end -> one commit with each checkpoint

One `Journal` belongs to one run, and only the first rank writes.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Mapping

import pyarrow as pa

from curator import progress
from curator.schema import METRICS
from curator.store import Store

_EVERY = 50  # steps between two losses
_TOLD = 20  # unreadable images that are named while a run goes on
_UNREADABLE = "unreadable:"  # begins the names in the metrics table under which image_ids stand


class Journal:
    """The figures of one run that are not yet in the table.

    Args:
        store: The store.
        model: The run.
        epoch: Steps of a pass over the labeled rows.
    """

    def __init__(self, store: Store, model: str, epoch: float) -> None:
        self.store, self.model, self.epoch = store, model, epoch
        self._figures: list[tuple[int, str, float]] = []
        self._known: set[int] = set()  # unreadable images that are in the table
        self._told = 0

    def note(self, step: int, last: bool, loss: float, rate: float) -> None:
        """Keeps the figures of one of many steps, of the first and of the last."""
        if step % _EVERY == 0 or last:
            self._figures += [(step + 1, "loss", loss), (step + 1, "learning_rate", rate)]

    def tell(self, failures: Mapping[int, str]) -> None:
        """Names images that could not be read, once, and not too many of them."""
        if len(failures) > self._told:
            for image_id in [*failures][self._told : _TOLD]:
                progress.say(f"not readable, left out: image {image_id}, {failures[image_id]}")
            self._told = len(failures)

    def write(self, step: int, failures: Iterable[int], last: Mapping[str, float] | None = None) -> None:
        """Writes what is not in the table yet.

        Args:
            step: Steps that are done.
            failures: All images that could not be read so far.
            last: Figures of the whole run.
        """
        new = set(failures) - self._known
        figures = self._figures + [(step, name, value) for name, value in (last or {}).items()]
        figures += [(step, f"{_UNREADABLE}{image_id}", 1.0) for image_id in sorted(new)]
        now = dt.datetime.now(dt.UTC)
        rows = [(self.model, at, at / self.epoch, name, value, now) for at, name, value in figures]
        if rows:
            self.store.append("metrics", pa.table([*zip(*rows, strict=True)], schema=METRICS.schema))
        self._known |= new
        self._figures = []

    def go_on(self, step: int) -> dict[int, str]:
        """Takes back what a run of this name wrote behind a step, which is taken again.

        Returns:
            The images that could not be read before it.
        """
        query = "select count(*) as n from metrics where model = $model and step > $step"
        if self.store.rows(query, model=self.model, step=step)[0]["n"]:
            self.store.delta("metrics").delete(f"model = '{self.model}' and step > {step}")
        query = "select name from metrics where model = $model and starts_with(name, $prefix)"
        known = self.store.rows(query, model=self.model, prefix=_UNREADABLE)
        self._known = {int(row["name"].removeprefix(_UNREADABLE)) for row in known}
        self._told = len(self._known)
        return dict.fromkeys(sorted(self._known), "before the run was resumed")
