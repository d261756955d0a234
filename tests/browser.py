"""The app in a real browser: a server for a store, and Chromium in front of it.

    from browser import Tab, browser, serve  # in a test module; `browser` is a fixture

    with serve(store.path) as url:
        tab = Tab(browser, url)
        tab.open("gallery?class=cat")

Where there is no Chromium the tests are skipped, and the end of the run says so.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
BEGUN = '[data-testid="stMain"] :is(h1, [data-testid="stAlert"])'
SETTLED = '[data-testid="stApp"][data-test-script-state="notRunning"]'


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium, without a window."""
    if CHROMIUM is None:
        pytest.skip("NO BROWSER: Chromium is not installed, so no page of the app was opened (apt install chromium)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@contextmanager
def serve(store: Path | str, folder: Path | None = None, **env: str) -> Iterator[str]:
    """Runs `curator app` on a store, with its log in a folder or beside the store; gives its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [Path(sys.executable).with_name("curator"), "app", "--store", store, "--port", str(port)]
    log = (folder or Path(store).parent) / f"app-{port}.log"
    with log.open("w") as said:
        server = subprocess.Popen([str(part) for part in command], stdout=said, stderr=said, env=os.environ | env)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(300):
            try:
                with urllib.request.urlopen(f"{url}/_stcore/health", timeout=1) as health:
                    if health.read() == b"ok":
                        break
            except OSError:
                assert server.poll() is None, log.read_text()
                time.sleep(0.1)
        else:
            raise AssertionError(f"the app did not start: {log.read_text()}")
        yield url
    finally:
        server.send_signal(signal.SIGINT)
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


class Tab:
    """A tab of the browser; `page` is Playwright's."""

    def __init__(self, browser: Any, url: str, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        self.url = url
        scheme = "dark" if dark else "light"
        self.page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
        self.page.set_default_timeout(20_000)
        self.errors: list[str] = []
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))

    def open(self, path: str = "") -> Tab:
        """Goes to a page of the app, and waits until it is there."""
        self.page.goto(f"{self.url}/{path}")
        # before the first run has begun the app looks settled, too
        self.page.wait_for_selector(BEGUN)
        return self.settle()

    def settle(self) -> Tab:
        """Waits until the script has run, the pictures are loaded, and nothing changes any more."""
        before = None
        for _ in range(100):
            self.page.wait_for_timeout(120)  # a click takes its time to reach the server
            self.page.wait_for_selector(SETTLED)
            self.page.wait_for_function("[...document.images].every(image => image.complete)")
            if before == (before := self.text):
                break
        return self

    def see(self, wanted: str) -> Tab:
        """Waits until a text can be read in the page, whatever the machine is busy with."""
        read = "document.querySelector('[data-testid=\"stMain\"]').innerText.replace(/\\s+/g, ' ')"
        self.page.wait_for_function(f"wanted => {read}.includes(wanted)", arg=wanted)
        return self

    @property
    def text(self) -> str:
        """What can be read in the page, without the sidebar."""
        found: str = self.page.locator('[data-testid="stMain"]').inner_text()
        return found

    @property
    def path(self) -> str:
        """The part of the URL behind the server's."""
        found: str = self.page.url.removeprefix(self.url).lstrip("/")
        return found

    def screenshot(self, file: Path) -> None:
        """Writes what the whole page looks like as a PNG."""
        self.page.screenshot(path=str(file), full_page=True)
