"""The joint loss against plain numpy statements of it."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from curator.runs.losses import joint_loss


def example(seed: int, rows: int, classes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits [B, C], targets [B, C] that sum to 1, weights [B], some of them 0."""
    rng = np.random.default_rng(seed)
    targets = rng.dirichlet(np.ones(classes), rows)
    return rng.normal(0, 3, (rows, classes)), targets, rng.integers(0, 2, rows) * rng.uniform(0.01, 1, rows)


def plain(
    logits: np.ndarray, targets: np.ndarray, weight: np.ndarray, labeled: int, form: str, smoothing: float, ratio: int
) -> float:
    """The loss in numpy, row by row."""
    sums, counts = [0.0, 0.0], [0.0, 0.0]
    for i, (z, q, w) in enumerate(zip(logits, targets, weight, strict=True)):
        kind = 0 if i < labeled else 1
        log_p = z - z.max() - np.log(np.exp(z - z.max()).sum())
        if kind == 0:
            q = (1 - smoothing) * q + smoothing / len(q)
        sums[kind] += w * -(q * log_p).sum()
        counts[kind] += w > 0
    means = [s / c if c else 0.0 for s, c in zip(sums, counts, strict=True)]
    return means[0] + means[1] * (ratio if form == "ratio" else 1)


def joint(logits: np.ndarray, targets: np.ndarray, weight: np.ndarray, *rest: object) -> float:
    tensors = [torch.tensor(values, dtype=torch.float32) for values in (logits, targets, weight)]
    return joint_loss(*tensors, *rest).item()  # type: ignore[arg-type]


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    labeled=st.integers(0, 6),
    pseudo=st.integers(0, 9),
    classes=st.integers(2, 12),
    form=st.sampled_from(["mean", "ratio"]),
    smoothing=st.sampled_from([0.0, 0.1, 0.5]),
    ratio=st.integers(1, 14),
)
def test_it_is_the_plain_loss(
    seed: int, labeled: int, pseudo: int, classes: int, form: str, smoothing: float, ratio: int
) -> None:
    values = example(seed, labeled + pseudo, classes)
    expected = plain(*values, labeled, form, smoothing, ratio)
    assert joint(*values, labeled, form, smoothing, ratio) == pytest.approx(expected, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_one_hot_rows_are_torchs_cross_entropy(smoothing: float) -> None:
    rng = np.random.default_rng(0)
    logits = torch.tensor(rng.normal(0, 3, (8, 5)), dtype=torch.float32)
    label = torch.tensor(rng.integers(0, 5, 8))
    one_hot = functional.one_hot(label, 5).float()
    ours = joint_loss(logits, one_hot, torch.ones(8), 8, label_smoothing=smoothing)
    theirs = functional.cross_entropy(logits, label, label_smoothing=smoothing)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-6)


def test_soft_rows_are_torchs_cross_entropy_and_never_smoothed() -> None:
    logits, targets, _ = example(1, 8, 5)
    ones = np.ones(8)
    theirs = functional.cross_entropy(torch.tensor(logits), torch.tensor(targets)).item()
    for smoothing in (0.0, 0.3):
        assert joint(logits, targets, ones, 0, "mean", smoothing) == pytest.approx(theirs, rel=1e-6)
    assert joint(logits, targets, ones, 8, "mean", 0.3) != pytest.approx(theirs, rel=1e-3)


def test_the_forms_differ_by_the_ratio() -> None:
    logits, targets, _ = example(2, 8, 5)
    ones = np.ones(8)
    labeled = joint(logits[:2], targets[:2], ones[:2], 2)
    pseudo = joint(logits[2:], targets[2:], ones[2:], 0)
    assert joint(logits, targets, ones, 2, "mean", 0.0, 3) == pytest.approx(labeled + pseudo, rel=1e-6)
    assert joint(logits, targets, ones, 2, "ratio", 0.0, 3) == pytest.approx(labeled + 3 * pseudo, rel=1e-6)


def test_rows_of_weight_0_change_neither_loss_nor_gradient() -> None:
    logits, targets, weight = example(3, 12, 5)
    weight[:] = 0.5
    weight[[1, 7]] = 0
    kept = np.flatnonzero(weight)
    assert joint(logits, targets, weight, 4) == pytest.approx(
        joint(logits[kept], targets[kept], weight[kept], 3), rel=1e-6
    )
    z = torch.tensor(logits, requires_grad=True)
    joint_loss(z, torch.tensor(targets), torch.tensor(weight), 4).backward()
    assert z.grad is not None
    assert np.flatnonzero(z.grad.abs().sum(dim=1).numpy()).tolist() == kept.tolist()


def test_a_batch_without_a_readable_row_costs_nothing() -> None:
    logits, targets, _ = example(4, 6, 3)
    assert joint(logits, targets, np.zeros(6), 3) == 0


def test_half_precision_logits_do_not_overflow() -> None:
    logits = torch.tensor([[60000.0, -60000.0]], dtype=torch.float16)
    assert joint_loss(logits, torch.tensor([[0.0, 1.0]]), torch.ones(1), 1).item() == pytest.approx(120000, rel=1e-3)
