"""The processes of a soak that live long: a loader, a labeler, readers, and the app with its visitors.

python lives.py ROLE FOLDER --> a line for each turn, until FOLDER/stop is there
curator app <--sessions of its protocol-- Visitor
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

PAUSE_S = 1.0  # between two turns
# What docs/limits.md tells who keeps a process of their own for long; the app has it by itself.
ONE_ARENA = {"MALLOC_ARENA_MAX": "1", "_RJEM_MALLOC_CONF": "narenas:1"}
QUERY = "select class_name, count(*) as n from labels group by all order by all"


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
    "reader, one arena": read_again,
}


class Visitor:
    """A browser's side of the app's protocol: a session for each visit, which opens a page or asks for SQL.

    Attributes:
        closing: Whether the app ends, so that a visit may fail.
    """

    closing = False

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
                said = [each.text.body or each.code.code_text or each.alert.body for each in found]
                assert any(" rows in " in text for text in said), f"no answer of the sandbox: {said}"

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


class Lives:
    """The long-lived processes while they live.

    Args:
        folder: That of the soak.
        name: Of these, for their logs.

    Attributes:
        pids: The process of each role.
        visitor: Of the app.
        turns: Of each role, once they have ended.
        failures: What went wrong with them, once they have ended.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.log = folder, folder / "logs" / name
        self.pids: dict[str, int] = {}
        self.turns: dict[str, int] = {}
        self.failures: list[str] = []

    @contextlib.contextmanager
    def living(self) -> Iterator[Lives]:
        """Starts them, and ends them."""
        self.log.mkdir(parents=True, exist_ok=True)
        stop = self.folder / "stop"
        stop.unlink(missing_ok=True)
        with contextlib.ExitStack() as held:
            started: dict[str, subprocess.Popen[bytes]] = {}
            for name in ROLES:
                out, err = (held.enter_context((self.log / f"{name}.{kind}").open("wb")) for kind in ("out", "err"))
                command = [sys.executable, __file__, name, str(self.folder)]
                given = os.environ | (ONE_ARENA if "one arena" in name else {})
                started[name] = subprocess.Popen(command, stdout=out, stderr=err, env=given)
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = str(free.getsockname()[1])
            err = held.enter_context((self.log / "app.err").open("wb"))
            command = [sys.executable, "-m", "curator", "app", "--store", str(self.folder / "store"), "--port", port]
            app = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=err)
            url = f"http://127.0.0.1:{port}"
            self.visitor = Visitor(url)
            try:
                _wait_for(url)
                self.pids = {name: process.pid for name, process in started.items()} | {"app": _child(app.pid)}
                yield self
            finally:
                self.visitor.closing = True
                stop.touch()
                for name, process in started.items():
                    self._end(name, process)
                if app.poll() is not None:
                    self.failures.append(f"app: exit {app.returncode}")
                app.terminate()
                app.wait(60)

    def _end(self, name: str, process: subprocess.Popen[bytes]) -> None:
        try:
            code = process.wait(300)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
        self.turns[name] = len((self.log / f"{name}.out").read_text("utf-8").split())
        if code:
            said = (self.log / f"{name}.err").read_text("utf-8")
            self.failures.append(f"{name}: exit {code}: {said[-300:]}")


def _wait_for(url: str) -> None:
    for _ in range(600):
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/_stcore/health", timeout=2) as health:
            if health.read() == b"ok":
                return
        time.sleep(0.5)
    raise TimeoutError(f"no app at {url}")


def _child(pid: int) -> int:
    """The process that a command started and waits for."""
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])


if __name__ == "__main__":
    ROLES[sys.argv[1]](Path(sys.argv[2]), (Path(sys.argv[2]) / "stop").exists)
