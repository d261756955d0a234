"""Several processes under torchrun: the same steps as one, the same commands, one that writes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from pictures import taught
from safetensors.torch import load_file

from curator.errors import InputError
from curator.ranks import Ranks, device_of, join
from curator.store import Store


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return taught(tmp_path_factory.mktemp("made"))


def run(store: Store, ranks: int, name: str, *changes: str, manifest: str | None = "m", launcher: bool = False) -> dict:
    """Trains by the command line, in that many processes, one of them without torchrun unless told so; the answer."""
    command = ["-m", "curator", "train", "--recipe", str(store.root / "recipe.toml"), "--name", name, "--json"]
    command += ["--store", str(store.path), "--threads", "1"]
    command += ["--manifest", manifest] if manifest else []
    for change in changes:
        command += ["--set", change]
    start = [sys.executable]
    if ranks > 1 or launcher:
        start += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path]),
    }
    done = subprocess.run([*start, *command], capture_output=True, text=True, env=environment, timeout=240)
    assert done.returncode == 0, done.stderr
    answer: dict = json.loads(done.stdout)
    return answer | {"err": done.stderr}


def weights(store: Store, name: str) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = load_file(store.path / "models" / name / "weights.safetensors")
    return found


def test_two_ranks_as_one(store: Store) -> None:
    """Without BatchNorm and dropout, whose numbers depend on the rows beside, to the last digits of float32."""
    changes = ["network.architecture=pictures:Slow", "schedule.steps=12", "noise.mixup=0", "optimizer.clip=1.0"]
    one = run(store, 1, "one", *changes)
    two = run(store, 2, "two", *changes)
    assert one["steps"] == two["steps"] == 12
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-4)
    a, b = weights(store, "one"), weights(store, "two")
    for name, tensor in a.items():
        assert torch.allclose(tensor, b[name], atol=1e-5), name
    assert "2 ranks" in two["err"]
    assert "Warning" not in two["err"].replace("FutureWarning: torch.distributed.run", "")
    assert two["err"].count("training two: ") == 1  # the first one speaks
    rows = store.rows("select step, name, value from metrics where model = 'two' and name = 'loss' order by step")
    assert [row["step"] for row in rows] == [1, 12]


def test_device_names() -> None:
    assert device_of("cpu") == torch.device("cpu")
    for wrong in ("gpu7", "cuda:99"):
        with pytest.raises(InputError, match=f"the device '{wrong}' cannot be used"):
            device_of(wrong)
    with join("cpu") as mine:
        assert mine == Ranks(0, 1, torch.device("cpu"))
        assert mine.gather({"a": 1}) == [{"a": 1}]
        mine.wait()
