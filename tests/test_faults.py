"""Faults from outside: kills, power cuts, damaged files, a clock that was set back; for disks see test_disks.py.

Nothing that was acknowledged is lost, nothing is half, and what cannot be done is told with its mend. The long form of
the kills is benchmarks/faults/.
"""

import datetime as dt
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

import pyarrow.parquet as pq
import pytest
from conftest import Answer

from curator import queries
from curator.curation import building, manifests
from curator.decisions import reviews
from curator.decisions.session import Session
from curator.generations.labels import import_labels
from curator.measures import evaluations
from curator.measures.evaluations import Basis
from curator.schema import FOLDERS
from curator.storage import additions
from curator.storage.delta import paths_of
from curator.storage.store import Store

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
