"""Selection of the most confident K of each class, and whole manifests: time and peak memory, against other ways.

    python benchmarks/selection/run.py [--rows N ...] [--runs 3] [--work DIR] [--write]

The quota grows with the rows: 43,333 of 100M. Each figure is of a process of its own, the median of the runs, which
take turns; peak memory is the operating system's. The stores take 25 bytes a row, and 80 for whole manifests.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).parent
RESULT = HERE.parent / "results" / "selection.md"
TITLES = {
    "scan": "scan of the three columns (the limit)",
    "write": "writing the selected rows alone",
    "curator": "curator",
    "curator_uncounted": "curator, no counts in the parts",
    "released": "released code, two passes in numpy (another, random set)",
    "duckdb_window": "DuckDB, row_number()",
    "polars_rank": "polars, rank().over()",
    "pandas_head": "pandas, sort and head",
}
PANDAS_ROWS = 10_000_000  # beyond, it takes more memory than a machine like this has


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rows", type=int, nargs="*", default=[10_000_000, 100_000_000])
    options.add_argument("--alone", type=int, nargs="*", default=[300_000_000], help="rows for curator and scan only")
    options.add_argument("--whole", type=int, nargs="*", default=[1_000_000, 10_000_000, 100_000_000])
    options.add_argument("--compared", type=int, nargs="*", default=[10_000_000, 100_000_000])
    options.add_argument("--runs", type=int, default=3)
    options.add_argument("--work", type=Path)
    options.add_argument("--write", action="store_true")
    chosen = options.parse_args()
    lines = [
        "# Selection and whole manifests",
        "",
        f"{dt.date.today()}, {os.cpu_count()} cores, {memory_gib():.0f} GiB, Python {platform.python_version()}, "
        f"{', '.join(f'{name} {version(name)}' for name in ('duckdb', 'polars', 'pandas', 'pyarrow'))}. 1000 classes "
        "whose sizes fall like 1 / rank, confidences of three decimals, threshold 0.3. `make bench-selection`",
    ]
    with tempfile.TemporaryDirectory(dir=chosen.work, prefix="curator-bench-") as folder:
        work = Path(folder)
        for rows in sorted({*chosen.rows, *chosen.alone}):
            methods = list(TITLES) if rows in chosen.rows else ["scan", "curator", "curator_uncounted"]
            lines += selections(work, rows, methods, chosen.runs)
        lines += ["", "## Whole manifests", ""]
        lines += ["| pool | quota | seconds | pool rows/s | rows | images | peak MB |", "|---|---|---|---|---|---|---|"]
        lines += [whole(work, rows) for rows in chosen.whole]
        lines += [
            "",
            "## Two manifests compared",
            "",
            "| rows of each | seconds | peak MB | answer |",
            "|---|---|---|---|",
        ]
        lines += [compared(work, rows) for rows in chosen.compared]
    text = "\n".join([*lines, ""])
    print(text)
    if chosen.write:
        RESULT.parent.mkdir(exist_ok=True)
        RESULT.write_text(text)


def selections(work: Path, rows: int, methods: list[str], runs: int) -> list[str]:
    """The table of one size."""
    store = make(work / "narrow", rows)
    output = work / "out" / "kept.parquet"
    output.parent.mkdir(exist_ok=True)
    figures: dict[str, list[tuple[float, int, float]]] = {}
    for _ in range(runs):
        for name in methods:
            if name != "pandas_head" or rows <= PANDAS_ROWS:
                figures.setdefault(name, []).append(run(name, store, quota(rows), output))
    limit = statistics.median(seconds for seconds, _, _ in figures["scan"])
    lines = ["", f"## {rows:,} rows, quota {quota(rows):,}", ""]
    lines += ["| method | seconds (each run) | x scan | rows kept | peak MB |", "|---|---|---|---|---|"]
    for name, found in figures.items():
        seconds = statistics.median(figure[0] for figure in found)
        each = ", ".join(f"{figure[0]:.2f}" for figure in found)
        peak = max(figure[2] for figure in found)
        kept = f"{found[-1][1]:,}" if found[-1][1] else "-"
        lines.append(f"| {TITLES[name]} | {seconds:.2f} ({each}) | {seconds / limit:.1f} | {kept} | {peak:.0f} |")
    shutil.rmtree(store)
    shutil.rmtree(output.parent)
    return lines


def run(name: str, store: Path, quota: int, output: Path) -> tuple[float, int, float]:
    """Seconds, rows and peak MB of one method."""
    output.unlink(missing_ok=True)
    command = [sys.executable, str(HERE / "methods.py"), name, str(store), str(quota), str(output)]
    answer, peak, _ = measured(command)
    return answer["seconds"], answer["rows"], peak


def whole(work: Path, rows: int) -> str:
    """Builds a manifest, from the start of the command to its end."""
    store = make(work / "wide", rows)
    command = [str(Path(sys.executable).with_name("curator")), "build-manifest", "m", "--per-class", str(quota(rows))]
    answer, peak, seconds = measured([*command, "--store", str(store), "--json", "--quiet"])
    shutil.rmtree(store)
    return (
        f"| {rows:,} | {quota(rows):,} | {seconds:.1f} | {rows / seconds:,.0f} | {answer['rows']:,} | "
        f"{answer['unique_images']:,} | {peak:.0f} |"
    )


def compared(work: Path, rows: int) -> str:
    """Compares two manifests, from the start of the command to its end."""
    store = work / "twins"
    subprocess.run([sys.executable, str(HERE / "twins.py"), str(store), str(rows)], check=True)
    command = [str(Path(sys.executable).with_name("curator")), "diff", "a", "b", "--store", str(store), "--json"]
    answer, peak, seconds = measured(command)
    shutil.rmtree(store)
    counts = ", ".join(f"{name} {answer[name]:,}" for name in ("added", "removed", "relabeled", "same"))
    return f"| {rows:,} | {seconds:.1f} | {peak:.0f} | {counts} |"


def make(store: Path, rows: int) -> Path:
    """A store of so many rows; in a process of its own, since a child's peak memory begins with its parent's."""
    subprocess.run([sys.executable, str(HERE / "pool.py"), str(store), str(rows), store.name], check=True)
    return store


def measured(command: list[str]) -> tuple[dict, float, float]:
    """The JSON answer of a command, its peak memory in MB and the seconds from its start to its end."""
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    out = process.stdout.read() if process.stdout else ""
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{' '.join(command)} failed")
    return json.loads(out), usage.ru_maxrss / 1024, time.perf_counter() - began


def quota(rows: int) -> int:
    return max(1, rows * 43_333 // 100_000_000)


def memory_gib() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30


if __name__ == "__main__":
    main()
