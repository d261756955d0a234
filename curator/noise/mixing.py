"""Mixup and CutMix for soft targets: each row of a batch with another one, within its stream.

    images [B], targets [B, C], weight [B] -> pairs (i, n - 1 - i) of the labeled rows, and of the pseudo rows -> mixed

timm's and torchvision's take class numbers and draw from generators of the process; here every number comes from a key.
Sources: Zhang et al., "mixup" (ICLR 2018); Yun et al., "CutMix" (ICCV 2019); one weight for a batch, as timm has it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from curator import draws


class Mixing(NamedTuple):
    """How batches are mixed.

    Attributes:
        mixup: Alpha of the Beta distribution of mixup's weight; 0 is off.
        cutmix: Alpha of CutMix; 0 is off. Where both are on, each has half of the batches.
        probability: Of mixing a batch at all.
    """

    mixup: float = 0.0
    cutmix: float = 0.0
    probability: float = 1.0


def mix(
    how: Mixing, images: torch.Tensor, targets: torch.Tensor, labeled: int, key: np.uint64
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mixes the rows of a batch.

    Args:
        how: What to do.
        images: uint8 [B, H, W, 3]; not changed.
        targets: float32 [B, C]; not changed.
        labeled: Rows at the front that are mixed with each other only.
        key: From `draws.key`; the same key mixes alike.

    Returns:
        Images and targets of the same shapes; the same tensors where nothing is mixed.
    """
    use, kind, across, down = draws.uniforms(key, [0], 4)[0].tolist()
    if not (how.mixup or how.cutmix) or use >= how.probability:
        return images, targets
    cut = kind < 0.5 if how.mixup and how.cutmix else bool(how.cutmix)
    alpha = how.cutmix if cut else how.mixup
    share = float(np.random.Generator(np.random.Philox(int(key))).beta(alpha, alpha))
    # Row i meets the row as far from the end of its stream.
    partner = torch.cat([torch.arange(labeled).flip(0), torch.arange(labeled, len(images)).flip(0)])
    partner = partner.to(images.device)
    if cut:
        height, width = images.shape[1:3]
        h, w = round(height * (1 - share) ** 0.5), round(width * (1 - share) ** 0.5)
        y, x = int(down * height) - h // 2, int(across * width) - w // 2
        top, bottom, left, right = max(y, 0), min(y + h, height), max(x, 0), min(x + w, width)
        mixed = images.clone()
        mixed[:, top:bottom, left:right] = images[partner, top:bottom, left:right]
        share = 1 - max(bottom - top, 0) * max(right - left, 0) / (height * width)  # part of it may lie outside
    else:
        mixed = (images.float() * share + images[partner].float() * (1 - share)).round().to(torch.uint8)
    return mixed, targets * share + targets[partner.to(targets.device)] * (1 - share)
