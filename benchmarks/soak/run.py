"""Labeling, building, reviewing, importing and reading at once on one store, for an hour.

    commands in loops (add-images, import-labels, build-manifest, review, check) --> store <-- long-lived processes
    every 5 s: memory, open files and threads of each long-lived process --> slope over the last half
    then fresh ones of the same kind, while the commands go on --> the same figures, without what an hour leaves
    at the end: everything that was acknowledged is there exactly once; curator check, curator doctor

Long-lived are: a loader that makes pass after pass, a labeler, readers that connect again and again, and the app, of
which sessions ask for pages and for SQL. `make bench-soak`
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import datetime as dt
import os
import sys
import tempfile
import time
from pathlib import Path

import growth
from lives import Lives
from turns import Turns

RESULTS = Path(__file__).parents[1] / "results" / "soak.md"
EVERY_S = 5.0


def main() -> None:
    """Runs the soak."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--fresh", type=float, default=8, help="minutes of the fresh processes")
    parser.add_argument("--folder", type=Path, help="where everything is kept; by default it goes when it is over")
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/soak.md")
    options = parser.parse_args()
    with contextlib.ExitStack() as held:
        folder = options.folder or Path(held.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        text, good = soak(folder, options.minutes, options.fresh)
    print(text)
    if options.write:
        RESULTS.write_text(text, "utf-8")
    sys.exit(0 if good else 1)


def soak(folder: Path, minutes: float, fresh: float) -> tuple[str, bool]:
    """The report, and whether all is well."""
    began = dt.date.today()
    turns = Turns(folder)
    turns.begin()
    samples: dict[str, dict[str, list[tuple[float, ...]]]] = {"long-lived": {}, "fresh": {}}
    threads = []
    for name, length in (("long-lived", minutes), ("fresh", fresh)):
        with Lives(folder, name).living() as lives:
            turns.visitor = lives.visitor
            threads = threads or turns.start()
            watch(lives, length, samples[name], folder / f"samples-{name}.csv")
            if name == "fresh":
                turns.ended.set()
                for thread in threads:
                    thread.join()
        turns.failures += lives.failures
        turns.done.update({f"{role}, {name}: turns": number for role, number in lives.turns.items()})
    invariants = turns.invariants()
    found = growth.lines(samples["long-lived"], samples["fresh"])
    good = not turns.failures and not any(line.leaks for line in found) and all(not wrong for _, wrong in invariants)
    return report(began, (minutes, fresh), turns, invariants, found), good


def watch(lives: Lives, minutes: float, samples: dict[str, list[tuple[float, ...]]], file: Path) -> None:
    """Takes samples of long-lived processes for so many minutes, and writes them down as they come."""
    began = time.monotonic()
    with file.open("w") as opened:
        out = csv.writer(opened)
        while (passed := (time.monotonic() - began) / 60) < minutes:
            for name, pid in lives.pids.items():
                with contextlib.suppress(OSError):  # it ended; whoever started it tells
                    samples.setdefault(name, []).append((passed, *growth.sample(pid)))
                    out.writerow([name, *samples[name][-1]])
            opened.flush()
            time.sleep(EVERY_S)


def report(
    began: dt.date,
    minutes: tuple[float, float],
    turns: Turns,
    invariants: list[tuple[str, str]],
    found: list[growth.Line],
) -> str:
    """The report, as Markdown."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    wrong = sum(bool(why) for _, why in invariants)
    leaks = [f"{line.measure} of {line.process}" for line in found if line.leaks]
    verdict = "Nothing was lost, nothing failed, nothing leaks."
    if wrong or leaks or turns.failures:
        verdict = (
            f"{wrong} invariants are broken, {len(turns.failures)} turns failed, {len(leaks)} figures leak "
            f"({', '.join(leaks) or 'none'})."
        )
    taken = "".join(f"| {name} | {count} | {turns.raced[name]} |\n" for name, count in sorted(turns.done.items()))
    said = "".join(f"- {what}: {why or 'holds'}\n" for what, why in invariants)
    failed = "".join(f"- {text.splitlines()[0]}\n" for text in turns.failures[:20]) or "None.\n"
    return (
        f"# A soak\n\n{began}, {os.cpu_count()} cores, {memory:.0f} GiB, load {os.getloadavg()[2]:.0f} at the end; "
        f"{minutes[0]:g} minutes, then {minutes[1]:g} with fresh processes. `make bench-soak`\n\n**{verdict}**\n\n"
        "One store, and at once: commands in loops, each a process of its own; a loader that makes pass after pass, a "
        "labeler, readers that connect again and again, and the app, each visit a new session. There are two readers, "
        "and the allocators of one have one arena each, as docs/limits.md tells and as those of the app have.\n\n"
        f"## Growth\n\nOne sample each {EVERY_S:g} seconds. The slope is that of a line through the means of "
        f"{growth.BLOCKS} blocks of the last half, with its 95 % interval. A figure rises if the whole interval is "
        f"above 0 and half an hour of it adds more than {growth.SHARE:.0%} of the mean over that half. The store grows "
        "meanwhile and caches fill up, so fresh processes of the same roles took over at the end, on the same store, "
        f"while the commands went on. What rises and is more than {growth.ABOVE - 1:.0%} above the fresh one, each "
        f"over its last {growth.MINUTES:g} minutes, leaks.\n\n"
        f"{growth.table(found)}\n\n## At the end\n\n{said}\n## Turns\n\n"
        "| what | acknowledged | lost a race and was run again |\n|---|---|---|\n"
        f"{taken}\n## Failures\n\n{failed}"
    )


if __name__ == "__main__":
    main()
