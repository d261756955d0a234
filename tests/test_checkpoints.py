"""Checkpoints: whole or not at all, the newest that is whole, and how many stay."""

import os
from pathlib import Path

import pytest
import torch

from curator import progress
from curator.errors import InputError
from curator.networks import checkpoints

WEIGHTS = {"network": {"w": torch.arange(6.0).view(2, 3), "n": torch.tensor(3)}, "average": {"w": torch.ones(2)}}


def test_what_is_written_is_read(tmp_path: Path) -> None:
    assert checkpoints.load(tmp_path) is None
    place = checkpoints.save(tmp_path, 12, WEIGHTS, {"run": {"a": [1, None]}, "moving": {"t": torch.zeros(2)}})
    assert sorted(file.name for file in place.iterdir()) == [
        "average.safetensors",
        "hashes.json",
        "network.safetensors",
        "state.pt",
    ]
    assert oct(place.stat().st_mode & 0o777) == "0o755"
    found = checkpoints.load(tmp_path)
    assert found is not None
    assert found.step == 12
    assert found.state["run"] == {"a": [1, None]}
    assert found.weights.keys() == WEIGHTS.keys()
    for name, tensors in WEIGHTS.items():
        assert all(torch.equal(found.weights[name][key], tensor) for key, tensor in tensors.items())


def test_how_many_stay(tmp_path: Path) -> None:
    for step in (5, 10, 15, 100):
        checkpoints.save(tmp_path, step, WEIGHTS, {}, keep=2)
    assert [place.name for place in checkpoints.steps(tmp_path)] == ["checkpoint-000000015", "checkpoint-000000100"]
    checkpoints.save(tmp_path, 100, {"network": {}}, {"again": 1}, keep=2)
    found = checkpoints.load(tmp_path)
    assert found is not None
    assert found.state == {"again": 1}
    checkpoints.remove(tmp_path)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("name", ["network.safetensors", "state.pt", "hashes.json"])
def test_a_damaged_one_gives_way_to_the_one_before(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "_shown", True)
    for step in (1, 2):
        place = checkpoints.save(tmp_path, step, WEIGHTS, {"at": step}, keep=2)
    data = bytearray((place / name).read_bytes())
    data[len(data) // 2] ^= 1
    (place / name).write_bytes(data)
    found = checkpoints.load(tmp_path)
    assert found is not None
    assert (found.step, found.state) == (1, {"at": 1})
    assert f"the checkpoint at {place} is damaged" in capsys.readouterr().err
    (tmp_path / "checkpoint-000000001" / "state.pt").unlink()
    with pytest.raises(InputError, match=f"the checkpoint at {place} is damaged"):
        checkpoints.load(tmp_path)


def test_a_write_that_fails_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints.save(tmp_path, 1, WEIGHTS, {})

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match="No space"):
            checkpoints.save(tmp_path, 2, WEIGHTS, {})
    assert [place.name for place in tmp_path.iterdir()] == ["checkpoint-000000001"]
    (tmp_path / ".unfinished-x").mkdir()
    (tmp_path / "weights.unfinished").touch()
    checkpoints.clean(tmp_path)
    assert [place.name for place in tmp_path.iterdir()] == ["checkpoint-000000001"]
