"""Soft labels as numbers: what is taken as a distribution, what is kept of it, and how it is read back.

    somebody's file --read, problems--> probs [N, C] float32 --summarize--> label, confidence, margin, entropy,
    top_classes [N, K], top_probs [N, K], tail --expand--> targets [N, C] float32

Confidence, margin and entropy come from the full distribution in float32. Only then is it cut to the K most probable
classes and rounded, see `round_probabilities`; the rounding adds 3e-6 to 4e-6 nats of KL divergence at 1000 classes.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from curator.errors import InputError
from curator.schema import LABELS

SUM_TOLERANCE = 1e-3
_STEP = -11  # a probability is stored as a multiple of 2**-11,
_BITS = 5  # or with 5 bits behind the first one where that is finer

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


class Summary(NamedTuple):
    """What is stored of N distributions over C classes, K = min(C, kept classes)."""

    label: Ints  # [N] top-1 class, the lowest index of equals
    confidence: Floats  # [N] top-1 probability
    margin: Floats  # [N] top-1 minus top-2
    entropy: Floats  # [N] nats
    top_classes: Ints  # [N, K] most probable first; equals by index; -1 behind the last of a row that has fewer
    top_probs: Floats  # [N, K] rounded, see `round_probabilities`
    tail: Floats  # [N] mass outside the kept classes, rounded too

    def take(self, rows: Ints) -> Summary:
        """The summary of some of the rows, in the order given."""
        columns: Any = (column[rows] for column in self)
        return Summary(*columns)


def problems(probs: npt.NDArray[np.floating], left: Ints | int = 0) -> dict[int, str]:
    """The rows that are not probability distributions.

    A distribution is finite, inside [0, 1] and sums to 1 within 1e-3 in float64; nothing is renormalised.

    Args:
        probs: [N, K] probabilities.
        left: [N] number of classes that a row does not name. Each may hold up to the row's highest probability.

    Returns:
        Row number to reason.
    """
    found: dict[int, str] = {}
    wide = probs.astype(np.float64, copy=False)
    with np.errstate(invalid="ignore"):
        total = wide.sum(axis=1)
        outside: npt.NDArray[np.bool_] = np.any((wide < 0) | (wide > 1), axis=1)
        most = left * wide.max(axis=1, initial=0)
        off = (total - 1 > SUM_TOLERANCE) | (1 - total > most + SUM_TOLERANCE)
    for row in np.flatnonzero(~np.isfinite(total) | outside | off).tolist():
        if not np.isfinite(wide[row]).all():
            found[row] = "holds NaN or infinity"
        elif outside[row]:
            found[row] = "holds a value outside 0 to 1"
        else:
            rest = ", and the rest is more than the other classes can hold" if most[row] else ", not to 1"
            found[row] = f"sums to {total[row]:.6g}{rest if total[row] < 1 else ', not to 1'}"
    return found


def read(batch: pa.RecordBatch, classes: int, kept: int) -> tuple[Summary, Ints, dict[int, str]]:
    """The distributions of a batch of somebody's file.

    Args:
        batch: Rows with `probs` or `logits` (C values each), or `top_classes` and `top_probs` (any number of them).
        classes: C of the store.
        kept: Classes to keep of each row.

    Returns:
        The summary of the usable rows, their places in the batch, and the reasons of the others.

    Raises:
        InputError: The columns are not there, or not lists of numbers.
    """
    names = batch.schema.names
    form = next((form for form in ("probs", "logits", "top_probs") if form in names), None)
    if form is None or (form == "top_probs" and "top_classes" not in names):
        raise InputError(
            f"the file has no soft labels; its columns are {', '.join(names)}",
            "give 'probs', 'logits', or 'top_classes' and 'top_probs'",
        )
    lengths = _lengths(batch.column(form), form)
    if form == "top_probs":
        named = _lengths(batch.column("top_classes"), "top_classes", integers=True)
        fits = (lengths == named) & (lengths > 0)
        bad = {i: f"has {_count(lengths[i])} top_probs and {_count(named[i])} top_classes" for i in _places(~fits)}
    else:
        fits = lengths == classes
        bad = {i: f"has {_count(lengths[i])} {form}, not {classes}" for i in _places(~fits)}
    good, lengths = np.flatnonzero(fits), lengths[fits]
    values = _matrix(batch.column(form).filter(pa.array(fits)), lengths, float("nan"))
    if form == "logits":
        finite = np.isfinite(values).all(axis=1)
        bad |= dict.fromkeys(good[~finite].tolist(), "holds NaN or infinity")
        values, good, lengths = softmax(values[finite]), good[finite], lengths[finite]
    found = problems(values, classes - lengths)
    indexes = np.empty((len(good), 0), np.int64)
    if form == "top_probs":
        indexes = _matrix(batch.column("top_classes").filter(pa.array(fits)), lengths, -1).astype(np.int64)
        found |= dict.fromkeys(
            _places(_wrong_classes(indexes, lengths, classes)), f"names a class twice or outside 0 to {classes - 1}"
        )
    bad |= {int(good[i]): reason for i, reason in found.items()}
    fine = np.setdiff1d(np.arange(len(good)), np.fromiter(found, np.int64, len(found)))
    probs = values[fine].astype(np.float32)
    if form == "top_probs":
        return summarize_top(indexes[fine], probs, kept, classes), good[fine], bad
    return summarize(probs, kept), good[fine], bad


def _places(rows: npt.NDArray[np.bool_]) -> list[int]:
    places: list[int] = np.flatnonzero(rows).tolist()
    return places


def _count(length: int) -> str:
    return "null instead of" if length < 0 else str(length)


def _lengths(column: pa.Array, name: str, integers: bool = False) -> Ints:
    """The length [N] of each list of a column, -1 for null."""
    kind = column.type
    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    number = lists and (
        pa.types.is_integer(kind.value_type) or (not integers and pa.types.is_floating(kind.value_type))
    )
    if not number:
        wanted = "integers" if integers else "numbers"
        raise InputError(
            f"the column '{name}' holds {kind}, not lists of {wanted}",
            f"write '{name}' as a list of {'int32' if integers else 'float32'}",
        )
    return np.asarray(pc.fill_null(pc.list_value_length(column), -1)).astype(np.int64)


def _matrix(column: pa.Array, lengths: Ints, null: float) -> npt.NDArray[Any]:
    """A list column as [N, longest], filled up with 0; a null inside a list becomes `null`."""
    values = column.flatten()
    if values.null_count:
        values = pc.fill_null(values.cast(pa.int64() if isinstance(null, int) else pa.float64()), null)
    flat = np.asarray(values)
    width = int(lengths.max(initial=1))
    if (lengths == width).all():
        return flat.reshape(-1, width)
    matrix = np.zeros((len(lengths), width), flat.dtype)
    matrix[np.arange(width) < lengths[:, None]] = flat
    return matrix


def _wrong_classes(indexes: Ints, lengths: Ints, classes: int) -> npt.NDArray[np.bool_]:
    """The rows [N] that name a class twice or one that is not there; what fills a short row up is set to -1."""
    given = np.arange(indexes.shape[1]) < lengths[:, None]
    outside = given & ((indexes < 0) | (indexes >= classes))
    indexes[~given] = -1
    ordered = np.sort(indexes, axis=1)
    twice = (np.diff(ordered, axis=1) == 0) & (ordered[:, 1:] >= 0)
    wrong: npt.NDArray[np.bool_] = outside.any(axis=1) | twice.any(axis=1)
    return wrong


def softmax(logits: npt.NDArray[np.floating]) -> Floats:
    """Probabilities [N, C] of logits [N, C], computed in float64."""
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=1, keepdims=True)
    np.exp(wide, out=wide)
    wide /= wide.sum(axis=1, keepdims=True)
    return wide.astype(np.float32)


def summarize(probs: Floats, kept: int) -> Summary:
    """What is stored of full distributions.

    Args:
        probs: [N, C] float32 probabilities.
        kept: Number of classes to keep, at least 1; all of them where there are no more.
    """
    classes = probs.shape[1]
    k = min(classes, kept)
    probs = np.ascontiguousarray(probs) + np.float32(0)  # -0.0 becomes 0.0, whose bits sort right
    # Non-negative floats order like their bit patterns. With the class below the bits, keys are unique, so that equal
    # probabilities keep one order whatever the sort does.
    keys = (probs.view(np.uint32).astype(np.int64) << 16) + (0xFFFF - np.arange(classes))
    if classes > k:
        keys = np.partition(keys, classes - k, axis=1)[:, classes - k :]
    keys = np.sort(keys, axis=1)[:, ::-1]
    top_classes = 0xFFFF - (keys & 0xFFFF)
    top = np.take_along_axis(probs, top_classes, axis=1)
    second = top[:, 1] if k > 1 else second_of(probs)
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(probs > 0, probs * np.log(probs), np.float32(0))
    return Summary(
        label=top_classes[:, 0],
        confidence=top[:, 0].copy(),
        margin=top[:, 0] - second,
        entropy=np.maximum(-terms.sum(axis=1, dtype=np.float32), 0),
        top_classes=top_classes,
        top_probs=round_probabilities(top),
        tail=round_probabilities(_tail(probs.sum(axis=1, dtype=np.float64), top, classes - k)),
    )


def second_of(probs: Floats) -> Floats:
    """The second largest probability [N] of each row; 0 where there is only one class."""
    if probs.shape[1] == 1:
        return np.zeros(len(probs), np.float32)
    ordered: Floats = np.sort(probs, axis=1)
    return ordered[:, -2]


def summarize_top(classes: Ints, probs: Floats, kept: int, all_classes: int) -> Summary:
    """What is stored of distributions of which only the top is known, the rest taken as spread evenly.

    Args:
        classes: [N, J] class indexes in any order, at least one a row; -1 where a row has fewer.
        probs: [N, J] float32 probabilities; 0 where the class is -1.
        kept: Number of classes to keep.
        all_classes: Number of classes in the store.
    """
    probs = probs + np.float32(0)  # -0.0 becomes 0.0
    order = np.lexsort((classes, -probs, classes < 0), axis=1)
    classes, probs = np.take_along_axis(classes, order, axis=1), np.take_along_axis(probs, order, axis=1)
    left = all_classes - (classes >= 0).sum(axis=1)
    tail = _tail(1.0, probs, left)
    share = (tail / np.maximum(left, 1)).astype(np.float32)
    with np.errstate(divide="ignore", invalid="ignore"):
        entropy = -np.where(probs > 0, probs * np.log(probs), 0).sum(axis=1) - np.where(
            share > 0, tail * np.log(np.where(share > 0, share, 1)), 0
        )
    k = min(kept, probs.shape[1])
    second = np.maximum(probs[:, 1], share) if probs.shape[1] > 1 else share
    return Summary(
        label=classes[:, 0],
        confidence=probs[:, 0].copy(),
        margin=np.maximum(probs[:, 0] - second, 0),
        entropy=np.maximum(entropy, 0).astype(np.float32),
        top_classes=classes[:, :k],
        top_probs=round_probabilities(probs[:, :k]),
        tail=round_probabilities(_tail(1.0, probs[:, :k], all_classes - (classes[:, :k] >= 0).sum(axis=1))),
    )


def _tail(total: float | npt.NDArray[np.float64], top: Floats, left: Ints | int) -> Floats:
    """The part [N] of a total mass that is outside the kept probabilities [N, K]; exactly 0 where no class is left."""
    mass = np.clip(total - top.sum(axis=1, dtype=np.float64), 0, 1)
    tail: Floats = np.where(np.asarray(left) > 0, mass, 0).astype(np.float32)
    return tail


def round_probabilities(values: Floats) -> Floats:
    """Probabilities rounded so that few bits are left to store and the distribution hardly moves.

    The nearest multiple of 2^-11, or of 2^-5 times the power of two at or below the value where that is finer; ties to
    even. So an error is at most 2^-12 and at most 2^-6 of the value, and order, 0 and 1 are kept.

    Readers scale the sum back to 1. With relative errors e_i the divergence is then half their variance under p (the
    chi-square term of the expansion of KL; Cover and Thomas, "Elements of information theory"), at most the sum of
    p_i e_i^2 / 2: an error may be the larger the smaller its class. With these bounds a class adds at most 2^-19 nats,
    20 classes and the tail 4e-5, any distribution 2^-13.
    """
    _, exponent = np.frexp(values)
    step = np.minimum(_STEP, exponent - 1 - _BITS)
    rounded: Floats = np.ldexp(np.rint(np.ldexp(values, -step)), step)
    return rounded


def expand(
    top_classes: npt.NDArray[np.integer], top_probs: Floats, tail: Floats, classes: int, temperature: float = 1.0
) -> Floats:
    """Targets [N, C] from stored soft labels [N, K]; the tail is spread evenly over the classes that were cut.

    Args:
        top_classes: [N, K] class indexes; -1 where a row has fewer.
        top_probs: [N, K] probabilities; ignored where the class is -1.
        tail: [N] mass of all other classes.
        classes: C.
        temperature: T of p^(1/T), renormalised (Hinton et al., "Distilling the knowledge in a neural network", 2015);
            1 leaves a distribution as it is, but for scaling its sum to 1 exactly after rounding.
    """
    n = len(top_classes)
    there = top_classes >= 0
    left = classes - there.sum(axis=1)
    targets = np.repeat((tail / np.maximum(left, 1)).astype(np.float32)[:, None], classes, axis=1)
    rows = np.broadcast_to(np.arange(n)[:, None], top_classes.shape)
    targets[rows[there], top_classes[there]] = top_probs[there]
    if temperature != 1.0:
        targets /= targets.max(axis=1, keepdims=True)  # so that a low temperature does not make every power 0
        targets **= np.float32(1 / temperature)
    targets /= targets.sum(axis=1, keepdims=True)
    return targets


def table(summary: Summary, image_ids: npt.ArrayLike, generation: int, model: str, splits: list[str]) -> pa.Table:
    """Rows of the labels table."""
    n = len(summary.label)
    there = summary.top_classes >= 0
    offsets = pa.array(np.concatenate([[0], there.sum(axis=1).cumsum()]).astype(np.int32))
    columns = {
        "image_id": pa.array(image_ids, pa.int64()),
        "generation": pa.array(np.full(n, generation, np.int16)),
        "model": pa.array([model] * n),
        "split": pa.array(splits),
        "label": pa.array(summary.label.astype(np.int16)),
        "confidence": pa.array(summary.confidence),
        "margin": pa.array(summary.margin),
        "entropy": pa.array(summary.entropy),
        "top_classes": pa.ListArray.from_arrays(offsets, pa.array(summary.top_classes[there].astype(np.int16))),
        "top_probs": pa.ListArray.from_arrays(offsets, pa.array(summary.top_probs[there])),
        "tail": pa.array(summary.tail),
    }
    return pa.table([columns[field.name].cast(field.type) for field in LABELS.schema], schema=LABELS.schema)
