"""The app on a store of many images, in a browser: how long pages, gallery steps and review keys take.

    python benchmarks/app.py [--rows 10000000] [--work DIR | --store DIR] [--keep] [--write]

The store is that of benchmarks/disagreement.py, two generations of synthetic labels, with pictures: each image is one
of 1,000 JPEGs in a tar. A manifest is built, the tables that publications make are made. Then headless Chromium opens
each page, steps through the gallery and presses keys in the review. --keep leaves the store for another run.
"""

from __future__ import annotations

import argparse
import datetime as dt
import io
import os
import platform
import shutil
import statistics
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
from disagreement import command, make, memory_gib, replaced
from playwright.sync_api import sync_playwright

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from browser import BEGUN, CHROMIUM, SETTLED, serve

RESULT = Path(__file__).parent / "results" / "app.md"
PICTURES = 1000
# The title of each page, and an address of it that shows something.
PAGES = {
    "Overview": "",
    "Classes": "classes",
    "Gallery": "gallery?class=class0003",
    "Review": "review",
    "Disagreement": "disagreement",
    "Calibration": "calibration",
    "Manifests": "manifests",
    "Training": "training",
    "SQL": "sql",
}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rows", type=int, default=10_000_000)
    options.add_argument("--work", type=Path)
    options.add_argument("--store", type=Path, help="a store that an earlier run left with --keep")
    options.add_argument("--keep", action="store_true")
    options.add_argument("--write", action="store_true")
    chosen = options.parse_args()
    folder = Path(tempfile.mkdtemp(dir=chosen.work, prefix="curator-bench-"))
    try:
        store = chosen.store or build(folder, chosen.rows)
        lines = [
            f"# The app on {chosen.rows:,} images",
            "",
            f"{dt.date.today()}, {os.cpu_count()} cores, {memory_gib():.0f} GiB, Python {platform.python_version()}, "
            f"streamlit {version('streamlit')}, duckdb {version('duckdb')}, headless Chromium on the same cores. "
            "`make bench-app`",
            "",
            "Two generations of labels, 1000 classes, JPEGs of 480 x 360 from a tar; server and browser share the "
            "cores. A page is there when its script has run and its pictures are loaded. First load: of a page that "
            "this server has not shown yet. Loaded again: the median of 3. Chosen in the sidebar: the median of 5.",
            "",
            *measured(store),
        ]
    finally:
        if chosen.keep:
            print(f"kept: --store {folder / 'store'}")
        else:
            shutil.rmtree(folder)
    text = "\n".join([*lines, ""])
    print(text)
    if chosen.write:
        RESULT.write_text(text)


def build(folder: Path, rows: int) -> Path:
    """The store, with pictures, a manifest and the tables that questions need."""
    folder.mkdir(parents=True, exist_ok=True)
    store = folder / "store"
    places = write_pictures(folder / "pictures.tar")
    rng = np.random.default_rng(0)

    def place(images: pa.Table) -> pa.Table:
        chosen = rng.integers(PICTURES, size=images.num_rows)
        uris = np.char.add("pictures.tar::", images["uri"].to_numpy().astype("U"))
        return replaced(
            images,
            uri=uris,
            shard=np.full(images.num_rows, "pictures.tar"),
            byte_offset=places[chosen, 0],
            byte_length=places[chosen, 1],
        )

    make(store, rows, place)
    command(store, "quality", "disagreement")
    for generation in ("0", "1"):
        command(store, "index", "--generation", generation)
    command(store, "build-manifest", "m", "--per-class", str(max(1, rows * 433 // 1_000_000)), "--generation", "1")
    return store


def write_pictures(shard: Path) -> np.ndarray:
    """Writes JPEGs of 480 x 360 into a tar; offset and length [N, 2] of each."""
    rng = np.random.default_rng(0)
    with tarfile.open(shard, "w") as tar:
        for number in range(PICTURES):
            coarse = rng.integers(0, 255, (9, 12, 3)).astype(np.uint8)
            pixels = cv2.resize(coarse, (480, 360), interpolation=cv2.INTER_CUBIC)
            noisy = np.clip(pixels + rng.normal(0, 8, pixels.shape), 0, 255).astype(np.uint8)
            cv2.putText(noisy, str(number), (150, 210), cv2.FONT_HERSHEY_SIMPLEX, 3, (255, 255, 255), 6)
            data = cv2.imencode(".jpg", noisy, [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes()
            entry = tarfile.TarInfo(f"{number:04}.jpg")
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    with tarfile.open(shard) as tar:
        return np.array([(entry.offset_data, entry.size) for entry in tar])


class Clock:
    """A tab in which waiting is measured: from an action to the page as it is meant to be, pictures loaded."""

    def __init__(self, browser: Any, url: str) -> None:
        self.url = url
        self.page = browser.new_page(viewport={"width": 1280, "height": 900})
        self.page.set_default_timeout(60_000)

    def load(self, path: str) -> float:
        """Seconds until a page is there that is opened by its URL."""
        began = time.perf_counter()
        self.page.goto(f"{self.url}/{path}")
        self.page.wait_for_selector(BEGUN)
        self.page.wait_for_selector(SETTLED)
        self._pictures()
        return time.perf_counter() - began

    def turn(self, title: str) -> float:
        """Seconds until a page is there that is chosen in the sidebar."""
        link = self.page.locator('[data-testid="stSidebarNav"] a', has_text=title)
        began = time.perf_counter()
        link.click()
        self.page.wait_for_selector(f'h1:has-text("{title}")')
        self.page.wait_for_selector(SETTLED)
        self._pictures()
        return time.perf_counter() - began

    def step(self, act: Callable[[], None], seen: str) -> float:
        """Seconds from an action until what a script sees in the page has changed, pictures loaded."""
        before = self.page.evaluate(seen)
        began = time.perf_counter()
        act()
        self.page.wait_for_function(f"before => ({seen}) !== before", arg=before)
        self._pictures()
        return time.perf_counter() - began

    def _pictures(self) -> None:
        self.page.wait_for_function("[...document.images].every(image => image.complete)")


def measured(store: Path) -> list[str]:
    """The tables of the result."""
    pages = []
    with serve(store) as url, sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        clock = Clock(browser, url)
        clock.load("")
        for title, path in PAGES.items():
            first = clock.load(path)
            again = [clock.load(path) for _ in range(3)]
            other = "Overview" if title != "Overview" else "Classes"
            turned = []
            for _ in range(5):
                clock.turn(other)
                turned.append(clock.turn(title))
            pages.append(
                f"| {title} | {first:.2f} | {statistics.median(again):.2f} | {statistics.median(turned):.2f} |"
            )
        steps = [*gallery(clock), *review(clock)]
        memory = resident(url)
        browser.close()
    return [
        "| page | first load, s | loaded again, s | chosen in the sidebar, s |",
        "|---|---|---|---|",
        *pages,
        "",
        "| step | p50 ms | p95 ms | number |",
        "|---|---|---|---|",
        *(
            f"| {name} | {np.median(times):.0f} | {np.quantile(times, 0.95):.0f} | {len(times)} |"
            for name, times in steps
        ),
        "",
        f"Memory of the server after all that: {memory:.0f} MB.",
    ]


def gallery(clock: Clock) -> list[tuple[str, list[float]]]:
    """Pages and classes of the gallery: from the click until 24 other pictures are there."""
    pictures = "[...document.images].map(image => image.src.slice(-60)).join()"
    clock.load("gallery?class=class0003")
    following = clock.page.locator('[data-testid="stPaginationNext"]')
    pages = [clock.step(following.click, pictures) * 1e3 for _ in range(20)]
    box = clock.page.get_by_label("Class").first
    classes = []
    for number in range(10, 30):
        box.click()
        clock.page.keyboard.type(f"class00{number}")
        clock.page.wait_for_timeout(300)  # until the list has shrunk
        classes.append(clock.step(lambda: clock.page.keyboard.press("Enter"), pictures) * 1e3)
    return [("gallery, next page of a class", pages), ("gallery, another class", classes)]


def review(clock: Clock) -> list[tuple[str, list[float]]]:
    """Keys of the review: from the key until the next image is there."""
    image = "document.images.length ? document.images[0].alt : ''"
    clock.load("review")
    found = []
    for name, key in (("accept", "a"), ("reject", "x"), ("first class", "1")):
        times = []
        for _ in range(20):
            times.append(clock.step(lambda key=key: clock.page.keyboard.press(key), image) * 1e3)
            clock.page.wait_for_selector(SETTLED)
            clock.page.wait_for_timeout(400)  # a person looks
        found.append((f"review, {name}", times))
    return found


def resident(url: str) -> float:
    """MB of memory of the server at an address."""
    port = url.rsplit(":", 1)[1]
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if f"server.port={port}" in (process / "cmdline").read_text():
                (line,) = [row for row in (process / "status").read_text().splitlines() if row.startswith("VmRSS")]
                return int(line.split()[1]) / 1024
        except OSError:
            continue
    return float("nan")


if __name__ == "__main__":
    main()
