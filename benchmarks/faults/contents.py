"""What a store holds: its rows, whether the files they name are whole, and files that no commit names.

store --every table at its newest version--> rows as they are, and without times and rates: those repeat
      --manifests.check, weights' hashes, packs.verify--> problems
      --all files - those that the logs name--> leftovers
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

# Tables that are worked out of the labels; they are made when a generation is published, or when a question finds that
# they are not there.
DERIVED = ("drift", "changes", "browse", "histograms")
_TIMES = {"added_at", "created_at", "decided_at", "at", "basis"}
_NUMBERS = ("confidence", "margin", "entropy", "tail", "top_probs")
_RATES = ("images_per_second", "input_bound", "loader_")
_OF_A_PACK = ("pack", "image_id", "byte_length", "width", "height", "content_hash", "source_hash")


class Contents(NamedTuple):
    """What a store holds.

    Attributes:
        raw: The rows of each table, every column.
        rows: The rows without what differs from run to run: times, rates, names of shards.
        problems: What is not whole.
        leftovers: Files that no commit names.
        size: Bytes of the leftovers.
        decisions: What the reviews come to, by image.
        checkpoint: The newest step that a training has kept, over all models; -1 for none.
        staged: Rows of labels that are written and not published.
        numbers: The numbers of each label, by generation and image. A picture's neighbours in its batch may change
            their last bits, and a run that goes on may have other batches.
    """

    raw: dict[str, list[str]]
    rows: dict[str, list[str]]
    problems: list[str]
    leftovers: list[str]
    size: int
    decisions: list[str]
    checkpoint: int
    staged: int
    numbers: dict[tuple[int, int], list[float]]

    def apart(self, other: Contents) -> float:
        """The largest difference between numbers of labels that both hold."""
        both = self.numbers.keys() & other.numbers.keys()
        pairs = ((self.numbers[key], other.numbers[key]) for key in both)
        return max((abs(a - b) for one, two in pairs for a, b in zip(one, two, strict=True)), default=0.0)

    def of(self, *tables: str) -> dict[str, Counter[str]]:
        """The repeatable rows of tables, counted; of all but the derived ones where none is named."""
        wanted = tables or [name for name in self.rows if name not in DERIVED]
        return {name: Counter(self.rows[name]) for name in wanted}


def read(path: Path) -> Contents:
    """Reads a store; a damaged one raises what the library raises."""
    import pyarrow.parquet as pq

    from curator import queries
    from curator.curation import manifests
    from curator.delivery import packs
    from curator.schema import TABLES
    from curator.storage.store import Store

    store = Store(path)
    raw: dict[str, list[str]] = {}
    rows: dict[str, list[str]] = {}
    problems: list[str] = []
    with closing(store.connect(store.every_version())) as con:
        for name in TABLES:
            found = queries.rows(con, f"select * from stored_{name}")
            raw[name] = sorted(json.dumps(row, default=str) for row in found)
            rows[name] = sorted(json.dumps(_repeatable(name, row), default=str) for row in found if _repeats(name, row))
        decisions = queries.rows(con, queries.compose(queries.steps(*queries.DECISIONS), "from decisions"))
        models = queries.rows(con, "select model, weights, weights_hash from stored_models where weights is not null")
        packed = {row["pack"] for row in queries.rows(con, "select distinct pack from stored_packed")}
        for row in queries.rows(con, "select name from stored_manifests order by name"):
            problems += _of_manifest(con, manifests.find(store, row["name"], con))
    for row in models:
        file = path / row["weights"]
        if not file.is_file() or hashlib.sha256(file.read_bytes()).hexdigest() != row["weights_hash"]:
            problems.append(f"model {row['model']}: its weights are not those that it was registered with")
    for name in packed:
        damaged = packs.verify(store, name).problems
        problems += [f"pack {name}: {each['problem']}" for each in damaged]
    leftovers = sorted(_files(path) - named(path, raw))
    staged = [path / name for name in leftovers if name.startswith("labels/g") and name.endswith(".parquet")]
    steps = [int(file.parent.name.rpartition("-")[2]) for file in path.glob("models/*/checkpoint-*/hashes.json")]
    return Contents(
        raw,
        rows,
        problems,
        leftovers,
        sum((path / name).stat().st_size for name in leftovers),
        sorted(json.dumps(row) for row in decisions),
        max(steps, default=-1),
        sum(pq.read_metadata(file).num_rows for file in staged),
        {(row["generation"], row["image_id"]): _numbers(row) for row in map(json.loads, raw["labels"])},
    )


def _of_manifest(con: Any, manifest: Any) -> list[str]:
    """What `curator check` finds in a manifest."""
    from curator.curation import checks

    verdict = checks.examine(
        con, manifest.name, manifest.path, manifest.unique_images, manifest.sha256, manifest.lineage["parameters"]
    )
    return [f"manifest {verdict.name}: {each.check} {each.rows}" for each in verdict.findings if each.offending]


def named(path: Path, raw: dict[str, list[str]]) -> set[str]:
    """The files that the logs and rows of a store name, and the logs themselves."""
    known = {"store.json"}
    for log in path.glob("*/_delta_log"):
        known |= {file.relative_to(path).as_posix() for file in log.iterdir()}
        for commit in log.glob("*.json"):
            actions = (json.loads(line) for line in commit.read_text().splitlines())
            known |= {f"{log.parent.name}/{unquote(each['add']['path'])}" for each in actions if "add" in each}
    for row in map(json.loads, raw["manifests"]):
        known |= {file.relative_to(path).as_posix() for file in (path / row["path"]).rglob("*")}
    known |= {row["weights"] for row in map(json.loads, raw["models"])}
    known |= {row["shard"] for row in map(json.loads, raw["packed"])}
    known |= {
        file.relative_to(path).as_posix() for file in path.glob("rows/*/*")
    }  # laid out again where they are not whole
    return known


def listing(path: Path) -> dict[str, tuple[int, int]]:
    """Size and time of every file."""
    return {name: ((path / name).stat().st_size, (path / name).stat().st_mtime_ns) for name in _files(path)}


def folder_times(path: Path) -> Callable[[], tuple[int, ...]]:
    """Says when the folders that a store has by now changed, which takes less time than a listing."""
    folders = [path, *(folder for folder in path.rglob("*") if folder.is_dir())]
    return lambda: tuple(folder.stat().st_mtime_ns for folder in folders)


def _files(path: Path) -> set[str]:
    return {file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()}


def _numbers(row: dict[str, Any]) -> list[float]:
    return [*(row[name] for name in _NUMBERS[:-1]), *row["top_probs"]]


def _repeats(table: str, row: dict[str, Any]) -> bool:
    return table != "metrics" or not row["name"].startswith(_RATES)


def _repeatable(table: str, row: dict[str, Any]) -> dict[str, Any]:
    row = {name: value for name, value in row.items() if name not in _TIMES}
    if table == "labels":
        return {name: value for name, value in row.items() if name not in _NUMBERS}
    if table == "packed":
        return {name: row[name] for name in _OF_A_PACK}
    if table == "models" and row["metrics"]:
        figures = json.loads(row["metrics"])
        row["metrics"] = {name: value for name, value in figures.items() if not name.startswith(_RATES)}
    return row
