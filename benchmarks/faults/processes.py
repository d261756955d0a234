"""Processes that may be killed: forked from one that has imported everything, each in a process group of its own.

    this process, without threads --fork--> a call, its output in files --SIGKILL to the whole group--> what it left

A child that is forked begins with the work, not with seconds of imports, so that kills fall into the work.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

_LONGEST_S = 900.0
_LOOK_S = 0.001


class Moment(NamedTuple):
    """When to kill a process: so many seconds after its start or, where there is a watch, after what it waits for."""

    seconds: float
    watch: Callable[[], bool] | None = None


class Ended(NamedTuple):
    """How a process ended.

    Attributes:
        code: Its exit code; None where it was killed.
        out: What it wrote to standard output.
        err: What it wrote to standard error.
        seconds: From its start to its end.
    """

    code: int | None
    out: str
    err: str
    seconds: float


def forked(
    call: Callable[[], int],
    notes: Path,
    kill: Moment | None = None,
    watch: Callable[[float], object] | None = None,
) -> Ended:
    """Runs a call in a child of this process.

    Args:
        call: Gives the exit code.
        notes: Where its output goes, with the endings .out and .err.
        kill: When the child and all that it started are killed; None lets it end.
        watch: Called over and over until it ends, with the seconds since its start.
    """
    _forget(notes)
    began = time.perf_counter()
    child = os.fork()
    if not child:
        code = 70
        try:
            os.setpgid(0, 0)
            _redirect(notes)
            code = call()
            sys.stdout.flush()
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    with contextlib.suppress(OSError):
        os.setpgid(child, child)  # whichever of the two is first
    return _ended(child, notes, began, kill, watch)


def started(
    command: Sequence[str | Path],
    notes: Path,
    kill: Moment | None = None,
    watch: Callable[[float], object] | None = None,
) -> Ended:
    """Runs a program, see `forked`."""
    _forget(notes)
    began = time.perf_counter()
    with notes.with_suffix(".out").open("wb") as out, notes.with_suffix(".err").open("wb") as err:
        process = subprocess.Popen(command, stdout=out, stderr=err, stdin=subprocess.DEVNULL, process_group=0)
    process.returncode = 0  # it is waited for here
    return _ended(process.pid, notes, began, kill, watch)


def _ended(
    child: int, notes: Path, began: float, kill: Moment | None, watch: Callable[[float], object] | None
) -> Ended:
    until = began + (_LONGEST_S if kill is None or kill.watch is not None else kill.seconds)
    waiting = kill is not None and kill.watch is not None
    ended, status = 0, 0
    while not ended and (now := time.perf_counter()) < until:
        if watch is not None:
            watch(now - began)
        if waiting and kill is not None and kill.watch is not None and kill.watch():
            until, waiting = now + kill.seconds, False
        time.sleep(min(_LOOK_S, max(0.0, until - now)))
        ended, status = os.waitpid(child, os.WNOHANG)
    if not ended:
        os.killpg(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
    seconds = time.perf_counter() - began
    code = None if os.WIFSIGNALED(status) else os.waitstatus_to_exitcode(status)
    texts = [notes.with_suffix(ending) for ending in (".out", ".err")]
    out, err = (text.read_text("utf-8", "replace") if text.exists() else "" for text in texts)
    return Ended(code, out, err, seconds)


def _forget(notes: Path) -> None:
    """What an earlier process wrote; one that is killed early writes nothing over it."""
    for ending in (".out", ".err"):
        notes.with_suffix(ending).unlink(missing_ok=True)


def _redirect(notes: Path) -> None:
    for number, name in ((0, os.devnull), (1, notes.with_suffix(".out")), (2, notes.with_suffix(".err"))):
        flags = os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        opened = os.open(name, flags, 0o644)
        os.dup2(opened, number)
        os.close(opened)
