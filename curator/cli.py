"""The entry point: runs a command and turns what went wrong into a message and an exit code.

0 done   1 the answer is no   2 usage or bad input   130 Ctrl-C   141 closed pipe
"""

from __future__ import annotations

import errno
import io
import os
import re
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import typer

from curator import progress
from curator.commands import (  # noqa: F401 - importing registers the commands
    app,
    disagreement,
    doctor,
    duplicates,
    evaluation,
    evolve,
    exports,
    gc,
    images,
    issues,
    labels,
    manifests,
    models,
    packs,
    pages,
    recipes,
    report,
    sql,
)
from curator.errors import CuratorError, DiskFull, InputError, interrupted

# typer brings its own copy of click, whose usage errors have no public name.
UsageError: Any = typer.BadParameter.__mro__[1]
# How DuckDB complains about a Parquet file whose beginning and end are well, if not with an error of no kind.
_DAMAGE = ("IO Error", "TProtocolException", "arquet", "ZSTD", "ecompress", "stats size")
# What comes with curator[train]; what the other extras bring is looked for where it is used.
_TRAIN = {"torch", "torchvision", "timm", "safetensors"}
_INSTALL = "pip install 'curator[train]'"


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line and exits."""
    for output in (sys.stdout, sys.stderr):
        # JSON is UTF-8 by definition, and a name that is no text must not stop a message
        if isinstance(output, io.TextIOWrapper):
            output.reconfigure(encoding="utf-8", errors="backslashreplace")
    if os.environ.get("RANK", "0") != "0":  # under torchrun the first process answers
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 - until the process ends
    signal.signal(signal.SIGTERM, _terminate)
    if os.environ.get("_CURATOR_COMPLETE"):  # a shell asks what may come next; this ends the process
        typer.main.get_command(app)(prog_name="curator")
    sys.exit(run(arguments))


def _terminate(number: int, frame: FrameType | None) -> None:
    """A batch system's SIGTERM goes the way of Ctrl-C, which leaves nothing behind."""
    raise KeyboardInterrupt


def run(arguments: list[str] | None = None) -> int:
    """Runs the command line.

    Returns:
        The exit code.
    """
    before = _repeated()
    try:
        # Not app(): that gives a closed pipe and Ctrl-C exit codes of its own, without a word.
        command = typer.main.get_command(app)
        with command.make_context("curator", sys.argv[1:] if arguments is None else list(arguments)) as context:
            command.invoke(context)
        sys.stdout.flush()
        if more := _repeated() - before:
            progress.say(f"{more} requests to the bucket were made again, because it was busy or out of reach")
        return 0
    except typer.Exit as stop:
        sys.stdout.flush()
        return stop.exit_code
    except (typer.Abort, KeyboardInterrupt):
        return _interrupted()
    except UsageError as error:
        error.show()
        return 2
    except CuratorError as error:
        return _failed(error)
    except BrokenPipeError:
        # Python would complain once more when it flushes standard output on exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        if interrupted(error):
            return _interrupted()
        mended = _mendable(error)
        if mended is None:
            raise
        return _failed(mended)


def _repeated() -> int:
    """Requests that were made again: a bucket may be asked for too much."""
    bucket = sys.modules.get("curator.storage.bucket")
    return bucket.repeated() if bucket is not None else 0


def _interrupted() -> int:
    print("\nstopped; what was committed is kept; the same command, given again, finishes", file=sys.stderr)
    return 130


def _failed(error: CuratorError) -> int:
    rank = os.environ.get("RANK", "0")  # under torchrun each process has its say
    print(f"error: {error}" if rank == "0" else f"error of rank {rank}: {error}", file=sys.stderr)
    return error.exit_code


def _mendable(error: Exception) -> CuratorError | None:
    """The environment's failures that reach us as exceptions of many libraries."""
    text = str(error)
    if isinstance(error, UnicodeEncodeError):  # see queries.check_text
        return InputError(f"{error.object!r} is not text in UTF-8", "give it in UTF-8")
    if isinstance(error, ModuleNotFoundError) and error.name in _TRAIN:
        return CuratorError(f"training and labeling need {error.name}, which is not installed", _INSTALL)
    if type(error).__name__ == "OutOfMemoryException" and "temp_directory" in text:
        import tempfile

        return DiskFull(
            f"the disk of temporary files, {tempfile.gettempdir()}, is full; everything finished before is kept",
            "free some space there, or set TMPDIR to a folder with more, and run the same command again",
        )
    if getattr(error, "errno", None) == errno.ENOSPC or "No space left on device" in text or "os error 28" in text:
        return DiskFull(
            "the disk is full; everything that was finished before is kept",
            "free some space and run the same command again",
        )
    if getattr(error, "errno", None) == errno.EROFS or "Read-only file system" in text or "os error 30" in text:
        return CuratorError(
            f"the disk is mounted for reading only ({text})", "mount it for writing, or copy the store to another disk"
        )
    if isinstance(error, PermissionError) or "Permission denied" in text or "os error 13" in text:
        return CuratorError(f"a file may not be read or written ({text})", "change its permissions or owner")
    told = re.search(r"curator\.errors\.\w+: (.+?)(?:\n\s*mend: (.+))?\s*$", text, re.DOTALL)
    if told is not None:  # what a bucket's file came to, out of the engine that read it
        return CuratorError(told[1], told[2] or "run the same command again")
    if type(error).__module__ == "_duckdb" and (
        type(error).__name__ == "Error" or any(word in text for word in _DAMAGE)
    ):
        lines = text.splitlines()  # of a traceback, as of a file of a bucket, the last says what it is
        said = lines[-1 if lines[0].startswith("Traceback") else 0]
        return CuratorError(f"a file of the store is damaged ({said})", "restore it from a backup")
    if isinstance(error, OSError) and error.errno is not None:
        return CuratorError(f"the file system refuses ({text})", "check the path, and that the disk is in order")
    return None
