"""One step: in parts as in one go, mixed within its streams, and what happens to a loss that is no number."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import RECIPE, Slow
from torch import nn

from curator import draws
from curator.errors import CuratorError
from curator.loading.batches import Batch
from curator.networks import recipes
from curator.networks.network import Network
from curator.noise.mixing import Mixing, mix
from curator.ranks import Ranks
from curator.runs.optimization import Optimization
from curator.runs.phases import Phase
from curator.runs.steps import Steps

ALONE = Ranks(0, 1, torch.device("cpu"))
CLASSES = 3


def batch(labeled: int, pseudo: int, seed: int = 0) -> Batch:
    rng = np.random.default_rng(seed)
    rows = labeled + pseudo
    images = torch.from_numpy(rng.integers(0, 256, (rows, 16, 16, 3), dtype=np.uint8))
    targets = torch.from_numpy(rng.dirichlet(np.ones(CLASSES), rows).astype(np.float32))
    weight = torch.from_numpy(rng.choice([0.5, 1, 1], rows).astype(np.float32))
    return Batch(0, images, targets, weight, labeled, np.arange(rows))


def steps(tmp_path: Path, *changes: str, body: nn.Module | None = None) -> Steps:
    (tmp_path / "recipe.toml").write_text(RECIPE, "utf-8")
    plan = recipes.load(str(tmp_path / "recipe.toml"), list(changes))[1]
    torch.manual_seed(0)
    net = Network(body or Slow(CLASSES), (0.5,) * 3, (0.5,) * 3)
    phase = Phase("training", 0, 10, [], [], 0, plan.learning_rate, 0, 5)
    return Steps(net, Optimization(net, plan, phase, "float32", ALONE.device), plan, ALONE)


@pytest.mark.parametrize("form", ["mean", "ratio"])
@pytest.mark.parametrize(("labeled", "pseudo"), [(6, 12), (5, 7), (2, 0), (0, 3), (1, 1)])
def test_in_parts_as_in_one_go(tmp_path: Path, form: str, labeled: int, pseudo: int) -> None:
    found = []
    for parts in (1, 2, 5):
        made = steps(tmp_path, f"loss.form={form}", f"compute.accumulate={parts}", "optimizer.name=momentum")
        loss = made.take(batch(labeled, pseudo))
        found.append((loss, torch.cat([p.detach().flatten() for p in made.wrapped.parameters()])))
    for loss, weights in found[1:]:
        assert loss == pytest.approx(found[0][0], rel=1e-5)
        assert torch.allclose(weights, found[0][1], atol=1e-6)


def test_a_loss_that_is_no_number_moves_nothing(tmp_path: Path) -> None:
    class Broken(Slow):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) * float("nan")

    made = steps(tmp_path, body=Broken(CLASSES))
    before = [p.detach().clone() for p in made.wrapped.parameters()]
    with pytest.raises(CuratorError, match=r"step 0 is nan at learning rate 0\.003; .* 0, 1, 2, 3, 4"):
        made.take(batch(3, 3))
    assert all(torch.equal(p, q) for p, q in zip(made.wrapped.parameters(), before, strict=True))


def test_a_batch_of_nothing_is_skipped(tmp_path: Path) -> None:
    made = steps(tmp_path)
    before = [p.detach().clone() for p in made.wrapped.parameters()]
    assert np.isnan(made.take(batch(0, 0)))
    assert all(torch.equal(p, q) for p, q in zip(made.wrapped.parameters(), before, strict=True))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 7), st.integers(0, 7), st.sampled_from([(1.0, 0.0), (0.0, 1.0), (0.3, 2.0)]), st.integers(0, 999))
def test_mixing(labeled: int, pseudo: int, alphas: tuple[float, float], seed: int) -> None:
    given = batch(labeled, pseudo, seed)
    key = draws.key(seed, "mix")
    images, targets = mix(Mixing(*alphas), given.images, given.targets, labeled, key)
    again = mix(Mixing(*alphas), given.images, given.targets, labeled, key)
    assert torch.equal(images, again[0])
    assert torch.equal(targets, again[1])
    assert torch.allclose(targets.sum(1), torch.ones(labeled + pseudo), atol=1e-5)
    assert images.dtype == torch.uint8
    for begin, end in ((0, labeled), (labeled, labeled + pseudo)):
        ours, theirs = given.images[begin:end].float(), given.images[begin:end].flip(0).float()
        low, high = torch.minimum(ours, theirs), torch.maximum(ours, theirs)
        mixed = images[begin:end].float()
        assert (mixed >= low).all()
        assert (mixed <= high).all()
        if alphas[0] == 0 and end > begin + 1:  # CutMix: each pixel is of one of the two, and the targets say how many
            own = (mixed == ours).all(3)
            share = own.float().mean((1, 2))
            q, other = given.targets[begin:end], given.targets[begin:end].flip(0)
            expected = q * share[:, None, None].squeeze(-1) + other * (1 - share[:, None])
            middle = (end - begin) // 2 if (end - begin) % 2 else -1  # it meets itself
            for row in range(end - begin):
                if row != middle:
                    assert torch.allclose(targets[begin + row], expected[row], atol=1e-3)
    assert mix(Mixing(*alphas, probability=0.0), given.images, given.targets, labeled, key)[0] is given.images
    assert mix(Mixing(), given.images, given.targets, labeled, key)[1] is given.targets
