"""Decisions of people on images: appended, never changed; the latest of an image wins.

    one decision, or a CSV file of many --checked--> rows of the table reviews, in one commit

sql/decisions.sql says what they come to.
"""

from __future__ import annotations

import csv
import datetime as dt
import getpass
import os
import re
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa
from deltalake.exceptions import DeltaError

from curator import progress, queries
from curator.errors import CuratorError, InputError, some, suggestion
from curator.schema import DECISIONS, REVIEWS
from curator.storage import additions
from curator.storage.store import Store

if TYPE_CHECKING:
    import deltalake

COLUMNS = ("image_id", "uri", "generation", "decision", "new_label", "reviewer", "reason")
Review = dict[str, Any]  # a row of the table
_SHOWN = 10  # wrong rows that a message names


class Taken(NamedTuple):
    """What a file of decisions brought."""

    recorded: int
    undecided: int  # rows without a decision, which are passed over
    decisions: dict[str, int]


def add_review(
    store: Store,
    image_id: int,
    decision: str,
    new_label: str | None = None,
    reviewer: str | None = None,
    reason: str | None = None,
    generation: int | None = None,
) -> Review:
    """Records one decision on a label of an image.

    Args:
        store: The store.
        image_id: The image.
        decision: accept, reject, relabel, or skip, which takes an earlier decision back.
        new_label: Class name or index, for a relabel.
        reviewer: Who decided; the user's login name by default.
        reason: Free text.
        generation: Whose label was judged; the newest that labeled the image by default.

    Returns:
        The row that was written.

    Raises:
        InputError: The image, its label, the decision or class is unknown, or a class is given where none belongs.
    """
    with closing(store.connect()) as con:
        classes = [row["class_name"] for row in queries.rows(con, "select class_name from classes order by label")]
        label = _judge(classes, decision, new_label)
        wanted = {"image_id": image_id, "generation": generation}
        # what does not fit into 64 bits is as unknown as -1
        fitting = {name: value if value is None or abs(value) < 2**63 else -1 for name, value in wanted.items()}
        found = _images(con, [{"line": 1, "uri": "", **fitting}])
    if not found:
        raise InputError(f"there is no image {image_id}", 'curator sql "select image_id, uri from images limit 10"')
    known = found[0]
    if generation is not None and known["generation"] is None:
        raise InputError(
            f"image {image_id} has no label of generation {generation}",
            f"curator show MANIFEST --image-id {image_id} shows its labels; or leave --generation out",
        )
    return record(store, image_id, known["generation"], decision, label, reviewer, reason, after=known["decided_at"])


def record(
    store: Store,
    image_id: int,
    generation: int | None,
    decision: str,
    new_label: int | None = None,
    reviewer: str | None = None,
    reason: str | None = None,
    opened: deltalake.DeltaTable | None = None,
    after: dt.datetime | None = None,
) -> Review:
    """Records a decision of somebody who has just seen the image: nothing is looked up, so it takes no time.

    Args:
        store: The store.
        image_id: An image of the store.
        generation: Whose label was judged; None for none.
        decision: As in `add_review`.
        new_label: Class index, for a relabel.
        reviewer: As in `add_review`.
        reason: As in `add_review`.
        opened: See `additions.append`.
        after: When the image was decided on last, as far as the caller knows; the decision is later.

    Returns:
        The row; it is in the table, and later readers find it.

    Raises:
        InputError: It is no decision, or one that does not go with the class.
    """
    _check(decision, new_label is not None)
    row: Review = {
        "image_id": image_id,
        "generation": generation,
        "decision": decision,
        "new_label": new_label,
        "reviewer": reviewer or login(),
        "reason": reason,
        "decided_at": additions.later(after),
    }
    _append(store, [row], opened)
    return row


def add_reviews(store: Store, file: str, reviewer: str | None = None) -> Taken:
    """Records the decisions of a CSV file, all of them in one commit, or none.

    Args:
        store: The store.
        file: A line of names, then one line per image: image_id or uri, decision, and where they are needed
            generation, new_label, reviewer and reason. Lines without a decision are passed over, and so are other
            columns.
        reviewer: Who decided, where a line does not say; the user's login name by default.

    Raises:
        InputError: The file cannot be read, or lines of it are wrong; the message names them, and nothing was written.
    """
    given = _read(Path(file))
    filled = [row for row in given if row["decision"]]
    classes = store.classes()
    problems = _read_numbers(filled)
    with closing(store.connect()) as con:
        images = _images(con, filled)
        found = {row["line"]: row for row in images}
    seen: dict[int, int] = {}
    rows = []
    who = reviewer or login()
    for row in filled:
        line, known = row["line"], found.get(row["line"])
        try:
            label = _judge(classes, row["decision"], row["new_label"] or None)
        except InputError as error:
            problems[line] = error.what
            continue
        if line in problems:
            continue
        if known is None:
            problems[line] = f"there is no image {row['uri'] if row['image_id'] is None else row['image_id']}"
        elif row["uri"] not in ("", known["uri"]):
            problems[line] = f"image {known['image_id']} is '{known['uri']}', not '{row['uri']}'"
        elif row["generation"] is not None and known["generation"] is None:
            problems[line] = f"image {known['image_id']} has no label of generation {row['generation']}"
        elif known["image_id"] in seen:
            problems[line] = f"the image of line {seen[known['image_id']]} again"
        else:
            seen[known["image_id"]] = line
            rows.append(
                {"image_id": known["image_id"], "generation": known["generation"], "decision": row["decision"]}
                | {"new_label": label, "reviewer": row["reviewer"] or who, "reason": row["reason"] or None}
                | {"decided_at": known["decided_at"]}
            )
    if problems:
        raise InputError(
            f"{len(problems)} of {len(filled)} decisions of '{file}' cannot be used; nothing was recorded: "
            f"{some((f'line {line}: {what}' for line, what in sorted(problems.items())), _SHOWN)}",
            "correct these lines, and give the whole file again",
        )
    if rows:
        now = additions.later(*(row["decided_at"] for row in rows))
        _append(store, [row | {"decided_at": now} for row in rows])
    counts = {decision: sum(row["decision"] == decision for row in rows) for decision in DECISIONS}
    return Taken(len(rows), len(given) - len(filled), counts)


def _append(store: Store, rows: list[Review], opened: deltalake.DeltaTable | None = None) -> None:
    """Adds decisions in one commit, and puts the table's files together when they have become many."""
    grown = additions.append(store, "reviews", pa.Table.from_pylist(rows, REVIEWS.schema), opened)
    try:
        additions.gather(store, "reviews", grown)
    except (CuratorError, DeltaError, OSError, pa.ArrowException) as error:
        # as on a full disk: what was decided is in the table, and whoever decides next tries again
        progress.say(f"recorded; the files of the reviews were not put together ({str(error).splitlines()[0]})")


def _judge(classes: list[str], decision: str, new_label: str | None) -> int | None:
    """The index of the class that a decision gives, None for those that give none.

    Raises:
        InputError: It is no decision, or one that does not go with the class.
    """
    _check(decision, new_label is not None)
    return None if new_label is None else class_index(classes, new_label)


def _check(decision: str, has_label: bool) -> None:
    if decision not in DECISIONS:
        raise InputError(
            f"the decision '{decision}' is unknown{suggestion(decision, DECISIONS)}",
            f"one of {', '.join(DECISIONS)}",
        )
    if (decision == "relabel") != has_label:
        raise InputError(
            "a relabel needs a class, and only a relabel",
            "--decision relabel --new-label CLASS, or leave --new-label out",
        )


def _read(file: Path) -> list[dict[str, Any]]:
    """The lines of a CSV file: its COLUMNS as text, '' where there is none, and `line`, where each begins."""
    try:
        with file.open(encoding="utf-8-sig", newline="") as text:
            reader = csv.reader(text, strict=True)
            names = [name.strip() for name in next(reader, [])]
            _check_names(file, names)
            rows, line = [], reader.line_num + 1
            for cells in reader:
                if cells:
                    if len(cells) > len(names):
                        what = f"line {line} of '{file}' has {len(cells)} cells, and there are {len(names)} columns"
                        raise InputError(what, "put cells that hold a comma into double quotes")
                    row = dict(zip(names, (cell.strip() for cell in cells), strict=False))
                    rows.append({name: row.get(name, "") for name in COLUMNS} | {"line": line})
                line = reader.line_num + 1
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise InputError(f"'{file}' cannot be read ({why})", "give a CSV file in UTF-8, with a line of names") from None
    return rows


def _check_names(file: Path, names: list[str]) -> None:
    mend = f"the columns are {', '.join(COLUMNS)}; image_id or uri, and decision, must be there"
    if "decision" not in names or not {"image_id", "uri"} & {*names}:
        has = f"its first line names {', '.join(names)}" if names else "it is empty"
        raise InputError(f"'{file}' has no decisions on images ({has})", mend)
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"'{file}' has the column '{repeated[0]}' twice", "leave one of them out")
    for name in names:  # another column is of no harm, a mistyped one would be
        if name not in COLUMNS and (meant := suggestion(name, [c for c in COLUMNS if c not in names])):
            raise InputError(f"'{file}' has a column '{name}'{meant}", mend)


def _read_numbers(rows: list[dict[str, Any]]) -> dict[int, str]:
    """Puts numbers, or None, for the texts of image_id and generation; returns what is wrong with lines."""
    problems = {}
    for row in rows:
        for name in ("image_id", "generation"):
            text, row[name] = row[name], number(row[name])
            # a spreadsheet may have made 2.8E+18 of an id, which the uri beside it stands in for
            if text and row[name] is None and (name == "generation" or not row["uri"]):
                problems[row["line"]] = f"the {name} '{text[:40]}' is no number"
    return problems


def _images(con: Any, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The image of each line, with the generation that was judged; of lines that name none there is no row."""
    columns = {"line": pa.int64(), "image_id": pa.int64(), "uri": pa.string(), "generation": pa.int64()}
    con.register("given", pa.table({n: pa.array([row[n] for row in rows], kind) for n, kind in columns.items()}))
    return queries.rows(con, queries.text("review_images"))


def number(text: str) -> int | None:
    """The whole number of 64 bits that a text says, if it says one; Python refuses to read one of 4,301 digits."""
    found = int(text) if re.fullmatch(r"-?\d{1,100}", text) else None
    return found if found is not None and abs(found) < 2**63 else None


def login() -> str:
    """The user's login name, or the user's number where the system knows no name, as in many containers."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def class_index(classes: list[str], given: str) -> int:
    """The index of a class given by its name or, where no class has that name, by its index.

    Raises:
        InputError: There is no such class.
    """
    if given in classes:
        return classes.index(given)
    index = number(given)
    if index is not None and 0 <= index < len(classes):
        return index
    raise InputError(f"there is no class '{given}'{suggestion(given, classes)}", f"the classes are {some(classes, 12)}")
