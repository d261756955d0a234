"""What nothing in a store references: found by name, age and the logs, told by kind, and removed.

    every file and its time --then--> logs of all tables, rows of models, manifests, packs --> of each file: what it is
        --> referenced, unknown, or a leftover of a kind --> removed under the lock of its folder

The files are listed first and the logs are read after that. A file that was listed and committed in between is seen as
referenced. A file that is committed after the logs were read was there, whole, when the files were listed; who writes
it commits within seconds of its last byte, or of its renaming, so it was younger than any age that is allowed here
(FLOOR). Only labels may wait longer for their commit: their folder is locked, and they count as unfinished work.

A table's file is referenced if any commit or checkpoint of its log names it, as added or as taken away: a version that
can be read still is one that the log tells of, and lineages pin old ones.
"""

from __future__ import annotations

import json
import re
import stat
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from typing import NamedTuple
from urllib.parse import unquote

import pyarrow.parquet as pq

from curator import queries
from curator.errors import InputError, StoreError
from curator.lock import unless_held
from curator.schema import FOLDERS, TABLES
from curator.storage import commit_log
from curator.storage.place import Place
from curator.storage.store import Store

DAY = 86_400.0
# Seconds. Less may strike a file between its last byte and its commit.
FLOOR = 3_600.0
_UNITS = {"s": 1.0, "m": 60.0, "h": 3_600.0, "d": DAY, "w": 7 * DAY}
# Work that a later command goes on from.
UNFINISHED = ("unfinished label parts", "unfinished models", "unfinished folds")
UNKNOWN = "unknown"
_WRITING = "half-written files"  # by a writer that was killed
_COPIES = "working copies"  # of a bucket's tables, which are read where they are
_PARTS = "label parts"
_AT_ONCE = 16  # commits read at a time: in a bucket each one is a request
_OWN_LOCK = {"labels", "packs", "models", "folds"}  # folders whose folders are locked, each by itself
# Names that curator and deltalake give. What has another name is nobody's.
_TRAINING = r"(checkpoint|best)-\d{9}/(\w+\.safetensors|state\.pt|hashes\.json)|([0-9a-f]{12}/)?weights\.safetensors"
_LOG = r"\d{20}\.(json|crc|checkpoint(\..+)?\.parquet)|_last_checkpoint"
_FILE = r"part-\d{5}-[0-9a-f-]{36}-c\d{3}(\.\w+)?\.parquet|[0-9a-f]{32}\.parquet"
_HALF = r"(_delta_log/)?[^/]+\.(json|parquet)#\d+|_delta_log/_commit_[0-9a-f-]+\.json\.tmp"
_LABELS = r"g(\d{3,})-(.+)-([0-9a-f]{12}|outside)/part-[^/]+\.(parquet|unfinished)"
_IMPORT = r"\.import-g\d{3,}-\w+/part-[^/]+\.(parquet|unfinished)"
_ROWS = r"(\.unfinished-)?[^/]+/(records|uris|runs\.npy|about\.json)"
_MANIFEST = r"([0-9a-f]{12}/)?(part-\d{5,}\.parquet|_lineage\.json)"
_SHARD = r"\d{6}(-[0-9a-f]{8})?\.tar"
_MAKING = rf"\.({'|'.join(FOLDERS.values())})\.-\w+/.+"


class Leftover(NamedTuple):
    """A file that nothing references."""

    name: str  # below the place
    kind: str
    bytes: int
    time: float
    place: Place  # of a store in a bucket, the bucket or the working folder


class Found(NamedTuple):
    """What a look at a store found.

    Attributes:
        leftovers: What may be removed.
        unfinished: What may be removed if the work is given up.
        unknown: Files that are none of curator's.
    """

    leftovers: list[Leftover]
    unfinished: list[Leftover]
    unknown: list[Leftover]


class _Named(NamedTuple):
    """What the tables name."""

    files: dict[str, set[str]]  # of each table's folder
    manifests: set[str]  # folders
    sha256s: set[str]
    models: dict[str, tuple[str | None, str]]  # weights and their hash, by name
    shards: set[str]
    folds: dict[str, set[int]]  # labeled ones, by run


def seconds(text: str) -> float:
    """An age as it is typed: 12h, 7d.

    Raises:
        InputError: It is none.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw])", text.strip())
    if found is None:
        raise InputError(f"--older-than {text} is no age", "a number and s, m, h, d or w, e.g. 12h or 7d")
    return float(found[1]) * _UNITS[found[2]]


def expect_age(older_than: float) -> None:
    """Makes sure that what is that old is about to be committed by no command that runs.

    Raises:
        InputError: It may be.
    """
    if older_than < FLOOR:
        raise InputError(
            f"--older-than is less than {FLOOR / 3600:g}h, and a command that runs may be about to commit such files",
            f"--older-than {FLOOR / 3600:g}h, or add --alone if nothing else uses the store, on any machine",
        )


def find(store: Store, older_than: float = DAY, now: float | None = None) -> Found:
    """Looks for what nothing references.

    Args:
        store: The store.
        older_than: Seconds; what changed since is left out, as is what lies in a folder that is locked.
        now: The time, in seconds since 1970.

    Raises:
        StoreError: A log is damaged, so that nobody can tell what it names.
    """
    now = time.time() if now is None else now
    places = [store.place, Place(store.place.work)] if store.place.far else [store.place]
    listed = [(place, list(place.entries())) for place in places]  # before the logs are read
    named = _read(store)
    found: dict[str, list[Leftover]] = defaultdict(list)
    for place, entries in listed:
        changed: dict[str, float] = defaultdict(float)
        for name, _, when in entries:
            changed[_unit(name)] = max(changed[_unit(name)], when)
        for name, size, when in entries:
            kind = _kind(name, named)
            if not kind and place is not store.place and re.fullmatch(rf"\w+/({_FILE})", name):
                kind = _COPIES
            if kind and not place.far and (place.work / name).is_symlink():
                kind = UNKNOWN
            if kind and (kind == UNKNOWN or now - changed[_unit(name)] >= older_than):
                found[kind].append(Leftover(name, kind, size, when, place))
    for part in _told_apart(store, found.pop(_PARTS, []), named):
        found[part.kind].append(part)
    unknown = found.pop(UNKNOWN, [])
    with ExitStack() as held:
        free = _hold(store, (each.name for several in found.values() for each in several), held)
    kinds = {kind: [each for each in several if _lock(each.name) in free] for kind, several in sorted(found.items())}
    unfinished = [each for kind, several in kinds.items() if kind in UNFINISHED for each in several]
    return Found([each for kind in kinds if kind not in UNFINISHED for each in kinds[kind]], unfinished, unknown)


def remove(store: Store, found: Sequence[Leftover]) -> list[Leftover]:
    """Removes files under the locks of their folders; what is locked, referenced or changed by now stays.

    Stopped at any file, it has removed those before, and a later call finds the rest.

    Args:
        store: The store.
        found: Some of what `find` found.

    Returns:
        Those that are gone.
    """
    with ExitStack() as held:
        free = _hold(store, (each.name for each in found), held)
        named = _read(store) if found else None  # a label run may have gone on, and have ended, since they were found
        return [
            each
            for each in found
            if named is not None
            and _lock(each.name) in free
            and (each.kind == _COPIES or _kind(each.name, named) not in ("", UNKNOWN))
            and _remove(each)
        ]


def _remove(each: Leftover) -> bool:
    """Removes a file, and the folders that are empty then; whether it was as it had been found."""
    place, path = each.place, each.place.work / each.name
    if not place.far:
        try:
            state = path.lstat()
        except FileNotFoundError:
            return False
        inside = path.parent.resolve().is_relative_to(place.work.resolve())
        if not inside or not stat.S_ISREG(state.st_mode) or max(state.st_mtime, state.st_ctime) != each.time:
            return False
    place.remove(path)
    # A folder that is locked by its name stays, because another process may be about to lock it.
    for folder in path.parents:
        if place.far or folder in (place.work, place.work / _lock(each.name)):
            break
        try:
            folder.rmdir()
        except OSError:
            break
    return True


def _unit(name: str) -> str:
    """What is as young as the youngest file in it: a folder of a manifest, model, generation, ...; else the file."""
    parts = name.split("/")
    return name if len(parts) > 1 and parts[1] == "_delta_log" else "/".join(parts[: 1 if name.startswith(".") else 2])


def _lock(name: str) -> str:
    """The folder whose lock says that a file is in use."""
    parts = name.split("/")
    return "/".join(parts[: 2 if parts[0] in _OWN_LOCK and len(parts) > 2 else 1])


def _hold(store: Store, names: Iterable[str], held: ExitStack) -> set[str]:
    """Holds the locks of files that nobody else holds, by the names of their folders."""
    free = set()
    for lock in sorted({_lock(name) for name in names}):
        ranks = (store.path / lock).glob("rank-*")  # of a run whose first process was killed, and others were not
        if all(held.enter_context(unless_held(folder)) for folder in (store.path / lock, *ranks)):
            free.add(lock)
    return free


def _read(store: Store) -> _Named:
    """What the tables name, at this moment."""
    there = [name for name in TABLES if store.has(name)]
    with closing(store.connect()) as con:
        manifests = queries.rows(con, "select path, sha256 from stored_manifests")
        models = queries.rows(con, "select model, weights, weights_hash from stored_models")
        shards = queries.rows(con, "select distinct shard from stored_packed")
        folds = queries.rows(con, "select run, list(distinct fold) as folds from stored_held_out group by run")
    return _Named(
        {FOLDERS[name]: _named_by_log(store.place, name) for name in there},
        {row["path"] for row in manifests},
        {row["sha256"] for row in manifests},
        {row["model"]: (row["weights"], row["weights_hash"]) for row in models},
        {row["shard"] for row in shards},
        {row["run"]: {*row["folds"]} for row in folds},
    )


def _named_by_log(place: Place, table: str) -> set[str]:
    """The files that a table's log names, in any version that it tells of."""
    if problems := commit_log.look(place, table).problems:
        what = f"the log of the table '{table}' is damaged ({problems[0]['file']} {problems[0]['problem']})"
        raise StoreError(f"{what}, so nobody can tell what it references", "curator doctor says what to do")
    folder = f"{FOLDERS[table]}/_delta_log"
    names = [f"{folder}/{name}" for name in place.names(folder)]
    found: set[str] = set()
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for data in pool.map(place.read, [name for name in names if name.endswith(".json")]):
            actions = [json.loads(line) for line in data.splitlines()]
            found |= {action[kind]["path"] for action in actions for kind in ("add", "remove") if kind in action}
    for name in names:
        if name.endswith(".parquet"):
            with place.afresh(name) as opened, pq.ParquetFile(opened, pre_buffer=False) as file:
                for batch in file.iter_batches(columns=["add.path", "remove.path"]):
                    for row in batch.to_pylist():
                        found |= {action["path"] for action in row.values() if action and action["path"]}
    return {unquote(path) for path in found}


def _kind(name: str, named: _Named) -> str:
    """The kind of leftover that a file is; empty for one that is referenced, UNKNOWN for one of nobody."""
    top, _, rest = name.partition("/")
    folder, _, file = rest.partition("/")
    if name == "store.json":
        return ""
    if re.fullmatch(_MAKING, name) or re.fullmatch(r"\.probe-[0-9a-f]{32}", name):
        return _WRITING
    if top in named.files:
        return _kind_in_table(rest, named.files[top], top == "labels")
    if top == "manifests" and re.fullmatch(_MANIFEST, file):
        if folder.startswith("."):
            return _WRITING
        return "" if name.rpartition("/")[0] in named.manifests else "manifests"
    if top == "rows" and re.fullmatch(_ROWS, rest):
        if folder.startswith("."):
            return _WRITING
        return "" if folder[:64] in named.sha256s else "rows"
    if top == "packs" and re.fullmatch(rf"{_SHARD}(\.unfinished)?", file):
        return "" if name in named.shards else _WRITING if file.endswith(".unfinished") else "packs"
    if top == "models":
        return _kind_in_model(name, file, named.models.get(folder), "models")
    if top == "folds" and file == "run.json":
        return "" if folder in named.folds else "unfinished folds"
    if top == "folds" and file == "run.unfinished":
        return _WRITING
    if top == "folds":
        number, _, inside = file.partition("/")
        kind = _kind_in_model(name, inside, None, "folds")
        done = number.isdecimal() and int(number) in named.folds.get(folder, set())
        return "folds" if done and kind == "unfinished folds" else kind
    return UNKNOWN


def _kind_in_table(rest: str, referenced: set[str], labels: bool) -> str:
    if rest in referenced or (rest.startswith("_delta_log/") and re.fullmatch(_LOG, rest.partition("/")[2])):
        return ""
    if re.fullmatch(_HALF, rest) or (labels and re.fullmatch(_IMPORT, rest)):
        return _WRITING
    if labels and re.fullmatch(_LABELS, rest):
        return _PARTS if rest.endswith(".parquet") else _WRITING
    return "table files" if re.fullmatch(_FILE, rest) else UNKNOWN


def _kind_in_model(name: str, file: str, registered: tuple[str | None, str] | None, what: str) -> str:
    """The kind of a file of a training; the best weights of one that ended stay, where it was told to keep others."""
    if re.fullmatch(r"\.unfinished-\w+/[^/]+|[^/]+\.unfinished", file):
        return _WRITING
    if not re.fullmatch(_TRAINING, file):
        return UNKNOWN
    if registered is None:
        return f"unfinished {what}"
    if name == registered[0] or file.startswith("best-"):
        return ""
    return "checkpoints" if file.startswith("checkpoint-") else "weights"


def _told_apart(store: Store, parts: list[Leftover], named: _Named) -> Iterator[Leftover]:
    """Label parts, with whether a later run goes on from them: if the model is there and none of their images labeled.

    That is how `labeling` tells parts that another run was faster with.
    """
    if not parts:
        return
    query = "select 1 from ids join stored_labels using (image_id) where stored_labels.generation = $generation limit 1"
    with closing(store.connect()) as con:
        for part in parts:
            found = re.fullmatch(_LABELS, part.name.partition("/")[2])
            assert found is not None
            generation, model, weights = int(found[1]), found[2], found[3]
            late = named.models.get(model, ("", ""))[1][:12] != weights
            if not late:
                with part.place.open(part.place.work / part.name) as file:
                    con.register("ids", pq.read_table(file, columns=["image_id"]))
                late = bool(queries.rows(con, query, generation=generation))
            yield part._replace(kind=_PARTS if late else f"unfinished {_PARTS}")
