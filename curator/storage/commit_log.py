"""The log of a table: its commits as they lie in _delta_log, looked at one by one.

    _delta_log/00000000000000000000.json, ...1.json, ...checkpoint.parquet --look--> what is wrong, file by file

A reader of Delta Lake says no more than that it cannot go on, and takes an empty last commit for one that adds nothing.
"""

from __future__ import annotations

import json
import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from curator.schema import FOLDERS
from curator.storage.place import Place

_COMMIT = re.compile(r"(\d{20})\.json")
_CHECKPOINT = re.compile(r"(\d{20})\.checkpoint(\..+)?\.parquet")
# Of Delta Lake's protocol; a line of a commit is one of these.
_ACTIONS = {"add", "remove", "metaData", "protocol", "txn", "commitInfo", "cdc", "domainMetadata"}
_AT_ONCE = 16  # commits read at a time: in a bucket each one is a request


class Log(NamedTuple):
    """What was seen of a table's log.

    Attributes:
        newest: The newest version; -1 where there is none.
        problems: What is wrong with which file: file (below the store), problem.
        unfinished: The file of the last commit if that is empty, as a machine leaves it that stopped while it wrote;
            None otherwise.
    """

    newest: int
    problems: list[dict[str, str]]
    unfinished: str | None


def look(place: Place, table: str) -> Log:
    """Reads the whole log of a table.

    Args:
        place: Where the store lies.
        table: Name of the table; its folder is there.

    Raises:
        StoreError: The bucket cannot be read.
    """
    folder = f"{FOLDERS[table]}/_delta_log"
    names = place.names(folder)
    commits = {int(found[1]): found[0] for found in map(_COMMIT.fullmatch, names) if found}
    checkpoints = {int(found[1]): found[0] for found in map(_CHECKPOINT.fullmatch, names) if found}
    newest = max([*commits, *checkpoints], default=-1)
    missing, lost = _gaps(sorted(commits), sorted(checkpoints))
    problems = [(f"{version:020}.json", "is missing") for version in missing]
    if lost:
        problems.append((f"{lost - 1:020}.json", "and those before are missing, and no checkpoint stands for them"))
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        read = pool.map(lambda name: _wrong(place.read(f"{folder}/{name}")), commits.values())
        problems += [(name, said) for name, said in zip(commits.values(), read, strict=True) if said]
    for name in checkpoints.values():
        if said := _unreadable(place, f"{folder}/{name}"):
            problems.append((name, said))
    if not commits and not checkpoints:
        problems.append(("", "holds no commit"))
    last = commits.get(newest)
    unfinished = f"{folder}/{last}" if last is not None and (last, _EMPTY) in problems else None
    found = [{"file": f"{folder}/{name}".rstrip("/"), "problem": said} for name, said in sorted(problems)]
    return Log(newest, found, unfinished)


def _gaps(commits: list[int], checkpoints: list[int]) -> tuple[list[int], int]:
    """The versions that are missing between others, and the first one if those before it are missed, too.

    Old commits may go once a checkpoint stands for them, from the first one on and without leaving a hole.
    """
    if not commits:
        return checkpoints[-1:], 0
    last = max(commits[-1], *checkpoints[-1:]) if checkpoints else commits[-1]
    missing = sorted(set(range(commits[0], last + 1)) - {*commits})
    covered = any(version >= commits[0] - 1 for version in checkpoints)
    return missing, 0 if covered else commits[0]


_EMPTY = "is empty"


def _wrong(data: bytes) -> str | None:
    """What is wrong with a commit."""
    if not data.strip():
        return _EMPTY
    for number, line in enumerate(data.splitlines(), 1):
        try:
            action: Any = json.loads(line)
        except ValueError:  # not UTF-8 either
            return f"line {number} is no JSON"
        if not isinstance(action, dict) or not action or not action.keys() <= _ACTIONS:
            return f"line {number} is no action of Delta Lake"
    return None


def _unreadable(place: Place, name: str) -> str | None:
    """Why a checkpoint cannot be read."""
    try:
        with place.afresh(name) as opened, pq.ParquetFile(opened, pre_buffer=False) as file:
            for _ in file.iter_batches():
                pass
    except (pa.ArrowException, OSError, ValueError) as error:
        return f"cannot be read ({str(error).splitlines()[0]})"
    return None
