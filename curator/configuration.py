"""TOML files checked as a whole: every mistake of one is told at once, with its line and what was meant.

text -> read -> data -> change (--set KEY=VALUE) ... -> check -> a model of frozen sections
                                                          |
                                                          +-> or all mistakes, each with "line N" or "--set"
"""

from __future__ import annotations

import copy
import difflib
import json
import re
import sys
import tomllib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from curator.errors import InputError, some

Key = tuple[str, ...]  # of nested tables; what stands in a list has its number in it
_DEEPEST = 50  # tables and lists in one another; what reads them calls itself


class Section(BaseModel):
    """A table of a file: fixed keys, fixed values."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


Checked = TypeVar("Checked", bound=Section)


def read(path: Path, what: str) -> str:
    """The text of a file.

    Args:
        path: The file.
        what: What it holds, for the message: "recipe".

    Raises:
        InputError: It is not text in UTF-8.
    """
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError:
        raise InputError(f"the {what} '{path}' is not text in UTF-8", "give a .toml file") from None


def parse(text: str, source: str, what: str) -> dict[str, Any]:
    """The data of TOML text.

    Args:
        text: The text.
        source: Its name or path, for the message.
        what: What it holds, for the message.

    Raises:
        InputError: It is not TOML, or nests too deeply.
    """
    try:
        data = tomllib.loads(text)
        deep = _is_deep(data)
    except ValueError as error:  # a whole number of too many digits is one that is no TOMLDecodeError
        raise InputError(f"the {what} '{source}' is not TOML ({error})", "correct that line") from None
    except RecursionError:
        deep = True
    if deep:
        raise InputError(f"the {what} '{source}' has more than {_DEEPEST} tables or lists in one another", "correct it")
    return data


def _is_deep(data: Any) -> bool:
    level = [data]
    for _ in range(_DEEPEST):
        inner = [each.values() if isinstance(each, dict) else each for each in level if isinstance(each, dict | list)]
        level = [value for values in inner for value in values]
    return bool(level)


def change(data: dict[str, Any], given: str, what: str) -> str:
    """Makes a change KEY=VALUE with a dotted key in the data and returns the key.

    Raises:
        InputError: It is not KEY=VALUE, or a part of the key is no table.
    """
    key, equals, value = given.partition("=")
    *tables, name = path = [part.strip() for part in key.split(".")]
    if not equals or not all(path) or len(path) > _DEEPEST:
        raise InputError(f"--set {given} is not KEY=VALUE", "e.g. --set schedule.steps=100")
    try:
        parsed = tomllib.loads(f"value = {value}")
        if _is_deep(parsed):
            parsed = {}
    except (ValueError, RecursionError):
        parsed = {}
    for table in tables:
        data = data.setdefault(table, {})
        if not isinstance(data, dict):
            raise InputError(f"--set {given}: '{table}' is not a table of a {what}", "e.g. --set noise.dropout=0.2")
    data[name] = parsed["value"] if len(parsed) == 1 else value.strip()  # a bare word is text
    return ".".join(path)


def check(
    model: type[Checked],
    data: dict[str, Any],
    what: str,
    source: str,
    text: str = "",
    changed: Iterable[str] = (),
    contradictions: Callable[[dict[str, Any], Collection[Key]], Iterable[tuple[Key, str]]] = lambda data, wrong: (),
) -> Checked:
    """Builds a model from its data.

    Args:
        model: The sections.
        data: What TOML gives.
        what: What is checked, for the message: "recipe".
        source: Its name or path, for the message.
        text: The TOML text, for the line numbers.
        changed: Dotted keys that do not come from the text.
        contradictions: Finds keys that do not fit together, as (key, message), in the data without what is wrong by
            itself; the keys that were wrong come second.

    Raises:
        InputError: Every unknown key, bad value and contradiction, each with its line.
    """
    mistakes: dict[Key, str] = {}
    good = copy.deepcopy(data)
    try:
        # Through JSON, where a list is a tuple and a table a section, and yet no text is a number.
        made = model.model_validate_json(json.dumps(data, default=str))
    except ValidationError as error:
        for problem in error.errors():
            if problem["type"] == "default_factory_not_called":  # a default that another mistake leaves open
                continue
            path = tuple(str(part) for part in problem["loc"])
            mistakes[path] = _say(path, problem, model)
            _remove(good, path)
    for at, message in contradictions(good, mistakes.keys()):
        mistakes[at] = message
    if mistakes:
        lines, given = _lines(text), {tuple(key.split(".")) for key in changed}
        listed = sorted((*_where(path, lines, given), message) for path, message in mistakes.items())
        raise InputError(
            f"the {what} '{source}' has {len(mistakes)} mistake{'s' * (len(mistakes) > 1)}:"
            + "".join(f"\n    {where}{message}" for _, where, message in listed),
            "correct the file, or the --set options",
        )
    return made


_PLAIN_WORDS = {
    "int_type": "should be a whole number",
    "float_type": "should be a number",
    "string_type": "should be text",
    "bool_type": "should be true or false",
    "tuple_type": "should be a list",
    "model_type": "should be a table",
    "dict_type": "should be a table",
    "too_long": "should have two items",
}
_SHORTER = [("greater than", "above"), ("less than", "below"), ("above or equal to", "at least")]
_SHORTER += [("below or equal to", "at most")]


def _say(path: Key, problem: Any, model: type[Section]) -> str:
    """One of pydantic's problems in the words of a recipe."""
    where, item = ".".join(path), ""
    if problem["type"] == "extra_forbidden":
        return f"unknown key '{where}'{_meant(path, [*keys(model)])}"
    if path[-1].isdigit():
        where, item = ".".join(path[:-1]), f" item {int(path[-1]) + 1}"
        if problem["type"] == "missing":
            return f"'{where}' = {problem['input']}: should have two items"
    elif problem["type"] == "missing":
        return f"'{where}' is missing"
    message = _PLAIN_WORDS.get(problem["type"], problem["msg"].replace("Input should be", "should be"))
    for long, short in _SHORTER:
        message = message.replace(long, short)
    return f"'{where}'{item} = {problem['input']!r}: {message}"


def toml(data: Mapping[str, Any]) -> str:
    """TOML text of plain data: tables of numbers, text, lists and smaller tables, which stand in one line."""
    single = [f"{key} = {_value(value)}" for key, value in data.items() if not isinstance(value, Mapping)]
    tables = [
        "\n".join([f"[{name}]", *(f"{_key(key)} = {_value(value)}" for key, value in table.items())])
        for name, table in data.items()
        if isinstance(table, Mapping)
    ]
    return "\n\n".join(["\n".join(single), *tables]) + "\n"


def _key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _value(key)


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        inside = ", ".join(f"{_key(key)} = {_value(each)}" for key, each in value.items())
        return f"{{ {inside} }}" if inside else "{}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_value, value))}]"
    # Numbers, truth and text are as in JSON, but for one character.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def keys(model: type[Section], above: Key = ()) -> Iterator[Key]:
    """All keys of a model; a table's own comes before those in it."""
    for name, field in model.model_fields.items():
        yield (*above, name)
        for inner in (field.annotation, *get_args(field.annotation)):
            if isinstance(inner, type) and issubclass(inner, Section):
                yield from keys(inner, (*above, name))


def _meant(path: Key, known: list[Key]) -> str:
    """What an unknown key may have been meant as: a like one of the same table, or the same one of another table."""
    table = tuple(part for part in path[:-1] if not part.isdigit())
    beside = [key[-1] for key in known if key[:-1] == table]
    close = difflib.get_close_matches(path[-1], beside, n=1)
    meant = [(*path[:-1], *close)] if close else [key for key in known if key[-1] == path[-1]]
    return f"; did you mean '{'.'.join(meant[0])}'?" if meant else f"; known are {some(sorted(beside), 20)}"


def _remove(data: dict[str, Any], path: Key) -> None:
    """Takes a key out of the data; a wrong item takes its list with it."""
    for part in path[:-1]:
        if not isinstance(data.get(part), dict):
            data.pop(part, None)
            return
        data = data[part]
    data.pop(path[-1], None)


def _lines(text: str) -> dict[Key, int]:
    """Where the tables and keys of TOML text stand; what is written in another way than usual is not found."""
    found: dict[Key, int] = {}
    table: Key = ()
    for number, line in enumerate(text.splitlines(), start=1):
        if header := re.match(r"\s*\[([^\[\]]+)\]\s*(#|$)", line):
            table = _parts(header.group(1))
            found.setdefault(table, number)
        elif header := re.match(r"\s*\[\[([^\[\]]+)\]\]\s*(#|$)", line):  # one more item of a list of tables
            name = _parts(header.group(1))
            table = (*name, str(sum(key[:-1] == name and key[-1].isdigit() for key in found)))
            found[table] = number
        elif key := re.match(r"""([\w."' -]+)=""", line):
            found.setdefault(table + _parts(key.group(1)), number)
    return found


def _parts(key: str) -> Key:
    return tuple(part.strip(" \t\"'") for part in key.split("."))


def _where(path: Key, lines: dict[Key, int], given: set[Key]) -> tuple[int, str]:
    """The line of a key, or of the table that it belongs into, as a number and as "line N: ", "--set: " or nothing."""
    for end in range(len(path), 0, -1):
        if path[:end] in given:
            return sys.maxsize, "--set: "
        if path[:end] in lines:
            return lines[path[:end]], f"line {lines[path[:end]]}: "
    return 0, ""
