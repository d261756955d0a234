"""How far a teacher's confidences can be believed, and the temperature that corrects them.

    its soft labels of the holdout --p^(1/T), T of the least NLL--> table calibrations
        -> reliability bins and ECE, before and after; precision of each class

sql/calibrated.sql says what the temperature does to a soft label. The labels stay as they are; it is applied when they
are read. Figures "after" are cross-fitted, each image under a temperature that was fitted without it.
"""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from curator import queries
from curator.curation.account import wilson
from curator.curation.parameters import check_confidence
from curator.errors import InputError, absent, some, suggestion
from curator.schema import CALIBRATIONS
from curator.storage import additions
from curator.storage.store import Store

if TYPE_CHECKING:
    import duckdb

BINS = 15
LEAST, MOST = 0.02, 50.0  # of temperatures
_PARTS = 5
_HALVINGS = 26  # leaves 1e-7 of the temperature open
_NEVER = float(np.finfo(np.float32).tiny)  # a probability of 0 counts as this, or one image would decide everything

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


class Calibration(NamedTuple):
    """What the holdout says of a model's confidences.

    Attributes:
        model: The model.
        generation: Its generation.
        images: Holdout images that it labeled.
        top1: Share of them whose top class is the true one.
        confidence: Mean confidence.
        temperature: Fitted on all of them.
        nll_before: Mean -ln p of the true class, nats.
        nll_after: The same, cross-fitted.
        ece_before: Expected calibration error over 15 bins.
        ece_after: The same, cross-fitted.
        bins: Reliability before: low, high, images, confidence and accuracy of each bin that has an image, with the
            95 % interval of the accuracy (accuracy_low, accuracy_high).
        bins_after: The same, cross-fitted.
        min_confidence: Of the classes' precisions.
        classes: Each class: label, class_name, images above min_confidence, precision, precision_low, precision_high
            (95 %); None without images.
        stored: Whether a row was added to the table; not where the newest one says the same.
    """

    model: str
    generation: int
    images: int
    top1: float
    confidence: float
    temperature: float
    nll_before: float
    nll_after: float
    ece_before: float
    ece_after: float
    bins: list[dict[str, float]]
    bins_after: list[dict[str, float]]
    min_confidence: float
    classes: list[dict[str, Any]]
    stored: bool

    @property
    def is_at_an_end(self) -> bool:
        """Whether it is so near to LEAST or MOST that the holdout set no bound to it."""
        return not 2 * LEAST < self.temperature < MOST / 2


class Reading(NamedTuple):
    """What the holdout says of a generation's confidences, looked at without fitting or storing anything.

    Attributes:
        model: The model that gave the labels.
        generation: Its generation.
        images: N, holdout images that it labeled.
        top1: Share of them whose top class is the true one.
        nll: Mean -ln p of the true class, nats.
        ece: Expected calibration error over 15 bins.
        bins: See `reliability`.
        fit: The stored fit that counts, a row of sql/calibration.sql; None where none is stored.
        bins_after: The bins under its temperature; empty without one.
        label: [N] the teacher's class.
        confidence: [N] its confidence, float32.
        right: [N] whether it is the true class.
    """

    model: str
    generation: int
    images: int
    top1: float
    nll: float
    ece: float
    bins: list[dict[str, float]]
    fit: dict[str, Any] | None
    bins_after: list[dict[str, float]]
    label: npt.NDArray[np.int32]
    confidence: npt.NDArray[np.float32]
    right: Bools

    def above(self, threshold: float, classes: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Images of each class with a confidence above a threshold, compared in float32, and the right ones of them.

        Args:
            threshold: The threshold.
            classes: C, how many classes there are.

        Returns:
            Two arrays [C].
        """
        chosen = self.confidence > np.float32(threshold)
        images = np.bincount(self.label[chosen], minlength=classes)
        return images, np.bincount(self.label[chosen & self.right], minlength=classes)


class Judged(NamedTuple):
    """Soft labels of N images with known classes, as logarithms; J = kept classes and one place for those cut.

    Attributes:
        logs: [N, J] ln p, the top class first; in the last column, of each class that was cut; -inf in empty places.
        times: [N, J] how many classes a place stands for.
        true: [N] ln p of the true class.
    """

    logs: Floats
    times: Floats
    true: Floats

    def take(self, rows: npt.NDArray[np.int64]) -> Judged:
        """Some of the images."""
        return Judged(self.logs[rows], self.times[rows], self.true[rows])

    def spread(self, temperature: float) -> tuple[Floats, Floats]:
        """Ln of the sum [N] over classes of p^(1/T), and the weights [N, J] of the places in it."""
        scaled = self.logs / temperature
        top = scaled.max(axis=1, keepdims=True)
        weights = np.exp(scaled - top) * self.times
        total = weights.sum(axis=1, keepdims=True)
        return (np.log(total) + top)[:, 0], weights / total

    def nll(self, temperature: float) -> Floats:
        """-ln of the true class's probability [N] under a temperature, nats."""
        return self.spread(temperature)[0] - self.true / temperature

    def confidence(self, temperature: float) -> Floats:
        """The top class's probability [N] under a temperature."""
        found: Floats = np.exp(self.logs[:, 0] / temperature - self.spread(temperature)[0])
        return found


def calibrate(
    store: Store, model: str | None = None, min_confidence: float = 0.3, dry_run: bool = False
) -> Calibration:
    """Fits a model's temperature on the holdout and keeps it in the table calibrations.

    Args:
        store: The store.
        model: A model that labeled the holdout; that of the newest generation by default.
        min_confidence: Confidence above which the precision of each class is taken.
        dry_run: Whether to store nothing.

    Raises:
        InputError: The model has not labeled the holdout, or the confidence is none.
    """
    check_confidence(min_confidence)
    with closing(store.connect()) as con:
        name, generation = _model(con, model)
        steps = queries.steps(*queries.TRUSTED)
        rows = queries.compose(steps, queries.text("calibration_rows"))
        table = con.sql(rows, params={"generation": generation}).to_arrow_table()
        steps |= queries.steps("holdout")
        precision = queries.rows(
            con,
            queries.compose(steps, queries.text("class_precision")),
            generation=generation,
            min_confidence=min_confidence,
        )
        values = {"generation": generation, "model": name}
        newest = queries.rows(con, queries.text("calibration"), **values)
    judged, right = _judged(table), table["is_right"].to_numpy()
    n = len(right)
    if n < 2:
        raise InputError(f"'{name}' labeled one image of the holdout", "curator add-images FOLDER --split holdout")
    temperature = fit(judged)
    nll, after = np.empty(n), np.empty(n)
    # An image_id is a hash, so every fifth one is a draw.
    for part in (np.arange(start, n, min(_PARTS, n)) for start in range(min(_PARTS, n))):
        without = fit(judged.take(np.setdiff1d(np.arange(n), part)))
        nll[part], after[part] = judged.take(part).nll(without), judged.take(part).confidence(without)
    before = table["confidence"].to_numpy()
    bins, bins_after = reliability(before, right), reliability(after, right)
    row: dict[str, Any] = {
        "model": name,
        "generation": generation,
        "temperature": temperature,
        "nll_before": float(judged.nll(1.0).mean()),
        "nll_after": float(nll.mean()),
        "ece_before": ece(bins),
        "ece_after": ece(bins_after),
        "images": n,
    }
    known = bool(newest) and all(newest[0][key] == value for key, value in row.items())
    if not (known or dry_run):
        added = row | {"fitted_at": additions.now(store.rows, "calibrations")}
        additions.append(store, "calibrations", pa.Table.from_pylist([added], CALIBRATIONS.schema))
    return Calibration(
        **row,
        top1=float(right.mean()),
        confidence=float(before.mean(dtype=np.float64)),
        bins=bins,
        bins_after=bins_after,
        min_confidence=min_confidence,
        classes=[_precise(each) for each in precision],
        stored=not (known or dry_run),
    )


def read(store: Store, generation: int) -> Reading | None:
    """What the holdout says of a generation's confidences, and of the fit that is stored for them.

    Args:
        store: The store.
        generation: The generation.

    Returns:
        The reading; None where the generation has no label of a holdout image.
    """
    with closing(store.connect()) as con:
        rows = queries.compose(queries.steps(*queries.TRUSTED), queries.text("calibration_rows"))
        table = con.sql(rows, params={"generation": generation}).to_arrow_table()
        if not table.num_rows:
            return None
        model = table["model"][0].as_py()
        fits = queries.rows(con, queries.text("calibration"), generation=generation, model=model)
    judged, right, confidence = _judged(table), table["is_right"].to_numpy(), table["confidence"].to_numpy()
    bins = reliability(confidence, right)
    return Reading(
        model=model,
        generation=generation,
        images=len(right),
        top1=float(right.mean()),
        nll=float(judged.nll(1.0).mean()),
        ece=ece(bins),
        bins=bins,
        fit=fits[0] if fits else None,
        bins_after=reliability(judged.confidence(fits[0]["temperature"]), right) if fits else [],
        label=table["label"].to_numpy(),
        confidence=confidence,
        right=right,
    )


def fit(judged: Judged) -> float:
    """The temperature of the least mean NLL, LEAST to MOST.

    NLL is convex in 1/T (a log-sum-exp of linear functions), so the slope has one zero at most; it is found by halving.
    """
    logs = np.where(np.isfinite(judged.logs), judged.logs, 0.0)  # their weights are 0

    def falls(inverse: float) -> bool:
        weights = judged.spread(1 / inverse)[1]
        return bool((weights * logs).sum(axis=1).mean() < judged.true.mean())

    low, high = np.log(1 / MOST), np.log(1 / LEAST)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if falls(float(np.exp(middle))) else (low, middle)
    return float(np.exp(-(low + high) / 2))


def reliability(confidence: npt.NDArray[np.floating], right: Bools) -> list[dict[str, float]]:
    """The images by confidence, in 15 equal bins, those that have one.

    Args:
        confidence: [N] top-1 probabilities.
        right: [N] whether the top-1 class is the true one.
    """
    places = np.minimum((confidence * BINS).astype(np.int64), BINS - 1)
    counts = np.bincount(places, minlength=BINS)
    sums, rights = np.bincount(places, confidence, BINS), np.bincount(places, right, BINS).astype(np.int64)
    found = []
    for place in np.flatnonzero(counts).tolist():
        images, hits = int(counts[place]), int(rights[place])
        low, high = wilson(hits, images)
        found.append(
            {
                "low": place / BINS,
                "high": (place + 1) / BINS,
                "images": images,
                "confidence": float(sums[place] / images),
                "accuracy": hits / images,
                "accuracy_low": low,
                "accuracy_high": high,
            }
        )
    return found


def ece(bins: list[dict[str, float]]) -> float:
    """Expected calibration error: the gap of accuracy and confidence, a mean over images (Guo et al., ICML 2017).

    Args:
        bins: Of `reliability`; one at least.
    """
    gaps = sum(row["images"] * abs(row["accuracy"] - row["confidence"]) for row in bins)
    return float(gaps / sum(row["images"] for row in bins))


def _judged(table: pa.Table) -> Judged:
    """The rows of sql/calibration_rows.sql."""
    n = table.num_rows
    lengths = np.asarray(table["top_probs"].combine_chunks().value_lengths())
    flat = table["top_probs"].combine_chunks().flatten().to_numpy()
    width = int(lengths.max(initial=1))
    there = np.arange(width) < lengths[:, None]
    probs, times = np.zeros((n, width + 1)), np.zeros((n, width + 1))
    probs[:, :width][there], times[:, :width] = flat, there
    probs[:, 0] = table["confidence"].to_numpy()  # never rounded
    times[:, width] = table["cut"].to_numpy()
    probs[:, width] = table["tail"].to_numpy() / np.maximum(times[:, width], 1)
    rank = table["rank"].to_numpy()
    true = probs[np.arange(n), np.where(rank > 0, rank - 1, width)]
    with np.errstate(divide="ignore"):
        logs = np.where((times > 0) & (probs > 0), np.log(probs), -np.inf)
    return Judged(logs, times, np.log(np.maximum(true, _NEVER)))


def _model(con: duckdb.DuckDBPyConnection, model: str | None) -> tuple[str, int]:
    """The model and its generation; that of the newest generation where none is named."""
    known = queries.rows(
        con,
        "select distinct l.model, l.generation::INT as generation from stored_labels as l"
        " join stored_images as i on i.image_id = l.image_id where i.split = 'holdout' order by all",
    )
    models = {row["model"]: row for row in queries.rows(con, "select * from models order by model")}
    if model is not None and model not in models:
        raise absent("model", model, models, "curator train --recipe tiny-teacher")
    label = f"curator label --model {model or 'MODEL'} --split holdout"
    if model is not None and models[model]["weights"] is None:  # named by an import
        label = f"curator import-labels FILE --generation {models[model]['generation']} --model {model}"
        label += ", with the images of the holdout in FILE"
    if not known:
        raise InputError("no model has labeled the holdout", label)
    if model is None:
        newest = max(known, key=lambda row: row["generation"])
        return newest["model"], newest["generation"]
    found = next((row["generation"] for row in known if row["model"] == model), None)
    if found is None:
        names = [row["model"] for row in known]
        what = f"the model '{model}' has not labeled the holdout{suggestion(model, names)}; {some(names)} did"
        raise InputError(what, label)
    return model, int(found)


def _precise(row: dict[str, Any]) -> dict[str, Any]:
    """A row of sql/class_precision.sql as a share with its interval."""
    images, hits = row["images"], row.pop("right_ones")
    low, high = wilson(hits, images) if images else (None, None)
    return row | {"precision": hits / images if images else None, "precision_low": low, "precision_high": high}
