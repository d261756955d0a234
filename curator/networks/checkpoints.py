"""Checkpoints of a run: weights and state of one step in a folder, whole or not at all, with the hash of each file.

    MODEL/checkpoint-000000120/{network,average}.safetensors   state.pt (optimiser, step, identity)   hashes.json
          best-000000100/network.safetensors                   state.pt (figures on the holdout)      hashes.json

A folder is written beside its place, synced and renamed, so a kill leaves the one before. A run goes on from the newest
checkpoint that is whole, and with the best weights up to it.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch

from curator import progress
from curator.errors import InputError

_PREFIX, _BEST, _STATE, _HASHES = "checkpoint-", "best-", "state.pt", "hashes.json"
Tensors = dict[str, torch.Tensor]


class Checkpoint(NamedTuple):
    """What a run goes on from.

    Attributes:
        step: Steps that were done.
        weights: State dictionaries by name, e.g. "network" and "average".
        state: What `save` was given.
    """

    step: int
    weights: dict[str, Tensors]
    state: dict[str, Any]


def save(folder: Path, step: int, weights: dict[str, Tensors], state: dict[str, Any], keep: int = 1) -> Path:
    """Writes a checkpoint, then removes all but the newest.

    Args:
        folder: Of the run.
        step: Steps that are done.
        weights: State dictionaries by name.
        state: Plain values and tensors: what `torch.load` reads with `weights_only`.
        keep: Checkpoints that stay.

    Raises:
        OSError: The disk is full; the checkpoints before are still there.
    """
    place = folder / f"{_PREFIX}{step:09}"
    _write(place, weights, state)
    for old in steps(folder)[:-keep]:
        shutil.rmtree(old)
    _leave_bests(folder)
    return place


def save_best(folder: Path, step: int, weights: Tensors, figures: dict[str, float]) -> Path:
    """Writes the best weights so far; of those before, the ones stay that a checkpoint goes on with.

    Args:
        folder: Of the run.
        step: Steps that are done.
        weights: What would be registered.
        figures: What makes them the best.

    Raises:
        OSError: The disk is full; those before are still there.
    """
    place = folder / f"{_BEST}{step:09}"
    _write(place, {"network": weights}, figures)
    _leave_bests(folder)
    return place


def _write(place: Path, weights: dict[str, Tensors], state: dict[str, Any]) -> None:
    folder = place.parent
    beside = Path(tempfile.mkdtemp(prefix=".unfinished-", dir=folder))
    try:
        for name, tensors in weights.items():
            write_tensors(tensors, beside / f"{name}.safetensors")
        try:
            torch.save(state, beside / _STATE)
        except RuntimeError as error:  # how torch reports that the disk is full
            raise (error.__context__ if isinstance(error.__context__, OSError) else error) from None
        hashes = {file.name: synced(file) for file in sorted(beside.iterdir())}
        (beside / _HASHES).write_text(json.dumps(hashes), "utf-8")
        synced(beside / _HASHES)
        beside.chmod(0o755)
        if place.exists():  # of a run that took the same step before
            shutil.rmtree(place)
        beside.rename(place)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def steps(folder: Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    return sorted(folder.glob(f"{_PREFIX}*"))


def bests(folder: Path) -> list[Path]:
    """The best weights that are kept of a run, oldest first, which is worst first."""
    return sorted(folder.glob(f"{_BEST}*"))


def _leave_bests(folder: Path) -> None:
    """Removes all best weights but the newest, and for each checkpoint the newest that are not after it."""
    there = bests(folder)
    before = [[best for best in there if _step(best) <= _step(place)] for place in steps(folder)]
    for old in {*there} - {each[-1] for each in [there, *before] if each}:
        shutil.rmtree(old)


def _step(place: Path) -> int:
    return int(place.name.rpartition("-")[2])


def load(folder: Path) -> Checkpoint | None:
    """The newest checkpoint that is whole, or None where there is none at all.

    Raises:
        InputError: There are some, and all of them are damaged.
    """
    found = steps(folder)
    for place in reversed(found):
        damage = _damage(place)
        if damage is None:
            return _read(place)
        progress.say(f"the checkpoint at {place} is damaged ({damage})")
    if found:
        raise InputError(
            f"the checkpoint at {found[-1]} is damaged ({damage})", f"rm -r {found[-1]}, and train from the beginning"
        )
    return None


def load_best(folder: Path) -> Checkpoint | None:
    """The newest of the best weights, or None where there are none.

    Raises:
        InputError: They are damaged.
    """
    for place in bests(folder)[-1:]:
        if damage := _damage(place):
            mend = f"rm -r {place}, and go on with --resume and without them"
            raise InputError(f"the best weights at {place} are damaged ({damage})", mend)
        return _read(place)
    return None


def _read(place: Path) -> Checkpoint:
    from safetensors.torch import load_file

    try:
        weights = {file.stem: load_file(file) for file in place.glob("*.safetensors")}
        return Checkpoint(_step(place), weights, torch.load(place / _STATE, weights_only=True))
    except Exception as error:  # its hashes are right, so somebody made it so; torch raises whatever it trips over
        mend = f"if disk and memory are in order, rm -r {place}"
        raise InputError(f"the checkpoint at {place} cannot be read ({reason(error)})", mend) from None


def reason(error: Exception) -> str:
    """Why torch cannot read a file, in a line."""
    if isinstance(error, pickle.UnpicklingError):  # torch's own words advise to read it without the guard
        return "it is damaged, or holds something else than tensors and plain values"
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def take_back(folder: Path, step: int) -> None:
    """Removes best weights from behind a step, which is taken again."""
    for place in bests(folder):
        if _step(place) > step:
            shutil.rmtree(place)


def clean(folder: Path) -> None:
    """Removes what a process that was killed while it wrote has left."""
    for unfinished in [*folder.glob(".unfinished-*"), *folder.glob("*.unfinished")]:
        if unfinished.is_dir():
            shutil.rmtree(unfinished)
        else:
            unfinished.unlink()


def remove(folder: Path, best: bool = True) -> None:
    """Removes all checkpoints of a run, and its best weights where these are not wanted any more."""
    for place in [*steps(folder), *(bests(folder) if best else [])]:
        shutil.rmtree(place)


def write_tensors(tensors: Tensors, path: Path) -> None:
    """Writes a state dictionary as safetensors."""
    from safetensors.torch import save_file

    # Copies, because the format refuses tensors that share memory, as tied weights do.
    save_file(
        {name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()},
        path,
    )
    path.chmod(0o644)  # safetensors writes for the owner alone


def synced(path: Path) -> str:
    """The sha256 of a file that is on the disk when this returns."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()


def _damage(place: Path) -> str | None:
    try:
        hashes = json.loads((place / _HASHES).read_text("utf-8"))
        for name, expected in hashes.items():
            if Path(name).name != name:
                return f"its hashes name {name!r}, which is no file in it"
            with (place / name).open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != expected:
                    return f"{name} has another sha256 than when it was written"
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        return str(error)
    return None
