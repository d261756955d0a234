"""Two synthetic manifests of one store, to compare: a tenth of the images differ, the others have other classes.

python benchmarks/selection/twins.py STORE ROWS
"""

from __future__ import annotations

import datetime as dt
import json
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from curator.schema import MANIFEST_ROW, MANIFESTS
from curator.storage import additions
from curator.storage.store import Store

CLASSES = 1000
_PART = 4_194_304
# An odd number: multiplied by it, counting numbers become ids in no order, each another.
_SCATTER = np.int64(-7046029254386353131)


def make(path: Path, rows: int) -> None:
    """Makes the store with its manifests a and b."""
    store = Store.create(path, [f"class{i:04d}" for i in range(CLASSES)])
    for name, shift in (("a", 0), ("b", rows // 10)):
        folder = store.path / "manifests" / name
        folder.mkdir(parents=True)
        for number, start in enumerate(range(0, rows, _PART)):
            places = np.arange(start, min(start + _PART, rows))
            pq.write_table(_rows(places, shift, rows), folder / f"part-{number:05d}.parquet", row_group_size=122_880)
        parameters = {"generation": 0, "per_class": rows // CLASSES}
        lineage = {"tables": {}, "parameters": parameters, "classes": [], "funnel": {}}
        row = {
            **{"name": name, "path": f"manifests/{name}", "generation": 0, "per_class": rows // CLASSES},
            **{"rows": rows, "unique_images": rows, "sha256": "0", "lineage": json.dumps(lineage)},
            "created_at": dt.datetime.now(dt.UTC),
        }
        additions.append(store, "manifests", pa.Table.from_pylist([row], MANIFESTS.schema))


def _rows(places: np.ndarray, shift: int, rows: int) -> pa.Table:
    n = len(places)
    same = pa.array(np.zeros(n, np.int32))
    known = {
        "image_id": pa.array(((places + shift) * _SCATTER) & np.int64(2**63 - 1)),
        "uri": pa.array(["x"]).take(same),
        "source": pa.array(["pseudo"]).take(same),
        "label": pa.array((places * CLASSES // rows).astype(np.int32)),
        "confidence": pa.array(np.ones(n, np.float32)),
        "copies": pa.array(np.ones(n, np.int32)),
        "weight": pa.array(np.ones(n, np.float32)),
        "generation": same,
    }
    columns = [known.get(column.name, pa.nulls(n, column.type)) for column in MANIFEST_ROW.columns]
    return pa.table(columns, schema=MANIFEST_ROW.schema)


if __name__ == "__main__":
    make(Path(sys.argv[1]), int(sys.argv[2]))
