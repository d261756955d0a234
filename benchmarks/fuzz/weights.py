"""Weights and checkpoints: changed safetensors, pickles that run something, zip files that are none."""

from __future__ import annotations

import functools
import hashlib
import io
import json
import os
import pickle
import random
import shutil
import warnings
import zipfile
from collections import OrderedDict
from typing import Any

import torch
from hypothesis import strategies as st
from safetensors.torch import save

from curator.networks import checkpoints, network, recipes

from .target import Target, mutate, mutated
from .world import World

_RECIPE = ["network.architecture=fuzz.weights:small"]
_ENDINGS = (".safetensors", ".pt", ".pth")


def small(num_classes: int) -> torch.nn.Module:
    """A network of one layer."""
    return torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(3, num_classes))


@functools.cache
def _network() -> tuple[network.Network, recipes.Recipe]:
    recipe = recipes.load("tiny-teacher", _RECIPE)[1]
    return network.build(recipe, 3), recipe


class Runs:
    """A pickle of it runs a program."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self._made_by = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self._made_by


def _runs() -> list[object]:
    return [
        Runs(os.system, "touch pickled"),
        Runs(eval, "open('pickled', 'w').write('x')"),
        Runs(exec, "import os; os.mkdir('pickled')"),
        Runs(open, "outside.csv"),
        Runs(getattr, os, "getcwd"),
        Runs(shutil.rmtree, "nowhere"),
        Runs(torch.load, "x"),
        Runs(bytearray, 1 << 40),
    ]


def _torch_file(value: object, old: bool = False) -> bytes:
    out = io.BytesIO()
    torch.save(value, out, _use_new_zipfile_serialization=not old)
    return out.getvalue()


def _state() -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in _network()[0].body.state_dict().items()}


# Weights to begin with: the first byte of an input says which ending its file gets


def _begin(world: World, data: bytes) -> None:
    file = world.given / f"weights{_ENDINGS[data[0] % 3 if data else 0]}"
    file.write_bytes(data[1:])
    made, recipe = _network()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network.begin_from(world.store, str(file), made, recipe)


@functools.cache
def _weight_seeds() -> list[bytes]:
    state = _state()
    odd: list[object] = [
        *([1, 2], "text", None, 1.5, {}, {1: 2}, {"state_dict": [1]}, {"2.weight": 1, "2.bias": "x"}, torch.zeros(3)),
        *(OrderedDict(state), {"state_dict": state}, {"body." + name: tensor for name, tensor in state.items()}),
        *({**state, 3: torch.zeros(1)}, {name: tensor.half() for name, tensor in state.items()}, {None: None}),
        *(
            {name: tensor.to_sparse() for name, tensor in state.items()},
            {"2.weight": torch.zeros(2**10, 1).expand(-1, 9)},
        ),
        *({"state_dict": {"state_dict": state}}, {("a",): state}, {name: t.to("meta") for name, t in state.items()}),
    ]
    files = [b"\0" + save(state), b"\0" + save({"body." + name: tensor for name, tensor in state.items()})]
    files += [b"\1" + _torch_file(value) for value in [state, *odd]]
    return files + [b"\1" + _torch_file(value, old=True) for value in (state, [1])]


@functools.cache
def _hostile() -> list[bytes]:
    found = []
    for thing in _runs():
        for protocol in (0, 2, 4):
            try:
                pickled = pickle.dumps(thing, protocol)
            except (pickle.PicklingError, TypeError, ValueError):
                continue
            found.append(b"\1" + pickled)
            out = io.BytesIO()
            with zipfile.ZipFile(out, "w") as archive:
                archive.writestr("archive/data.pkl", pickled)
                archive.writestr("archive/version", "3\n")
            found.append(b"\2" + out.getvalue())
    deep = b"\x80\2" + b"]" * 5000 + b"a" * 4999 + b"."
    huge = io.BytesIO()
    with zipfile.ZipFile(huge, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\x80\2" + b"N0" * 10**7 + b"N.")
        archive.writestr("../../pickled", "x")
    return [*found, b"\1" + deep, b"\1" + huge.getvalue()]


@st.composite
def _headers(draw: st.DrawFn) -> bytes:
    """A safetensors file with a drawn header."""
    number = st.sampled_from([0, 1, 3, 12, 36, -1, 2**31, 2**63, 2**64, 1.5, "1", None])
    tensor = st.fixed_dictionaries(
        {
            "dtype": st.sampled_from(["F32", "F16", "BF16", "I64", "F8_E4M3", "BOOL", "X", "", 1]),
            "shape": st.lists(number, max_size=3) | st.just([3, 3]),
            "data_offsets": st.lists(number, min_size=1, max_size=3) | st.sampled_from([[0, 12], [12, 48], [48, 0]]),
        }
    )
    names = st.sampled_from(["2.weight", "2.bias", "__metadata__", "", "\0", "body.2.weight", "x" * 1000])
    head = draw(st.dictionaries(names, tensor | number, max_size=3))
    text = json.dumps(head).encode() if draw(st.booleans()) else b"[" * draw(st.integers(0, 3000))
    length = draw(st.sampled_from([len(text), len(text), len(text), 0, 2**63, 2**64 - 1, 100_000_001]))
    return b"\0" + length.to_bytes(8, "little") + text + b"\0" * draw(st.sampled_from([0, 12, 48, 5000]))


def _repickled(seed: int) -> bytes:
    """A file of torch whose pickle was changed, with the checksums right again."""
    rng, out = random.Random(seed), io.BytesIO()
    source = rng.choice([data for data in _weight_seeds() if data[1:3] == b"PK"])
    with zipfile.ZipFile(io.BytesIO(source[1:])) as before, zipfile.ZipFile(out, "w") as after:
        for name in before.namelist():
            body = before.read(name)
            if name.endswith(".pkl") or rng.random() < 0.1:
                body = mutate(
                    rng, [body or b"\0", pickle.dumps(_runs()[0], 2)] if rng.random() < 0.1 else [body or b"\0"]
                )
            after.writestr(name, body)
    return b"\1" + out.getvalue()


def _weights() -> st.SearchStrategy[bytes]:
    pickled = st.integers(0, 2**64 - 1).map(_repickled)
    return st.one_of(mutated(_weight_seeds()), pickled, _headers(), st.sampled_from(_hostile()), mutated(_hostile()))


# Checkpoints: state.pt or a file of weights, or the hashes; the hashes are right but where they are what was changed


def _checkpoint(world: World, data: bytes) -> None:
    run = world.given / "run"
    shutil.rmtree(run, ignore_errors=True)
    place = run / "checkpoint-000000001"
    place.mkdir(parents=True)
    parts = {"network.safetensors": save(_state()), "state.pt": _torch_file({"step": 1, "run": {}})}
    changed = ["state.pt", "network.safetensors", "hashes.json"][data[0] % 3 if data else 0]
    parts[changed] = data[1:]
    hashes = {name: hashlib.sha256(body).hexdigest() for name, body in parts.items() if name != "hashes.json"}
    for name, body in ({"hashes.json": json.dumps(hashes).encode()} | parts).items():
        (place / name).write_bytes(body)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        checkpoints.load(run)


@functools.cache
def _checkpoint_seeds() -> list[bytes]:
    digest = hashlib.sha256(b"").hexdigest()
    hashes: list[object] = [
        {},
        [],
        {"state.pt": digest},
        {"../../../outside/outside.csv": digest},
        {"\0": 1},
        {"": 1},
        None,
        1,
    ]
    weights = [bytes([1]) + data[1:] for data in _weight_seeds() if data[0] == 0]
    return [b"\0" + _torch_file({"step": 1, "run": {}}), *weights, *(b"\2" + json.dumps(h).encode() for h in hashes)]


def _checkpoints() -> st.SearchStrategy[bytes]:
    states = st.sampled_from(_hostile()).map(lambda data: b"\0" + data[1:])
    nested = st.integers(0, 5000).map(lambda n: b"\2" + b"[" * n)
    pickled = st.integers(0, 2**64 - 1).map(lambda seed: b"\0" + _repickled(seed)[1:])
    weights = _headers().map(lambda data: b"\1" + data[1:])
    return st.one_of(mutated(_checkpoint_seeds()), states, nested, pickled, weights)


TARGETS = [
    Target("weights", _weight_seeds, _weights, _begin, 6000),
    Target("checkpoints", _checkpoint_seeds, _checkpoints, _checkpoint, 3000),
]
