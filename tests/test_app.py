"""The app as a whole: the command, the address, the order of imports, the states in which there is nothing to show."""

import ast
import contextlib
import json
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from browser import Tab, browser, serve  # noqa: F401 - a fixture

from curator.storage.store import Store

APP = Path(__file__).resolve().parent.parent / "app"
# What pages share; a page imports of the app nothing else.
SHARED = {"live", "links", "words", "tiles", "choices", "turns"}


def test_pages_import_no_other_pages() -> None:
    for file in APP.glob("*.py"):
        if file.stem in {"main", "navigation", "__init__", "__main__"}:
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level:
                names = {node.module} if node.module else {alias.name for alias in node.names}
                assert names <= SHARED, f"{file.name} imports {names - SHARED}"


def test_a_port_that_is_taken_is_named(store: Store, process) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        answer = process("app", "--store", store.path, "--port", port)
    assert answer.code == 2
    assert f"port {port}" in answer.err
    assert f"--port {port + 1}" in answer.err


def test_no_store_no_app(tmp_path: Path, process) -> None:
    answer = process("app", "--store", tmp_path / "none")
    assert answer.code == 2
    assert "curator init" in answer.err


def test_the_address_is_the_answer(store: Store, browser) -> None:  # noqa: F811
    with serve(store.path) as url:
        log = next(store.path.parent.glob("app-*.log")).read_text()
        assert log == f"the app is at {url} (Ctrl-C stops it)\n"
        tab = Tab(browser, url).open()
        assert "Overview" in tab.text
        assert not tab.errors


@pytest.mark.long
def test_a_damaged_store_says_what_helps(store: Store, browser) -> None:  # noqa: F811
    with serve(store.path) as url:
        tab = Tab(browser, url).open("gallery")
        assert "9 images" in tab.text
        for file in (store.path / "labels").rglob("*.parquet"):  # while the app is open
            file.write_bytes(file.read_bytes()[:100])
        for page in ("", "gallery", "review"):
            tab.open(page)
            assert "Traceback" not in tab.text
    with serve(store.path) as url:
        for page in ("", "gallery", "review"):
            tab = Tab(browser, url).open(page).see("restore")
            assert not tab.errors


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_stops_when_it_is_told_to(store: Store, number: signal.Signals) -> None:
    command = [Path(sys.executable).with_name("curator"), "app", "--store", store.path, "--json"]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    url = json.loads("".join(running.stdout.readline() for _ in range(4)))["url"]
    for _ in range(100):
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/_stcore/health", timeout=1):
            break
        time.sleep(0.1)
    running.send_signal(number)
    rest, said = running.communicate(timeout=20)
    assert (running.returncode, rest) == (130, "")
    assert "Traceback" not in said
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(f"{url}/_stcore/health", timeout=1)


def test_a_killed_app_leaves_no_server(store: Store) -> None:
    """Also where nothing can be tidied up, as after kill -9."""
    command = [Path(sys.executable).with_name("curator"), "app", "--store", store.path, "--json"]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    url = json.loads("".join(running.stdout.readline() for _ in range(4)))["url"]
    assert any(answers(url) or time.sleep(0.1) for _ in range(200))
    running.kill()
    running.communicate(timeout=20)
    assert any(not answers(url) or time.sleep(0.1) for _ in range(100))


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/_stcore/health", timeout=5) as health:
            return health.read() == b"ok"
    except OSError:
        return False
