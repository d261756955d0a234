"""What moves the weights: learning rates, weight decay, frozen modules, clipping, precision."""

from pathlib import Path

import numpy as np
import pytest
import torch
from pictures import RECIPE

from curator.errors import InputError
from curator.networks import network, recipes
from curator.networks.network import Network
from curator.networks.recipes import Recipe
from curator.runs import optimization
from curator.runs.optimization import Optimization
from curator.runs.phases import Phase

CPU = torch.device("cpu")


def recipe(*changes: str, folder: Path) -> Recipe:
    (folder / "recipe.toml").write_text(RECIPE, "utf-8")
    return recipes.load(str(folder / "recipe.toml"), list(changes))[1]


def phase(plan: Recipe, steps: int, warmup: int = 0, epoch: float = 5, frozen: tuple[str, ...] = ()) -> Phase:
    return Phase("training", 0, steps, [], [], 0, plan.learning_rate, warmup, epoch, frozen)


def moving(plan: Recipe, what: Phase, net: Network | None = None) -> Optimization:
    return Optimization(net or network.build(plan, 3), plan, what, "float32", CPU)


def rates(made: Optimization, steps: int) -> list[float]:
    found = []
    for step in range(steps):
        found.append(made.rate)
        made.skip(step)
    return found


def test_the_learning_rate(tmp_path: Path) -> None:
    plan = recipe("optimizer.learning_rate=1", "schedule.decay=cosine", folder=tmp_path)
    found = rates(moving(plan, phase(plan, 10, warmup=2)), 10)
    assert found[0] == 0.01
    assert found[1] == pytest.approx(0.505)
    assert found[2:] == sorted(found[2:], reverse=True)
    assert found[5] == pytest.approx((1 + np.cos(np.pi * 5 / 10)) / 2)
    with pytest.raises(InputError, match="the warm-up of 2 steps is as long as the run of 2 steps"):
        moving(plan, phase(plan, 2, warmup=2))
    plan = recipe("optimizer.name=adamww", folder=tmp_path)
    with pytest.raises(InputError, match="the optimiser 'adamww' cannot be made"):
        moving(plan, phase(plan, 20))


def test_the_papers_schedule(tmp_path: Path) -> None:
    """x 0.97 every 2.4 epochs, at a rate that is for another batch."""
    changes = ["schedule.decay=exponential", "optimizer.learning_rate=0.128", "optimizer.base_batch=2048"]
    plan = recipe(*changes, "optimizer.name=rmsproptf", "optimizer.alpha=0.9", "optimizer.eps=1e-3", folder=tmp_path)
    made = moving(plan, phase(plan, 100, epoch=5))
    assert made.optimizer.param_groups[0]["alpha"] == 0.9
    assert made.optimizer.param_groups[0]["eps"] == 1e-3
    first = 0.128 * 6 / 2048
    assert rates(made, 100) == pytest.approx([first * 0.97 ** (step // 12) for step in range(100)])


def test_weight_decay_leaves_biases_and_norms_alone(tmp_path: Path) -> None:
    plan = recipe("optimizer.weight_decay=0.5", folder=tmp_path)
    made = moving(plan, phase(plan, 20))
    decayed = {group["weight_decay"]: {p.ndim for p in group["params"]} for group in made.optimizer.param_groups}
    assert decayed == {0.0: {1}, 0.5: {2, 4}}


def test_what_is_frozen_stays(tmp_path: Path) -> None:
    plan = recipe(folder=tmp_path)
    net = network.build(plan, 3)
    made = moving(plan, phase(plan, 3, frozen=("conv1", "bn1", "layer1")), net)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    made.train()
    images = torch.randint(0, 256, (4, 16, 16, 3), dtype=torch.uint8)
    net(images).square().mean().backward()
    made.step(0)
    changed = {name.split(".")[1] for name, tensor in net.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed >= {"layer4", "fc"}
    assert not changed & {"conv1", "bn1", "layer1"}
    with pytest.raises(InputError, match=r"no module 'layer9' .*\n  mend: its first ones are conv1, "):
        moving(plan, phase(plan, 3, frozen=("layer9",)), net)


def test_clipping(tmp_path: Path) -> None:
    plan = recipe("optimizer.clip=0.5", "optimizer.name=momentum", folder=tmp_path)
    net = network.build(plan, 3)
    made = moving(plan, phase(plan, 3), net)
    for parameter in net.parameters():
        parameter.grad = torch.full_like(parameter, 7.0)
    seen = []
    hook = made.optimizer.register_step_pre_hook(
        lambda *_: seen.append(torch.stack([p.grad.norm() for p in net.parameters()]).norm().item())  # type: ignore[union-attr]
    )
    made.step(0)
    hook.remove()
    assert seen == pytest.approx([0.5], rel=1e-4)


def test_precision(tmp_path: Path) -> None:
    plan = recipe(folder=tmp_path)
    net = network.build(plan, 3)
    assert optimization.precision(plan, net, CPU, 8) == "float32"
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    chosen = optimization.precision(recipe("compute.precision=auto", folder=tmp_path), net, CPU, 8)
    assert chosen in ("float32", "bfloat16")
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())
    with pytest.raises(InputError, match="float16 does not train on a CPU"):
        optimization.precision(recipe("compute.precision=float16", folder=tmp_path), net, CPU, 8)
