"""The loss of a joint step: cross-entropy on labeled rows, soft cross-entropy on pseudo rows.

labeled rows [:n]   -sum_c q log p, q = one-hot smoothed by s: (1 - s) + s / C on the label, s / C elsewhere
pseudo rows  [n:]   -sum_c q log p, q = the teacher's distribution, never smoothed
"""

from __future__ import annotations

import torch
from torch.nn import functional


def joint_loss(
    logits: torch.Tensor,
    targets: torch.Tensor,
    weight: torch.Tensor,
    labeled: int,
    form: str = "mean",
    label_smoothing: float = 0.0,
    ratio: int = 1,
    counts: tuple[int, int] | None = None,
) -> torch.Tensor:
    """The loss of a batch whose first rows are labeled.

    Args:
        logits: float32 [B, C].
        targets: float32 [B, C] distributions.
        weight: float32 [B]; what a row's loss is multiplied by. Rows of weight 0 are not there: the mean is over the
            others, however little these weigh (Chen et al., "SoftMatch", ICLR 2023).
        labeled: Number of labeled rows at the front.
        form: "mean" (mean over labeled + mean over pseudo, the paper) or "ratio" (labeled + ratio x pseudo, the
            released code).
        label_smoothing: s, for labeled rows (Szegedy et al., "Rethinking the Inception architecture", CVPR 2016).
        ratio: Pseudo rows for each labeled row, for the form "ratio".
        counts: Labeled and pseudo rows that the means are over, where this is a part of a batch; its own by default.

    Returns:
        A scalar.
    """
    smooth = targets[:labeled] * (1 - label_smoothing) + label_smoothing / targets.shape[1]
    soft = torch.cat([smooth, targets[labeled:]])
    per_row = -(soft * functional.log_softmax(logits.float(), dim=1)).sum(dim=1)
    first, second = counts or (None, None)
    total = _mean(per_row[:labeled], weight[:labeled], first)
    if labeled < len(per_row):
        total = total + _mean(per_row[labeled:], weight[labeled:], second) * (ratio if form == "ratio" else 1)
    return total


def _mean(values: torch.Tensor, weight: torch.Tensor, count: int | None) -> torch.Tensor:
    return (values * weight).sum() / (max(count, 1) if count is not None else (weight > 0).sum().clamp(min=1))
