"""One store small enough to read, and the ways to call the tool that every test shares.

The pool of the fixture store: nine images, three classes, labeled by the outside model "outside" as generation 0.

    image     a     b     c     d     e     f     g     h     i
    cat      .90   .80   .80   .50   .10   .10   .20   .34   .30
    dog      .05   .10   .15   .30   .70   .60   .20   .33   .40
    owl      .05   .10   .05   .20   .20   .30   .60   .33   .30
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import settings

from curator import cli
from curator.generations.labels import import_labels
from curator.pictures.images import add_images
from curator.storage.store import Store

pytest_plugins = ["bucket"]  # a server for all modules
# What CI tries is the same each time, so that a change is judged by itself; elsewhere every run looks for new cases.
settings.register_profile("ci", derandomize=True, database=None)
if os.environ.get("CI"):
    settings.load_profile("ci")

CLASSES = ["cat", "dog", "owl"]
PROBS = {
    "a": (0.90, 0.05, 0.05),
    "b": (0.80, 0.10, 0.10),
    "c": (0.80, 0.15, 0.05),
    "d": (0.50, 0.30, 0.20),
    "e": (0.10, 0.70, 0.20),
    "f": (0.10, 0.60, 0.30),
    "g": (0.20, 0.20, 0.60),
    "h": (0.34, 0.33, 0.33),
    "i": (0.30, 0.40, 0.30),
}


def pytest_collection_finish() -> None:
    """Streamlit's AppTest looks for components in every installed package, for each page anew: once is enough."""
    if "streamlit.testing.v1" in sys.modules:
        from streamlit.components.v2 import manifest_scanner

        manifest_scanner.scan_component_manifests = cache(manifest_scanner.scan_component_manifests)


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the fixture store, which takes half a second to make and little to copy."""
    folder = tmp_path_factory.mktemp("fixture")
    made = Store.create(folder / "store", CLASSES)
    uris = [f"pool/{name}.jpg" for name in PROBS]
    pq.write_table(pa.table({"uri": uris}), folder / "pool.parquet")
    add_images(made, str(folder / "pool.parquet"), "unlabeled", scan=False)
    probs = pa.array([list(p) for p in PROBS.values()], pa.list_(pa.float32()))
    pq.write_table(pa.table({"uri": uris, "probs": probs}), folder / "probs.parquet")
    import_labels(made, str(folder / "probs.parquet"), 0, "outside")
    return folder


@pytest.fixture(scope="session")
def made(made_once: Path) -> Store:
    """What `store` is a copy of; a module with another fixture of this name has another world."""
    return Store(made_once / "store")


@pytest.fixture
def store(made: Store, tmp_path: Path) -> Store:
    """A copy of `made` that a test may spoil, at tmp_path/store; by default the fixture store, images not scanned."""
    shutil.copytree(made.root, tmp_path, dirs_exist_ok=True)
    return Store(tmp_path / "store")


@pytest.fixture(scope="session")
def taught_once(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A world with a teacher, its labels and a manifest, see tests/pictures.py; to be copied only."""
    from pictures import taught

    return taught(tmp_path_factory.mktemp("taught"))


@pytest.fixture(autouse=True)
def alone() -> Iterator[None]:
    """No test meets what another one left in the process."""
    pictures = sys.modules.get("pictures")
    if pictures is not None:  # how the watched network was used
        pictures.Watched.seen.clear()
        pictures.Watched.stop_at = -1
    main = sys.modules["__main__"]
    yield
    sys.modules["__main__"] = main  # streamlit puts a page there, which a spawned process would then run
    torch = sys.modules.get("torch")
    if torch is not None:  # torch checks what a file that it refused left here together with the next file
        torch._utils._sparse_tensors_to_validate.clear()


@pytest.fixture
def ids(store: Store) -> dict[str, int]:
    """Image ids of the fixture store by the image's letter."""
    return {row["uri"][5]: row["image_id"] for row in store.rows("select image_id, uri from images")}


def read_lineage(folder: Path) -> dict[str, Any]:
    """The lineage in the footer of a manifest's first file."""
    lineage: dict[str, Any] = json.loads(pq.read_metadata(folder / "part-00000.parquet").metadata[b"curator.lineage"])
    return lineage


class Answer:
    """What a command printed and returned."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def json(self) -> dict[str, Any]:
        """The document on standard output; nothing else may be there."""
        found: dict[str, Any] = json.loads(self.out)
        return found


@pytest.fixture
def curator(capfd: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    """Runs the command line inside this process: curator("show", "a", "--store", s)."""

    def call(*arguments: object) -> Answer:
        code = cli.run([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        return Answer(code, out, err)

    return call


@pytest.fixture
def process() -> Callable[..., Answer]:
    """Runs the command line as a process of its own, as a user would."""

    def call(*arguments: object, **options: Any) -> Answer:
        done = subprocess.run(
            [Path(sys.executable).with_name("curator"), *map(str, arguments)],
            capture_output=True,
            text=True,
            env=os.environ | options.pop("env", {}),
            **options,
        )
        return Answer(done.returncode, done.stdout, done.stderr)

    return call


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Says so when no page of the app was opened."""
    blind = [report for report in terminalreporter.stats.get("skipped", []) if "NO BROWSER" in str(report.longrepr)]
    if blind:
        told = f"NO BROWSER: {len(blind)} tests of the app's pages were skipped; Chromium is not installed"
        terminalreporter.write_line(told, red=True, bold=True)
