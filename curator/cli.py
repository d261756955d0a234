"""The entry point: runs a command and turns what went wrong into a message and an exit code.

0 done   1 the answer is no   2 usage or bad input   130 Ctrl-C   141 closed pipe
"""

from __future__ import annotations

import errno
import os
import sys
from typing import Any

import typer

from curator.commands import app, images, labels, manifests, models, sql  # noqa: F401 - importing registers the commands
from curator.errors import CuratorError, DiskFull

# typer brings its own copy of click, whose usage errors have no public name.
UsageError: Any = typer.BadParameter.__mro__[1]


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line and exits."""
    sys.exit(run(arguments))


def run(arguments: list[str] | None = None) -> int:
    """Runs the command line.

    Returns:
        The exit code.
    """
    try:
        code = app(arguments, standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
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
        mended = _mendable(error)
        if mended is None:
            raise
        return _failed(mended)


def _interrupted() -> int:
    print("\nstopped; what was committed is kept, and the same command goes on from there", file=sys.stderr)
    return 130


def _failed(error: CuratorError) -> int:
    print(f"error: {error}", file=sys.stderr)
    return error.exit_code


def _mendable(error: Exception) -> CuratorError | None:
    """The environment's failures that reach us as exceptions of many libraries."""
    text = str(error)
    if getattr(error, "errno", None) == errno.ENOSPC or "No space left on device" in text or "os error 28" in text:
        return DiskFull(
            "the disk is full; everything that was finished before is kept",
            "free some space and run the same command again",
        )
    if isinstance(error, PermissionError) or "Permission denied" in text or "os error 13" in text:
        return CuratorError(f"a file may not be read or written ({text})", "change its permissions or owner")
    return None
