"""What the tests of the sandbox share: a folder to write into, an answer, and the traces that a statement left.

from traces import answer, outside, prints  # `outside` is a fixture
"""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest

from curator.serving import sandboxed


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a file that is not to be read."""
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "outside.csv").write_text("word\nsecret\n")
    monkeypatch.chdir(folder)
    return folder


def answer(con: duckdb.DuckDBPyConnection, query: str) -> pa.Table:
    """What the process in the sandbox would send."""
    sent = io.BytesIO()
    rows = sandboxed.send(con, query, sent)
    table = pa.ipc.open_stream(sent.getvalue()).read_all()
    assert table.num_rows == rows
    return table


def prints(*folders: Path) -> dict[str, str]:
    """A hash of each file in the folders."""
    files = [path for folder in folders if folder.exists() for path in folder.rglob("*") if path.is_file()]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def stamps(*folders: Path) -> dict[str, tuple[int, ...]]:
    """Which files there are in the folders, how large and last written when: quicker than their hashes."""
    stats = {str(path): path.stat() for folder in folders for path in sorted(folder.rglob("*"))}
    return {path: (stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns) for path, stat in stats.items()}
