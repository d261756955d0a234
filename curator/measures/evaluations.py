"""The table of evaluations: figures are added as they are found, read back, and compared with a baseline's.

    figures of one suite --record--> table evaluations --newest--> report
                                                       --baseline--> mean corruption error, mean flip rate

Source: Hendrycks and Dietterich, ICLR 2019, for both: of each kind the error over the baseline's, a mean over kinds.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import closing
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from curator import queries
from curator.errors import InputError, absent, some
from curator.schema import EVALUATIONS
from curator.storage import additions
from curator.storage.store import Store

Figures = dict[tuple[str | None, float | None, str], float]


class Basis(NamedTuple):
    """What figures are taken from.

    Attributes:
        images: How many images.
        digest: Of their ids and classes.
        seed: Of the draws.
        limit: Size of the sample that was asked for; None for the whole holdout.
    """

    images: int
    digest: str
    seed: int
    limit: int | None


def figure(
    measure: str,
    value: float,
    kind: str | None = None,
    level: float | None = None,
    low: float | None = None,
    high: float | None = None,
) -> dict[str, Any]:
    """One figure as a row for `record`."""
    return {"measure": measure, "value": value, "kind": kind, "level": level, "low": low, "high": high}


def record(
    store: Store, model: str, suite: str, figures: Sequence[Mapping[str, Any]], basis: Basis, options: Mapping[str, Any]
) -> None:
    """Adds figures of one suite in one commit; those that are not numbers are left out.

    Args:
        store: The store.
        model: The model.
        suite: The suite.
        figures: Of `figure`.
        basis: What they were taken from.
        options: What else they depend on.
    """
    given: dict[str, Any] = {
        "model": model,
        "suite": suite,
        "images": basis.images,
        "seed": basis.seed,
        "basis": basis.digest,
        "options": json.dumps({**options, "limit": basis.limit}, sort_keys=True),
        "at": additions.now(store.rows, "evaluations"),
    }
    rows = [given | dict(row) for row in figures if np.isfinite(row["value"])]
    if rows:
        additions.append(store, "evaluations", pa.Table.from_pylist(rows, EVALUATIONS.schema))


def newest(store: Store, models: Sequence[str]) -> list[dict[str, Any]]:
    """The newest figures of models, as sql/views/evaluations.sql has them.

    Raises:
        InputError: A model is unknown or has none.
    """
    with closing(store.connect()) as con:
        weights = {row["model"]: row["weights"] for row in queries.rows(con, "select * from models order by model")}
        found = queries.rows(
            con,
            "select * from evaluations where list_contains($models, model) order by suite, kind, level, measure, model",
            models=list(models),
        )
    for model in models:
        if model not in weights:
            raise absent("model", model, weights, "curator train --recipe tiny-teacher")
        if not any(row["model"] == model for row in found):
            if weights[model] is None:
                what = f"'{model}' was named by an import: without weights it cannot be evaluated"
                trained = some(name for name in weights if weights[name] is not None)
                raise InputError(what, f"name a model that was trained here: {trained or 'there is none yet'}")
            raise InputError(f"'{model}' was not evaluated", f"curator evaluate --model {model}")
    return found


def baseline(
    store: Store, model: str, suite: str, kinds: Sequence[str], option: str, basis: Basis, parameters: str
) -> Figures:
    """A baseline's figures of a suite, and its clean ones, on the same images.

    Args:
        store: The store.
        model: The baseline.
        suite: The suite.
        kinds: What it consists of.
        option: The option of `curator evaluate` that runs it, for the message.
        basis: What the other model's figures are taken from.
        parameters: Whose parameters the pictures were changed with.

    Returns:
        The values by kind, level and measure.

    Raises:
        InputError: There are none, or an interrupted evaluation left some of them out.
    """
    with closing(store.connect()) as con:
        known = [row["model"] for row in queries.rows(con, "select model from models")]
        if model not in known:
            raise absent("model", model, known, "curator train --recipe tiny-teacher")
        text = queries.text("evaluation_baseline")
        wanted = {"model": model, "basis": basis.digest}
        rows = queries.rows(con, text, suite=suite, parameters=parameters, **wanted)
        clean = queries.rows(con, text, suite="clean", parameters="", **wanted)
    if not clean or set(kinds) - {row["kind"] for row in rows}:
        sample = "" if basis.limit is None else f" --limit {basis.limit} --seed {basis.seed}"
        raise InputError(
            f"the baseline '{model}' was not tested by every {suite} on these images with the parameters {parameters}",
            f"curator evaluate --model {model} {option}{sample}",
        )
    return {(row["kind"], row["level"], row["measure"]): float(row["value"]) for row in clean + rows}


def ratio(errors: Mapping[str, npt.NDArray[np.float64]], others: Mapping[str, float]) -> npt.NDArray[np.float64] | None:
    """Mean over kinds of a model's figure over the baseline's, in percent.

    Args:
        errors: Of each kind, [D] values of the figure over resamples.
        others: Of each kind, the baseline's value.

    Returns:
        [D]; None where a kind's baseline is 0 or not known.
    """
    if not errors or any(others.get(kind, 0.0) == 0 for kind in errors):
        return None
    found: npt.NDArray[np.float64] = 100 * np.mean([values / others[kind] for kind, values in errors.items()], axis=0)
    return found
