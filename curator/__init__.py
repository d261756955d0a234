"""curator: the data of Noisy Student self-training - stored, selected, balanced, audited and loaded."""

import importlib
from typing import Any

__version__ = "0.1.0"
__all__ = ["ManifestLoader", "ManifestReader", "Store"]

# This module is the front door and the foundation at once: every module imports it before itself. So the names for
# programs are looked up when they are asked for - `import curator` loads nothing, and no module comes before its turn -
# and `__init__.pyi` tells type checkers and editors what they are.
_MODULES = {
    "ManifestLoader": "curator.loading.loader",
    "ManifestReader": "curator.loading.timm_reader",
    "Store": "curator.storage.store",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
