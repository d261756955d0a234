"""What may be called what: paths of stores, classes, models and manifests."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from curator.errors import InputError, StoreError
from curator.schema import TABLES

MOST_CLASSES = 2**15
# What deltalake 1.6 cannot have in the path of a table: it stops with a Rust panic, or looks elsewhere. DuckDB takes
# * and ? for a pattern, which another folder's files may match too.
_UNFIT = re.compile(r"[][*?|^\\\x00-\x1f\x7f\ud800-\udfff]|%[0-9A-Fa-f]{2}")


def check_path(path: Path) -> None:
    """Whether a store may lie at a path.

    Raises:
        StoreError: It is a URL, or deltalake or DuckDB cannot read tables there.
    """
    if re.match(r"\w{2,}:/", str(path)):  # Path makes one slash of two
        raise StoreError(f"'{path}' is a URL that became a path on its way", "give it as text")
    found = _UNFIT.search(str(path.absolute()))
    if found:
        what = f"a store cannot lie at {str(path.absolute())!r}, because of the {found.group()!r} in its path"
        raise StoreError(what, "choose another --store, or rename the folder")


def check_classes(class_names: Sequence[str]) -> None:
    """Whether the names can be the classes of a store, one line of a class file each.

    Raises:
        InputError: A name is empty or repeated, or there are none, or more than 16 bits can number.
    """
    seen: dict[str, int] = {}
    for line, name in enumerate(class_names, start=1):
        if not name:
            raise InputError(f"class {line} has an empty name", "give every class a name, one a line")
        if name in seen:
            raise InputError(
                f"the class '{name}' appears twice, as number {seen[name]} and number {line}",
                "remove one of them from the class file",
            )
        seen[name] = line
    if not seen:
        raise InputError("there are no class names", "write one class name a line into the class file")
    if len(seen) > MOST_CLASSES:
        raise InputError(f"{len(seen)} classes are more than the {MOST_CLASSES} that a store can hold", "merge classes")


def check_name(what: str, name: str) -> None:
    """Names of models and manifests become folders and SQL views, so they are kept plain.

    Raises:
        InputError: The name is empty, too long or holds other characters than letters, digits, '.', '_' and '-'.
    """
    # SQL does not tell upper from lower case
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name) or name.lower().removeprefix("stored_") in TABLES:
        raise InputError(
            f"'{name}' cannot be the name of a {what}",
            "use up to 100 letters, digits, '.', '_' or '-', beginning with a letter or digit, and not a table's name",
        )
