"""On an NVIDIA GPU: the same commands, and answers near the CPU's. Without one there is nothing to test here."""

import json
from collections.abc import Callable

import pytest
import torch
from conftest import Answer
from pictures import NOISY, OWN, Watched, teach
from safetensors.torch import load_file
from test_ranks import run

from curator.errors import CuratorError
from curator.measures.robustness import Wanted, evaluate
from curator.storage.store import Store
from curator.teachers.labeling import label

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")


@pytest.fixture(scope="module")
def made(taught_once: Store) -> Store:
    return taught_once


def losses(store: Store, model: str) -> dict[int, float]:
    rows = store.rows("select step, value from metrics where model = $m and name = 'loss' order by step", m=model)
    return {row["step"]: row["value"] for row in rows}


def weights(store: Store, model: str) -> dict[str, torch.Tensor]:
    return load_file(store.path / "models" / model / "weights.safetensors")


def test_training_follows_the_cpus(store: Store) -> None:
    """In float32 the first step differs by the last digits, later ones by what grows of them."""
    for device in ("cpu", "cuda"):
        teach(store, "schedule.steps=3", name=device, manifest="m", device=device)
    cpu, cuda = losses(store, "cpu"), losses(store, "cuda")
    assert cuda.keys() == cpu.keys()
    assert cuda[1] == pytest.approx(cpu[1], rel=1e-3)
    other = weights(store, "cpu")
    for name, tensor in weights(store, "cuda").items():
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor, other[name], rtol=0.05, atol=0.05)


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16", "auto"])
def test_precisions(store: Store, precision: str) -> None:
    changes = [*NOISY, f"compute.precision={precision}", "noise.mixup=0.2", "optimizer.clip=1.0"]
    changes += ["compute.accumulate=2"]
    done = teach(store, *changes, name="student", manifest="m", device="cuda")
    figures = json.loads(store.rows("select metrics from models where model = 'student'")[0]["metrics"])
    assert figures["precision"] == ("bfloat16" if precision == "auto" else precision)
    assert done.loss == done.loss
    assert all(torch.isfinite(tensor).all() for tensor in weights(store, "student").values())


def test_compiled(store: Store) -> None:
    teach(store, "schedule.steps=3", name="plain", manifest="m", device="cuda")
    teach(store, "schedule.steps=3", "compute.compile=true", name="compiled", manifest="m", device="cuda")
    assert losses(store, "compiled")[1] == pytest.approx(losses(store, "plain")[1], rel=1e-2)


def test_stopped_and_resumed_on_the_gpu(store: Store) -> None:
    """The same curve within what a GPU's order of additions changes."""
    noise = ["noise.dropout=0.3", "noise.drop_path=0.3", "compute.precision=float16"]
    teach(store, *OWN, *noise, name="whole", device="cuda")
    Watched.seen.clear()
    Watched.stop_at = 10
    with pytest.raises(KeyboardInterrupt):
        teach(store, *OWN, *noise, name="late", checkpoint_seconds=0, device="cuda")
    Watched.stop_at = -1
    teach(store, *OWN, *noise, name="late", resume=True, device="cuda")
    whole, late = losses(store, "whole"), losses(store, "late")
    assert whole.keys() == late.keys()
    assert list(late.values()) == pytest.approx(list(whole.values()), rel=1e-3)
    other = weights(store, "whole")
    for name, tensor in weights(store, "late").items():
        torch.testing.assert_close(tensor.float(), other[name].float(), rtol=1e-3, atol=1e-3)


def test_labels_are_near_the_cpus(store: Store) -> None:
    found = []
    for device in ("cpu", "cuda"):
        store.delta("labels").delete()
        teach(store, "schedule.steps=0", name=device, init="teacher")
        assert label(store, device, engine="torch", device=device).engine == "torch"
        found.append(store.rows("select image_id, label, confidence from labels order by image_id"))
    cpu, cuda = found
    assert [row["image_id"] for row in cuda] == [row["image_id"] for row in cpu]
    assert [row["label"] for row in cuda] == [row["label"] for row in cpu]
    assert [row["confidence"] for row in cuda] == pytest.approx([row["confidence"] for row in cpu], abs=5e-3)


def test_onnx_runtime_is_for_the_cpu(store: Store) -> None:
    store.delta("labels").delete()
    teach(store, "schedule.steps=0", name="twin", init="teacher")
    with pytest.raises(CuratorError, match="computes on the CPU, and the device is cuda"):
        label(store, "twin", engine="onnxruntime", device="cuda")


def test_figures_and_attacks_are_near_the_cpus(store: Store) -> None:
    wanted = Wanted(attacks=["fgsm", "pgd"], eps=[4])
    cpu, cuda = (evaluate(store, "teacher", wanted, device=device) for device in ("cpu", "cuda"))
    assert cuda.clean.confidence == pytest.approx(cpu.clean.confidence, rel=1e-2)
    for attack in ("fgsm", "pgd"):
        assert cuda.attacks[attack][0]["top1"] == pytest.approx(cpu.attacks[attack][0]["top1"], abs=0.34)


def test_a_gpu_that_is_not_there(store: Store, curator: Callable[..., Answer]) -> None:
    answer = curator("evaluate", "--model", "teacher", "--store", store.path, "--device", "cuda:99")
    assert answer.code == 2
    assert "the device 'cuda:99' cannot be used" in answer.err


def test_torchrun_with_nccl(store: Store) -> None:
    """One process, as each needs a GPU of its own; SyncBatchNorm is asked for, and is for several."""
    done = run(store, 1, "alone", "compute.sync_batchnorm=true", launcher=True)
    assert done["steps"] == 20
