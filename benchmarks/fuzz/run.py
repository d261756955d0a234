"""Fuzzing of all that is read: files of users, SQL, weights, command lines, a store that was changed by hand.

    targets x (hypothesis | atheris) x seeds --a process each, with bounds of memory and time--> cases, findings
                                             --ended?--> the input it ended on, kept; the next process goes on

    python benchmarks/fuzz/run.py [--only NAME ...] [--scale X] [--seed N] [--jobs N] [--minutes N]
                                  [--packages DIR] [--keep DIR] [--write]

A case passes if it is accepted, or refused as the command line refuses (a message and exit code 2). Anything else is a
finding: another exception, the end of the process, a file written or opened outside the store, a program started, a
connection opened, more memory or time than the bounds. atheris is installed into a temporary folder unless --packages
names one. --keep keeps the inputs of findings and the counts; a run of other targets with the same DIR adds them to
the table. --write keeps the table in benchmarks/results/fuzz.md. Exits with 1 if there
is a finding. The same seed runs the same cases, but where a process ends early.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from fuzz import judge, targets  # noqa: E402
from fuzz.target import Target  # noqa: E402

RESULT = HERE.parent / "results" / "fuzz.md"
PACKAGE = "atheris==3.0.0"
PART = {"drawn": 6000, "guided": 6000}  # cases of a process
STUCK = 600.0  # s without a new case, after which a process is ended


class Part(NamedTuple):
    """What one process runs."""

    target: Target
    engine: str
    seed: int
    cases: int


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--only", nargs="+", default=[], metavar="NAME")
    options.add_argument("--scale", type=float, default=1.0, help="of the numbers of cases")
    options.add_argument("--seed", type=int, default=1)
    options.add_argument("--minutes", type=float, default=1e6, help="after which no process is begun")
    options.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    options.add_argument("--packages", type=Path)
    options.add_argument("--keep", type=Path)
    options.add_argument("--write", action="store_true")
    chosen = options.parse_args()
    wanted = [targets.named(name) for name in chosen.only or targets.NAMES]
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="curator-bench-") as temporary:
        folder = Path(temporary)
        packages = chosen.packages or installed(folder / "packages")
        parts = in_turn([cut(target, chosen.scale, chosen.seed) for target in wanted])

        def one(at: int) -> dict[str, Any] | None:
            late = time.perf_counter() - began > 60 * chosen.minutes
            return None if late else run(parts[at], folder / str(at), packages, chosen.keep)

        with ThreadPoolExecutor(chosen.jobs) as pool:
            done = list(pool.map(one, range(len(parts))))
    outcomes = {target.name: total(target, parts, done) for target in wanted}
    if chosen.keep:
        chosen.keep.mkdir(parents=True, exist_ok=True)
        file = chosen.keep / "counts.json"
        before = json.loads(file.read_text()) if file.exists() else {}
        file.write_text(json.dumps(before | outcomes, indent=1))
        outcomes = before | outcomes
    text = report({name: outcomes[name] for name in targets.NAMES if name in outcomes}, chosen.seed)
    print(text)
    if chosen.write:
        RESULT.write_text(text)
    if any(found["findings"] for found in outcomes.values()):
        sys.exit("there are findings")


def installed(folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "install", "-qq", "--no-deps", "--target", str(folder), PACKAGE]
    subprocess.run(command, check=True)
    return folder


def cut(target: Target, scale: float, seed: int) -> list[Part]:
    """The cases of a target in parts, each with a seed of its own."""
    found = []
    for engine, cases in (("drawn", target.drawn), ("guided", target.guided)):
        left = round(cases * scale)
        while left > 0:
            found.append(Part(target, engine, seed * 1000 + len(found), min(left, PART[engine])))
            left -= PART[engine]
    return found


def in_turn(lists: list[list[Part]]) -> list[Part]:
    """Parts of all targets, such that each is as far as the others at any time."""
    placed = [((at + 0.5) / len(parts), parts[at]) for parts in lists for at in range(len(parts))]
    return [part for _, part in sorted(placed, key=lambda pair: pair[0])]


def run(part: Part, folder: Path, packages: Path, keep: Path | None) -> dict[str, Any]:
    """Runs a part in a process of its own; where one ends early, another goes on with another seed."""
    paths = os.pathsep.join([str(HERE.parent), str(packages), os.environ.get("PYTHONPATH", "")])
    # Pools of memory for each thread would count as used address space.
    variables = {"PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "1", "MALLOC_ARENA_MAX": "2", "OMP_NUM_THREADS": "1"}
    counts: dict[str, Any] = {"cases": 0, "accepted": 0, "refused": 0, "findings": {}, "peak_mb": 0.0, "seconds": 0.0}
    began = time.perf_counter()
    for attempt in range(10):
        folder.mkdir()
        command = [sys.executable, "-m", "fuzz.worker", part.target.name, part.engine, str(part.seed + 100 * attempt)]
        code = watched([*command, str(part.cases - counts["cases"]), str(folder)], os.environ | variables, folder)
        if (folder / "counts.json").exists():
            add(counts, json.loads((folder / "counts.json").read_text()))
        if code:
            ended(part, code, folder, counts)
        if keep is not None:
            keep.mkdir(parents=True, exist_ok=True)
            for file in folder.glob("found-*"):
                shutil.copy(file, keep / f"{file.name}-{part.engine}-{part.seed}")
        shutil.rmtree(folder)
        if not code or counts["cases"] >= part.cases:
            break
    took = f"{time.perf_counter() - began:.0f} s, {counts['seconds']:.0f} s of processor time"
    print(f"{part.target.name}, {part.engine}, seed {part.seed}: {counts['cases']} cases, {took}, "
          f"findings: {', '.join(counts['findings']) or 'none'}", file=sys.stderr, flush=True)  # fmt: skip
    return counts


def watched(command: list[str], environment: dict[str, str], folder: Path) -> int:
    """The exit code of a process, which is ended where it is stuck."""
    with (folder / "said").open("wb") as said:
        child = subprocess.Popen(command, env=environment, stdout=said, stderr=said)
        while child.poll() is None:
            time.sleep(0.2)
            last = folder / "current"
            if time.time() - (last if last.exists() else folder).stat().st_mtime > STUCK:
                child.kill()
    return int(child.returncode)


def add(counts: dict[str, Any], more: dict[str, Any]) -> None:
    for name in ("cases", "accepted", "refused", "seconds"):
        counts[name] += more[name]
    counts["peak_mb"] = max(counts["peak_mb"], more["peak_mb"])
    for what, seen in more["findings"].items():
        known = counts["findings"].setdefault(what, seen | {"cases": 0})
        known["cases"] += seen["cases"]


def ended(part: Part, code: int, folder: Path, counts: dict[str, Any]) -> None:
    """Takes the end of a process in: a finding, but where the tool, too, has a process of its own for such an input."""
    name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    input_of_it = folder / "current"
    told = (folder / "said").read_text("utf-8", "replace")[-2000:]
    if part.target.own_process and input_of_it.exists() and code < 0:
        counts["cases"], counts["refused"] = counts["cases"] + 1, counts["refused"] + 1
        return
    counts["findings"][f"ended by {name}"] = {"cases": 1, "bytes": 0, "told": told}
    if input_of_it.exists():
        shutil.copy(input_of_it, folder / re.sub(r"\W+", "-", f"found-{part.target.name}-{name}"))


def total(target: Target, parts: list[Part], done: list[dict[str, Any] | None]) -> dict[str, Any]:
    """What all parts of a target came to."""
    found: dict[str, Any] = {"cases": 0, "accepted": 0, "refused": 0, "findings": {}, "peak_mb": 0.0, "seconds": 0.0}
    found |= {"drawn": 0, "guided": 0}
    for part, counts in zip(parts, done, strict=True):
        if part.target is target and counts is not None:
            add(found, counts)
            found[part.engine] += counts["cases"]
    return found


def report(outcomes: dict[str, dict[str, Any]], seed: int) -> str:
    cases = sum(found["cases"] for found in outcomes.values())
    rows = [
        f"| {name} | {found['drawn']:,} | {found['guided']:,} | {found['accepted']:,} | {found['refused']:,} | "
        f"{sum(seen['cases'] for seen in found['findings'].values())} | {found['peak_mb']:.0f} | "
        f"{found['seconds']:.0f} |"
        for name, found in outcomes.items()
    ]
    listed = [
        f"- {name}: {what}, {seen['cases']} cases"
        for name, found in outcomes.items()
        for what, seen in found["findings"].items()
    ]
    packages = ("hypothesis", "pyarrow", "duckdb", "deltalake", "pillow", "simplejpeg", "torch")
    return "\n".join(
        [
            "# Fuzzing",
            "",
            f"{dt.date.today()}, {os.cpu_count()} cores, Python {platform.python_version()}, {platform.system()}, "
            + ", ".join(f"{name} {version(name)}" for name in packages)
            + f", {PACKAGE.replace('==', ' ')}. `make bench-fuzz`, seed {seed}: {cases:,} cases.",
            "",
            "| input | hypothesis | atheris | accepted | refused | findings | memory, MB | seconds |",
            "|---|---|---|---|---|---|---|---|",
            *rows,
            "",
            "A case is accepted, or refused as the command line refuses: a message and exit code 2. Anything else is a "
            "finding: another exception, the end of the process, a file written or opened outside the store, a program "
            f"started, a connection opened, more than {judge.MEMORY / 2**30:.0f} GiB of address space beside what the "
            f"process had (RLIMIT_AS), more than {judge.SECONDS:.0f} s of processor time. Memory: the largest resident "
            "set, less what the process had before its first case. Seconds: of processor time, of all processes of the "
            "input, their start among them. Of `curator sql`, the end of a process counts as refused: the tool, too, "
            "gives a question to a process of its own, and tells how it ended.",
            "",
            *(["Findings of this run:", "", *listed, ""] if listed else []),
            (HERE / "mended.md").read_text().strip(),
            "",
        ]
    )


if __name__ == "__main__":
    main()
