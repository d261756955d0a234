"""Attacks: what must hold of any network, and the answer by hand for a linear one."""

import numpy as np
import pytest
import torch
from torch import nn

from curator.measures.attacks import fgsm, pgd, starts
from curator.networks.network import Network

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def network(body: nn.Module) -> Network:
    return Network(body, MEAN, STD).eval()


def some(seed: int = 0) -> Network:
    torch.manual_seed(seed)
    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten()]
    return network(nn.Sequential(*layers, nn.Linear(8 * 64, 4)))


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures with values at both ends, and classes."""
    rng = np.random.default_rng(0)
    pixels = np.clip(rng.integers(-60, 316, (6, 12, 12, 3)), 0, 255)
    return torch.from_numpy(pixels).float(), torch.from_numpy(rng.integers(0, 4, 6))


def loss(given: Network, pixels: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return nn.functional.cross_entropy(given(pixels), labels, reduction="none")


@pytest.mark.parametrize("eps", [1.0, 8.0, 300.0])
def test_within_eps_and_the_range_of_pixels(batch: tuple[torch.Tensor, torch.Tensor], eps: float) -> None:
    pixels, labels = batch
    given = some()
    before = {name: value.clone() for name, value in given.state_dict().items()}
    start = torch.from_numpy(starts(np.arange(6), 12, eps, 0))
    for found in (
        fgsm(given, pixels, labels, eps),
        pgd(given, pixels, labels, eps),
        pgd(given, pixels, labels, eps, 3, start=start),
    ):
        assert found.dtype == torch.float32
        assert (found - pixels).abs().max() <= eps + 1e-4
        assert found.min() >= 0
        assert found.max() <= 255
        assert not found.requires_grad
    assert all((before[name] == value).all() for name, value in given.state_dict().items())  # BatchNorm at rest
    assert all(value.grad is None for value in given.parameters())


def test_a_small_step_costs_the_network(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    pixels, labels = batch
    given = some()
    inside = pixels.clamp(2, 253)
    plain, once = loss(given, inside, labels), loss(given, fgsm(given, inside, labels, 0.5), labels)
    assert (once >= plain).all()
    assert (once > plain).any()
    assert (
        loss(given, pgd(given, inside, labels, 8.0), labels).sum()
        >= loss(given, fgsm(given, inside, labels, 8.0), labels).sum()
    )


def test_a_linear_network_by_hand(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    """Two classes: the loss of class 0 falls with w0 - w1, whatever the picture, so its sign is the whole attack."""
    pixels, _ = batch
    body = nn.Sequential(nn.Flatten(), nn.Linear(3 * 144, 2))
    weight = body[1].weight.detach().reshape(2, 3, 12, 12).permute(0, 2, 3, 1)
    labels = torch.tensor([0, 1, 0, 1, 0, 1])
    sign = torch.where(labels[:, None, None, None] == 0, 1, -1) * (weight[1] - weight[0]).sign()
    expected = (pixels + 4 * sign).clamp(0, 255)
    assert torch.equal(fgsm(network(body), pixels, labels, 4.0), expected)
    assert torch.allclose(pgd(network(body), pixels, labels, 4.0), expected, atol=1e-4)
    # one step of a third of the way, from the middle and from a start
    assert torch.allclose(pgd(network(body), pixels, labels, 3.0, 1, 1.0), (pixels + sign).clamp(0, 255))
    start = torch.from_numpy(starts(np.arange(6), 12, 3.0, 0))
    there = torch.clamp((pixels + start).clamp(0, 255) + sign, (pixels - 3).clamp(min=0), (pixels + 3).clamp(max=255))
    assert torch.allclose(pgd(network(body), pixels, labels, 3.0, 1, 1.0, start), there)


def test_a_picture_does_not_know_its_batch(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    """In float64, where no gradient is so small that its sign is chance."""
    pixels, labels = batch
    given, ids = some().double(), np.array([4, 9, 2**61, 1, 0, 77])
    start = torch.from_numpy(starts(ids, 12, 8.0, 3)).double()
    whole = pgd(given, pixels.double(), labels, 8.0, start=start)
    for one in range(6):
        part = slice(one, one + 1)
        own = torch.from_numpy(starts(ids[part], 12, 8.0, 3)).double()
        assert torch.equal(own, start[part])
        assert torch.allclose(pgd(given, pixels[part].double(), labels[part], 8.0, start=own), whole[part], atol=1e-9)


def test_starts() -> None:
    found = starts(np.arange(50), 12, 4.0, 0)
    assert (found.shape, found.dtype) == ((50, 12, 12, 3), np.float32)
    assert np.abs(found).max() <= 4
    assert found.std() == pytest.approx(8 / 12**0.5, rel=0.01)  # of a uniform distribution
    assert (starts(np.arange(50), 12, 4.0, 1) != found).all(axis=(1, 2, 3)).all()
