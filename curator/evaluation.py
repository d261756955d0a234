"""Accuracy and calibration of a model on the holdout, as people left it (sql/trusted.sql)."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from curator import progress, queries
from curator.account import wilson
from curator.calibration import ece, reliability
from curator.errors import InputError
from curator.inference import predict
from curator.network import Network, load
from curator.ranks import device_of
from curator.recipes import Recipe
from curator.rows import holdout_rows
from curator.store import Store, Versions

_BATCH = 128


class Evaluation(NamedTuple):
    """Figures on the holdout; shares between 0 and 1."""

    model: str
    generation: int
    images: int
    top1: float
    top1_low: float  # 95 % Wilson interval
    top1_high: float
    top5: float
    ece: float
    confidence: float  # mean top-1 probability
    failed: int


def evaluate(store: Store, model: str, threads: int | None = None, device: str = "auto") -> Evaluation:
    """Evaluates a registered model on the holdout split, at the test resolution of its recipe.

    Args:
        store: The store.
        model: A registered model with weights.
        threads: Threads that read and decode.
        device: Name of the device that computes; "auto" is a GPU where there is one.

    Raises:
        InputError: The model or the device is not there, or there is no holdout that can be read.
    """
    place = device_of(device)
    network, recipe, row = load(store, model)
    return evaluate_network(store, network.to(place), recipe, model, row["generation"], threads)


def evaluate_network(
    store: Store,
    network: Network,
    recipe: Recipe,
    model: str,
    generation: int,
    threads: int | None = None,
    advance: Callable[[int], None] | None = None,
    versions: Versions | None = None,
) -> Evaluation:
    """Evaluates a network, in eval mode, on the holdout split, on the device on which it lies.

    torch computes, in float32: figures of different machines are to be comparable.

    Args:
        store: The store.
        network: The network.
        recipe: Its recipe.
        model: Its name, for the answer.
        generation: Its generation, for the answer.
        threads: Threads that read and decode.
        advance: Told of images that are done, and may end it all with an exception; a bar of its own by default.
        versions: Table versions to read; the newest for a table that is not named.

    Raises:
        InputError: The store has no holdout, or no image of it can be read.
    """
    con = store.connect(versions)
    try:
        total = queries.rows(con, f"select count(*) as n from ({holdout_rows()})")[0]["n"]
        if not total:
            raise InputError("the store has no holdout images", "curator add-images FOLDER --split holdout")
        tables = queries.batches(con, holdout_rows(), _BATCH)
        probs: list[npt.NDArray[np.float32]] = []
        labels: list[npt.NDArray[np.int64]] = []
        failed = 0
        bar = progress.progress(f"evaluating {model}", total) if advance is None else nullcontext(advance)
        with bar as tell:
            for answer in predict(network, recipe, store.root, tables, threads):
                failed += len(answer.failed)
                if len(answer.good):
                    probs.append(answer.probs)
                    labels.append(answer.rows["label"].to_numpy()[answer.good].astype(np.int64))
                tell(answer.rows.num_rows)
    finally:
        con.close()
    if not probs:
        raise InputError("no holdout image can be read", "check that the files are where the store expects them")
    p, y = np.concatenate(probs), np.concatenate(labels)
    order = np.argsort(-p, axis=1, kind="stable")
    top1 = order[:, 0] == y
    low, high = wilson(int(top1.sum()), len(y))
    return Evaluation(
        model=model,
        generation=generation,
        images=len(y),
        top1=float(top1.mean()),
        top1_low=low,
        top1_high=high,
        top5=float((order[:, :5] == y[:, None]).any(axis=1).mean()),
        ece=ece(reliability(p.max(axis=1), top1)),
        confidence=float(p.max(axis=1).mean()),
        failed=failed,
    )
