"""Commands killed at random moments, over and over: what was acknowledged stays, nothing is half, the next run ends.

    base store --copy--> command, killed at a moment of its duration --> read: lost? half visible? files of no commit?
                     --> the same command again, to its end          --> read: the same as if nothing had happened?

Half of the moments are drawn evenly over the duration of undisturbed runs, half over the part of it that begins when
the store first changes, the very end included in both. A run that ended before its kill is not counted, and another is
drawn. One kill in four is followed by a second one. Where no file had changed there is nothing to look at. Processes
are forked from one that has imported everything; --programs of each command run as a user would start them.

    python benchmarks/faults/run.py [--kills 200] [--programs 10] [--commands train label] [--jobs 2] [--write]

--write keeps the table in benchmarks/results/faults.md. Exits with 1 where anything was lost, half visible or failed.
"""

from __future__ import annotations

import argparse
import datetime as dt
import gc
import importlib
import json
import os
import pickle
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):  # before numpy, so that this process has no threads to fork
    os.environ.setdefault(_name, "1")

import scenes  # noqa: E402
from contents import DERIVED, Contents, folder_times, listing, read  # noqa: E402
from processes import Ended, Moment, forked, started  # noqa: E402
from scenes import SCENES, Scene  # noqa: E402

RESULT = Path(__file__).parents[1] / "results" / "faults.md"
_MEASURED = 3  # undisturbed runs
_SECOND = 0.25  # of the kills, followed by another
_BITS = 1e-3  # most between two numbers of a label; the probabilities are stored with 10 bits
_WRITES = 0.5  # of the kills, drawn over the writes alone


@dataclass
class Count:
    """What came of the runs of one command."""

    command: str
    kills: int = 0
    before: int = 0  # the store's files were as at the beginning
    within: int = 0
    after: int = 0  # all was there
    unnamed: int = 0  # files existed that no commit names
    lost: int = 0
    half: int = 0
    failed: int = 0
    other: int = 0  # the store was another one in the end
    finished: int = 0  # the next run said, by an error, that nothing was left to do
    underived: int = 0  # the tables worked out of the labels were left to the next question
    left: int = 0  # files without a commit after the next run
    left_bytes: int = 0
    bits: int = 0  # labels had other last bits
    seconds: float = 0.0
    told: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not (self.lost or self.half or self.failed or self.other)


class Runs:
    """The runs of one command.

    Args:
        scene: The command.
        work: Folder of all.
        base: What the base store holds.
        program: Whether to start the program as a user would.
    """

    def __init__(self, scene: Scene, work: Path, base: Contents, program: bool) -> None:
        self.scene, self.work, self.base, self.program = scene, work, base, program
        self.place = work / f"run-{os.getpid()}"
        self.store = self.place / "store"
        words = scene.arguments.split()
        values = {"work": str(work), "image": (work / "image").read_text()}
        self.arguments = [word.format(**values) for word in words] + ["--json", "--store", str(self.store)]
        self.notes = work / f"notes-{os.getpid()}"
        self.count = Count(scene.name + ", as a program" * program)
        changes: list[float] = []
        seen = []
        for measured in range(2 if program else _MEASURED):
            self._begin()
            ended = self._run(watch=None if measured else self._watch(changes))
            if ended.code != 0:
                sys.exit(f"{scene.name}: {ended.err}")
            seen.append(ended.seconds)
        self.wanted = self._read()
        # Looking on takes time: the first run says for what share of it the store changes, the others how long.
        self.duration = statistics.median(seen[1:])
        self.writes = (max(changes) - min(changes)) / seen[0] * self.duration

    def kill(self, number: int, seed: int, minutes: float) -> None:
        """Kills so many runs, or fewer where the time is up, and lets each be followed by one that finishes."""
        rng = random.Random(f"{seed} {self.scene.name} {self.program}")
        began = time.perf_counter()
        drawn = 0
        while self.count.kills < number and time.perf_counter() - began < 60 * minutes:
            drawn += 1
            # Evenly: one in each of `number` equal parts, which reach a little beyond the end.
            share = (drawn % number + rng.random()) / number * 1.1
            twice = rng.random() < _SECOND
            self._begin()
            moment = Moment(share * self.duration)
            if rng.random() < _WRITES:
                moment = Moment(share * self.writes, self._changes())
            if drawn > 20 * number:
                sys.exit(f"{self.scene.name} cannot be killed: {self.count}")
            killed = self._killed(moment)
            if killed is not None and twice and self.count.kills < number:
                killed = self._killed(Moment(rng.random() * self.duration)) or self._read()
            if killed is not None and killed is not self.base:
                self._finish(killed)
        self.count.seconds = time.perf_counter() - began
        shutil.rmtree(self.place)

    def _changes(self) -> Callable[[], bool]:
        """Says whether the store has changed since this was called."""
        times = folder_times(self.store)
        before = times()

        def changed() -> bool:  # a folder that is made, as for a lock, is no file yet
            try:
                return times() != before and listing(self.store) != self.untouched
            except FileNotFoundError:
                return True

        return changed

    def _killed(self, moment: Moment) -> Contents | None:
        """What a run leaves that is killed; None where it ended before."""
        before = listing(self.store)
        ended = self._run(moment)
        if ended.code is not None:
            if ended.code and not self._says_finished(ended):
                self._tell("failed", f"before its kill: {ended.err}")
            return None
        count = self.count
        count.kills += 1
        if listing(self.store) == self.untouched:
            count.before += 1
            if ended.out.strip():
                self._tell("lost", f"it had answered {ended.out}")
            return self.base
        untouched = listing(self.store) == before
        found = self._read()
        done = self._same(found) and not set(found.leftovers) - set(self.wanted.leftovers)
        if done:
            count.after += 1
        elif untouched:
            count.before += 1
        else:
            count.within += 1
        count.unnamed += bool(set(found.leftovers) - set(self.base.leftovers))
        if ended.out.strip() and not self._same(found):
            self._tell("lost", f"it had answered {ended.out}")
        self._look(found, self.base)
        return found

    def _look(self, found: Contents, before: Contents) -> None:
        """Nothing of before is gone, and what is new is a part of what is wanted, and whole."""
        for table, rows in before.raw.items():
            if table not in (*DERIVED, "metrics") and (gone := set(rows) - set(found.raw[table])):
                self._tell("lost", f"{len(gone)} rows of {table}, e.g. {min(gone)}")
        for table, rows in found.of().items():
            wanted = self.wanted.of(table)[table]
            strange = set(rows) - set(wanted) if self.scene.twice else rows - wanted
            if strange:
                self._tell("half", f"rows of {table} that no undisturbed run has: {next(iter(strange))}")
        if found.apart(self.wanted) > _BITS or found.apart(before) > 0:
            self._tell("half", f"numbers of labels {found.apart(self.wanted)} from those of an undisturbed run")
        wrong = set(found.problems) - set(self.wanted.problems) - set(self.base.problems)
        if wrong:
            self._tell("half", str(sorted(wrong)))
        for table, key in (("labels", "generation"), ("reviews", "reviewer")):
            groups = {name: _by(each.rows[table], key) for name, each in (("found", found), ("wanted", self.wanted))}
            for group, rows in groups["found"].items():
                if set(rows) != set(groups["wanted"].get(group, [])):
                    self._tell("half", f"{len(rows)} rows of {table} of {group}")

    def _finish(self, left: Contents) -> None:
        """The same command once more, to its end."""
        ended = self._run()
        count = self.count
        if ended.code == 0:
            if not self.scene.goes_on(self.base, left, ended):
                self._tell("lost", f"the next run did not go on with what was kept: {ended.out} {ended.err}")
        elif self._says_finished(ended):
            count.finished += 1
        else:
            self._tell("failed", ended.err)
        found = self._read()
        self._look(found, left)
        if not self._same(found):
            self._tell("other", "the store is not that of an undisturbed run")
        count.bits += found.apart(self.wanted) > 0
        derived = all(len(found.rows[name]) == len(self.wanted.rows[name]) for name in DERIVED)
        count.underived += not derived
        extra = set(found.leftovers) - set(self.wanted.leftovers)
        count.left += bool(extra)
        count.left_bytes = max(count.left_bytes, found.size * bool(extra))

    def _same(self, found: Contents) -> bool:
        if self.scene.twice:
            rows = all(set(found.rows[name]) == set(self.wanted.rows[name]) for name in self.wanted.of())
            return rows and found.decisions == self.wanted.decisions
        return found.of() == self.wanted.of()

    def _says_finished(self, ended: Ended) -> bool:
        said = self.scene.finished
        return said is not None and ended.code == 2 and said in ended.err and "Traceback" not in ended.err

    def _tell(self, what: str, why: str) -> None:
        setattr(self.count, what, getattr(self.count, what) + 1)
        self.count.told.append(f"{self.count.command}, kill {self.count.kills}, {what}: {why}")
        if len(self.count.told) <= 5:
            print(self.count.told[-1][:2000], file=sys.stderr, flush=True)

    def _begin(self) -> None:
        shutil.rmtree(self.place, ignore_errors=True)
        shutil.copytree(self.work / "base", self.place)
        self.untouched = listing(self.store)

    def _watch(self, changes: list[float]) -> Callable[[float], None]:
        """Notes when the store changes."""
        before = [listing(self.store)]

        def watch(seconds: float) -> None:
            try:
                now = listing(self.store)
            except FileNotFoundError:  # changing while it was looked at
                now = {}
            if now != before[0]:
                before[0] = now
                changes.append(seconds)

        return watch

    def _run(self, kill: Moment | None = None, watch: Callable[[float], None] | None = None) -> Ended:
        if self.program:
            return started([sys.executable, "-m", "curator", *self.arguments], self.notes, kill, watch)

        def call() -> int:
            from curator import cli

            self.scene.smaller()
            return cli.run(self.arguments)

        return forked(call, self.notes, kill, watch)

    def _read(self) -> Contents:
        return look(self.store, self.notes)


def look(store: Path, notes: Path) -> Contents:
    """What a store holds, read in a process of its own."""
    file = notes.with_suffix(".contents")

    def call() -> int:
        file.write_bytes(pickle.dumps(read(store)))
        return 0

    ended = forked(call, notes)
    if ended.code:
        sys.exit(f"the store cannot be read any more: {ended.err}")
    found: Contents = pickle.loads(file.read_bytes())
    return found


def _by(rows: list[str], key: str) -> dict[object, list[str]]:
    groups: dict[object, list[str]] = {}
    for row in rows:
        groups.setdefault(json.loads(row)[key], []).append(row)
    return groups


def import_everything(torch: bool) -> None:
    """Imports what the commands do, so that a forked process has it."""
    wanted = [
        "cv2", "pyarrow.dataset", "pyarrow.parquet", "duckdb", "curator.cli",
        "curator.pictures.images", "curator.generations.labels", "curator.decisions.reviews",
        "curator.curation.building", "curator.delivery.packing",
    ]  # fmt: skip
    if torch:
        wanted += ["safetensors.torch", "timm", "curator.runs.training", "curator.teachers.labeling"]
    for name in wanted:
        importlib.import_module(name)
    gc.freeze()  # a collection in a child would copy the pages of its parent


def measure(wanted: list[str], kills: int, programs: int, seed: int, minutes: float) -> list[Count]:
    """Kills the commands in a new world."""
    counts = []
    with tempfile.TemporaryDirectory(prefix="curator-faults-") as folder:
        work = Path(folder)
        made = started([sys.executable, scenes.__file__, folder], work / "notes")
        if made.code != 0:
            sys.exit(made.err)
        import_everything(bool({"label", "train"} & {*wanted}))
        base = look(work / "base" / "store", work / "notes")
        for scene in SCENES:
            for program, number in ((False, kills), (True, programs)):
                if number and scene.name in wanted:
                    runs = Runs(scene, work, base, program)
                    runs.kill(number, seed, minutes)
                    counts.append(runs.count)
                    print(runs.count, file=sys.stderr, flush=True)
    gc.unfreeze()
    return counts


def measure_at_once(jobs: int, wanted: list[str], *how: str) -> list[Count]:
    """Kills the commands in processes of their own, some at once."""

    def one(name: str) -> list[Count]:
        command = [sys.executable, __file__, "--jobs", "1", "--commands", name, *how, "--json"]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        if not done.stdout:
            sys.exit(f"{name} could not be measured")
        return [Count(**count) for count in json.loads(done.stdout)]

    with ThreadPoolExecutor(jobs) as pool:
        return [count for counts in pool.map(one, wanted) for count in counts]


def document(counts: list[Count]) -> str:
    """The counts as Markdown."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    head = (
        f"# Commands killed at random moments\n\n{dt.date.today()}, {os.cpu_count()} cores, {memory:.0f} GiB, "
        f"load average {os.getloadavg()[2]:.0f} at the end. SIGKILL to the process group of each run; "
        "half of the moments are drawn evenly over the command's duration, half from the first change of the store on. "
        "Before: no file had changed yet; after: all was there. `make bench-faults`\n\n"
    )
    columns = (
        "command", "kills", "before, within, after its writes", "with files that no commit names",
        "acknowledged and lost", "half visible", "next run failed", "another store in the end", "s",
    )  # fmt: skip
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    for c in counts:
        lines.append(
            f"| `{c.command}` | {c.kills} | {c.before}, {c.within}, {c.after} | {c.unnamed} | {c.lost} | {c.half} | "
            f"{c.failed} | {c.other} | {c.seconds:.0f} |"
        )
    notes = [
        f"`{c.command}`: {c.finished} of the next runs ended with exit code 2 and the word that nothing is left to do: "
        "the killed one had done it." for c in counts if c.finished
    ] + [
        f"`{c.command}`: after {c.left} of the next runs files of a killed one were still there that no commit names, "
        f"at most {c.left_bytes / 1000:.0f} kB." for c in counts if c.left
    ] + [
        f"`{c.command}`: {c.underived} times the tables that are worked out of the labels were left to the first "
        "question that needs them." for c in counts if c.underived
    ] + [
        f"`{c.command}`: {c.bits} times the last bits of a label's numbers were others than an undisturbed run's: a "
        "picture's neighbours in its batch may change them, and what is left makes other batches."
        for c in counts if c.bits
    ]  # fmt: skip
    told = [f"- {line.splitlines()[0][:300]}" for c in counts for line in c.told]
    return (
        head + "\n".join(lines) + "\n" + "".join(f"\n{note}\n" for note in notes) + "\n" * bool(told) + "\n".join(told)
    )


def main() -> None:
    """Kills, counts and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200, help="of each command")
    parser.add_argument("--programs", type=int, default=10, help="kills of each command as a program of its own")
    parser.add_argument("--commands", nargs="+", default=[scene.name for scene in SCENES])
    parser.add_argument("--minutes", type=float, default=1000.0, help="longest time for a command")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2, help="commands at once")
    parser.add_argument("--counts", nargs="+", type=Path, help="the table of earlier runs' answers with --json")
    parser.add_argument("--json", action="store_true", help="print the counts as JSON")
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/faults.md")
    options = parser.parse_args()
    if options.counts:
        counts = [Count(**count) for file in options.counts for count in json.loads(file.read_text())]
    elif options.jobs > 1:
        how = [f"--{name}={getattr(options, name)}" for name in ("kills", "programs", "minutes", "seed")]
        counts = measure_at_once(options.jobs, options.commands, *how)
    else:
        counts = measure(options.commands, options.kills, options.programs, options.seed, options.minutes)
    text = document(counts)
    print(json.dumps([vars(count) for count in counts]) if options.json else text)
    if options.write:
        RESULT.write_text(text, "utf-8")
    sys.exit(not all(count.ok for count in counts))


if __name__ == "__main__":
    main()
