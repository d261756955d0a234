"""Attacks that know the network: FGSM and PGD within a distance of eps in every value of every pixel.

    pixels float32 [B, H, W, 3] in 0..255, true classes -> pixels that differ by eps at most and cost the network most

The network is attacked as it answers: in eval mode, its normalisation inside, so that eps counts in values of 0..255.
Sources: Goodfellow, Shlens and Szegedy, "Explaining and harnessing adversarial examples", ICLR 2015 (FGSM); Madry et
al., "Towards deep learning models resistant to adversarial attacks", ICLR 2018 (PGD).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from curator.draws import Lots
from curator.networks.network import Network

NAMES = ("fgsm", "pgd")
EPS = (1.0, 2.0, 4.0, 8.0, 16.0)
STEPS = 10


def fgsm(network: Network, pixels: Tensor, labels: Tensor, eps: float) -> Tensor:
    """One step of eps along the sign of the loss's gradient.

    Args:
        network: In eval mode.
        pixels: float32 [B, H, W, 3], 0 to 255.
        labels: int64 [B], the true classes.
        eps: Most that a value may change, of 0..255.

    Returns:
        float32 [B, H, W, 3], 0 to 255; not rounded.
    """
    return (pixels + eps * _gradient(network, pixels, labels).sign()).clamp(0, 255)


def pgd(
    network: Network,
    pixels: Tensor,
    labels: Tensor,
    eps: float,
    steps: int = STEPS,
    step_size: float | None = None,
    start: Tensor | None = None,
) -> Tensor:
    """Steps along the sign of the loss's gradient, each followed by a projection into the eps-box and into 0..255.

    Args:
        network: In eval mode.
        pixels: float32 [B, H, W, 3], 0 to 255.
        labels: int64 [B], the true classes.
        eps: Most that a value may change, of 0..255.
        steps: How many.
        step_size: Of each value and step; 2.5 * eps / steps by default, with which the far side of the box can be
            reached.
        start: float32 [B, H, W, 3], what is added before the first step, -eps to eps, see `starts`; nothing by default.

    Returns:
        float32 [B, H, W, 3], 0 to 255; not rounded.
    """
    size = 2.5 * eps / steps if step_size is None else step_size
    low, high = (pixels - eps).clamp(min=0), (pixels + eps).clamp(max=255)
    found = pixels if start is None else (pixels + start).clamp(0, 255)
    for _ in range(steps):
        found = torch.clamp(found + size * _gradient(network, found, labels).sign(), low, high)
    return found


def starts(ids: npt.NDArray[np.int64], side: int, eps: float, seed: int) -> npt.NDArray[np.float32]:
    """Random starts of `pgd`: what a picture gets depends on its image's id and the seed, not on its batch.

    Args:
        ids: [B] numbers of the images.
        side: Of the pictures in pixels.
        eps: Most that a value changes.
        seed: Seed.

    Returns:
        float32 [B, side, side, 3], uniform in -eps to eps.
    """
    drawn = Lots(seed, ("pgd",), ids).uniforms(side * side * 3)
    return ((2 * drawn - 1) * eps).astype(np.float32).reshape(len(ids), side, side, 3)


def _gradient(network: Network, pixels: Tensor, labels: Tensor) -> Tensor:
    """The gradient of each picture's cross-entropy by its pixels."""
    pixels = pixels.detach().requires_grad_()
    with torch.enable_grad():
        loss = functional.cross_entropy(network(pixels), labels, reduction="sum")
        (found,) = torch.autograd.grad(loss, pixels)
    return found
