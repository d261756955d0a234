"""TensorBoard's event files: what the metrics table has, read back with TensorBoard's own reader, over stops too."""

import builtins
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Answer
from pictures import OWN, Watched, teach
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from curator.errors import InputError
from curator.storage.store import Store

WATCHED = [*OWN, "schedule.steps=8", "evaluation.every=3"]


@pytest.fixture(scope="module")
def made(taught_once: Store) -> Store:
    return taught_once


def points(folder: Path) -> list[tuple[str, int, float]]:
    """What TensorBoard shows: name, step and value, in no order."""
    reader = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    reader.Reload()
    return sorted((name, e.step, e.value) for name in reader.Tags()["scalars"] for e in reader.Scalars(name))


def kept(store: Store, model: str) -> list[tuple[str, int, float]]:
    """What the metrics table has, but for figures of the machine's speed, in the float32 of an event."""
    query = "select name, step, value::FLOAT::DOUBLE as value from metrics where model = $m"
    return sorted((r["name"], r["step"], r["value"]) for r in store.rows(query, m=model))


def test_event_files_say_what_the_table_says(store: Store, tmp_path: Path, curator: Callable[..., Answer]) -> None:
    arguments = ["--recipe", store.root / "recipe.toml", "--store", store.path, "--name", "a"]
    for change in WATCHED:
        arguments += ["--set", change]
    answer = curator("train", *arguments, "--tensorboard", tmp_path / "events")
    assert answer.code == 0, answer.err
    found = points(tmp_path / "events" / "a")
    assert found == kept(store, "a")
    names = {name for name, *_ in found}
    assert names >= {
        "loss",
        "learning_rate",
        "holdout_top1",
        "holdout_top5",
        "holdout_ece",
        "top1",
        "images_per_second",
    }
    assert [step for name, step, _ in found if name == "holdout_top1"] == [3, 6, 8]
    assert [file.name for file in (tmp_path / "events").iterdir()] == ["a"]


def test_a_resumed_run_does_not_contradict_itself(store: Store, tmp_path: Path) -> None:
    """It was killed some steps after its last checkpoint, and its figures then are those of another course."""
    events = tmp_path / "events"
    Watched.stop_at = 5
    with pytest.raises(KeyboardInterrupt):
        teach(store, *WATCHED, name="late", checkpoint_seconds=0, tensorboard=events)
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(events / "late"), purge_step=5) as writer:  # steps that no checkpoint has
        for step in range(5, 9):
            writer.add_scalar("holdout_top1", 0.99, step)
            writer.add_scalar("loss", 99.0, step)
    Watched.stop_at = -1
    teach(store, *WATCHED, name="late", resume=True, tensorboard=events)
    found = points(events / "late")
    assert found == kept(store, "late")
    assert len({(name, step) for name, step, _ in found}) == len(found)


def test_a_run_from_the_beginning_hides_an_earlier_one(store: Store, tmp_path: Path) -> None:
    events = tmp_path / "events"
    Watched.stop_at = 4
    with pytest.raises(KeyboardInterrupt):
        teach(store, *WATCHED, name="x", tensorboard=events)
    Watched.stop_at = -1
    assert {step for _, step, _ in points(events / "x")} == {1, 3}  # on the disk, though no checkpoint was written
    teach(store, *WATCHED, "seed=1", name="x", tensorboard=events)
    assert points(events / "x") == kept(store, "x")


def test_without_the_package(store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    real = builtins.__import__

    def missing(name: str, *more: Any) -> Any:
        if name.split(".")[0] == "tensorboard":
            raise ModuleNotFoundError("No module named 'tensorboard'")
        return real(name, *more)

    for name in [name for name in sys.modules if name.startswith("torch.utils.tensorboard")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(InputError, match=r"mend: pip install 'curator\[tensorboard\]'"):
        teach(store, *WATCHED, name="x", tensorboard=tmp_path / "events")
    assert not (store.path / "models" / "x").exists()
    assert not (tmp_path / "events").exists()
    teach(store, *OWN, "schedule.steps=1", name="x")


def test_a_folder_that_cannot_be_written(store: Store, tmp_path: Path, curator: Callable[..., Answer]) -> None:
    (tmp_path / "file").touch()
    arguments = ["--recipe", store.root / "recipe.toml", "--store", store.path, "--set", OWN[0], "--name", "x"]
    answer = curator("train", *arguments, "--tensorboard", tmp_path / "file")
    assert (answer.code, answer.out) == (2, "")
    assert "Traceback" not in answer.err
    assert str(tmp_path / "file") in answer.err
    assert curator("train", *arguments).code == 0
