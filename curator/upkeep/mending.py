"""Mending of a store where nothing can be lost by it: what follows from other data is made again.

    an empty last commit        -> taken away; no row was in it
    derived tables              -> emptied in one commit, made again from the labels
    manifests without any file  -> built again by their own lineage; only the same content is taken

What people made is never touched: the rest is named, with the command that mends it.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import deltalake
from deltalake.exceptions import DeltaError

from curator import progress, queries
from curator.curation import building, manifests
from curator.errors import CuratorError
from curator.generations import browse, drift
from curator.generations.derived import Family
from curator.schema import FOLDERS, TABLES
from curator.storage import commit_log, delta
from curator.storage.store import Store
from curator.upkeep import integrity
from curator.upkeep.integrity import Health

_ROUNDS = 3  # what one round mends, another one may find more behind
_BROWSE = {"browse_missing", "browse_rows", "browse_places", "histogram_counts"}
_DRIFT = {"drift_counts", "changes_counts"}


def mend(path: str | Path, pages: bool = True) -> Health:
    """Checks a store, mends what can be mended and checks it again.

    Args:
        path: Its folder or URL.
        pages: Whether to read every page of the tables' files.

    Returns:
        What the last look found, and what was mended before it.

    Raises:
        StoreError: There is no store, or its bucket cannot be read.
    """
    mended: list[str] = []
    health = integrity.examine(path, pages)
    for _ in range(_ROUNDS):
        done = list(_mended(Store(path), health)) if any(f.check != "settings" for f in health.wrong) else []
        if not done:
            break
        mended += done
        health = integrity.examine(path, pages)
    return health._replace(mended=mended)


def _mended(store: Store, health: Health) -> Iterator[str]:
    wrong = {found.check: found.rows for found in health.wrong}
    if "log" in wrong and not store.place.far:
        yield from _commits(store)
    damaged = {row["table"] for check in ("log", "schema", "files", "pages") for row in wrong.get(check, ())}
    if not damaged & {"labels", "images"}:
        if wrong.keys() & _BROWSE or damaged & {*browse.FAMILY.tables}:
            anew = damaged & {*browse.FAMILY.tables} or wrong.keys() & (_BROWSE - {"browse_missing"})
            yield from _again(store, browse.FAMILY, bool(anew))
        if wrong.keys() & _DRIFT or damaged & {*drift.FAMILY.tables}:
            yield from _again(store, drift.FAMILY, True)
    if "manifest_files" in wrong:
        yield from _manifests(store)


def _commits(store: Store) -> Iterator[str]:
    """Takes empty last commits away: the machine stopped while they were written."""
    for name in TABLES:
        log = commit_log.look(store.place, name) if store.place.has(FOLDERS[name]) else None
        if log is not None and log.unfinished is not None:
            (store.path / log.unfinished).unlink()
            yield f"{name}: the empty last commit {log.unfinished} was taken away"


def _again(store: Store, family: Family, anew: bool) -> Iterator[str]:
    """Makes the tables of a family again, after taking away what they hold where it is wrong."""
    keep = browse.keep if family is browse.FAMILY else drift.keep
    try:
        if anew:
            for name in family.tables:
                if store.has(name):
                    _empty(store, name)
        with closing(store.connect()) as con:
            generations = [row["generation"] for row in queries.rows(con, queries.text("generations"))]
        for generation in sorted(generations):
            keep(store, generation)
    except (CuratorError, OSError) as error:
        progress.say(f"{', '.join(family.tables)} not made again ({str(error).splitlines()[0]})")
        return
    yield f"{', '.join(family.tables)}: made again from the labels"


def _empty(store: Store, name: str) -> None:
    """Takes all rows out of a table; one whose log is broken goes whole."""
    place, folder = store.place, FOLDERS[name]
    try:
        opened = deltalake.DeltaTable(place.uri(folder), storage_options=place.options)
        if not commit_log.look(place, name).problems:
            delta.publish(place, opened, [], f"{name} anew", replace=True)
            return
    except DeltaError:
        pass
    for below in (f"{folder}/_delta_log", folder):
        for file in place.names(below):
            place.remove(store.path / below / file)
    shutil.rmtree(store.path / folder, ignore_errors=True)


def _manifests(store: Store) -> Iterator[str]:
    """Builds manifests again of which no file is left."""
    for row in manifests.published(store):
        name = row["name"]
        if store.place.files(row["path"]):
            continue
        try:
            building.build(store, name, {}, as_of=name)
        except (CuratorError, OSError) as error:
            progress.say(f"the manifest '{name}' was not built again ({str(error).splitlines()[0]})")
        else:
            yield f"manifest {name}: built again, with the sha256 that it had"
