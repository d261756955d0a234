"""Accuracy and calibration of a model on the holdout, as people left it (sql/trusted.sql).

holdout --predict--> probabilities of a batch --judge--> Answers, a few bytes an image --figures--> Evaluation
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from curator import progress, queries
from curator.curation.account import wilson
from curator.errors import CuratorError, InputError
from curator.loading.rows import holdout_rows
from curator.networks.inference import predict
from curator.networks.network import Network
from curator.networks.recipes import Recipe
from curator.quality.calibration import ece, reliability
from curator.storage.store import Store, Versions

if TYPE_CHECKING:
    import duckdb

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


class Answers(NamedTuple):
    """What became of N images.

    Attributes:
        label: [N] int64, the true class.
        top: [N] int64, the class that the network gave; the lowest of equal ones.
        right5: [N] bool, whether the true class is among the five most probable ones.
        confidence: [N] float32, the top class's probability.
    """

    label: npt.NDArray[np.int64]
    top: npt.NDArray[np.int64]
    right5: npt.NDArray[np.bool_]
    confidence: npt.NDArray[np.float32]

    @property
    def right(self) -> npt.NDArray[np.bool_]:
        """[N] whether the class is the true one."""
        found: npt.NDArray[np.bool_] = self.top == self.label
        return found

    @classmethod
    def together(cls, parts: Sequence[Answers]) -> Answers:
        """The answers of batches, one after the other."""
        return cls(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def judge(probs: npt.NDArray[np.float32], label: npt.NDArray[np.int64]) -> Answers:
    """What probabilities [N, C] make of images whose true classes [N] are known.

    Raises:
        CuratorError: One of them is not a number.
    """
    if not np.isfinite(probs).all():
        mend = "its training went wrong: train again with a lower optimizer.learning_rate"
        raise CuratorError("the network gives NaN for an image", mend)
    truth = np.take_along_axis(probs, label[:, None], axis=1)
    before = (probs == truth) & (np.arange(probs.shape[1]) < label[:, None])  # of equal ones, the lowest is first
    rank = ((probs > truth) | before).sum(axis=1)
    return Answers(label, probs.argmax(axis=1), rank < 5, probs.max(axis=1))


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
        total = size(con, holdout_rows())
        tables = queries.batches(con, holdout_rows(), _BATCH)
        parts: list[Answers] = []
        failed = 0
        bar = progress.progress(f"evaluating {model}", total) if advance is None else nullcontext(advance)
        with bar as tell:
            for answer in predict(network, recipe, store.root, tables, threads):
                failed += len(answer.failed)
                if len(answer.good):
                    truth = answer.rows["label"].to_numpy()[answer.good].astype(np.int64)
                    parts.append(judge(answer.probs, truth))
                tell(answer.rows.num_rows)
    finally:
        con.close()
    expect_some(parts)
    return figures(Answers.together(parts), model, generation, failed)


def size(con: duckdb.DuckDBPyConnection, query: str, **values: Any) -> int:
    """Rows of a query over the holdout, see `holdout_rows`.

    Raises:
        InputError: There are none.
    """
    total: int = queries.rows(con, f"select count(*) as n from ({query})", **values)[0]["n"]
    if not total:
        raise InputError("the store has no holdout images", "curator add-images FOLDER --split holdout")
    return total


def expect_some(batches: Sequence[Any]) -> None:
    """Makes sure that there are batches of the holdout with an image that could be read.

    Raises:
        InputError: There are none.
    """
    if not batches:
        raise InputError("no holdout image can be read", "check that the files are where the store expects them")


def figures(found: Answers, model: str, generation: int, failed: int = 0) -> Evaluation:
    """The figures of a model's answers, one image at least.

    Args:
        found: The answers.
        model: Its name.
        generation: Its generation.
        failed: Images that could not be read.
    """
    right = found.right
    low, high = wilson(int(right.sum()), len(right))
    return Evaluation(
        model=model,
        generation=generation,
        images=len(right),
        top1=float(right.mean()),
        top1_low=low,
        top1_high=high,
        top5=float(found.right5.mean()),
        ece=ece(reliability(found.confidence, right)),
        confidence=float(found.confidence.mean()),
        failed=failed,
    )
