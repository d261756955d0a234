"""Soft labels as numbers: what is taken as a distribution, what is kept of it, and how it is read back.

    probs [N, C] float32 --check--> rows that are distributions --summarize--> label, confidence, margin, entropy,
    top_classes [N, K], top_probs [N, K], tail --expand--> targets [N, C] float32

Confidence, margin and entropy come from the full distribution in float32. Only then are the kept probabilities cut to
the K most probable classes and rounded to 10 mantissa bits, which compresses well and moves the KL divergence by about
7e-5 at 1000 classes.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from curator.schema import LABELS

SUM_TOLERANCE = 1e-3
_MANTISSA_BITS_DROPPED = np.uint32(23 - 10)

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


class Summary(NamedTuple):
    """What is stored of N distributions over C classes, K = min(C, kept classes)."""

    label: Ints  # [N] top-1 class, the lowest index of equals
    confidence: Floats  # [N] top-1 probability
    margin: Floats  # [N] top-1 minus top-2
    entropy: Floats  # [N] nats
    top_classes: Ints  # [N, K] most probable first; equals by index
    top_probs: Floats  # [N, K] rounded to 10 mantissa bits
    tail: Floats  # [N] mass outside the kept classes

    def take(self, rows: Ints) -> Summary:
        """The summary of some of the rows, in the order given."""
        columns: Any = (column[rows] for column in self)
        return Summary(*columns)


def problems(probs: npt.NDArray[np.floating], partial: bool = False) -> dict[int, str]:
    """The rows that are not probability distributions.

    A distribution is finite, inside [0, 1] and sums to 1 within 1e-3 in float64; nothing is renormalised.

    Args:
        probs: [N, C] probabilities.
        partial: Whether the rows are the top classes only, so that a sum below 1 is no fault.

    Returns:
        Row number to reason.
    """
    found: dict[int, str] = {}
    wide = probs.astype(np.float64, copy=False)
    total = wide.sum(axis=1)
    with np.errstate(invalid="ignore"):
        outside: npt.NDArray[np.bool_] = np.any((wide < 0) | (wide > 1), axis=1)
        off = total - 1 > SUM_TOLERANCE if partial else np.abs(total - 1) > SUM_TOLERANCE
    for row in np.flatnonzero(~np.isfinite(total) | outside | off).tolist():
        if not np.isfinite(wide[row]).all():
            found[row] = "holds NaN or infinity"
        elif outside[row]:
            found[row] = "holds a value outside 0 to 1"
        else:
            found[row] = f"sums to {total[row]:.6g}, not to 1"
    return found


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
        top_probs=round_mantissa(top),
        tail=tail_of(top, classes),
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
        classes: [N, J] class indexes in any order.
        probs: [N, J] float32 probabilities.
        kept: Number of classes to keep.
        all_classes: Number of classes in the store.
    """
    order = np.lexsort((classes, -probs), axis=1)
    classes, probs = np.take_along_axis(classes, order, axis=1), np.take_along_axis(probs, order, axis=1)
    tail = tail_of(probs, all_classes)
    left = all_classes - probs.shape[1]
    share = (tail / max(left, 1)).astype(np.float32)
    with np.errstate(divide="ignore", invalid="ignore"):
        entropy = -np.where(probs > 0, probs * np.log(probs), 0).sum(axis=1) - np.where(
            share > 0, tail * np.log(np.where(share > 0, share, 1)), 0
        )
    k = min(kept, probs.shape[1])
    second = probs[:, 1] if probs.shape[1] > 1 else share
    return Summary(
        label=classes[:, 0],
        confidence=probs[:, 0].copy(),
        margin=probs[:, 0] - second,
        entropy=np.maximum(entropy, 0).astype(np.float32),
        top_classes=classes[:, :k],
        top_probs=round_mantissa(probs[:, :k]),
        tail=tail_of(probs[:, :k], all_classes),
    )


def tail_of(top: Floats, classes: int) -> Floats:
    """Mass [N] outside the kept probabilities [N, K]; exactly 0 where every class is kept."""
    if top.shape[1] == classes:
        return np.zeros(len(top), np.float32)
    tail: Floats = np.clip(1 - top.sum(axis=1, dtype=np.float64), 0, 1).astype(np.float32)
    return tail


def round_mantissa(values: Floats) -> Floats:
    """Values rounded to the nearest float32 with a 10-bit mantissa (ties to even), at most 1."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    drop = _MANTISSA_BITS_DROPPED
    half = np.uint32((1 << (int(drop) - 1)) - 1)
    rounded = (bits + half + ((bits >> drop) & np.uint32(1))) >> drop << drop
    return rounded.view(np.float32)


def expand(top_classes: Ints, top_probs: Floats, tail: Floats, classes: int, temperature: float = 1.0) -> Floats:
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
        targets **= np.float32(1 / temperature)
    targets /= targets.sum(axis=1, keepdims=True)
    return targets


def table(summary: Summary, image_ids: npt.ArrayLike, generation: int, model: str, splits: list[str]) -> pa.Table:
    """Rows of the labels table."""
    n, k = summary.top_classes.shape
    offsets = pa.array(np.arange(n + 1, dtype=np.int32) * k)
    columns = {
        "image_id": pa.array(image_ids, pa.int64()),
        "generation": pa.array(np.full(n, generation, np.int16)),
        "model": pa.array([model] * n),
        "split": pa.array(splits),
        "label": pa.array(summary.label.astype(np.int16)),
        "confidence": pa.array(summary.confidence),
        "margin": pa.array(summary.margin),
        "entropy": pa.array(summary.entropy),
        "top_classes": pa.ListArray.from_arrays(offsets, pa.array(summary.top_classes.astype(np.int16).ravel())),
        "top_probs": pa.ListArray.from_arrays(offsets, pa.array(summary.top_probs.ravel())),
        "tail": pa.array(summary.tail),
    }
    return pa.table([columns[field.name].cast(field.type) for field in LABELS.schema], schema=LABELS.schema)
