"""Policies: the rules that say which candidates may fill a class, and in which order.

    sql/policies/NAME.sql, or a user's own FILE.sql --load--> text and defaults --settle--> values for the query

A policy is one query over the relations that `READS` names. It returns one row per image: image_id, label, confidence,
score (higher is taken first) and, if it likes, weight. It states its own parameters in its header, one a line, with the
default and, if it likes, the lowest and the highest value that makes sense:

    -- Parameter: $threshold = 0.95 in 0 .. 1    lowest confidence
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from curator import queries
from curator.errors import InputError, some, suggestion

# What a policy may read, by names that the steps before it and the store's views have.
READS = (
    "candidates",
    "allowed",
    "pool",
    "holdout",
    "decisions",
    "accepted",
    "classes",
    "images",
    "labels",
    "reviews",
    "models",
)
# The rows of another manifest, for a policy with the parameter $manifest, which names it.
EARLIER = "earlier"
# What every policy may use as $NAME besides its own parameters.
GIVEN = ("generation", "per_class", "min_confidence", "seed")
# What other steps, the checks among them, use as $NAME: a parameter of such a name would change them.
_TAKEN = (
    *("fill", "max_copies", "targets", "hard_from", "policy", "policy_sql", "settings", "temperature", "where"),
    *("image_id", "label", "score", "classes", "near_leaks", "dedup", "accepted", "calibration", "t"),
)
COLUMNS = ("image_id", "label", "confidence", "score")
_PARAMETER = re.compile(r"^-- Parameter: \$(\w+) = ('[^']*'|\S+)(?: in (\S+) \.\. (\S+))?", re.MULTILINE)
_END = re.compile(r";(?=(?:\s|--.*+)*+\Z)")  # behind the statement there may be comments

Value = int | float | str
_KINDS = {int: "a whole number", float: "a number", str: "text"}


class Policy(NamedTuple):
    """A policy as it was read.

    Attributes:
        name: Its name.
        text: Its query, without a semicolon at its end.
        defaults: Its own parameters.
        ranges: The lowest and the highest value of those that state them.
    """

    name: str
    text: str
    defaults: dict[str, Value]
    ranges: dict[str, tuple[Value, Value]]


def names() -> list[str]:
    """The policies that come with the tool."""
    return queries.names("policies")


def load(name: str, text: str | None = None) -> Policy:
    """A policy that comes with the tool, or a user's own.

    Args:
        name: Its name.
        text: Its query, unless it comes with the tool.

    Raises:
        InputError: A parameter has the name of another option, or a default that is not in its range.
    """
    text = queries.text(f"policies/{name}") if text is None else text
    defaults, ranges = {}, {}
    for parameter, value, low, high in _PARAMETER.findall(text):
        if parameter.lower() in (*GIVEN, *_TAKEN):
            raise InputError(f"the policy {name} states ${parameter}, which is given by an option", "rename it")
        defaults[parameter] = _value(value)
        if low:
            ranges[parameter] = _value(low), _value(high)
            if not _lies(defaults[parameter], *ranges[parameter]):
                what = f"the policy {name} states ${parameter} = {value}, which is not in {low} .. {high}"
                raise InputError(what, "state the lowest and the highest value as numbers, and a default between them")
    return Policy(name, text, defaults, ranges)


def read(file: Path) -> Policy:
    """A policy from a user's own file; its name is that of the file.

    Raises:
        InputError: The file is not there or holds no text.
    """
    try:
        text = _END.sub("", file.read_text("utf-8").strip())
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise InputError(
            f"the policy '{file}' cannot be read ({why})", f"--policy with one of {some(names())}, or a file"
        ) from None
    return load(file.name, text)


def resolve(recorded: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a selection in the form in which they are recorded.

    Args:
        recorded: Options to take where nothing else is given.
        given: Options as they were given; the policy may be the path of a file that ends in .sql.

    Raises:
        InputError: The file cannot be read.
    """
    options = {**recorded, **given}
    if "policy" in given:
        options.pop("policy_sql", None)
        if str(given["policy"]).endswith(".sql"):
            own = read(Path(given["policy"]))
            options |= {"policy": own.name, "policy_sql": own.text}
    settings = given.get("settings", {})
    # The settings of another policy say nothing about this one.
    if all(options.get(key) == recorded.get(key) for key in ("policy", "policy_sql")):
        settings = {**recorded.get("settings", {}), **settings}
    return options | {"settings": settings} if settings or "settings" in options else options


def settle(policy: Policy, given: Mapping[str, Value]) -> dict[str, Value]:
    """The values of a policy's own parameters.

    Args:
        policy: The policy.
        given: Those that are not to have their defaults; text is read as the kind that the default has.

    Raises:
        InputError: A name is unknown, or a value is of another kind than the default or out of its range.
    """
    settled = dict(policy.defaults)
    for name, value in given.items():
        if name not in settled:
            known = f"it has {some([f'{k} = {v}' for k, v in settled.items()])}" if settled else "it has none"
            raise InputError(
                f"the policy {policy.name} has no parameter '{name}'{suggestion(name, settled)}",
                f"--set with one of its own ({known})",
            )
        found = _value(value) if isinstance(value, str) and not isinstance(settled[name], str) else value
        found = float(found) if isinstance(settled[name], float) and isinstance(found, int) else found
        if type(found) is not type(settled[name]):
            raise InputError(
                f"--set {name}={value} is not {_KINDS[type(settled[name])]}",
                f"give one like its default, {settled[name]}",
            )
        if name in policy.ranges and not _lies(found, *policy.ranges[name]):
            low, high = policy.ranges[name]
            raise InputError(
                f"--set {name}={value}: the policy {policy.name} takes {low} to {high}",
                f"give one in between; the default is {policy.defaults[name]}",
            )
        settled[name] = found
    return settled


def _lies(value: Value, low: Value, high: Value) -> bool:
    numbers = [each for each in (low, value, high) if not isinstance(each, str)]
    return len(numbers) == 3 and numbers == sorted(numbers)


def _value(text: str) -> Value:
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            # A larger one, or nan, is no number that SQL could bind and cast.
            if abs(number := kind(text)) < 2**63:
                return number
    return text.strip("'")
