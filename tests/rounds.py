"""A plan of two rounds for the tiny picture world, and a world for it."""

import hashlib
import shutil
from pathlib import Path

import pytest
from pictures import RECIPE, world

from curator.errors import InputError
from curator.rounds import evolution
from curator.storage.store import Store

# A network that starts fast and learns fast enough to tell the classes apart.
FAST = RECIPE.replace("test_resnet", "pictures:Slow").replace("3e-3", "3e-2").replace("steps = 20", "steps = 40")
PLAN = """\
title = "two rounds and a control"

[teacher]
recipe = "recipe.toml"

[selection]
per_class = 12
min_confidence = 0.35

[[rounds]]
recipe = "recipe.toml"
changes = ["noise.flip=0.0"]
selection = { policy = "percentile", settings = { step = 0.4 } }
control = "labels-only"

[[rounds]]
recipe = "recipe.toml"
pseudo_ratio = 3
init = "teacher"
reselect = false
"""


def planned(root: Path, text: str = PLAN) -> str:
    """Writes plan and recipe beside the store."""
    (root / "recipe.toml").write_text(FAST, "utf-8")
    (root / "plan.toml").write_text(text, "utf-8")
    return str(root / "plan.toml")


def undone(root: Path) -> Path:
    """More pictures than one batch of labeling takes, and nothing done."""
    world(root, labeled=6, pool=24, holdout=6)
    planned(root)
    return root


def copy(root: Path, to: Path) -> Store:
    shutil.copytree(root, to / "world")
    return Store(to / "world" / "store")


def everything(root: Path) -> dict[str, str]:
    """Every file below a folder with the hash of its bytes."""
    files = (path for path in root.rglob("*") if path.is_file())
    return {path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def refused(store: Store, text: str) -> str:
    """What is said against a plan; nothing may be written."""
    before = everything(store.path)
    with pytest.raises(InputError) as error:
        evolution.evolve(store, planned(store.root, text))
    assert everything(store.path) == before
    return str(error.value)
