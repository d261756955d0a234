"""All targets, in the order of the table; a process imports the module of its own only, for torch takes its time."""

from __future__ import annotations

from importlib import import_module

from .target import Target

MODULES = {
    "tables": ("soft labels", "listings", "label files", "listings, added", "label files, added"),
    "archives": ("tar shards",),
    "pictures": ("pictures",),
    "texts": ("recipes", "plans", "class files", "decisions", "names", "command lines"),
    "statements": ("curator sql", "--where", "policies"),
    "weights": ("weights", "checkpoints"),
    "stores": ("store.json", "lineage", "table logs"),
}
NAMES = [name for names in MODULES.values() for name in names]


def named(name: str) -> Target:
    """A target by its name."""
    module = next(module for module, names in MODULES.items() if name in names)
    found: Target = import_module(f"fuzz.{module}").TARGETS[MODULES[module].index(name)]
    assert found.name == name, found.name
    return found
