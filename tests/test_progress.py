"""Progress: silent when short, quiet or unasked; a line a minute in a log; a bar on a terminal after two seconds."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from curator import progress

WORK = """
import sys, time
from curator import progress
progress.show(sys.argv[1] == "shown")
with progress.progress("scanning", 40) as advance:
    for i in range(40):
        advance(1, "half way" if i > 20 else "")
        time.sleep(float(sys.argv[2]))
print("answer")
"""


@pytest.fixture(autouse=True)
def shown() -> Iterator[None]:
    progress.show(True)
    yield
    progress.show(False)


def on_a_terminal(*arguments: str) -> str:
    """What a process writes to a terminal of its own as standard error; its standard output goes to a pipe."""
    ours, theirs = pty.openpty()
    running = subprocess.Popen([sys.executable, "-c", WORK, *arguments], stdout=subprocess.PIPE, stderr=theirs)
    os.close(theirs)
    text = b""
    while True:
        try:
            part = os.read(ours, 4096)
        except OSError:  # Linux's word for the end of a terminal
            break
        if not part:
            break
        text += part
    os.close(ours)
    out, _ = running.communicate()
    assert (running.returncode, out) == (0, b"answer\n")
    return re.sub(r"\x1b\[[?0-9;]*[a-zA-Z]", "", text.decode())


def test_a_bar_on_a_terminal_after_two_seconds() -> None:
    text = on_a_terminal("shown", "0.075")
    assert "scanning" in text
    assert "40/40 images half way" in text


def test_nothing_on_a_terminal_when_short_or_quiet() -> None:
    assert on_a_terminal("shown", "0.01") == ""
    assert on_a_terminal("quiet", "0.06") == ""


def test_a_line_a_minute_elsewhere(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    with progress.progress("labeling", 500, "images") as advance:
        for _ in range(250):
            now += 1.0
            advance(2, "3 unreadable")
    lines = capsys.readouterr().err.splitlines()
    assert lines == [f"labeling: {120 * minute} of 500 images, 2 a second 3 unreadable" for minute in (1, 2, 3, 4)]


def test_no_total(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    with progress.progress("reading", None, "rows") as advance:
        now = 61.0
        advance(610)
    assert capsys.readouterr().err == "reading: 610 rows, 10 a second\n"


def test_short_work_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.progress("scanning", 10) as advance:
        for _ in range(10):
            advance(1)
    assert capsys.readouterr().err == ""


def test_quiet_says_nothing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(progress, "_LINE_EVERY_S", 0.0)
    progress.show(False)
    with progress.progress("scanning", 10) as advance:
        advance(10, "note")
    progress.say("a message")
    assert capsys.readouterr().err == ""
    progress.show(True)
    progress.say("a message")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "a message\n")


def test_an_error_inside_passes_through() -> None:
    def work() -> None:
        with progress.progress("scanning", 10) as advance:
            advance(1)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
