"""Runs one loader in this process and prints what it gave: images/s, CPU milliseconds an image, memory.

    python benchmarks/loader/measure.py METHOD WORK --cores N --seconds S [--packages DIR] [--randaugment]

The process keeps to the first N cores. The clock starts after a warm-up; the files are in the page cache by then. CPU
time is the kernel's, of the process and all below it, user and system; memory is the sum of their peaks, in which pages
that forked workers share count once for each.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import warnings
from pathlib import Path

WARM_SECONDS, WARM_BATCHES = 1.5, 8


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("method")
    options.add_argument("work", type=Path)
    options.add_argument("--cores", type=int, default=2)
    options.add_argument("--seconds", type=float, default=6)
    options.add_argument("--packages", type=Path)
    options.add_argument("--randaugment", action="store_true")
    chosen = options.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: chosen.cores])  # before libraries count the cores
    if chosen.packages:
        sys.path.append(str(chosen.packages))  # behind the project's own
    warnings.simplefilter("ignore")
    import ours
    import peers

    began = time.perf_counter()
    batches = {**peers.METHODS, **ours.METHODS}[chosen.method](chosen.work, chosen.randaugment, chosen.cores)
    first = next(batches)
    first_batch = time.perf_counter() - began
    assert "uint8" in str(first.dtype), first.dtype
    assert first.float().std() > 1, "the pictures are blank"
    number, images = 1, 0
    while number < WARM_BATCHES or time.perf_counter() - began < WARM_SECONDS + first_batch:
        next(batches)
        number += 1
    before, began = cpu_seconds(), time.perf_counter()
    while time.perf_counter() - began < chosen.seconds:
        images += len(next(batches))
    seconds, cpu = time.perf_counter() - began, cpu_seconds() - before
    answer = {"rate": images / seconds, "cpu_ms": cpu / images * 1000, "mb": peak_mb(), "first_batch": first_batch}
    print(json.dumps(answer | {"shape": list(first.shape)}), flush=True)
    os._exit(0)  # the caller ends the workers; waiting for their queues to empty takes seconds


def family() -> list[tuple[int, list[str]]]:
    """This process and all below it: number, and the fields of its stat file from the third on."""
    found = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                found[int(folder.name)] = (folder / "stat").read_text().rpartition(")")[2].split()
            except OSError:  # it has ended
                continue
    members = {os.getpid()}
    while new := {pid for pid, stat in found.items() if int(stat[1]) in members} - members:
        members |= new
    return [(pid, found[pid]) for pid in members if pid in found]


def cpu_seconds() -> float:
    # user and system time, then those of children that have ended and were waited for
    return sum(sum(map(int, stat[11:15])) for _, stat in family()) / os.sysconf("SC_CLK_TCK")


def peak_mb() -> float:
    """Peaks since the start of each program; the system's maximum resident size would begin with the parent's."""
    total = 0
    for pid, _ in family():
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                total += int(line.split()[1])
    return total / 1024


if __name__ == "__main__":
    main()
