"""What is done to the store during a soak, turn by turn, and what must hold of it in the end."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import lives
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

TURN = 20  # pictures or soft labels of one turn
CLASSES = ("dark", "grey", "light")
PAGES = ("overview", "classes", "gallery", "review", "manifests", "calibration", "training")


class Turns:
    """The writers, and what they had acknowledged.

    Args:
        folder: Where pictures and store lie.

    Attributes:
        visitor: Of the app that lives now.
        ended: Set when the time is over.
        done: How many turns of each kind were acknowledged.
        raced: How many lost a race, and were run again.
        failures: What was not.
    """

    visitor: lives.Visitor

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ended = threading.Event()
        self.done: Counter[str] = Counter()
        self.raced: Counter[str] = Counter()
        self.failures: list[str] = []
        self.uris: list[str] = []
        self.imported: list[str] = []
        self.reasons: list[str] = []
        self.manifests: list[str] = ["base"]

    def begin(self) -> None:
        """Makes a store with a teacher, its labels and a manifest."""
        photos = self.folder / "photos"
        for split, number in (("labeled", 90), ("holdout", 60), ("pool", 300)):
            for i in range(number):
                below = f"{split}/{CLASSES[i % 3]}" if split != "pool" else f"{split}/first"
                _picture(photos / below / f"{i:04}.png", i + {"labeled": 0, "holdout": 1000, "pool": 2000}[split])
        self._expect("init")
        for split, name in (("labeled", "labeled"), ("holdout", "holdout"), ("pool", "unlabeled")):
            self._expect("add-images", photos / split, "--split", name)
        changes = ["--set", "schedule.steps=60", "--set", "schedule.warmup_steps=5"]
        self._expect("train", "--recipe", "tiny-teacher", "--name", "teacher", *changes)
        self._expect("label", "--model", "teacher")
        self._expect("build-manifest", "base", "--per-class", 200, "--min-confidence", 0)
        query = "select image_id from images where split = 'unlabeled' order by all"
        self.ids = [int(word) for word in self._expect("sql", query, "--format", "csv").split()[1:]]

    def start(self) -> list[threading.Thread]:
        """Lets every writer take its turns, in a thread of its own, until the time is over."""
        every = (self.add_images, self.import_labels, self.build, self.review, self.check, self.visit)
        threads = [threading.Thread(target=self._loop, args=[turn], name=turn.__name__) for turn in every]
        for thread in threads:
            thread.start()
        return threads

    def add_images(self, number: int) -> None:
        """Adds a folder of new pictures."""
        folder = self.folder / "photos" / "pool" / f"turn-{number:05}"
        for i in range(TURN):
            _picture(folder / f"{i}.png", 10_000 + number * TURN + i)
        if self._turn("add-images", "add-images", folder, "--split", "unlabeled"):
            self.uris += [f"photos/pool/{folder.name}/{i}.png" for i in range(TURN)]

    def import_labels(self, number: int) -> None:
        """Adds a listing with trusted classes, then soft labels of another tool for it."""
        uris = [f"elsewhere/{number:05}/{i}.png" for i in range(TURN)]
        names = ("uris", "trusted", "probs")
        listing, trusted, labels = (self.folder / "given" / f"{what}-{number:05}.parquet" for what in names)
        listing.parent.mkdir(exist_ok=True)
        pq.write_table(pa.table({"uri": uris}), listing)
        pq.write_table(pa.table({"uri": uris, "label": [CLASSES[i % 3] for i in range(TURN)]}), trusted)
        probs = pa.array([[0.7, 0.2, 0.1]] * TURN, pa.list_(pa.float32()))
        pq.write_table(pa.table({"uri": uris, "probs": probs}), labels)
        how = ["--split", "holdout", "--labels", trusted, "--no-scan"]
        added = self._turn("add-images, a listing", "add-images", listing, *how)
        how = ["--generation", 1, "--model", "outside"]
        if added and self._turn("import-labels", "import-labels", labels, *how):
            self.imported += uris

    def build(self, number: int) -> None:
        """Builds a manifest."""
        name = f"turn-{number}"
        how = ["--per-class", 100, "--min-confidence", 0, "--generation", 0, "--policy", "top", "--seed", number]
        if self._turn("build-manifest", "build-manifest", name, *how):
            self.manifests.append(name)

    def review(self, number: int) -> None:
        """Decides on an image; accepts, so that no manifest that is there becomes wrong."""
        image, reason = self.ids[number % len(self.ids)], f"turn-{number}"
        if self._turn("review", "review", "--image-id", image, "--decision", "accept", "--reason", reason):
            self.reasons.append(reason)

    def check(self, number: int) -> None:
        """Checks the newest manifest while others write."""
        if self._turn("check", "check", self.manifests[-1]):
            self.ended.wait(5)

    def visit(self, number: int) -> None:
        """Opens a page of the app in a session of its own; each time all were opened, asks for SQL."""
        page = (*PAGES, "sql")[number % (len(PAGES) + 1)]
        visitor = self.visitor
        try:
            visitor.visit(page, "query=asked" if page == "sql" else "")
        except Exception as error:
            if not visitor.closing:
                self.failures.append(f"app, page {page}: {type(error).__name__}: {str(error)[:200]}")
        else:
            self.done[f"app: {'SQL' if page == 'sql' else 'pages'}"] += 1

    def _loop(self, turn: Callable[[int], None]) -> None:
        for number in itertools.count():
            if self.ended.is_set():
                return
            try:
                turn(number)
            except Exception as error:
                self.failures.append(f"{turn.__name__}: {type(error).__name__}: {error}")
            self.ended.wait(lives.PAUSE_S)

    def _turn(self, name: str, *words: object) -> bool:
        """Runs a command; whether it was acknowledged. One that lost a race is told to run again, and is."""
        for _ in range(10):
            done = self._curator(*words)
            if not done.returncode:
                self.done[name] += 1
                return True
            if "at the same time" not in done.stderr and "by now" not in done.stderr:
                self.failures.append(f"{name}: exit {done.returncode}: {done.stderr.strip()[-300:]}")
                return False
            self.raced[name] += 1
        self.failures.append(f"{name}: lost ten races")
        return False

    def _expect(self, *words: object) -> str:
        """Runs a command that must do."""
        done = self._curator(*words)
        if done.returncode:
            sys.exit(f"curator {' '.join(map(str, words))}: {done.stderr}")
        return done.stdout

    def _curator(self, *words: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "curator", *map(str, words), "--store", str(self.folder / "store")]
        return subprocess.run(command, capture_output=True, text=True)

    def invariants(self) -> list[tuple[str, str]]:
        """What must hold at the end, and what is wrong with it."""
        self._turn("label, at the end", "label", "--model", "teacher", "--split", "unlabeled")
        found = [
            self._each("images", self.uris + self.imported, "select uri as name from images"),
            self._each(
                "imported labels", self.imported,
                "select uri as name from labels join images using (image_id) where generation = 1",
            ),
            self._each("reviews", self.reasons, "select reason as name from reviews"),
            self._each("manifests", self.manifests, "select name from manifests"),
        ]  # fmt: skip
        (others,) = self._ask(
            "select count(*) as n from images as i where split = 'unlabeled' and status = 'ok' and 1 <>"
            " (select count(*) from labels as l where l.image_id = i.image_id and generation = 0)"
        )
        said = f"{others['n']} others" * bool(others["n"])
        found.append(("labels of the teacher: one for each picture of the pool", said))
        for command in ("check", "doctor"):
            done = self._curator(command)
            found.append((f"curator {command}", (done.stderr or done.stdout)[-300:] * bool(done.returncode)))
        return found

    def _each(self, what: str, acknowledged: list[str], query: str) -> tuple[str, str]:
        there = Counter(row["name"] for row in self._ask(query))
        wrong = [name for name in acknowledged if there[name] != 1] + [name for name, n in there.items() if n > 1]
        return f"{what}: {len(acknowledged)} acknowledged, each there once", ", ".join(wrong[:5])

    def _ask(self, query: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self._expect("sql", query, "--json"))
        return found


def _picture(path: Path, number: int) -> None:
    """A picture whose class is its brightness; the number is the seed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(number)
    cv2.imwrite(str(path), rng.normal((50, 128, 205)[number % 3], 30, (40, 40, 3)).clip(0, 255).astype(np.uint8))
