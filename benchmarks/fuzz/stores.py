"""A store that was changed by hand: store.json, the lineage of a manifest, a table's log."""

from __future__ import annotations

import functools
import json
import shutil
from typing import Any

from hypothesis import strategies as st

from curator.curation import manifests
from curator.storage.store import Store

from .target import Target, mutated, odd_text
from .world import World


def _settings(world: World, data: bytes) -> None:
    folder = world.given / "store"
    if not folder.exists():
        shutil.copytree(world.folder / "first", folder)
    (folder / "store.json").write_bytes(data)
    store = Store(folder)
    str(store.root)
    assert store.settings.kept_classes > 0
    store.classes()


def _odd_json(known: dict[str, Any]) -> st.SearchStrategy[bytes]:
    numbers = st.sampled_from([0, -1, 1, 2, 20, 32768, 2**63, 2**70, 1.5, float("nan"), float("inf"), True])
    leaf = st.one_of(st.none(), numbers, odd_text())
    value = st.recursive(
        leaf, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(odd_text(), inner, max_size=2), max_leaves=4
    )
    keys = st.sampled_from([*known]) | odd_text()
    changed = st.tuples(st.dictionaries(keys, value, max_size=3), st.lists(st.sampled_from([*known]), max_size=2)).map(
        lambda given: {key: each for key, each in (known | given[0]).items() if key not in given[1]}
    )
    deep = st.integers(1, 100_000).map(lambda n: b"[" * n)
    return st.one_of(
        (changed | value).map(lambda v: json.dumps(v).encode()), deep, mutated([json.dumps(known).encode()])
    )


_SETTINGS = {"format": 2, "root": "..", "kept_classes": 20}


def _lineage(world: World, data: bytes) -> None:
    row = {**_row(world), "lineage": data.decode("utf-8", "replace")}
    found = manifests._read(world.store, row)
    str(found.short_classes)
    str(found.empty_classes)


@functools.cache
def _row(world: World) -> dict[str, Any]:
    return world.store.rows("select * from manifests where name = 'first'")[0]


@functools.cache
def _lineage_seed() -> dict[str, Any]:
    classes = [{"class_name": "cat", "eligible": 2, "kept": 2, "images": 1}]
    parameters = {"per_class": 2, "min_confidence": 0.0, "policy": "top", "seed": 0}
    return {"tables": {"images": 1, "labels": 1}, "parameters": parameters, "classes": classes, "generation": 0}


def _log(world: World, data: bytes) -> None:
    folder = world.given / "logged"
    if not folder.exists():
        shutil.copytree(world.folder / "first", folder)
    (folder / "images" / "_delta_log" / f"{1:020}.json").write_bytes(data)
    store = Store(folder)
    store.files("images")
    with store.connect() as con:
        con.execute("select count(*) from images").fetchall()


@functools.cache
def _log_seeds() -> list[bytes]:
    add = {
        "path": "part-0.parquet", "partitionValues": {}, "size": 100, "modificationTime": 0, "dataChange": True,
        "stats": json.dumps({"numRecords": 9, "minValues": {}, "maxValues": {}, "nullCount": {}}),
    }  # fmt: skip
    lines = [{"add": add}, {"commitInfo": {"timestamp": 0, "operation": "WRITE"}}]
    lines += [
        {"add": add | {"path": path}}
        for path in ("../../x.parquet", "/etc/hostname", "file:///etc/hostname", "s3://a/b")
    ]
    lines += [
        {"remove": {"path": "x", "dataChange": True}},
        {"protocol": {"minReaderVersion": 99, "minWriterVersion": 99}},
    ]
    return [b"\n".join(json.dumps(line).encode() for line in lines[at : at + 2]) for at in range(len(lines))]


TARGETS = [
    Target("store.json", lambda: [json.dumps(_SETTINGS).encode()], lambda: _odd_json(_SETTINGS), _settings, 2000),
    Target(
        "lineage", lambda: [json.dumps(_lineage_seed()).encode()], lambda: _odd_json(_lineage_seed()), _lineage, 2000
    ),
    Target("table logs", _log_seeds, lambda: mutated(_log_seeds()), _log, 2000),
]
