"""How well a network's scores tell pictures of its classes from pictures of none.

    scores of holdout images [N], scores of outside pictures [M] --> AUROC, false positives at 95 % true ones, intervals

Positive is the holdout: a high score says "one of mine". Scores: the top probability (Hendrycks and Gimpel, ICLR 2017)
and the log of the sum of exp of the logits, which is minus the energy (Liu et al., "Energy-based out-of-distribution
detection", 2020).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from curator.measures import bootstrap

THRESHOLDS = (0.3, 0.5, 0.9)
KEPT = 0.95  # share of the holdout above the threshold of the false positives

Floats = npt.NDArray[np.floating]
Estimate = tuple[float, tuple[float, float]]


def boldness(confidence: Floats, seed: int) -> dict[str, Estimate]:
    """Mean confidence on outside pictures [M] and the shares above THRESHOLDS, each with its interval."""
    columns = np.stack([confidence, *(confidence > np.float32(least) for least in THRESHOLDS)], axis=1)
    names = ["confidence", *(f"above_{least:g}" for least in THRESHOLDS)]
    values, drawn = columns.mean(axis=0, dtype=np.float64), bootstrap.means(columns, seed)
    return {name: (float(values[i]), bootstrap.interval(drawn[:, i])) for i, name in enumerate(names)}


def separation(inside: Mapping[str, Floats], beyond: Mapping[str, Floats], seed: int) -> dict[str, Estimate]:
    """AUROC and false positive rate of each score, with intervals of resamples of both kinds of pictures.

    Args:
        inside: Of each score's name, [N] values of holdout images.
        beyond: The same, [M] values of outside pictures.
        seed: Seed.
    """
    found = {}
    for name, scores in inside.items():
        split = _Split(scores, beyond[name])
        whole = split.figures(np.ones((1, len(scores))), np.ones((1, len(beyond[name]))))
        pairs = zip(bootstrap.counts(len(scores), seed), _aligned(len(scores), len(beyond[name]), seed), strict=True)
        drawn = np.concatenate([split.figures(*pair) for pair in pairs])
        for column, measure in enumerate((f"auroc_{name}", f"fpr95_{name}")):
            found[measure] = (float(whole[0, column]), bootstrap.interval(drawn[:, column]))
    return found


def _aligned(inside: int, beyond: int, seed: int) -> list[npt.NDArray[np.float32]]:
    """Resamples of the outside pictures, in parts of as many resamples as those of the holdout have."""
    whole = np.concatenate(list(bootstrap.counts(beyond, seed + 1)))  # a seed of their own: another draw
    sizes = [len(part) for part in bootstrap.counts(inside, seed)]
    return np.split(whole, np.cumsum(sizes)[:-1])


class _Split:
    """Both kinds of scores in one order, so that a resample costs one pass over them."""

    def __init__(self, inside: Floats, beyond: Floats) -> None:
        values, self._place = np.unique(np.concatenate([inside, beyond]), return_inverse=True)
        self._count, self._inside = len(values), len(inside)

    def figures(self, inside: Floats, beyond: Floats) -> npt.NDArray[np.float64]:
        """[D, 2] AUROC and false positive rate for weights [D, N] and [D, M] of the images."""
        ours = np.stack([np.bincount(self._place[: self._inside], row, self._count) for row in inside])
        theirs = np.stack([np.bincount(self._place[self._inside :], row, self._count) for row in beyond])
        ours, theirs = (part / part.sum(axis=1, keepdims=True) for part in (ours, theirs))
        below = np.cumsum(theirs, axis=1) - theirs / 2  # an equal score counts half
        auroc = (ours * below).sum(axis=1)
        # the highest threshold that lets at least KEPT of the holdout through
        through = np.cumsum(ours[:, ::-1], axis=1)[:, ::-1]
        at = self._count - 1 - np.argmax(through[:, ::-1] >= KEPT - 1e-9, axis=1)
        false = np.cumsum(theirs[:, ::-1], axis=1)[:, ::-1][np.arange(len(at)), at]
        return np.stack([auroc, false], axis=1)
