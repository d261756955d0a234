"""Soft labels of the labeled split from models that were trained without the image: rows of the table, and an import.

    a file of another tool --label_file.read, sql/held_out_rows.sql--> rows of the table held_out, in one commit

folds.py makes such labels here. Both kinds are what `curator quality issues` judges given labels by.
"""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from curator import queries
from curator.errors import InputError
from curator.generations import label_file, softlabels
from curator.lock import alone
from curator.names import check_name
from curator.schema import HELD_OUT
from curator.storage import additions
from curator.storage.store import Store

IMPORTED = -1  # the fold of labels from elsewhere


class HeldOut(NamedTuple):
    """What an import brought.

    Attributes:
        run: What the labels are known by.
        images: Labeled images that have one now.
        missing: Labeled images that the file does not name.
        top1: Share of the images whose top class is the label that training takes; None where it takes none of them.
    """

    run: str
    images: int
    missing: int
    top1: float | None


def import_held_out(store: Store, file: str, run: str | None = None) -> HeldOut:
    """Takes out-of-sample soft labels of labeled images from another tool: all of a file, or nothing.

    Args:
        store: The store.
        file: As for `labels.import_labels`. Each row names another image of the labeled split.
        run: What to call them; the name of the file by default.

    Raises:
        InputError: There is a run of that name, or rows of the file are not usable; the message names them.
        StoreError: A run of that name is being made by another process.
    """
    run = run or Path(file).stem
    check_name("run", run)
    folder = store.path / "folds" / run
    with alone(folder, f"making the run of folds '{run}'"):
        store.place.bring(f"folds/{run}")
        if any(folder.iterdir()) or store.rows("select 1 from held_out where run = $run limit 1", run=run):
            raise InputError(f"there is a run of folds '{run}'", "give another --name; runs are never changed")
        rejected = label_file.Rejected(0)
        found: list[pa.Table] = []
        with (
            closing(store.connect()) as con,
            closing(label_file.read(store, con, file, "held_out_rows", {}, rejected)) as batches,
        ):
            for summary, images in batches:
                found.append(table(summary, images["image_id"].to_numpy(), run, IMPORTED))
        rows = pa.concat_tables(found)
        additions.append(store, "held_out", rows)
    unnamed = "select count(*) as n from images where split = 'labeled' and status <> 'unreadable'"
    unnamed += " and image_id not in (select image_id from held_out where run = $run)"
    return HeldOut(run, rows.num_rows, store.rows(unnamed, run=run)[0]["n"], top1(store, run))


def top1(store: Store, run: str) -> float | None:
    """The share of the images of a run whose most probable class is the label that training takes."""
    steps = queries.steps(*queries.TRUSTED, "holdout_twins", "labeled_rows", "issues_held_out")
    share: float | None = store.rows(
        queries.compose(steps, "select avg((label = given)::INT) as share from issues_held_out"), run=run
    )[0]["share"]
    return share


def table(summary: softlabels.Summary, ids: npt.NDArray[np.int64], run: str, fold: int) -> pa.Table:
    """Rows of the table held_out.

    Args:
        summary: Soft labels of N images.
        ids: [N] the images.
        run: Name of the run.
        fold: The fold that they are in.
    """
    rows = softlabels.table(summary, ids, 0, "", ["labeled"] * len(ids))
    about = {"run": pa.array([run] * len(ids)), "fold": pa.array(np.full(len(ids), fold, np.int16))}
    columns = [about[name] if name in about else rows[name] for name in HELD_OUT.schema.names]
    return pa.table(columns, schema=HELD_OUT.schema)
