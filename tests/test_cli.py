"""The command line as a user meets it: exit codes, what goes where, signals, a full disk, and no traceback."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer
from conftest import Answer
from test_images import picture, tree

from curator import cli, commands
from curator.cli import run
from curator.commands import ROUTE, app
from curator.errors import DiskFull
from curator.pictures.images import add_images
from curator.storage.store import Store

Run = Callable[..., Answer]
PROGRAM = Path(sys.executable).with_name("curator")
COMMANDS = sorted(typer.main.get_command(app).commands)  # type: ignore[attr-defined]

SMALL_CHUNKS = "import curator.pictures.images, curator.cli; curator.pictures.images._CHUNK = 10; curator.cli.main()"

# Runs inside a mount namespace of its own, on a disk of 3 MB; prints what each attempt did as JSON.
FULL_DISK = """
import contextlib, io, json, os, pathlib, subprocess, sys
from curator.cli import run
disk, pool = map(pathlib.Path, sys.argv[1:])
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", disk], check=True)
def call(*a):
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        code = run([str(x) for x in a])
    return [code, out.getvalue(), err.getvalue()]
found = []
for free in range(6):
    store = disk / f"s{free}"
    assert call("init", "--store", store)[0] == 0
    written = 0
    with open(disk / "fill", "wb", buffering=0) as file:
        try:
            while True:
                written += file.write(b"x" * 4096)
        except OSError:
            pass
    os.truncate(disk / "fill", written - 4096 * free)
    add = ("add-images", pool, "--split", "unlabeled", "--json", "--store", store)
    tables = sorted(path.name for path in (store / "images").rglob("*.*"))
    full = call(*add)
    left = sorted(path.name for path in (store / "images").rglob("*.*"))
    init = call("init", "--store", disk / "more") if free == 0 else None
    entries = sorted(os.listdir(disk))
    os.remove(disk / "fill")
    count = call("sql", "select count(*) as n from images", "--json", "--store", store)
    found.append([full, left == tables, count, call(*add), init, entries])
print(json.dumps(found))
"""


def start(*arguments: object, program: list[object] | None = None) -> subprocess.Popen[str]:
    command = [*(program or [PROGRAM]), *arguments]
    return subprocess.Popen(
        list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    return Path(tree(tmp_path / "pool", {f"{i}.jpg": picture(i) for i in range(3)}))


# Help


def test_help_is_fast() -> None:
    """The processor time of the fastest of five, so that other work on the machine does not count; it does not wait."""
    times = []
    for _ in range(5):
        before = os.times()
        done = subprocess.run([PROGRAM, "--help"], capture_output=True, text=True, check=True)
        after = os.times()
        times.append(after.children_user - before.children_user + after.children_system - before.children_system)
    assert min(times) < 0.5, times
    assert all(command in done.stdout for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_help_has_an_example(curator: Run, command: str) -> None:
    for flag in ("--help", "-h"):
        done = curator(command, flag)
        assert (done.code, done.err) == (0, "")
        assert "Example: curator " + command in " ".join(done.out.split())
        assert "--store" in done.out or command in ("demo", "quality")


def test_help_names_the_commands_in_the_order_of_the_route(curator: Run) -> None:
    inner = typer.main.get_command(app).commands["quality"].commands  # type: ignore[attr-defined]
    assert sorted(ROUTE) == sorted([*COMMANDS, *inner])
    for arguments, names in (([], COMMANDS), (["quality"], inner)):
        shown = re.findall(r"^\W*([a-z-]+)  ", curator(*arguments, "--help").out.partition("Commands")[2], re.MULTILINE)
        assert shown == [name for name in ROUTE if name in names]


def test_the_list_of_where_commands_stand() -> None:
    told = {}
    for file, names in re.findall(r"^(\w+)\.py +(.+)$", commands.__doc__ or "", re.MULTILINE):
        told |= {name.removeprefix("quality "): file for name in names.split(", ")}
    outer = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    there = (outer | outer["quality"].commands).items()
    for name, command in there:
        if name != "quality":
            assert command.callback.__module__ == f"curator.commands.{told.get(name)}", name


def test_usage_errors(curator: Run) -> None:
    for arguments in ([], ["nonsense"], ["sql", "--bad"], ["add-images"], ["sql", "select 1", "more"]):
        done = curator(*arguments)
        assert (done.code, done.out if arguments else "") == (2, ""), arguments
        assert "Usage: curator" in done.err + done.out


# Where answers go


def test_json_is_alone_on_standard_output(tmp_path: Path, pool: Path, process: Run) -> None:
    store = tmp_path / "s"
    tree(pool, {"notes.txt": b"", "bad.jpg": b"?"})
    made = process("init", "--store", store, "--json")
    assert (made.code, made.err, made.json["store"], made.json["classes"]) == (0, "", str(store), 0)
    added = process("add-images", pool, "--split", "unlabeled", "--store", store, "--json")
    assert added.code == 0
    assert {key: added.json[key] for key in ("added", "already_present", "unreadable", "total")} == {
        "added": 4,
        "already_present": 0,
        "unreadable": 1,
        "total": 4,
    }
    assert added.err == "left out 1 files that are not images by their ending: 1 .txt\n"
    asked = process("sql", "select split, count(*) as n from images group by all", "--store", store, "--json")
    assert (asked.json, asked.err) == ([{"split": "unlabeled", "n": 4}], "")
    again = process("add-images", pool, "--split", "unlabeled", "--store", store, "--json", "--quiet")
    assert (again.json["already_present"], again.err) == (4, "")


def test_the_store_comes_from_the_environment(tmp_path: Path, process: Run) -> None:
    env = {"CURATOR_STORE": str(tmp_path / "from env")}
    assert process("init", env=env).code == 0
    assert (tmp_path / "from env" / "store.json").exists()
    assert process("sql", "select 1", "--store", tmp_path / "s", env=env).code == 2
    assert process("init", cwd=tmp_path).code == 0
    assert (tmp_path / "store" / "store.json").exists()


def test_names_are_printed_as_utf8_in_any_locale(tmp_path: Path, process: Run) -> None:
    tree(tmp_path / "ü", {"日本.jpg": b"?"})
    env = {"LC_ALL": "C", "PYTHONIOENCODING": "ascii"}
    assert process("init", "--store", tmp_path / "s", env=env).code == 0
    done = process("add-images", tmp_path / "ü", "--split", "unlabeled", "--store", tmp_path / "s", env=env)
    assert (done.code, done.err, "ü/日本.jpg: not an image" in done.out) == (0, "", True)
    assert process("sql", "select uri from images", "--store", tmp_path / "s", env=env).out.endswith("ü/日本.jpg\n")


# Exit codes


def test_the_answer_no_is_1(store: Store, curator: Run) -> None:
    done = curator("build-manifest", "--per-class", "500", "--fill", "none", "--strict", "--store", store.path)
    assert done.code == 1
    assert "mend:" in done.err


def bad_inputs(folder: Path) -> list[list[str]]:
    (folder / "file").write_text("x")
    (folder / "broken.parquet").write_text("x")
    (folder / "long").mkdir()
    pq.write_table(pa.table({"uri": ["a"], "label": ["x"]}), folder / "ok.parquet")
    split = ["--split", "unlabeled"]
    add = "add-images"
    return [
        [add, "nowhere", *split],
        [add, "", *split],
        [add, "file", *split],
        [add, "file/below", *split],
        [add, "broken.parquet", *split],
        [add, "long", *split],
        [add, "x" * 5000, *split],
        [add, "zero\0byte", *split],
        [add, "*.tar", *split],
        [add, "ok.parquet"],
        [add, "ok.parquet", "--split", "train"],
        [add, "ok.parquet", "--split", "labeled", "--labels", "nowhere.csv"],
        [add, "ok.parquet", "--split", "labeled", "--labels", "long"],
        [add, "ok.parquet", "--split", "labeled", "--labels", ""],
        [add, "ok.parquet", "--split", "labeled", "--labels", "folder"],
        [add, "ok.parquet", *split, "--store", "file"],
        [add, "ok.parquet", *split, "--store", "file/below"],
        [add, "ok.parquet", *split, "--store", "long"],
        [add, "ok.parquet", *split, "--store", ""],
        ["init", "--store", "file"],
        ["init", "--store", "file/below"],
        ["init", "--store", "s3://bucket/x"],
        ["init", "--store", "x" * 300],
        ["init", "--store", "new", "--classes", "long"],
        ["init", "--store", "new", "--classes", "nowhere"],
        ["sql", "select 1", "--store", "nowhere"],
        ["sql", "selec 1"],
        ["sql", ""],
        ["sql", "-f", "long"],
        ["manifests", "--store", "elsewhere"],
        ["show", "nonesuch"],
        ["build-manifest", "--per-class", "0"],
        ["build-manifest", "--per-class", "10", "--generation", "9"],
        ["import-labels", "nowhere.parquet", "--generation", "0", "--model", "m"],
        ["review", "--image-id", "5", "--decision", "accept"],
    ]


def test_bad_inputs_are_2_with_a_mend(tmp_path: Path, curator: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made = Store.create("store")
    before = made.versions()
    wrong = []
    for arguments in bad_inputs(tmp_path):
        done = curator(*arguments)
        if done.code != 2 or done.out or not done.err.startswith("error: ") or "mend: " not in done.err:
            wrong.append((arguments, done.code, done.out, done.err))
    assert not wrong
    assert made.versions() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken.parquet", "file", "long", "ok.parquet", "store"]


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(path: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("curator.storage.store.Store.__init__", lambda self, path: broken(path))
    with pytest.raises(ZeroDivisionError):
        run(["sql", "select 1"])


# Signals and pipes


def test_ctrl_c_in_the_middle_keeps_what_was_committed(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "s")
    tree(tmp_path / "pool", {"0.jpg": picture(0, (400, 300))})
    for i in range(1, 1000):  # enough to be at work when the signal comes, on a busy machine too
        os.link(tmp_path / "pool" / "0.jpg", tmp_path / "pool" / f"{i}.jpg")
    command = ("add-images", tmp_path / "pool", "--split", "unlabeled", "--store", store.path)
    running = start(*command, program=[sys.executable, "-c", SMALL_CHUNKS])
    end = time.monotonic() + 30
    while not (count := store.rows("select count(*) as n from images")[0]["n"]) and time.monotonic() < end:
        time.sleep(0.01)
    running.send_signal(signal.SIGINT)
    out, err = running.communicate()
    assert (running.returncode, out) == (130, "")
    assert err == "\nstopped; what was committed is kept; the same command, given again, finishes\n"
    kept = store.rows("select count(*) as n from images")[0]["n"]
    assert count <= kept < 1000
    done = add_images(store, str(tmp_path / "pool"), "unlabeled")
    assert (done.added, done.already_present) == (1000 - kept, kept)


def test_ctrl_c_does_not_wait_for_a_chunk(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "s")
    tree(tmp_path / "pool", {"0.jpg": picture(0, (2500, 2000))})
    for i in range(1, 800):
        os.link(tmp_path / "pool" / "0.jpg", tmp_path / "pool" / f"{i}.jpg")
    running = start("add-images", tmp_path / "pool", "--split", "unlabeled", "--store", store.path)
    time.sleep(2.0)
    assert running.poll() is None
    began = time.monotonic()
    running.send_signal(signal.SIGINT)
    _, err = running.communicate()
    assert (running.returncode, "Traceback" in err) == (130, False)
    assert time.monotonic() - began < 2.0
    assert store.rows("select count(*) as n from images") == [{"n": 0}]


def test_ctrl_c_in_a_query(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "s")
    query = "select sum(a.range) from range(1000000) a, range(1000000) b"
    running = [start("sql", query, "--store", store.path, "--timeout", "60") for _ in range(2)]
    for i, process in enumerate(running):
        time.sleep(2.0 - i)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)
        assert (process.returncode, "Traceback" in err) == (130, False)


@pytest.mark.parametrize("form", ["json", "csv", "parquet"])
def test_a_closed_pipe_is_141(tmp_path: Path, form: str) -> None:
    store = Store.create(tmp_path / "s")
    query = f"'{PROGRAM}' sql 'select range, hash(range) from range(300000)' --format {form} --store {store.path}"
    line = f"{query} | head -1 >/dev/null; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("141\n", "")


# The disk


@pytest.mark.long
def test_a_full_disk_keeps_the_store_whole(tmp_path: Path) -> None:
    """Free pages 0 to 5: nothing fits, the data fit but not the commit, all fits."""
    tree(tmp_path / "pool", {f"{i}.jpg": b"?" for i in range(20)})
    (tmp_path / "disk").mkdir()
    namespace = ["unshare", "-m" if os.geteuid() == 0 else "-rm"]
    inside = [sys.executable, "-c", FULL_DISK, tmp_path / "disk", tmp_path / "pool"]
    done = subprocess.run([*namespace, *inside], capture_output=True, text=True)
    assert done.returncode == 0, f"needs a mount namespace of its own: {done.stderr}"
    outcomes = json.loads(done.stdout)
    assert {full[0] for full, *_ in outcomes} == {0, 2}, outcomes
    for (code, out, err), untouched, count, again, init, entries in outcomes:
        assert "Traceback" not in err
        if code == 2:
            assert out == ""
            assert err.startswith("error: the disk is full; everything that was finished before is kept\n  mend: free")
            assert untouched
        added = 20 if code == 0 else 0
        assert json.loads(count[1]) == [{"n": added}]
        assert [again[0], json.loads(again[1])["added"]] == [0, 20 - added]
        if init is not None:
            assert (init[0], "the disk is full" in init[2]) == (2, True)
            assert entries == ["fill", "s0"]


def test_files_that_may_not_be_read(tmp_path: Path, pool: Path) -> None:
    """Pictures are counted and named; a folder or a source stops with a message. Root gives its privilege up first."""
    store = Store.create(tmp_path / "s")
    (pool / "0.jpg").chmod(0)
    without = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
    command = ["add-images", pool, "--split", "unlabeled", "--store", store.path, "--json"]
    running = start(*command, program=[*without, PROGRAM])
    out, err = running.communicate()
    assert (running.returncode, err) == (0, "")
    assert json.loads(out)["problems"] == [{"uri": "pool/0.jpg", "problem": "Permission denied"}]
    (pool / "deep").mkdir(0)
    (tmp_path / "l.csv").write_text("uri\na\n")
    (tmp_path / "l.csv").chmod(0)
    for source in (pool, tmp_path / "l.csv"):
        running = start("add-images", source, *command[2:], program=[*without, PROGRAM])
        out, err = running.communicate()
        assert (running.returncode, out) == (2, "")
        assert err.startswith("error: ")
        assert "Permission denied" in err
        assert "mend:" in err
    (store.path / "images").chmod(0o500)
    (store.path / "images" / "_delta_log").chmod(0o500)
    tree(tmp_path / "other", {"a.jpg": picture()})
    running = start("add-images", tmp_path / "other", *command[2:], program=[*without, PROGRAM])
    out, err = running.communicate()
    assert (running.returncode, out) == (2, "")
    assert "a file may not be read or written" in err
    (pool / "deep").chmod(0o700)


def test_a_full_disk_of_temporary_files() -> None:
    told = cli._mendable(
        duckdb.OutOfMemoryException(
            "Out of Memory Error: failed to offload data block of size 256.0 KiB (17.8 MiB/18.0 MiB used). "
            "This limit was set by the 'max_temp_directory_size' setting."
        )
    )
    assert isinstance(told, DiskFull)
    assert "TMPDIR" in told.mend
    assert cli._mendable(duckdb.OutOfMemoryException("Out of Memory Error: could not allocate block")) is None
