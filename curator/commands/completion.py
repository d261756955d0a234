"""What a shell offers when TAB is pressed: names that the store holds, and names that come with the tool.

    the words so far --typer--> a parameter --its function here--> what begins with the last word --> the shell

Somebody waits in the middle of a line. So one table is read, without SQL; a store in a bucket is not asked; and what
goes wrong is no answer, because the shell would print a message into the line.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from importlib.resources import files
from typing import TYPE_CHECKING

import typer

from curator.commands import DEFAULT_STORE

if TYPE_CHECKING:
    from curator.storage.store import Store

Offer = Callable[[typer.Context, str], list[str]]


def _offer(known: Callable[[Store], Iterable[object]]) -> Offer:
    """What a parameter is given as `autocompletion`: those of the names in the store that begin with a word."""

    def offer(ctx: typer.Context, incomplete: str) -> list[str]:
        where = ctx.params.get("store") or os.environ.get("CURATOR_STORE") or DEFAULT_STORE
        if "://" in str(where):
            return []
        try:
            from curator.storage.store import Store

            return _beginning(known(Store(where)), incomplete)
        except Exception:
            return []

    return offer


def _shipped(package: str, folder: str, ending: str) -> Offer:
    """The same for files that come with the tool."""

    def offer(ctx: typer.Context, incomplete: str) -> list[str]:
        names = [file.name for file in files(package).joinpath(folder).iterdir()]
        return _beginning((name.removesuffix(ending) for name in names if name.endswith(ending)), incomplete)

    return offer


def _beginning(names: Iterable[object], incomplete: str) -> list[str]:
    return sorted({str(name) for name in names if str(name).startswith(incomplete)})


def _column(store: Store, table: str, column: str) -> Iterable[object]:
    import pyarrow.parquet as pq

    for path in store.files(table):
        with pq.ParquetFile(path) as file:  # read_table would import pandas, which takes longer than all the rest
            yield from file.read([column])[column].to_pylist()


def _generations(store: Store) -> Iterable[object]:
    """Those that have labels, from the statistics of the table: a file has one generation."""
    yield from store.delta("labels").get_add_actions(flatten=True)["min.generation"].to_pylist()


manifests = _offer(lambda store: _column(store, "manifests", "name"))
models = _offer(lambda store: _column(store, "models", "model"))
classes = _offer(lambda store: _column(store, "classes", "class_name"))
generations = _offer(_generations)
recipes = _shipped("curator.models", "", ".toml")
plans = _shipped("curator.models", "plans", ".toml")
policies = _shipped("curator.sql", "policies", ".sql")
