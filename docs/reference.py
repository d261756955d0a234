"""Writes the reference pages, docs/tables.md and docs/commands.md, from the code: `make reference`.

    curator/schema.py, the views of an empty store --tables--> docs/tables.md
    the commands, ANSWERS, NO                      --commands--> docs/commands.md

tests/test_reference.py writes them again and compares, so CI fails where they are stale; it also runs the commands and
holds ANSWERS against what they print.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import typer

from curator import cli, schema
from curator.storage.store import Store

DOCS = Path(__file__).resolve().parent
NOTE = "<!-- Written by docs/reference.py from the code: change it there, then `make reference`. -->"

# The keys of the document that --json prints, by command, and by when it prints them.
SCAN = (
    "scan images checked not_checked unreadable plain embedded compared rejected cleared unconfirmed crowded problems "
    "distance model cosine confirm duplicates groups spare leaks labeled_twins kinds examples written"
)
BUILT = "name path generation rows unique_images classes short_classes empty_classes sha256 funnel warnings"
ANSWERS: dict[str, dict[str, str]] = {
    "init": {"": "store root classes kept_classes"},
    "add-images": {
        "": "added already_present unreadable total leaks repeated problems known_unreadable known_unscanned",
    },
    "train": {
        "": (
            "model generation steps top1 images_per_second loss input_bound loader pack precision failed problems step "
            "best_step best_top1"
        ),
        "with --dry-run": "recipe resolved classes size device precision phases seconds notes",
    },
    "label": {
        "": "model generation images resumed already_labeled images_per_second engine failed problems",
        "with --embeddings also": "embeddings",
    },
    "import-labels": {"": "generation images rejected problems"},
    "build-manifest": {"": BUILT, "with --explain also": "lineage"},
    "manifests": {"": "manifests"},
    "show": {"": f"{BUILT} lineage", "with --image-id, and what is known of the image": "name image_id in reason"},
    "report": {"": "name path bytes pictures unreadable", "with --model": "models path bytes suites"},
    "diff": {"": "added removed relabeled copies_changed same classes"},
    "check": {"": "manifests"},
    "export": {"": "name format path rows copies images files unreadable problems"},
    "pack": {
        "": "pack path images already_packed unreadable bytes source_bytes total problems",
        "with --verify": "pack path images shards damaged damaged_shards problems",
    },
    "evaluate": {
        "": (
            "model generation images top1 top1_low top1_high top5 ece confidence failed seed limit basis intervals "
            "classes bins attacks"
        ),
        "with options of these names also": "corruptions perturbations outside",
    },
    "recipes": {"": "recipes", "with NAME": "recipe resolved"},
    "evolve": {"": "plan generations controls steps"},
    "review": {
        "": "image_id generation decision new_label reviewer reason decided_at",
        "with --from": "recorded undecided decisions",
    },
    "quality duplicates": {"": SCAN},
    "quality leaks": {"": SCAN},
    "quality folds": {"": "run folds trained images top1 unknown failed problems"},
    "quality issues": {"": "source by order images unjudged noise suspects decided classes cells rows csv"},
    "quality calibration": {
        "": (
            "model generation images top1 confidence temperature nll_before nll_after ece_before ece_after bins "
            "bins_after min_confidence classes stored plot"
        )
    },
    "quality disagreement": {
        "": (
            "generation previous split images flipped only_before only_after confidence_before confidence_after "
            "classes flips holdout"
        ),
        "with --image-id": "image_id generations",
    },
    "quality queue": {"": "generation manifest images compared reasons"},
    "quality audit": {"": "generation seed per_class min_confidence drawn_now total classes open"},
    "quality domain": {"": "generation usual usual_of sources images far"},
    "sql": {"a list with an object for each row": ""},
    "doctor": {"": "ok checks not_run mended"},
    "gc": {"": "would_remove bytes kinds kept_unknown", "with --delete": "removed bytes kinds kept_unknown"},
    "index": {"": "generations"},
    "app": {"": "url store"},
    "demo": {"": "folder figures"},
}
# What exit code 1, "the answer is no", says, where a command has it.
NO = {
    "build-manifest": "with `--strict`, a class falls short; nothing was written",
    "diff": "with `--exit-code`, something differs",
    "check": "a manifest fails a check",
    "export": "images had to be left out, so the export is not the manifest",
    "pack": "with `--verify`, something is damaged",
    "doctor": "something is wrong",
    "quality leaks": "images outside the holdout show one of its images",
}
# Pages that say more.
PAGES = {
    "init": "store", "add-images": "store", "import-labels": "teacher", "label": "labeling", "review": "audit",
    "index": "app", "build-manifest": "selection", "show": "selection", "diff": "selection", "check": "selection",
    "report": "selection", "export": "export", "pack": "packing", "train": "training", "evaluate": "evaluation",
    "recipes": "recipes", "evolve": "evolve", "sql": "sql", "app": "app", "demo": "tutorial",
    "quality duplicates": "duplicates", "quality leaks": "duplicates", "quality folds": "label-issues",
    "quality issues": "label-issues", "quality calibration": "calibration", "quality disagreement": "audit",
    "quality queue": "audit", "quality audit": "audit", "quality domain": "audit", "doctor": "doctor", "gc": "gc",
}  # fmt: skip
# Options of every command, told once.
COMMON = ("--store", "--json", "--quiet", "--help")

TABLES_HEAD = f"""# Tables
{NOTE}

The views that `curator sql` and the app answer from, with every column that a question can name. The Delta tables
behind them (`docs/store.md`) have the same columns in narrower types, and numbers where a view has names of classes.
Types are DuckDB's.
"""
COMMANDS_HEAD = f"""# Commands
{NOTE}

Every command takes these, too, but `demo` no `--store`: it makes a store of its own.

| option | default | |
|---|---|---|
| `--store DIR` | `$CURATOR_STORE`, else `store` | folder of the store, or its URL in a bucket |
| `--json` | | answer with one JSON document on standard output, nothing else there |
| `--quiet` | | no progress and no messages |
| `--help`, `-h` | | what the command does, with an example |

Answers go to standard output, progress and messages to standard error.

| exit code | means |
|---|---|
| 0 | done |
| 1 | the answer is no; below it says what that is |
| 2 | bad usage or bad input: the message says what happened, why, and what mends it |
| 130 | stopped by Ctrl-C or SIGTERM; what was committed is kept |
| 141 | whoever read the output closed the pipe |
"""


class Command(NamedTuple):
    """A command as typer knows it."""

    name: str
    told: Any


def commands() -> Iterator[Command]:
    """All commands, in the order of the route."""
    return _below(typer.main.get_command(cli.app), "")


def _below(group: Any, words: str) -> Iterator[Command]:
    for name in group.list_commands(None):
        inner, full = group.commands[name], f"{words} {name}".strip()
        if hasattr(inner, "commands"):
            yield from _below(inner, full)
        else:
            yield Command(full, inner)


def tables_page() -> str:
    """The text of docs/tables.md."""
    parts = [TABLES_HEAD]
    with tempfile.TemporaryDirectory() as folder:
        store = Store.create(Path(folder) / "store", ["one"])
        for table in schema.TABLES.values():
            described = store.rows(f"describe {table.name}")
            meanings = {column.name: column.meaning for column in table.columns}
            rows = [
                (f"`{row['column_name']}`", row["column_type"], _meaning(row["column_name"], meanings))
                for row in described
            ]
            parts.append(_section(table.name, table.grain, rows))
    rows = [(f"`{each.name}`", schema.sql_type(each.type), each.meaning) for each in schema.MANIFEST_ROW.columns]
    grain = f'a view of the manifest\'s own name, such as `"g0-300"`: {schema.MANIFEST_ROW.grain}'
    parts.append(_section("A manifest", grain, rows))
    return "\n".join(parts)


def _section(name: str, grain: str, rows: list[tuple[str, ...]]) -> str:
    return f"## {name}\n\n{grain[0].upper()}{grain[1:]}.\n\n{_table(('column', 'type', 'meaning'), rows)}"


def _meaning(column: str, meanings: dict[str, str]) -> str:
    """What a column of a view means; names are joined to what the table has as numbers."""
    if column in meanings:
        return meanings[column]
    if column.startswith("class_"):
        number = column.replace("class_name", "label").replace("class_", "label_")
        return f"name of the {meanings[number]}" if number != "label" else "name of the class `label`"
    return {c.name: c.meaning for c in schema.IMAGES.columns}[column]


def commands_page() -> str:
    """The text of docs/commands.md."""
    found = list(commands())
    index = [(f"[`curator {each.name}`](#{_anchor(each.name)})", _first(each.told)) for each in found]
    parts = [COMMANDS_HEAD, _table(("command", "does"), index), *map(_command, found)]
    return "\n".join(parts)


def _anchor(name: str) -> str:
    return f"curator-{name}".replace(" ", "-")


def _help(told: Any) -> list[str]:
    """The paragraphs of a command's help, the example left out."""
    paragraphs = [" ".join(each.split()) for each in re.split(r"\n\s*\n", told.help or "")]
    return [each for each in paragraphs if each and not each.startswith("Example: ")]


def _first(told: Any) -> str:
    return re.split(r"(?<=[.:]) (?=[A-Z])", _help(told)[0])[0].rstrip(".")


def _command(command: Command) -> str:
    name, told = command
    lines = [f"## curator {name}", "", *"\n\n".join(_help(told)).split("\n"), ""]
    example = re.search(r"Example: (.+)", told.help or "")
    arguments = [each for each in told.params if each.param_type_name == "argument"]
    options = [each for each in told.params if each.param_type_name == "option"]
    shown = [_metavar(each) if each.required else f"[{_metavar(each)}]" for each in arguments]
    needed = [f"{each.opts[0]} {_metavar(each)}" for each in options if each.required]
    usage = " ".join(["curator", name, *shown, *needed, "[options]"])
    lines += ["```text", usage, "```", ""]
    rows = [(f"`{_metavar(each)}`", _default(each), each.help or "") for each in arguments]
    rows += [(_option(each), _default(each), each.help or "") for each in options if each.opts[0] not in COMMON]
    if rows:
        lines += [_table(("argument, option", "default", "meaning"), rows)]
    if example:
        lines += ["Example:", "", *_marks(example[1]), "```sh", example[1], "```", ""]
    for when, keys in ANSWERS.get(name, {}).items():
        listed = ", ".join(f"`{key}`" for key in keys.split())
        lines += ["JSON" + f", {when}" * bool(when) + f": {listed}" * bool(keys) + ".", ""]
    if name in NO:
        lines += [f"Exit code 1: {NO[name]}.", ""]
    if name in PAGES:
        lines += [f"More: [{PAGES[name]}.md]({PAGES[name]}.md).", ""]
    return "\n".join(lines)


def _marks(example: str) -> list[str]:
    """What tests/test_docs.py is to know of an example."""
    for start, mark in MARKS.items():
        if example.startswith(f"curator {start}"):
            return [f"<!-- {mark} -->"]
    return []


# Comments before examples that need something, or cannot be run where the docs are tested.
MARKS = {
    "init": "setup: rm -rf store",
    "train": """setup:
curator add-images photos/labeled --split labeled --labels folder
curator add-images photos/holdout --split holdout --labels folder
curator train --recipe tiny-teacher
curator label --model g0-tiny-teacher
curator build-manifest --per-class 300 --min-confidence 0.1""",
    "import-labels": """setup:
mv store kept
curator init --classes classes.txt
curator add-images photos/pool --split unlabeled
python -c "
import pyarrow as pa, pyarrow.parquet as pq
from pathlib import Path
uris = sorted(map(str, Path('photos/pool').iterdir()))
pq.write_table(pa.table({'uri': uris, 'probs': [[0.8, 0.1, 0.1]] * len(uris)}), 'labels.parquet')
"
""",
    "build-manifest": "setup: rm -rf store && mv kept store",
    "diff": "setup: curator label --model g1-tiny-student && curator build-manifest --per-class 130000",
    "evolve": "not run: minutes of training; tests/test_evolution.py runs plans",
    "app": "not run: a server that runs until it is stopped; tests/test_app.py starts it",
    "demo": "not run: two minutes or more; tests/test_demo.py runs it",
}


def _metavar(parameter: Any) -> str:
    if parameter.metavar:
        return str(parameter.metavar)
    if parameter.param_type_name == "argument":
        return str(parameter.name).upper()
    kind = str(parameter.type_descriptor.annotation)
    return next((shown for name, shown in (("int", "N"), ("float", "X"), ("Path", "FILE")) if name in kind), "TEXT")


def _option(parameter: Any) -> str:
    names = "`, `".join([*parameter.opts, *parameter.secondary_opts])
    value = "" if parameter.is_flag else f" {_metavar(parameter)}"
    return f"`{names}{value}`" + (", repeatable" if parameter.multiple else "")


def _default(parameter: Any) -> str:
    if parameter.required:
        return "must be given"
    if isinstance(parameter.show_default, str):
        return f"`{parameter.show_default}`" if "<" in parameter.show_default else parameter.show_default
    if parameter.default is None or parameter.default == "":
        return ""
    if getattr(parameter, "is_flag", False):
        return "on" if parameter.default is True else ""
    return f"`{parameter.default}`"


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    cells = [[cell.replace("|", "\\|") for cell in row] for row in (head, *rows)]
    lines = ["| " + " | ".join(row) + " |" for row in cells]
    return "\n".join([lines[0], "|" + "---|" * len(head), *lines[1:]]) + "\n"


def pages() -> dict[str, str]:
    """The reference pages by their file names."""
    return {"tables.md": tables_page(), "commands.md": commands_page()}


if __name__ == "__main__":
    for name, text in pages().items():
        (DOCS / name).write_text(text.rstrip("\n") + "\n", "utf-8")
        print(f"docs/{name}")
