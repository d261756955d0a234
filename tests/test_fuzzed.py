"""Inputs that benchmarks/fuzz found, each once a traceback, and hundreds more of every kind, the same each time."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import struct
import sys
import tarfile
import tempfile
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from conftest import Answer
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image
from streamlit.testing.v1 import AppTest

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

from fuzz import targets
from fuzz.archives import header
from fuzz.judge import Judge
from fuzz.weights import Runs, small
from fuzz.world import SECRET, World

from curator import configuration
from curator.curation import building, manifests, usersql
from curator.decisions import reviews
from curator.errors import CuratorError, InputError, StoreError
from curator.networks import checkpoints, network, recipes
from curator.pictures import listings, sources
from curator.pictures.decode import decode
from curator.rounds import plans
from curator.storage.store import Store

Run = Callable[..., Answer]


# Cases that are drawn

# Those that open a store, run a command or list the functions of SQL take 15 to 100 ms each, the others a few.
SLOW = {"listings, added", "label files, added", "plans", "decisions", "names", "command lines", "--where", "policies"}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    before, folder, temporary = dict(os.environ), Path.cwd(), tempfile.tempdir
    yield World(tmp_path_factory.mktemp("world"))
    os.environ.clear()
    os.environ.update(before)
    os.chdir(folder)
    tempfile.tempdir = temporary


@pytest.mark.long
@pytest.mark.parametrize("name", targets.NAMES)
def test_drawn_inputs_are_accepted_or_refused_and_leave_no_trace(world: World, tmp_path: Path, name: str) -> None:
    target = targets.named(name)
    judge = Judge(target, world, tmp_path)

    @settings(
        max_examples=10 if name in SLOW else 20,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(target.strategy() if name in SLOW else st.lists(target.strategy(), min_size=10, max_size=10))
    def cases(data: bytes | list[bytes]) -> None:
        for each in data if isinstance(data, list) else [data]:
            judge.case(each)

    cases()
    assert not judge.findings
    assert judge.refused
    assert not world.changes()
    if target.writes:
        world.fresh()


STATEMENTS = 30  # of which each takes a second and more


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_drawn_statements_in_the_sandbox(world: World, process: Run) -> None:
    """As above for `curator sql`, through the whole command and the process of its own that answers."""
    file, codes = world.given / "statement.sql", set()

    @settings(
        max_examples=STATEMENTS,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(targets.named("curator sql").strategy())
    def cases(data: bytes) -> None:
        file.write_bytes(data)
        done = process("sql", "--file", file, "--timeout", 5, "--store", world.store.path)
        codes.add(done.code)
        assert done.code in (0, 2), done
        assert not any("Traceback (most" in text for text in (done.out, done.err)), done
        assert done.code == 0 or "mend: " in done.err, done
        assert SECRET in data.decode("utf-8", "replace") or SECRET not in done.out + done.err, done

    cases()
    file.unlink()
    assert codes == {0, 2}
    assert not world.changes()


def test_the_judge_sees_what_is_not_refused(world: World, tmp_path: Path) -> None:
    """A judge that let everything pass would make the tests above worthless."""

    def call(world: World, data: bytes) -> None:
        match data:
            case b"refused":
                raise InputError("no")
            case b"other":
                raise RecursionError
            case b"outside":
                (world.outside / "written").write_text("x")
            case b"read":
                (world.outside / "outside.csv").read_text()
            case b"program":
                os.system("true")

    judge = Judge(targets.named("names")._replace(call=call, every=1), world, tmp_path)
    assert [judge.case(data) for data in (b"fine", b"refused")] == [None, None]
    assert (judge.accepted, judge.refused) == (1, 1)
    assert judge.case(b"other") == "RecursionError in test_fuzzed.py:call"
    assert str(judge.case(b"outside")).startswith("changed ")
    assert judge.case(b"read") == "read outside.csv"
    assert str(judge.case(b"program")).startswith("os.system")
    (world.outside / "written").unlink()
    world.changes()


# Tar shards


def _long_name(size: bytes) -> bytes:
    return header(b"././@LongLink", size, tarfile.GNUTYPE_LONGNAME, magic=b"ustar  \0") + b"x" * 512


def _pax(record: bytes) -> bytes:
    return header(b"x", b"%011o" % len(record), tarfile.XHDTYPE) + record.ljust(512, b"\0")


@pytest.mark.parametrize(
    "data",
    [
        header(b"cat/1.png", b"\x80\0\0\0\x7f" + b"\xff" * 7, tarfile.REGTYPE),  # a place that is no offset
        _long_name(b"\x80\0\0\0\x7f" + b"\xff" * 7),  # read into memory
        _long_name(b"\x80\0\0\0\0\x0f" + b"\xff" * 6),
        _pax(b"33 GNU.sparse.map=a,b,c,d,e,f,g\n") + header(b"a.png", b"0", tarfile.REGTYPE),
        header(b"x", b"0", tarfile.XHDTYPE) * 2000,  # headers of headers
    ],
    ids=["offset", "long name", "memory", "sparse", "nested"],
)
def test_tars_whose_headers_lie(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.tar").write_bytes(data + b"\0" * 1024)
    with pytest.raises(InputError):
        list(sources.read(str(tmp_path / "a.tar"), "unlabeled", False, tmp_path))


# Tables


def _arrow(path: Path, table: pa.Table) -> Path:
    with pa.ipc.new_file(path, table.schema) as file:
        file.write_table(table)
    return path


def test_an_arrow_file_whose_offsets_lie_outside(tmp_path: Path) -> None:
    """Read as it stands, it would give whatever lies in memory there, or end the process."""
    file = _arrow(tmp_path / "a.arrow", pa.table({"uri": ["a.jpg", "b.jpg"], "label": ["cat", "dog"]}))
    ends = struct.pack("<3i", 0, 5, 10)
    file.write_bytes(file.read_bytes().replace(ends, struct.pack("<3i", 0, 5, 2**30)))
    with pytest.raises(InputError, match="cannot be read as ipc"):
        listings.read_labels(file)


def test_an_arrow_file_with_names_that_are_no_text(tmp_path: Path) -> None:
    file = _arrow(tmp_path / "a.arrow", pa.table({"uri": ["a.jpg"], "label_here": ["cat"]}))
    file.write_bytes(file.read_bytes().replace(b"label_here", b"\xff" * 10))
    with pytest.raises(InputError, match="cannot be read as ipc"):
        listings.read_labels(file)


# Pictures


def test_deep_grey_takes_little_memory() -> None:
    """A small file may be a picture of 89 million pixels, of which each took 19 bytes on its way and takes 10."""
    values = np.arange(10**6, dtype=np.uint16).reshape(1000, 1000)
    out = io.BytesIO()
    Image.fromarray(values).save(out, "PNG")
    decode(out.getvalue())
    tracemalloc.start()
    pixels = decode(out.getvalue())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (pixels[:, :, 0] == np.round(values / 257)).all()
    assert peak < 12 * 10**6


# TOML


@pytest.mark.parametrize(
    "text",
    ["x = " + "[" * 5000, "x = " + "[" * 60 + "]" * 60, "[" + ".".join("a" * 1500) + "]", "seed = " + "9" * 5000],
    ids=["open lists", "lists", "tables", "number"],
)
def test_toml_that_nests_too_deeply_or_counts_too_far(store: Store, tmp_path: Path, text: str) -> None:
    (tmp_path / "x.toml").write_text(text)
    with pytest.raises(InputError, match=r"in one another|is not TOML"):
        recipes.load(str(tmp_path / "x.toml"))
    with pytest.raises(InputError, match=r"in one another|is not TOML"):
        plans.load(store, str(tmp_path / "x.toml"))


@pytest.mark.parametrize("change", [".".join("a" * 1500) + "=1", "seed=" + "[" * 5000, "seed=" + "9" * 5000])
def test_a_change_that_nests_too_deeply_or_counts_too_far(change: str) -> None:
    with pytest.raises(InputError):
        recipes.load("tiny-teacher", [change])


def test_what_nests_less_is_read() -> None:
    text = "x = " + "[" * 40 + "]" * 40
    assert configuration.parse(text, "x.toml", "recipe")["x"]


# SQL


@pytest.mark.parametrize(
    "expression", ["coalesce(" * 900 + "true" + ")" * 900, "not " * 900 + "true", "1" + "+1" * 900 + " > 0"]
)
def test_sql_that_nests_too_deeply(store: Store, tmp_path: Path, expression: str) -> None:
    with store.connect() as con:
        query = f"select image_id, label, confidence, confidence as score from candidates where {expression}"
        for check in (
            lambda: usersql.check_expression(con, expression, {"uri"}, {"images"}),
            lambda: usersql.check_query(con, query, {"candidates"}, (), "the policy"),
        ):
            with pytest.raises(InputError, match=r"nests too deeply|expression depth"):
                check()


# Names


@pytest.mark.long
def test_names_that_are_no_text(store: Store, ids: dict[str, int], process: Run) -> None:
    review = ["review", "--image-id", ids["a"], "--decision", "accept"]
    for command in (
        *(["show"], ["check"], [*review, "--reason"], [*review, "--reviewer"], ["sql"]),
        ["build-manifest", "m", "--per-class", 2, "--where"],
    ):
        done = process(*command, os.fsdecode(b"\xff"), "--store", store.path)
        assert (done.code, done.out) == (2, ""), done.err
        assert "is not text in UTF-8" in done.err
    assert store.rows("from reviews") == []


# Decisions


def test_numbers_of_many_digits(store: Store, tmp_path: Path) -> None:
    digits = "9" * 5000
    (tmp_path / "decisions.csv").write_text(
        f"image_id,decision,new_label\n{digits},accept,\n-{digits},accept,\n1,relabel,{digits}\n"
    )
    with pytest.raises(InputError, match="3 of 3 decisions"):
        reviews.add_reviews(store, str(tmp_path / "decisions.csv"))


# Weights


def _saved(value: object, old: bool = False) -> bytes:
    out = io.BytesIO()
    torch.save(value, out, _use_new_zipfile_serialization=not old)
    return out.getvalue()


def _zipped(pickled: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/version", "3\n")
    return out.getvalue()


RUNNING = pickle.dumps(Runs(os.system, "touch pickled"), 2)
DAMAGED = {
    "a pickle that runs a program": RUNNING,
    "one in a zip file": _zipped(RUNNING),
    "a pickle that asks for all memory": _zipped(pickle.dumps(Runs(bytearray, 1 << 60), 2)),
    "a list": _saved([1, 2]),
    "nothing": _saved(None),
    "names that are no text": _saved({1: torch.zeros(1)}),
    "numbers": _saved({"2.weight": 1}),
    "a list under state_dict": _saved({"state_dict": [1]}),
    "an old file of a text": _saved("text", old=True),
    "an empty stack": b"\x80\x02q\x00.",
    "a text that is none": b"\x80\x02X\x01\x00\x00\x00\xff.",
    "a text that is cut": b"\x80\x02X\x01",
    "no bytes": b"",
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_weights_that_are_none_are_refused_and_run_nothing(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "weights.pt"
    file.write_bytes(DAMAGED[kind])
    recipe = recipes.load("tiny-teacher", ["network.architecture=fuzz.weights:small"])[1]
    with pytest.raises(InputError, match=r"cannot be read|something else than named tensors"):
        network.begin_from(store, str(file), network.build(recipe, 3), recipe)
    assert not (tmp_path / "pickled").exists()


def test_weights_of_another_kind_of_tensor(store: Store, tmp_path: Path) -> None:
    file = tmp_path / "weights.pt"
    torch.save({name: tensor.to_sparse() for name, tensor in small(3).state_dict().items()}, file)
    recipe = recipes.load("tiny-teacher", ["network.architecture=fuzz.weights:small"])[1]
    with pytest.raises(InputError):
        network.begin_from(store, str(file), network.build(recipe, 3), recipe)


@pytest.mark.parametrize("kind", [kind for kind in DAMAGED if "pickle" in kind or "a text" in kind or "stack" in kind])
def test_a_checkpoint_that_was_made_to_run_something(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Its hashes are right, as they are where somebody makes a checkpoint on purpose."""
    monkeypatch.chdir(tmp_path)
    place = tmp_path / "checkpoint-000000001"
    place.mkdir()
    (place / "state.pt").write_bytes(DAMAGED[kind] if kind != "an old file of a text" else b"")
    hashes = {"state.pt": hashlib.sha256((place / "state.pt").read_bytes()).hexdigest()}
    (place / "hashes.json").write_text(json.dumps(hashes))
    with pytest.raises(InputError, match=r"the checkpoint at .* cannot be read"):
        checkpoints.load(tmp_path)
    assert not (tmp_path / "pickled").exists()


def test_a_checkpoint_with_weights_or_hashes_that_are_none(tmp_path: Path) -> None:
    checkpoints.save(tmp_path, 1, {"network": {"a": torch.zeros(1)}}, {})
    place = tmp_path / "checkpoint-000000001"
    hashes = json.loads((place / "hashes.json").read_text())
    (place / "network.safetensors").write_bytes(b"no weights")
    hashes["network.safetensors"] = hashlib.sha256(b"no weights").hexdigest()
    (place / "hashes.json").write_text(json.dumps(hashes))
    with pytest.raises(InputError, match="cannot be read"):
        checkpoints.load(tmp_path)
    (place / "hashes.json").write_text("[" * 100_000)
    with pytest.raises(InputError, match="is damaged"):
        checkpoints.load(tmp_path)


# What a link says

PARAMETERS = (
    "generation",
    "manifest",
    "class",
    "page",
    "at",
    "cell",
    "image_id",
    "split",
    "view",
    "since",
    "sort",
    "model",
)


def page() -> None:
    import importlib
    import os

    importlib.import_module(f"curator.app.{os.environ['CURATOR_PAGE']}").show()


@pytest.mark.parametrize("name", ["classes", "disagreement", "gallery", "image", "manifests", "review"])
def test_links_of_any_text(made: Store, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("CURATOR_STORE", str(made.path))
    monkeypatch.setenv("CURATOR_PAGE", name)
    for value in ("9" * 5000, "../\u202ex\0"):
        at = AppTest.from_function(page, default_timeout=60)
        for parameter in PARAMETERS:
            at.query_params[parameter] = value
        at.run()
        assert not at.exception, value[:20]


# A store that was changed by hand


def test_settings_that_nest_too_deeply(store: Store) -> None:
    (store.path / "store.json").write_text("[" * 100_000)
    with pytest.raises(StoreError, match=r"store\.json is damaged"):
        Store(store.path)


@pytest.mark.long
@pytest.mark.parametrize(
    "lineage",
    [
        *("", "{}", "[]", "null", "[" * 100_000, '{"tables": {}}', '{"tables": [], "parameters": {"per_class": 1}}'),
        '{"tables": {}, "parameters": {"per_class": null}, "classes": [{"class_name": "a", "eligible": 1}]}',
        '{"tables": {}, "parameters": {"per_class": 1}, "classes": [1]}',
        '{"tables": {}, "parameters": {"per_class": 1}, "classes": {"a": 1}}',
    ],
    ids=["empty", "nothing", "a list", "null", "deep", "tables", "a list of tables", "no quota", "numbers", "a table"],
)
def test_a_lineage_that_is_none(store: Store, lineage: str) -> None:
    building.build(store, "m", {"per_class": 2})
    row = store.rows("select * from manifests")[0]
    with pytest.raises(CuratorError, match="the lineage of the manifest 'm' is damaged"):
        manifests._read(store, row | {"lineage": lineage})
