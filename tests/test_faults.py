"""Faults from outside: kills, disks that are full or read-only, damaged files, a clock that was set back.

Nothing that was acknowledged is lost, nothing is half, and what cannot be done is told with its mend. The long form of
the kills is benchmarks/faults/.
"""

import datetime as dt
import errno
import json
import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import packed
import pyarrow.parquet as pq
import pytest
from conftest import Answer
from pictures import on_a_small_disk
from PIL import Image

from curator import cli, queries
from curator.curation import building, manifests
from curator.decisions import reviews
from curator.decisions.session import Session
from curator.generations.labels import import_labels
from curator.measures import evaluations
from curator.measures.evaluations import Basis
from curator.pictures.images import add_images
from curator.schema import FOLDERS
from curator.storage import additions
from curator.storage.delta import paths_of
from curator.storage.store import Store
from curator.teachers import labeling

Run = Callable[..., Answer]
KILLS = Path(__file__).parents[1] / "benchmarks" / "faults" / "run.py"
TABLES = ("images", "labels", "reviews", "models", "classes", "manifests")


# Kills


def kill(number: int, *commands: str) -> list[dict[str, Any]]:
    """What came of so many kills of each command."""
    done = subprocess.run(
        [sys.executable, KILLS, f"--kills={number}", "--programs=0", "--jobs=1", "--json", "--commands", *commands],
        capture_output=True,
        text=True,
    )
    assert done.stdout, done.stderr
    counts: list[dict[str, Any]] = json.loads(done.stdout)
    return counts


def expect_nothing_lost(counts: list[dict[str, Any]], number: int, commands: int) -> None:
    assert [count["kills"] for count in counts] == [number] * commands
    for count in counts:
        assert not count["told"]
        assert {count[bad] for bad in ("lost", "half", "failed", "other")} == {0}


@pytest.mark.long
@pytest.mark.timeout(900)
def test_killed_at_random_moments() -> None:
    commands = ("add-images", "build-manifest", "review")
    expect_nothing_lost(kill(2, *commands), 2, len(commands))


@pytest.mark.long
@pytest.mark.timeout(900)
def test_all_the_others_killed_at_random_moments() -> None:
    commands = ("label", "import-labels", "review --from FILE", "pack", "train")
    expect_nothing_lost(kill(2, *commands), 2, len(commands))


# The disk


@pytest.fixture(scope="module")
def pictured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("faults")
    packed.world(root)
    return root


COMMANDS = {
    "import-labels {world}/probs.parquet --generation 7 --model late": "labels where generation = 7",
    "build-manifest c --generation 0 --per-class 2": "manifests where name = 'c'",
    "review --image-id {image} --decision accept": "(select distinct image_id from reviews)",
    "pack a --size 32 --shard-rows 4": "stored_packed",
}
FULL = """
import contextlib, io, json, shutil, sys
from pathlib import Path
from curator import cli
from curator.storage.store import Store
disk, commands = Path(sys.argv[1]), json.loads(sys.argv[3])
world, filler = disk / "world", disk / "filler"
def run(words):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        given = [word.format(world=world, image=image) for word in words.split()]
        code = cli.run([*given, "--store", str(world / "store")])
    return code, err.getvalue()
def count(what):
    return Store(world / "store").rows(f"select count(*) as n from {what}")[0]["n"]
for words, what in commands.items():
    for pages in (0, 2, 1000):
        shutil.rmtree(world, ignore_errors=True)
        shutil.copytree(sys.argv[2], world)
        image = Store(world / "store").rows("select min(image_id) as i from images")[0]["i"]
        filler.write_bytes(bytes(max(0, shutil.disk_usage(disk).free - 4096 * pages)))
        code, err = run(words)
        filler.unlink()
        between = count(what)
        again, told = run(words)
        print(json.dumps([words.split()[0], code, err, between, again, told, count(what)]))
"""


@pytest.mark.long
def test_a_full_disk(pictured: Path) -> None:
    """Nothing fits, the rows and not the commit, the first of several commits, all."""
    done = on_a_small_disk("24m", FULL, pictured, json.dumps(COMMANDS))
    assert (done.returncode, done.stderr) == (0, "")  # the libraries keep quiet, too
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    whole = {name: final for name, *_, final in answers}
    for name, code, err, between, again, told, final in answers:
        assert "Traceback" not in err
        if code:
            assert code == 2
            assert "disk is full" in err, err
            assert "mend: " in err
        assert between in (0, whole[name]) or name == "pack"
        assert between == whole[name] or code == 2
        assert again == 0 or (name, again, "labeled already" in told, between) == (
            "import-labels",
            2,
            True,
            whole[name],
        )
        assert final == whole[name] > 0
    assert {(name, code) for name, code, *_ in answers} >= {(name, code) for name in whole for code in (0, 2)}


READERS = (
    "label --model teacher",
    "train --recipe {root}/recipe.toml --manifest n --name student",
    "pack n --size 16",
    "evaluate --model teacher",
    "quality duplicates",
    "export n --format webdataset {root}/made",
    "export n --format huggingface {root}/made",
)
READ_FROM = {"unlabeled": "pool/0000.png", "labeled": "labeled/bar/0.png", "holdout": "holdout/bar/0.png"}


def published(store: Store) -> list[str]:
    """The files of all tables."""
    made = (table for table, version in store.every_version().items() if version >= 0)
    return sorted(file for table in made for file in store.delta(table).file_uris())


@pytest.mark.long
@pytest.mark.parametrize("line", READERS, ids=lambda line: line.partition(" {")[0])
def test_a_disk_that_fails_is_no_broken_picture(
    taught_once: Store, tmp_path: Path, curator: Run, monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    """It stops the command, which publishes nothing, counts no picture as broken, and goes on once the disk is back."""
    shutil.copytree(taught_once.root, tmp_path / "world")
    store = Store(tmp_path / "world" / "store")
    for split, like in READ_FROM.items():
        Image.open(store.root / like).save((store.root / like).with_name("new.bmp"))
        add_images(store, str(store.root / like.partition("/")[0]), split)
    if not line.startswith("label"):
        labeling.label(store, "teacher")
    building.build(store, "n", {"per_class": 20, "min_confidence": 0.1})
    words = [*line.format(root=store.root).split(), "--store", store.path]
    opened, state = os.open, published(store)

    def failing(path: Any, *rest: Any, **named: Any) -> int:
        if str(path).endswith("new.bmp"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return opened(path, *rest, **named)

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", failing)
        failed = curator(*words)
    assert failed.code == 2, failed
    assert "new.bmp' cannot be read now (Input/output error)" in failed.err
    assert "Traceback" not in failed.err
    assert published(store) == state
    assert not (store.root / "made").exists()
    again = curator(*words)
    assert again.code == 0, again.err
    assert "new.bmp" not in again.err
    assert published(store) != state or (store.root / "made").exists()


READ_ONLY = """
import json, sys
from curator import cli
for words in json.loads(sys.argv[1]):
    print(json.dumps(cli.run(words)), flush=True)
    print("next", file=sys.stderr, flush=True)
"""


def test_a_store_that_cannot_be_written_to(pictured: Path, tmp_path: Path) -> None:
    """Who reads is not disturbed, and who writes is told. Root gives its privilege up first."""
    shutil.copytree(pictured, tmp_path / "world")
    world = tmp_path / "world"
    image = Store(world / "store").rows("select min(image_id) as i from images")[0]["i"]
    reading = ["manifests", "show a", "check", "diff a b", f"show a --image-id {image}",
               "pack a --dry-run", "build-manifest z --per-class 2 --dry-run", 'sql from"images"',
               f"export a --format csv {tmp_path}/a.csv"]  # fmt: skip
    writing = [*COMMANDS, f"add-images {world}/labeled --split labeled", "quality leaks"]
    (world / "labeled" / "x" / "new.jpg").write_bytes(packed.picture(77))
    subprocess.run(["chmod", "-R", "a-w", world / "store"], check=True)
    words = [
        [*line.format(world=world, image=image).split(), "--store", str(world / "store")] for line in reading + writing
    ]
    without = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
    done = subprocess.run(
        [*without, sys.executable, "-c", READ_ONLY, json.dumps(words)], capture_output=True, text=True
    )
    subprocess.run(["chmod", "-R", "u+w", world / "store"], check=True)
    codes = [int(line) for line in done.stdout.splitlines() if line in ("0", "1", "2")]
    told = done.stderr.split("next\n")
    assert codes == [0] * len(reading) + [2] * len(writing), list(zip(words, told, strict=False))
    for line, said in zip(writing, told[len(reading) :], strict=False):
        assert "a file may not be read or written" in said, (line, said)
        assert "mend: " in said
        assert "panicked" not in said
    assert len(Store(world / "store").rows("select 1 from images")) == len(
        Store(pictured / "store").rows("select 1 from images")
    )


def test_a_disk_that_is_mounted_for_reading_only() -> None:
    told = cli._mendable(OSError(errno.EROFS, "Read-only file system", "/store/reviews"))
    assert told is not None
    assert "mounted for reading only" in told.what
    assert "copy the store" in told.mend


# Power


def test_what_is_acknowledged_is_on_the_disk(
    store: Store, ids: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every file that a command adds was synced, and its name in the folder too."""
    synced: set[int] = set()  # inodes
    sync = os.fsync

    def note(file: int) -> None:
        synced.add(os.fstat(file).st_ino)
        sync(file)

    monkeypatch.setattr(os, "fsync", note)
    (store.path.parent / "d.csv").write_text(f"image_id,decision\n{ids['b']},reject\n")
    for work in (
        lambda: reviews.add_review(store, ids["a"], "accept"),
        lambda: reviews.add_reviews(store, str(store.path.parent / "d.csv")),
        lambda: import_labels(store, str(store.path.parent / "probs.parquet"), 1, "second"),
        lambda: building.build(store, "m", {"per_class": 2}),
    ):
        before, synced = set(store.path.rglob("*")), set()
        work()
        new = [path for path in store.path.rglob("*") if path not in before]
        assert any(path.suffix == ".json" and path.parent.name == "_delta_log" for path in new)
        for path in new:
            assert path.stat().st_ino in synced, path
            assert path.parent.stat().st_ino in synced, path
    fresh = Store.create(store.path.parent / "fresh", ["x"])
    assert all(path.stat().st_ino in synced for path in fresh.path.rglob("*") if path.is_file())


def test_a_checkpoint_of_the_log_that_a_power_cut_took(store: Store, ids: dict[str, int], curator: Run) -> None:
    """deltalake sums a log up now and then; without the summary the commits say the same."""
    for number in range(3):
        reviews.record(store, ids["a"], 0, "accept", reason=str(number))
    log = store.path / "reviews" / "_delta_log"
    query = ["sql", "select count(*) from reviews", "--format", "json", "--store", store.path]
    for size in (0, 100, None):
        store.delta("reviews").create_checkpoint()
        (checkpoint,) = log.glob("*.checkpoint.parquet")
        if size is None:
            checkpoint.unlink()
        else:
            os.truncate(checkpoint, size)
        done = curator(*query)
        if done.code:
            mend = re.search("mend: (rm .+): summaries of commits", done.err)
            assert mend is not None, done.err
            subprocess.run(["bash", "-c", mend[1]], check=True)
            assert not list(log.glob("*checkpoint*"))
            done = curator(*query)
        assert json.loads(done.out) == [{"count_star()": 3}]
        for file in log.glob("*checkpoint*"):
            file.unlink()


# Damage


def flip(file: Path, seed: int) -> None:
    """One bit of a file."""
    data = bytearray(file.read_bytes())
    data[random.Random(seed).randrange(len(data))] ^= 1 << seed % 8
    file.write_bytes(data)


@pytest.fixture
def full(store: Store, ids: dict[str, int]) -> Store:
    """The fixture store with a decision and a manifest."""
    reviews.add_review(store, ids["a"], "accept")
    building.build(store, "m", {"per_class": 2})
    return store


@pytest.mark.long
@pytest.mark.parametrize("damage", ["gone", "cut", "empty", "flipped", "commit gone", "commit cut", "commit flipped"])
def test_a_damaged_table_is_told_or_does_not_matter(full: Store, tmp_path: Path, curator: Run, damage: str) -> None:
    for table in TABLES:
        spoiled = tmp_path / "spoiled" / table
        shutil.copytree(full.path, spoiled / "store")
        folder = spoiled / "store" / FOLDERS[table]
        found = (
            sorted((folder / "_delta_log").glob("*.json")) if "commit" in damage else sorted(folder.rglob("*.parquet"))
        )
        file = found[-1]
        if damage.endswith("gone"):
            file.unlink()
        elif damage.endswith("cut"):
            os.truncate(file, file.stat().st_size // 2)
        elif damage == "empty":
            os.truncate(file, 0)
        else:
            flip(file, len(table))
        for command in (["build-manifest", "n", "--per-class", "2"], ["check"]):
            done = curator(*command, "--store", spoiled / "store")
            assert done.code in (0, 1, 2), (table, done.err)
            if done.code == 2:
                assert "error: " in done.err, (table, done.err)
                assert "mend: " in done.err, (table, done.err)


def test_a_damaged_table_of_manifests_does_not_show_in_sql_as_a_bug(full: Store, curator: Run) -> None:
    (file,) = (full.path / "manifest_table").glob("*.parquet")
    data = bytearray(file.read_bytes())
    data[4:200] = random.Random(0).randbytes(196)
    file.write_bytes(data)
    done = curator("sql", "select 1", "--store", full.path)
    assert (done.code, "damaged" in done.err, "mend: " in done.err) == (2, True, True), done.err


def test_a_store_that_lost_its_classes_says_so(full: Store, curator: Run) -> None:
    sorted((full.path / "classes" / "_delta_log").glob("*.json"))[-1].unlink()
    done = curator("build-manifest", "n", "--per-class", "2", "--store", full.path)
    assert (done.code, "the table of classes is empty" in done.err) == (2, True)


def test_decisions_are_recorded_where_earlier_files_are_damaged(
    store: Store, ids: dict[str, int], curator: Run
) -> None:
    """The files of the reviews are put together now and then: what is damaged by then is not put anywhere."""
    for number in range(40):
        reviews.record(store, ids["b"], 0, "accept", reason=f"number {number}")
    for seed in range(4):
        spoiled = store.path.parent / f"spoiled-{seed}"
        shutil.copytree(store.path, spoiled)
        files = paths_of(store.delta("reviews"))
        file = spoiled / Path(files[seed]).relative_to(store.path)
        good = pq.read_table(file).to_pylist()
        flip(file, seed)
        done = curator("review", "--image-id", ids["a"], "--decision", "reject", "--store", spoiled)
        assert done.code == 0 or "damaged" in done.err or "cannot be read" in done.err, done.err
        left = Store(spoiled).delta("reviews")
        if done.code:
            assert len(paths_of(left)) == 40
        elif len(paths_of(left)) == 1:  # the bit was none of a row's
            together = pq.read_table(paths_of(left)[0]).to_pylist()
            assert good[0] in together
        else:
            assert "recorded; the files of the reviews were not put together" in done.err
            assert file.name in {Path(path).name for path in paths_of(left)}
        shutil.rmtree(spoiled)


# The clock


class Earlier(dt.datetime):
    """A clock that was set back by a day."""

    @classmethod
    def now(cls, tz: dt.tzinfo | None = None) -> dt.datetime:
        return dt.datetime.now(tz) - dt.timedelta(days=1)


def set_the_clock_back(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(datetime=Earlier, UTC=dt.UTC, timedelta=dt.timedelta)
    monkeypatch.setattr(additions, "dt", clock)


def test_the_later_decision_wins_though_the_clock_was_set_back(
    store: Store, ids: dict[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def in_force() -> dict[int, str]:
        return {
            row["image_id"]: row["decision"]
            for row in store.rows(queries.compose(queries.steps(*queries.DECISIONS), "from decisions"))
        }

    for name in "abc":
        reviews.add_review(store, ids[name], "accept")
    set_the_clock_back(monkeypatch)
    reviews.add_review(store, ids["a"], "reject")
    (tmp_path / "d.csv").write_text(f"image_id,decision\n{ids['b']},reject\n{ids['d']},accept\n")
    reviews.add_reviews(store, str(tmp_path / "d.csv"))
    session = Session(store, [ids["c"]], 0)
    session.decide(ids["c"], "reject", generation=0)
    assert in_force() == {ids["a"]: "reject", ids["b"]: "reject", ids["c"]: "reject", ids["d"]: "accept"}
    assert session.undo() == ids["c"]
    assert in_force()[ids["c"]] == "accept"


def test_what_is_newest_though_the_clock_was_set_back(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The manifest that is reviewed, a generation's model, and a model's figures."""

    def add(name: str, top1: float) -> None:
        building.build(store, name, {"per_class": 2, "generation": 0})
        import_labels(store, str(store.path.parent / "probs.parquet"), 7 + round(top1), name)
        evaluations.record(store, "m", "clean", [evaluations.figure("top1", top1)], Basis(2, "", 0, None), {})

    add("first", 0.25)
    set_the_clock_back(monkeypatch)
    add("second", 0.75)
    with closing(store.connect()) as con:
        newest = manifests.newest(store, con)
    assert newest is not None
    assert (newest.name, [each["name"] for each in manifests.published(store)]) == ("second", ["first", "second"])
    assert [row["value"] for row in store.rows("select value from evaluations")] == [0.75]
    models = store.rows("select model from models order by created_at")
    assert [row["model"] for row in models][-2:] == ["first", "second"]


def test_appends_are_seen_by_those_who_have_the_table_open(store: Store, ids: dict[str, int]) -> None:
    opened = store.delta("reviews")
    for number in range(3):
        reviews.record(store, ids["a"], 0, "accept", opened=opened)
        assert len(paths_of(opened)) == number + 1
    other = store.delta("reviews", 1)  # at any version
    grown = additions.append(store, "reviews", pq.read_table(paths_of(opened)[0]), other)
    assert grown.version() == opened.version() + 1
