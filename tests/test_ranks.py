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
from torch import distributed

from curator.errors import CuratorError, InputError
from curator.ranks import Ranks, device_of, join
from curator.storage.store import Store


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


@pytest.mark.long
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


@pytest.mark.long
def test_a_rank_waits_longer_for_the_others_than_torch_would(tmp_path: Path) -> None:
    """One host may be an hour slower than another. Here torch's own patience is a second."""
    script = tmp_path / "script.py"
    script.write_text("""
import datetime, os, time
from torch.distributed import distributed_c10d
distributed_c10d.default_pg_timeout = datetime.timedelta(seconds=1)
from curator.ranks import join
with join("cpu") as ranks:
    time.sleep(3 * ranks.rank)
    ranks.wait()
    print(ranks.gather(ranks.rank), flush=True)
""")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert "".join(done.stdout.split("\n")) == "[0, 1]" * 2  # two processes write, line and end of line apart


def test_ranks_that_do_not_reach_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """As after a restart, where torch finds in its store the addresses of processes that are gone."""

    def refuse(backend: str) -> None:
        raise RuntimeError(f"{backend} connectFullMesh failed: Connection refused\nException raised from ...")

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(distributed, "init_process_group", refuse)
    with pytest.raises(
        CuratorError, match=r"do not reach each other \(gloo connectFullMesh failed: .*refused\)"
    ) as told:
        join("cpu").__enter__()
    assert "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1" in told.value.mend
