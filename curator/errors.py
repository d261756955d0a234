"""What can go wrong for reasons that a person can mend, as exceptions.

    CuratorError          exit 2   bad input, missing input, usage: says what happened, why, and the mend
    +-- StoreError                 the store is missing, damaged or in use
    +-- InputError                 an image source, label file, recipe, option or query is not usable
    +-- DiskFull                   no space left; what was finished is kept
    +-- AnswerIsNo        exit 1   nothing is broken, but the question asked has the answer "no"

Anything else that escapes is a bug of the tool and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class CuratorError(Exception):
    """Something a person can mend.

    Args:
        what: What happened and why, one sentence without a full stop.
        mend: The command or edit that puts it right, shown on its own line.
    """

    exit_code = 2

    def __init__(self, what: str, mend: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.mend = mend

    def __str__(self) -> str:
        return f"{self.what}\n  mend: {self.mend}" if self.mend else self.what


class StoreError(CuratorError):
    """The store is missing, damaged or in use."""


class InputError(CuratorError):
    """An image source, label file, recipe, option or query cannot be used as given."""


class DiskFull(CuratorError):
    """No space is left on the device; everything finished before is kept."""


class AnswerIsNo(CuratorError):
    """Nothing is broken, but the answer to the question is no."""

    exit_code = 1


def interrupted(error: BaseException) -> bool:
    """Whether an exception is what DuckDB makes of Ctrl-C."""
    return str(error) == "Query interrupted" or "KeyboardInterrupt" in str(error)


def suggestion(word: str, known: Iterable[str]) -> str:
    """The close match to a mistyped name as a half sentence, or an empty string."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean '{close[0]}'?" if close else ""


def absent(kind: str, name: str, known: Iterable[str], made_by: str) -> InputError:
    """There is no such thing; the mend is those that there are, or else the command that makes one."""
    names = list(known)
    mend = f"the {kind}s are {some(names)}" if names else made_by
    return InputError(f"there is no {kind} '{name}'{suggestion(name, names)}", mend)


def printable(text: str) -> str:
    """Text that keeps to its line: a file's name must not move the cursor, break the line or fail to print."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def plural(number: int, one: str, more: str = "") -> str:
    """The words that go with a number: `one` where it is 1, else `more`, by default `one` with an s."""
    return one if number == 1 else more or f"{one}s"


def some(items: Iterable[object], limit: int = 5) -> str:
    """The first few items for a message, with the number of those left out."""
    shown = [printable(str(item)) for item in items]
    rest = f" and {len(shown) - limit} more" if len(shown) > limit else ""
    return ", ".join(shown[:limit]) + rest
