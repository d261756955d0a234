"""Where cases run: a store, the folders around it that nothing may be written to, and who watches them.

WORLD/store     what imports may write to        WORLD/given   inputs of the case
WORLD/outside   the current folder, with a file that is not to be read        WORLD/home   WORLD/tmp
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from curator.curation import building
from curator.generations.labels import import_labels
from curator.pictures.images import add_images
from curator.storage.store import Store

SECRET = "canary-7b1f"  # in a file, and in the environment
CLASSES = ["cat", "dog", "owl"]
URIS = [f"pool/{letter}.jpg" for letter in "abcdefghi"]
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_OUTSIDE_EVENTS = {"os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "socket.connect", "os.fork"}
_CHANGES = {"os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "shutil.rmtree"}


class World:
    """A store of nine images with soft labels and a manifest, and the folders around it.

    Args:
        folder: An empty folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.given, self.outside, self.home = folder / "given", folder / "outside", folder / "home"
        self.tmp, self._first = folder / "tmp", folder / "first"
        for each in (self.given, self.outside, self.home, self.tmp):
            each.mkdir()
        os.environ |= {"HOME": str(self.home), "TMPDIR": str(self.tmp), "CURATOR_CANARY": SECRET}
        os.environ.pop("XDG_CACHE_HOME", None)
        tempfile.tempdir = str(self.tmp)
        (self.outside / "outside.csv").write_text(f"word\n{SECRET}\n")
        self._make_store()
        os.chdir(self.outside)
        self.fresh()
        self.traces: list[str] = []
        self._watching = False
        self._before = self._stamps()
        sys.addaudithook(self._hear)

    def _make_store(self) -> None:
        made = Store.create(self._first, CLASSES)
        pq.write_table(pa.table({"uri": URIS}), self.folder / "pool.parquet")
        add_images(made, str(self.folder / "pool.parquet"), "unlabeled", scan=False)
        probs = np.random.default_rng(0).dirichlet([0.5] * 3, len(URIS)).astype(np.float32)
        lists = pa.array(probs.tolist(), pa.list_(pa.float32()))
        pq.write_table(pa.table({"uri": URIS, "probs": lists}), self.folder / "probs.parquet")
        import_labels(made, str(self.folder / "probs.parquet"), 0, "outside")
        building.build(made, "first", {"per_class": 2, "min_confidence": 0.0})
        for number, name in enumerate(CLASSES):
            cv2.imwrite(str(self.folder / f"{name}.png"), np.full((8, 8, 3), 40 * number, np.uint8))

    def fresh(self) -> None:
        """Puts the store back to where it was."""
        shutil.rmtree(self.folder / "store", ignore_errors=True)
        shutil.copytree(self._first, self.folder / "store")
        self.store = Store(self.folder / "store")

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Notes in `traces` what Python opens for writing or starts outside the store, the inputs and TMPDIR."""
        self.traces, self._watching = [], True
        try:
            yield
        finally:
            self._watching = False

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self._watching:
            return
        if event == "open":
            path, _, flags = arguments
            if isinstance(path, str | bytes):
                where = os.path.abspath(os.fsdecode(path))  # noqa: PTH100 - may be no path at all
                if where.endswith("outside.csv"):
                    self.traces.append("read outside.csv")
                elif isinstance(flags, int) and flags & _WRITING and not self._may_write(where):
                    self.traces.append(f"wrote {where}")
        elif event in _OUTSIDE_EVENTS:
            self.traces.append(f"{event} {arguments[0]!r}"[:200])
        elif event in _CHANGES and isinstance(arguments[0], str | bytes | os.PathLike):
            where = os.path.abspath(os.fsdecode(arguments[0]))  # noqa: PTH100 - as above
            if not self._may_write(where) and arguments[-1] in (-1, None):  # not relative to an open folder
                self.traces.append(f"{event} {where}")

    def _may_write(self, where: str) -> bool:
        places = ("store", "given", "tmp")
        return where == os.devnull or any(where.startswith(str(self.folder / each)) for each in places)

    def changes(self) -> list[str]:
        """What has changed outside the store since the last look, whoever did it."""
        found = self._stamps()
        different = sorted(
            path for path in found.keys() | self._before.keys() if found.get(path) != self._before.get(path)
        )
        self._before = found
        return different

    def _stamps(self) -> dict[str, tuple[int, int]]:
        folders = [*self.folder.iterdir(), *self.outside.rglob("*"), *self.home.rglob("*"), *self._first.rglob("*")]
        left = [path for path in self.tmp.rglob("*") if path.is_file()]
        stats = {str(path): path.lstat() for path in [*folders, *left]}
        own = {str(self.given), str(self.tmp), str(self.folder / "store"), str(self.folder)}
        return {path: (stat.st_size, stat.st_mtime_ns) for path, stat in stats.items() if path not in own}
