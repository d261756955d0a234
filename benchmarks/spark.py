"""The same manifest by DuckDB and by Spark on one machine: the same rows with every policy, and the time of each.

    a store (selection/pool.py, and a labeled holdout) --each policy, each engine--> sha256, files, seconds

    python benchmarks/spark.py [--rows 1000000 10000000] [--policies NAME ...] [--master 'local[*]'] [--work DIR]
                               [--note TEXT] [--write]

The builds of one size run in one process, one after the other, in one Spark session: its start is a figure of its own,
and so is the first build in it, during which Java still compiles itself. A store takes 110 bytes a row, and Spark as
much again for what it sets aside. --write keeps the tables in benchmarks/results/spark.md.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
from manifest import memory_gib

from curator.curation import building, policies
from curator.storage import additions

sys.path.insert(0, str(Path(__file__).parent / "selection"))

RESULT = Path(__file__).parent / "results" / "spark.md"
HOLDOUT = 50_000


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rows", type=int, nargs="*", default=[1_000_000, 10_000_000])
    options.add_argument("--policies", nargs="*", default=policies.names())
    options.add_argument("--master", default="local[*]")
    options.add_argument("--work", type=Path)
    options.add_argument("--note", default="", help="what else ran on the machine")
    options.add_argument("--write", action="store_true")
    options.add_argument("--fill", nargs=2, metavar=("STORE", "ROWS"), help=argparse.SUPPRESS)
    options.add_argument("--build", nargs=2, metavar=("STORE", "ROWS"), help=argparse.SUPPRESS)
    chosen = options.parse_args()
    if chosen.fill:
        fill(Path(chosen.fill[0]), int(chosen.fill[1]))
        return
    if chosen.build:
        builds(Path(chosen.build[0]), int(chosen.build[1]), chosen.policies, chosen.master)
        return
    found: dict[int, list[dict]] = {}
    with tempfile.TemporaryDirectory(dir=chosen.work, prefix="curator-bench-") as folder:
        for rows in sorted(chosen.rows):
            store = Path(folder) / "store"
            again = [sys.executable, __file__, "--master", chosen.master, "--policies", *chosen.policies]
            subprocess.run([*again, "--fill", str(store), str(rows)], check=True)
            command = [*again, "--build", str(store), str(rows)]
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
                for line in child.stdout or ():
                    print(rows, line, end="", flush=True)
                    found.setdefault(rows, []).append(json.loads(line))
                    if chosen.write and len(found[rows]) > 1:  # after each, since the whole takes long
                        RESULT.write_text(report(found, chosen.master, chosen.note))
            shutil.rmtree(store)
    print(report(found, chosen.master, chosen.note))


def fill(path: Path, rows: int) -> None:
    """Makes the store, in a process of its own: with it a holdout of which the teacher is right the surer it is."""
    import pool
    import pyarrow as pa

    from curator.generations.labels import PartWriter, publish
    from curator.schema import IMAGES
    from curator.storage.store import Store

    pool.make(path, rows, True)
    store = Store(path)
    rng = np.random.default_rng(3)
    ids = rng.integers(0, 2**63 - 1, HOLDOUT)
    labels = pool._labels(rng, ids, True)
    labels = labels.set_column(labels.schema.get_field_index("split"), "split", pa.array(["holdout"] * HOLDOUT))
    writer = PartWriter(store.path / "labels" / "g000-outside-outside" / "part-holdout.parquet", pool.CLASSES)
    writer.write(labels)
    publish(store, store.delta("labels"), [writer.finish()], 0)
    right = rng.random(HOLDOUT) < labels["confidence"].to_numpy()
    truth = np.where(right, labels["label"].to_numpy(), rng.integers(0, pool.CLASSES, HOLDOUT))
    pictures = pool._images(ids, rows)
    known = {"split": pa.array(["holdout"] * HOLDOUT), "label": pa.array(truth, pa.int16())}
    additions.append(
        store, "images", pa.table([known.get(n, pictures[n]) for n in IMAGES.schema.names], schema=IMAGES.schema)
    )


def builds(path: Path, rows: int, names: list[str], master: str) -> None:
    """Builds a manifest with each policy and engine, and prints what came of it, a line of JSON each."""
    from curator.curation import manifests, spark
    from curator.storage.store import Store

    store = Store(path)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        tempfile.tempdir = folder
        began = time.perf_counter()
        with spark.session(master, Path(folder)):
            print(json.dumps({"what": "start of Spark", "spark": time.perf_counter() - began}), flush=True)
            for number, name in enumerate(["top", *sorted(names, key=lambda name: (name != "top", name))]):
                options = {"policy": name, "per_class": max(1, rows * 433 // 10**6)}
                options |= {"settings": {"manifest": "duckdb-0"}} if name == "images-of" else {}
                answer, built = {"what": name}, []
                for engine, where in (("duckdb", None), ("spark", master)):
                    began = time.perf_counter()
                    built.append(building.build(store, f"{engine}-{number}", options, master=where))
                    answer[engine] = time.perf_counter() - began
                files = [[file.read_bytes() for file in manifests.files(one)] for one in built]
                answer |= {"same": files[0] == files[1] and built[0].sha256 == built[1].sha256}
                print(json.dumps(answer | {"images": built[0].unique_images}), flush=True)
                if number:  # the first is what images-of reads
                    for one in built:
                        shutil.rmtree(one.path)


def report(found: dict[int, list[dict]], master: str, note: str) -> str:
    """The tables."""
    tools = f"Python {platform.python_version()}, " + ", ".join(
        f"{name} {version(name)}" for name in ("duckdb", "pyspark", "sqlglot")
    )
    lines = [
        "# DuckDB and Spark",
        "",
        f"{dt.date.today()}, {os.cpu_count()} cores, {memory_gib():.0f} GiB, {tools}, Spark at {master}. Whole builds, "
        "from the options to the published manifest; 1000 classes, 20 kept, quota 433 of a million, 50,000 holdout "
        f"images. {note + ' ' if note else ''}`make bench-spark`",
    ]
    for rows, each in found.items():
        start, first, *others = each
        lines += [
            "",
            f"## {rows:,} rows",
            "",
            f"Starting Spark took {start['spark']:.1f} s, and the first build in it, `top`, {first['spark']:.1f} s.",
            "",
            "| policy | images kept | DuckDB s | Spark s | Spark / DuckDB | rows and bytes |",
            "|---|---|---|---|---|---|",
        ]
        lines += [
            f"| {one['what']} | {one['images']:,} | {one['duckdb']:.1f} | {one['spark']:.1f} | "
            f"{one['spark'] / one['duckdb']:.1f} | {'the same' if one['same'] else 'OTHERS'} |"
            for one in [dict(first, what="top, the first"), *others]
        ]
    return "\n".join([*lines, *(crossing(found) if min(map(len, found.values())) > 2 and len(found) > 1 else []), ""])


def crossing(found: dict[int, list[dict]]) -> list[str]:
    """Where a straight line through the times of `top` says that Spark is as fast as DuckDB."""
    sizes = np.array(sorted(found)) / 1e6
    lines = ["", "## Time against rows, policy top", ""]
    lines += [f"| engine | {' | '.join(f'{rows:,} rows, s' for rows in sorted(found))} | fixed s | s a million rows |"]
    lines += [f"|---|{'---|' * (len(sizes) + 2)}"]
    slope, fixed = {}, {}
    for engine, title in (("duckdb", "DuckDB"), ("spark", "Spark")):
        seconds = [found[rows][2][engine] for rows in sorted(found)]  # top, not for the first time
        slope[engine], fixed[engine] = np.polyfit(sizes, seconds, 1)
        lines += [
            f"| {title} | {' | '.join(f'{s:.1f}' for s in seconds)} | {fixed[engine]:.1f} | {slope[engine]:.2f} |"
        ]
    ratio = slope["spark"] / slope["duckdb"]
    if ratio < 1:
        where = (fixed["spark"] - fixed["duckdb"]) / (slope["duckdb"] - slope["spark"])
        drawn = "; beyond the largest size above that is drawn, not seen" if where > sizes[-1] else ""
        return [*lines, "", f"The lines cross at {where:,.0f} million rows{drawn}."]
    cores = os.cpu_count() or 1
    return [
        *lines,
        "",
        "No crossing was seen, and by these lines there is none on one machine: a million rows more takes Spark "
        f"{ratio:.1f} times as long on the same {cores} cores. A cluster needs about {cores * ratio:.0f} such cores, "
        "if it loses nothing by being one, to take as long for a large pool as DuckDB here, and more to be faster. "
        "That was not tried: there was one machine.",
    ]


if __name__ == "__main__":
    main()
