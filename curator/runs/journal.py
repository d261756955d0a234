"""What a run writes into the metrics table: losses, rates, images that could not be read, figures on the holdout.

    loss, learning rate (every 50 steps) + holdout + unreadable images + last figures -> one commit with each checkpoint
       +-> TensorBoard's event files at once, where they are asked for

One `Journal` belongs to one run, and only the first rank writes.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from curator import progress
from curator.errors import InputError
from curator.schema import METRICS
from curator.storage import additions
from curator.storage.store import Store

_EVERY = 50  # steps between two losses
_TOLD = 20  # unreadable images that are named while a run goes on
_UNREADABLE = "unreadable:"  # begins the names in the metrics table under which image_ids stand


class Journal:
    """The figures of one run that are not yet in the table.

    Args:
        store: The store.
        model: The run.
        epoch: Steps of a pass over the labeled rows.
        events: Folder for TensorBoard; the run's event files come into one of its own in it.

    Raises:
        InputError: TensorBoard is asked for and not installed.
    """

    def __init__(self, store: Store, model: str, epoch: float, events: Path | None = None) -> None:
        self.store, self.model, self.epoch = store, model, epoch
        self._make = None if events is None else partial(_summary_writer(), str(events / model))
        self._writer: Any = None
        self._figures: list[tuple[int, str, float]] = []
        self._known: set[int] = set()  # unreadable images that are in the table
        self._told = 0

    def note(self, step: int, last: bool, loss: float, rate: float) -> None:
        """Keeps the figures of one of many steps, of the first and of the last."""
        if step % _EVERY == 0 or last:
            self.add(step + 1, {"loss": loss, "learning_rate": rate})

    def add(self, step: int, figures: Mapping[str, float]) -> None:
        """Keeps figures for the table, and shows them in TensorBoard.

        Args:
            step: Steps that are done.
            figures: By name.
        """
        self._figures += [(step, name, value) for name, value in figures.items()]
        if self._writer is not None:
            for name, value in figures.items():
                self._writer.add_scalar(name, value, step)
            self._writer.flush()  # a kill takes nothing that a checkpoint has

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
        self.add(step, last or {})
        figures = self._figures + [(step, f"{_UNREADABLE}{image_id}", 1.0) for image_id in sorted(new)]
        now = dt.datetime.now(dt.UTC)
        rows = [(self.model, at, at / self.epoch, name, value, now) for at, name, value in figures]
        if rows:
            additions.append(self.store, "metrics", pa.table([*zip(*rows, strict=True)], schema=METRICS.schema))
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
        if self._make is not None:
            self._writer = self._make(purge_step=step + 1)  # readers drop what stands behind the step
        return dict.fromkeys(sorted(self._known), "before the run was resumed")

    def close(self) -> None:
        """Ends the event file."""
        if self._writer is not None:
            self._writer.close()


def _summary_writer() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise InputError(
            f"event files need the package tensorboard ({error})",
            "pip install 'curator[tensorboard]', or leave --tensorboard out",
        ) from None
    return SummaryWriter
