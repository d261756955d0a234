"""Texts: recipes, plans, class files, files of decisions, names, and whole command lines."""

from __future__ import annotations

import functools
import importlib
import io
import json
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from importlib.resources import files
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from curator import cli, configuration, names
from curator.curation import manifests
from curator.decisions import reviews
from curator.networks import recipes
from curator.networks.recipes import Recipe
from curator.pictures import listings
from curator.rounds import plans
from curator.storage.store import Store

from .target import ODD_TEXTS, Target, mutated, odd_text
from .world import CLASSES, URIS, World


def _shipped(folder: str) -> list[bytes]:
    there = files("curator.models").joinpath(folder).iterdir()
    return [file.read_bytes() for file in sorted(there, key=lambda f: f.name) if file.name.endswith(".toml")]


def _value() -> st.SearchStrategy[str]:
    """A value as TOML writes it, or nearly."""
    numbers = [
        "1",
        "0",
        "-1",
        "1e400",
        "nan",
        "-inf",
        "9" * 30,
        "9" * 5000,
        "true",
        "1979-05-27",
        "07:32:00",
        "0x_",
        "1.",
    ]
    lists = [
        "[0.5, 1.0]",
        "[]",
        "{}",
        "[[1]]",
        "{a = 1}",
        "[" * 2000,
        "[" * 300 + "]" * 300,
        "{a=" * 400,
        "[1, 'a', {b=2}]",
    ]
    texts = [
        "''",
        "'tiny-teacher'",
        "'x.toml'",
        "'../x'",
        "'curator:x'",
        "'os:system'",
        '"\\ud800"',
        '"\\U00110000"',
        '"""',
    ]
    plain = st.sampled_from([*numbers, *lists, *texts])
    return plain | st.integers().map(str) | st.floats().map(str) | odd_text().map(json.dumps)


def _key(known: list[str]) -> st.SearchStrategy[str]:
    odd = st.sampled_from(["''", '"a.b"', "a.b.c", ".".join("x" * 1500), "base", "0", "-", "__class__", "x" * 3000])
    return st.sampled_from(known) | odd


@functools.cache
def _recipe_keys() -> list[str]:
    return [".".join(key) for key in configuration.keys(Recipe)]


@functools.cache
def _plan_keys() -> list[str]:
    return [".".join(key) for key in configuration.keys(plans.Plan)]


@st.composite
def toml(draw: st.DrawFn, known: list[str], start: list[bytes]) -> bytes:
    """A sound file with lines put in or taken out, or one of drawn lines alone."""
    lines = draw(st.sampled_from([b"", *start])).decode().splitlines()
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(lines)))
        if draw(st.booleans()) and lines:
            del lines[at : at + draw(st.integers(1, 3))]
        key, value = draw(_key(known)), draw(_value())
        forms = [f"{key} = {value}", f"[{key}]", f"[[{key}]]", f"{key.split('.')[-1]} = {value}", value]
        lines.insert(at, draw(st.sampled_from(forms)))
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def _load_recipe(world: World, data: bytes) -> None:
    """The first line is that of a --set where it begins with one."""
    changes = []
    if data.startswith(b"--set "):
        line, _, data = data.partition(b"\n")
        changes = [line[6:].decode("utf-8", "replace")]
    file = world.given / "own.toml"
    file.write_bytes(data)
    recipe = recipes.load(str(file), changes)[1]
    assert recipes.from_json(recipe.model_dump_json()) == recipe
    written = world.given / "again.toml"
    written.write_text(recipes.to_toml(recipe), "utf-8")
    assert recipes.load(str(written))[1] == recipe


def _sets() -> st.SearchStrategy[bytes]:
    line = st.tuples(_key(_recipe_keys()), _value()).map("=".join) | odd_text()
    return line.map(
        lambda text: b"--set " + text.encode("utf-8", "replace").replace(b"\n", b" ") + b"\nbase = 'tiny-teacher'"
    )


def _load_plan(world: World, data: bytes) -> None:
    file = world.given / "plan.toml"
    file.write_bytes(data)
    plans.load(world.store, str(file))


def _read_classes(world: World, data: bytes) -> None:
    file = world.given / "classes.txt"
    file.write_bytes(data)
    names.check_classes(listings.read_class_file(file))


def _class_seeds() -> list[bytes]:
    return [b"cat\ndog\nowl\n", "\ufeffcat\r\nd\u00f6g\r\n".encode(), b"\n".join(b"%d" % n for n in range(1000))]


def _classes() -> st.SearchStrategy[bytes]:
    lines = st.lists(odd_text(), max_size=6).map("\n".join)
    many = st.integers(32_000, 33_000).map(lambda n: b"\n".join(b"%d" % i for i in range(n)))
    return mutated(_class_seeds()) | lines.map(lambda t: t.encode("utf-8", "surrogatepass")) | many


def _add_reviews(world: World, data: bytes) -> None:
    file = world.given / "decisions.csv"
    file.write_bytes(data)
    reviews.add_reviews(world.store, str(file), "r")


def _review_seeds() -> list[bytes]:
    lines = [
        f"{uri},{'accept' if n % 2 else 'relabel'},{'' if n % 2 else CLASSES[n % 3]},fine" for n, uri in enumerate(URIS)
    ]
    return ["\n".join(["uri,decision,new_label,reason", *lines]).encode(), b"image_id,decision\n1,accept\n2,skip\n"]


def _decisions() -> st.SearchStrategy[bytes]:
    wanted = [
        "uri",
        "image_id",
        "decision",
        "new_label",
        "reviewer",
        "reason",
        "pool/a.jpg",
        "accept",
        "reject",
        "relabel",
    ]
    wanted += ["skip", "cat", "0", "2", "\u0663", "9" * 19, "9" * 5000, "-1", "\u00b2", '"a\nb"', '"', '""', '"a" b']
    lines = st.lists(st.lists(st.sampled_from(wanted) | odd_text(), max_size=4).map(",".join), max_size=5)
    heads = st.sampled_from(["uri,decision,new_label", "image_id,decision,reason", "uri,decision", "decision", ""])
    text = st.tuples(heads, lines).map(lambda parts: "\n".join([parts[0], *parts[1]]).encode("utf-8", "surrogatepass"))
    return mutated(_review_seeds()) | text


# Names


def _use_name(world: World, data: bytes) -> None:
    name = data.decode("utf-8", "surrogatepass")
    results = []
    for use in (
        lambda: names.check_name("model", name),
        lambda: names.check_path(Path(name)),
        lambda: Store(name),
        lambda: manifests.find(world.store, name),
        lambda: plans.load(world.store, name),
        lambda: recipes.load(name),
        lambda: recipes.load("tiny-teacher", [name]),
    ):
        results.append(_told(use))
    if results[0] is None:  # what is allowed is one plain part of a path
        assert len(name) <= 100
        assert (world.folder / name).resolve().parent == world.folder.resolve()
    wrong = next((error for error in results if error is not None), None)
    if wrong is not None:
        raise wrong


def _told(use: Callable[[], object]) -> Exception | None:
    from .judge import refused

    try:
        use()
    except UnicodeDecodeError:
        raise
    except Exception as error:
        if not refused(error):
            raise
        return error
    return None


def _name_seeds() -> list[bytes]:
    return [text.encode("utf-8", "surrogatepass") for text in [*ODD_TEXTS, "g0-300", "a.b_c-d", "x" * 100]]


def _some_name() -> st.SearchStrategy[bytes]:
    encoded = odd_text().map(lambda text: text.encode("utf-8", "surrogatepass"))
    return encoded | mutated(_name_seeds()).filter(_is_text)


def _is_text(data: bytes) -> bool:
    try:
        data.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return False
    return True


# Command lines, all in one process; the exit code says how it went

# Each X is drawn.
_COMMANDS = [
    line.split()
    for line in """\
show X
show X X
check X
diff X X
manifests X
build-manifest X --per-class 2
build-manifest --per-class X
build-manifest n --per-class 2 --where X
build-manifest n --per-class 2 --policy X
build-manifest n --per-class 2 --set X
import-labels X --generation 1 --model m
import-labels ../probs.parquet --generation X --model m
import-labels ../probs.parquet --generation 1 --model X
init --classes X
add-images X --split unlabeled
add-images .. --split X
add-images .. --split unlabeled --base X
review --image-id X --decision accept
review --image-id 1 --decision relabel --new-label X
review --from X
evolve --plan X --dry-run
recipes X
train --recipe X
train --recipe tiny-teacher --name X
label --model X
export X ../given/out --format webdataset
export first ../given/out --format X
pack X
index X
quality X --json
quality duplicates --distance X
quality issues --by X
report X --output ../given/x.html
sql -f X
X""".splitlines()
]


def _run(world: World, data: bytes) -> None:
    number, *texts = json.loads(data)
    words = iter(texts)
    arguments = [next(words) if word == "X" else word for word in _COMMANDS[number % len(_COMMANDS)]]
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = cli.run([*arguments, "--store", str(world.folder / "store")])
    if code == 2:
        from curator.errors import InputError

        raise InputError(err.getvalue())
    assert code in (0, 1), (arguments, code)


def _command_seeds() -> list[bytes]:
    # A library is no memory of a case, nor is what matplotlib keeps of the fonts.
    for name in ("matplotlib.font_manager", "timm", "torch", "onnxruntime", "usearch.index"):
        importlib.import_module(name)
    return [json.dumps([number, text, text]).encode() for number in range(len(_COMMANDS)) for text in ("first", "x")]


def _commands() -> st.SearchStrategy[bytes]:
    texts = odd_text() | st.sampled_from(
        ["first", "outside", "pool/a.jpg", "../probs.parquet", "..", "1"]  # a file that is named may be read
    )
    parts: st.SearchStrategy[Any] = st.tuples(st.integers(0, len(_COMMANDS) - 1), texts, texts)
    return parts.map(lambda given: json.dumps(given).encode())


TARGETS = [
    Target(
        "recipes",
        lambda: _shipped("."),
        lambda: mutated(_shipped(".")) | toml(_recipe_keys(), _shipped(".")) | _sets(),
        _load_recipe,
        6000,
        6000,
    ),
    Target(
        "plans",
        lambda: _shipped("plans"),
        lambda: mutated(_shipped("plans")) | toml(_plan_keys(), _shipped("plans")),
        _load_plan,
        200,
    ),
    Target("class files", _class_seeds, _classes, _read_classes, 9000, 12_000),
    Target("decisions", _review_seeds, _decisions, _add_reviews, 200, writes=True),
    Target("names", _name_seeds, _some_name, _use_name, 150),
    Target("command lines", _command_seeds, _commands, _run, 200, writes=True, every=50),
]
