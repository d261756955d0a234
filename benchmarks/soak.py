"""Labeling, building, reviewing, importing and reading at once on one store, for an hour.

    commands in loops (add-images, import-labels, build-manifest, review, check) --> store <-- long-lived processes
    every 5 s: memory, open files and threads of each long-lived process --> slope over the last half
    at the end: everything that was acknowledged is there exactly once; curator check, curator doctor

Long-lived are: a loader that makes pass after pass, a labeler, a reader that connects again and again, and the app, of
which sessions ask for pages and for SQL. `make bench-soak`
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import datetime as dt
import itertools
import json
import math
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from scipy import stats

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "soak.md"
EVERY_S = 5.0  # between two samples, and between two checks of all manifests times twelve
PAUSE_S = 1.0  # between two turns of a writer
BLOCKS = 12  # of the last half: samples five seconds apart are not independent, means of minutes nearly are
TURN = 20  # pictures or soft labels of one turn
CLASSES = ("dark", "grey", "light")
MEASURES = ("RSS, MiB", "PSS, MiB", "open files", "threads")
PAGES = ("overview", "classes", "gallery", "review", "manifests", "calibration", "training")
QUERY = "select class_name, count(*) as n from labels group by all order by all"


def main() -> None:
    """Runs the soak, or one of its long-lived processes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--folder", type=Path, help="where everything is kept; by default it goes when it is over")
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS.relative_to(HERE.parent)}")
    parser.add_argument("--role", choices=ROLES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.role:
        stopped = options.folder / "stop"
        ROLES[options.role](options.folder, stopped.exists)
        return
    with contextlib.ExitStack() as held:
        folder = options.folder or Path(held.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        text, good = Soak(folder, options.minutes).run()
        print(text)
        if options.write:
            RESULTS.write_text(text, "utf-8")
    sys.exit(0 if good else 1)


def curator(folder: Path, *words: object) -> subprocess.CompletedProcess[str]:
    """Runs a command of the tool on the store."""
    command = [sys.executable, "-m", "curator", *map(str, words), "--store", str(folder / "store")]
    return subprocess.run(command, capture_output=True, text=True)


def picture(path: Path, number: int) -> None:
    """A picture whose class is its brightness; the number is the seed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(number)
    cv2.imwrite(str(path), rng.normal((50, 128, 205)[number % 3], 30, (40, 40, 3)).clip(0, 255).astype(np.uint8))


# Long-lived processes: each says what it did in a line for each turn


def load_passes(folder: Path, stopped: Callable[[], bool]) -> None:
    """A pass of the loader after another; each must have every row as often as it has copies."""
    from curator import ManifestLoader

    loader = ManifestLoader.open(folder / "store", "base", size=32, batch_size=32, threads=2)
    expected = loader.streams[0][0].length
    while not stopped():
        seen = sum(len(batch.images) for batch in loader)
        assert expected <= seen < expected + 32, (seen, expected)
        print(seen, flush=True)


def label_new(folder: Path, stopped: Callable[[], bool]) -> None:
    """Labels what is new, again and again, in one process."""
    from curator.storage.store import Store
    from curator.teachers import labeling

    store = Store(folder / "store")
    while not stopped():
        done = labeling.label(store, "teacher", ["unlabeled"], threads=1)
        print(done.images, flush=True)
        time.sleep(PAUSE_S)


def read_again(folder: Path, stopped: Callable[[], bool]) -> None:
    """Connects again and again; counts never go down, and no label is without its image."""
    from curator.storage.store import Store

    store, before = Store(folder / "store"), 0
    query = (
        "select (select count(*) from images) + (select count(*) from labels) + (select count(*) from reviews) as n,"
        " (select count(*) from labels where image_id not in (select image_id from images)) as lost"
    )
    while not stopped():
        row = store.rows(query, store.versions())[0]
        assert row["n"] >= before, (row, before)
        assert row["lost"] == 0, row
        before = row["n"]
        print(before, flush=True)
        time.sleep(0.2)


ROLES: dict[str, Callable[[Path, Callable[[], bool]], None]] = {
    "loader": load_passes,
    "labeler": label_new,
    "reader": read_again,
}


class Visitor:
    """A browser's side of the app's protocol: a session for each visit, which opens a page or asks for SQL."""

    def __init__(self, url: str) -> None:
        self.url = url.replace("http", "ws", 1) + "/_stcore/stream"

    def visit(self, page: str, query: str = "") -> None:
        """Opens a page and waits until it is there; on the page `sql`, presses Run."""
        from websockets.sync.client import connect

        with connect(self.url, max_size=None, open_timeout=60) as line:
            found = self._run(line, page, query, {})
            if query:
                (button,) = (each.button.id for each in found if each.button.label == "Run")
                (area,) = (each.text_area.id for each in found if each.text_area.label == "Query")
                found = self._run(line, page, query, {area: ("string_value", QUERY), button: ("trigger_value", True)})
                assert any(each.WhichOneof("type") == "arrow_data_frame" for each in found), "no answer of the sandbox"

    def _run(self, line: Any, page: str, query: str, values: dict[str, tuple[str, Any]]) -> list[Any]:
        from streamlit.proto.BackMsg_pb2 import BackMsg
        from streamlit.proto.ForwardMsg_pb2 import ForwardMsg

        asked = BackMsg()
        asked.rerun_script.page_name, asked.rerun_script.query_string = page, query
        for name, (kind, value) in values.items():
            widget = asked.rerun_script.widget_states.widgets.add(id=name)
            setattr(widget, kind, value)
        line.send(asked.SerializeToString())
        found = []
        while True:
            message = ForwardMsg.FromString(line.recv(timeout=180))
            if message.WhichOneof("type") == "delta":
                element = message.delta.new_element
                assert element.WhichOneof("type") != "exception", element.exception.message
                found.append(element)
            if message.WhichOneof("type") == "script_finished":
                assert message.script_finished == ForwardMsg.FINISHED_SUCCESSFULLY, message
                return found


class Soak:
    """One soak: the writers, what they had acknowledged, and the samples of the long-lived processes.

    Args:
        folder: Where pictures, store and logs lie.
        minutes: How long it goes on.
    """

    def __init__(self, folder: Path, minutes: float) -> None:
        self.folder, self.minutes = folder, minutes
        self.done: Counter[str] = Counter()
        self.raced: Counter[str] = Counter()
        self.failures: list[str] = []
        self.uris: list[str] = []
        self.imported: list[str] = []
        self.reasons: list[str] = []
        self.manifests: list[str] = ["base"]
        self.samples: dict[str, list[tuple[float, ...]]] = {}
        self.ended = threading.Event()

    def expect(self, *words: object) -> str:
        """Runs a command that must do."""
        done = curator(self.folder, *words)
        if done.returncode:
            sys.exit(f"curator {' '.join(map(str, words))}: {done.stderr}")
        return done.stdout

    def begin(self) -> None:
        """Makes a store with a teacher, its labels and a manifest."""
        photos = self.folder / "photos"
        for split, number in (("labeled", 90), ("holdout", 60), ("pool", 300)):
            for i in range(number):
                below = f"{split}/{CLASSES[i % 3]}" if split != "pool" else f"{split}/first"
                picture(photos / below / f"{i:04}.png", i + {"labeled": 0, "holdout": 1000, "pool": 2000}[split])
        self.expect("init")
        for split, name in (("labeled", "labeled"), ("holdout", "holdout"), ("pool", "unlabeled")):
            self.expect("add-images", photos / split, "--split", name)
        changes = ["--set", "schedule.steps=60", "--set", "schedule.warmup_steps=5"]
        self.expect("train", "--recipe", "tiny-teacher", "--name", "teacher", *changes)
        self.expect("label", "--model", "teacher")
        self.expect("build-manifest", "base", "--per-class", 200, "--min-confidence", 0)
        self.ids = [int(word) for word in self.expect(
            "sql", "select image_id from images where split = 'unlabeled' order by all", "--format", "csv"
        ).split()[1:]]  # fmt: skip

    def turn(self, name: str, *words: object) -> bool:
        """Runs a command; whether it was acknowledged. One that lost a race is told to run again, and is."""
        for _ in range(10):
            done = curator(self.folder, *words)
            if not done.returncode:
                self.done[name] += 1
                return True
            if "at the same time" not in done.stderr and "by now" not in done.stderr:
                self.failures.append(f"{name}: exit {done.returncode}: {done.stderr.strip()[-300:]}")
                return False
            self.raced[name] += 1
        self.failures.append(f"{name}: lost ten races")
        return False

    # Writers, by turns

    def add_images(self, number: int) -> None:
        """Adds a folder of new pictures."""
        folder = self.folder / "photos" / "pool" / f"turn-{number:05}"
        for i in range(TURN):
            picture(folder / f"{i}.png", 10_000 + number * TURN + i)
        if self.turn("add-images", "add-images", folder, "--split", "unlabeled"):
            self.uris += [f"photos/pool/{folder.name}/{i}.png" for i in range(TURN)]

    def import_labels(self, number: int) -> None:
        """Adds a listing, then soft labels of another tool for it."""
        uris = [f"elsewhere/{number:05}/{i}.png" for i in range(TURN)]
        listing, labels = (self.folder / "given" / f"{what}-{number:05}.parquet" for what in ("uris", "probs"))
        listing.parent.mkdir(exist_ok=True)
        pq.write_table(pa.table({"uri": uris}), listing)
        probs = pa.array([[0.7, 0.2, 0.1]] * TURN, pa.list_(pa.float32()))
        pq.write_table(pa.table({"uri": uris, "probs": probs}), labels)
        added = self.turn(
            "add-images, a listing",
            "add-images",
            listing,
            "--split",
            "holdout",
            "--labels",
            labels_of(listing, uris),
            "--no-scan",
        )
        if added and self.turn("import-labels", "import-labels", labels, "--generation", 1, "--model", "outside"):
            self.imported += uris

    def build(self, number: int) -> None:
        """Builds a manifest."""
        name = f"turn-{number}"
        if self.turn("build-manifest", "build-manifest", name, "--per-class", 100, "--min-confidence", 0,
                     "--generation", 0, "--policy", "top", "--seed", number):  # fmt: skip
            self.manifests.append(name)

    def review(self, number: int) -> None:
        """Decides on an image; accepts, so that no manifest that is there becomes wrong."""
        image, reason = self.ids[number % len(self.ids)], f"turn-{number}"
        if self.turn("review", "review", "--image-id", image, "--decision", "accept", "--reason", reason):
            self.reasons.append(reason)

    def check(self, number: int) -> None:
        """Checks all manifests while others write."""
        if self.turn("check", "check", self.manifests[-1]):
            self.ended.wait(EVERY_S)

    def visit(self, number: int) -> None:
        """Opens a page of the app in a session of its own; each time all were opened, asks for SQL."""
        page = (*PAGES, "sql")[number % (len(PAGES) + 1)]
        try:
            self.visitor.visit(page, "query=asked" if page == "sql" else "")
            self.done[f"app: {'SQL' if page == 'sql' else 'pages'}"] += 1
        except Exception as error:
            self.failures.append(f"app, page {page}: {type(error).__name__}: {str(error)[:200]}")

    def loop(self, turn: Callable[[int], None]) -> None:
        """Takes turns until the time is over."""
        for number in itertools.count():
            if self.ended.is_set():
                return
            try:
                turn(number)
            except Exception as error:
                self.failures.append(f"{turn.__name__}: {type(error).__name__}: {error}")
            self.ended.wait(PAUSE_S)

    @contextlib.contextmanager
    def living(self) -> Iterator[dict[str, int]]:
        """The long-lived processes, by name."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        log = self.folder / "logs"
        log.mkdir(exist_ok=True)
        started: dict[str, subprocess.Popen[bytes]] = {}
        for name in ROLES:
            command = [sys.executable, __file__, "--role", name, "--folder", str(self.folder)]
            with (log / f"{name}.out").open("wb") as out, (log / f"{name}.err").open("wb") as err:
                started[name] = subprocess.Popen(command, stdout=out, stderr=err)
        command = [sys.executable, "-m", "curator", "app", "--store", str(self.folder / "store"), "--port", str(port)]
        with (log / "app.err").open("wb") as err:
            app = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=err)
        try:
            url = f"http://127.0.0.1:{port}"
            for _ in range(600):
                with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/_stcore/health", timeout=2) as health:
                    if health.read() == b"ok":
                        break
                time.sleep(0.5)
            self.visitor = Visitor(url)
            yield {name: process.pid for name, process in started.items()} | {"app": child(app.pid)}
        finally:
            (self.folder / "stop").touch()
            for name, process in started.items():
                try:
                    code = process.wait(300)
                except subprocess.TimeoutExpired:
                    process.kill()
                    code = process.wait()
                lines = (log / f"{name}.out").read_text("utf-8").split()
                self.done[f"{name}: turns"] = len(lines)
                if code:
                    self.failures.append(f"{name}: exit {code}: {(log / f'{name}.err').read_text('utf-8')[-300:]}")
            if app.poll() is not None:
                self.failures.append(f"app: exit {app.returncode}")
            app.terminate()
            app.wait(60)

    def run(self) -> tuple[str, bool]:
        """The report, and whether all is well."""
        self.began = dt.datetime.now()
        self.begin()
        writers = (self.add_images, self.import_labels, self.build, self.review, self.check, self.visit)
        with self.living() as pids:
            threads = [threading.Thread(target=self.loop, args=[turn], name=turn.__name__) for turn in writers]
            for thread in threads:
                thread.start()
            began = time.monotonic()
            with (self.folder / "samples.csv").open("w") as file:
                out = csv.writer(file)
                while (passed := time.monotonic() - began) < self.minutes * 60:
                    for name, pid in pids.items():
                        with contextlib.suppress(OSError):
                            self.samples.setdefault(name, []).append((passed / 60, *sample(pid)))
                            out.writerow([name, *self.samples[name][-1]])
                    file.flush()
                    time.sleep(EVERY_S)
            self.ended.set()
            for thread in threads:
                thread.join()
        invariants = self.invariants()
        grown, growth = self.growth()
        good = not self.failures and not grown and all(not wrong for _, wrong in invariants)
        return self.report(invariants, growth, grown), good

    def invariants(self) -> list[tuple[str, str]]:
        """What must hold at the end, and what is wrong with it."""
        self.turn("label, at the end", "label", "--model", "teacher", "--split", "unlabeled")

        def ask(query: str) -> list[dict[str, Any]]:
            found: list[dict[str, Any]] = json.loads(self.expect("sql", query, "--json"))
            return found

        def missing(what: str, acknowledged: list[str], query: str) -> tuple[str, str]:
            there = Counter(row["name"] for row in ask(query))
            wrong = [name for name in acknowledged if there[name] != 1] + [n for n, k in there.items() if k > 1]
            return f"{what}: {len(acknowledged)} acknowledged, each there once", ", ".join(wrong[:5])

        found = [
            missing("images", self.uris + self.imported, "select uri as name from images"),
            missing("imported labels", self.imported,
                    "select uri as name from labels join images using (image_id) where generation = 1"),
            missing("reviews", self.reasons, "select reason as name from reviews"),
            missing("manifests", self.manifests, "select name from manifests"),
        ]  # fmt: skip
        unlabeled = ask(
            "select count(*) as n from images as i where split = 'unlabeled' and status = 'ok' and 1 <>"
            " (select count(*) from labels as l where l.image_id = i.image_id and generation = 0)"
        )[0]["n"]
        found.append(
            ("labels of the teacher: one for each picture of the pool", f"{unlabeled} others" * bool(unlabeled))
        )
        for command in (["check"], ["doctor"]):
            done = curator(self.folder, *command)
            if "No such command" not in done.stderr:
                found.append((f"curator {command[0]}", (done.stderr or done.stdout)[-300:] * bool(done.returncode)))
        return found

    def growth(self) -> tuple[list[str], list[str]]:
        """What grows, and the table of all slopes."""
        grown, rows = [], []
        for name, taken in self.samples.items():
            values = np.array(taken)
            half = values[values[:, 0] >= values[-1, 0] / 2]
            blocks = np.array([block.mean(0) for block in np.array_split(half, min(BLOCKS, len(half))) if len(block)])
            for number, measure in enumerate(MEASURES, start=1):
                slope, low, high = line(blocks[:, 0], blocks[:, number])
                middle, length = half[:, number].mean(), half[-1, 0] - half[0, 0]
                grows = low > 0 and slope * length > 0.01 * middle
                grown += [f"{measure.partition(',')[0]} of {name}"] * bool(grows)
                first, last = values[0, number], values[-1, number]
                rows.append(
                    f"| {name} | {measure} | {first:.0f} | {middle:.1f} | {last:.0f} | {values[:, number].max():.0f} "
                    f"| {slope * 60:+.2f} ({low * 60:+.2f} to {high * 60:+.2f}) | {'grows' if grows else 'flat'} |"
                )
        return grown, rows

    def report(self, invariants: list[tuple[str, str]], growth: list[str], grown: list[str]) -> str:
        """The report, as Markdown."""
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
        wrong = [what for what, why in invariants if why]
        verdict = "Nothing was lost, nothing failed, nothing grows."
        if wrong or grown or self.failures:
            verdict = (
                f"{len(wrong)} invariants are broken, {len(self.failures)} turns failed, "
                f"{len(grown)} figures grow ({', '.join(grown) or 'none'})."
            )
        head = (
            f"# A soak\n\n{self.began:%Y-%m-%d}, {os.cpu_count()} cores, {memory:.0f} GiB, load "
            f"{os.getloadavg()[2]:.0f} at the end; {self.minutes:g} minutes. `make bench-soak`\n\n**{verdict}**\n\n"
            "One store, and at once: commands in loops, each a process of its own; a loader that makes pass after "
            "pass, a labeler, a reader that connects again and again, and the app, each visit a new session.\n\n"
        )
        turns = "".join(f"| {name} | {count} | {self.raced[name]} |\n" for name, count in sorted(self.done.items()))
        said = "".join(f"- {what}: {why or 'holds'}\n" for what, why in invariants)
        failed = "".join(f"- {text.splitlines()[0]}\n" for text in self.failures[:20]) or "None.\n"
        return (
            head
            + "## Growth\n\nOne sample each 5 seconds. The slope is that of a line through the means of "
            f"{BLOCKS} blocks of the last half, with its 95 % interval. A figure counts as growing if the whole "
            "interval is above 0 and the line rises by more than 1 % of the mean over that half. The store grows "
            "meanwhile.\n\n"
            "| process | measure | first | mean, last half | last | most | slope, an hour | verdict |\n"
            "|---|---|---|---|---|---|---|---|\n" + "\n".join(growth) + "\n\n"
            "## At the end\n\n" + said + "\n## Turns\n\n"
            "| what | acknowledged | lost a race and was run again |\n|---|---|---|\n"
            + turns + "\n## Failures\n\n" + failed
        )  # fmt: skip


def labels_of(listing: Path, uris: list[str]) -> Path:
    """A table of trusted classes for a listing."""
    file = listing.with_name(f"labels-{listing.name}")
    pq.write_table(pa.table({"uri": uris, "label": [CLASSES[i % 3] for i in range(len(uris))]}), file)
    return file


def child(pid: int) -> int:
    """The process that a command started and waits for."""
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])


def sample(pid: int) -> tuple[float, float, int, int]:
    """Memory in MiB, its own and with its share of what others map too, open files and threads of a process."""
    rolled = dict(line.split()[:2] for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:])
    return (
        int(rolled["Rss:"]) / 1024,
        int(rolled["Pss:"]) / 1024,
        len(os.listdir(f"/proc/{pid}/fd")),  # noqa: PTH208 - names are enough
        len(os.listdir(f"/proc/{pid}/task")),  # noqa: PTH208
    )


def line(x: np.ndarray, y: np.ndarray) -> tuple[float, float, float]:
    """Slope of a line through points, and its 95 % interval."""
    if len(x) < 3:
        return 0.0, -math.inf, math.inf
    if not np.ptp(y):
        return 0.0, 0.0, 0.0
    found = stats.linregress(x, y)
    wide = stats.t.ppf(0.975, len(x) - 2) * found.stderr
    return found.slope, found.slope - wide, found.slope + wide


if __name__ == "__main__":
    main()
