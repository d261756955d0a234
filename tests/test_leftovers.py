"""`curator gc` takes what nothing references and nothing else: versions, manifests, models and packs read as before."""

from __future__ import annotations

import hashlib
import itertools
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import deltalake
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from bucket import upload
from conftest import Answer
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from pictures import start

from curator.curation import building
from curator.decisions.reviews import add_review
from curator.delivery import packing, packs
from curator.errors import InputError, StoreError
from curator.lock import alone
from curator.pictures.images import add_images
from curator.schema import FOLDERS, TABLES
from curator.storage import delta
from curator.storage.place import Place
from curator.storage.store import Store
from curator.teachers import labeling
from curator.upkeep import leftovers

Run = Callable[..., Answer]
ID = "0" * 32
# What killed commands leave, by the kind that it is to be told as. {hash} and {weights} are those of what is there.
PLANTS = {
    f"images/{ID}.parquet": "table files",
    "metrics/part-00000-00000000-0000-0000-0000-000000000000-c000.zstd.parquet": "table files",
    f"manifest_table/{ID}.parquet": "table files",
    f"labels/{ID}.parquet": "table files",
    "images/_delta_log/00000000000000000009.json#1": "half-written files",
    "labels/.import-g001-abc_d123/part-00000.parquet": "half-written files",
    "labels/g000-teacher-{weights}/part-unlabeled-torch-1-0a1b2c3d.unfinished": "half-written files",
    "manifests/.new-x1y2z3/part-00000.parquet": "half-written files",
    "rows/.unfinished-x1y2z3/records": "half-written files",
    ".audits.-x1y2z3/audits/_delta_log/00000000000000000000.json": "half-written files",
    "models/teacher/.unfinished-x1y2z3/state.pt": "half-written files",
    "packs/original/000007.tar.unfinished": "half-written files",
    "folds/run/run.unfinished": "half-written files",
    "manifests/never/part-00000.parquet": "manifests",
    "manifests/never/_lineage.json": "manifests",
    f"rows/{'f' * 64}/records": "rows",
    f"rows/{'f' * 64}-original-12/about.json": "rows",
    "models/teacher/checkpoint-000000007/state.pt": "checkpoints",
    "packs/original/000008.tar": "packs",
    "labels/g000-gone-0123456789ab/part-unlabeled-torch-1-0a1b2c3d.parquet": "label parts",
    "labels/g003-outside-outside/part-00000.parquet": "label parts",
    "models/began/checkpoint-000000007/hashes.json": "unfinished models",
    "models/began/weights.safetensors": "unfinished models",
    "folds/began/run.json": "unfinished folds",
    "folds/began/2/best-000000003/state.pt": "unfinished folds",
    "notes.txt": "unknown",
    "images/notes.parquet": "unknown",
    "labels/g000-teacher-{weights}/README": "unknown",
    "manifests/m/my.csv": "unknown",
    "models/teacher/weights.onnx": "unknown",
    "packs/original/mine.tar": "unknown",
    "rows/mine/records.bak": "unknown",
    "images/_delta_log/notes": "unknown",
    "photos/1.png": "unknown",
}
LATER = time.time() + 40 * leftovers.DAY


@pytest.fixture(scope="module")
def made(taught_once: Store, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store with a teacher, labels, a manifest and its rows, a pack, a review, and old versions of tables."""
    folder = tmp_path_factory.mktemp("kept")
    shutil.copytree(taught_once.root, folder, dirs_exist_ok=True)
    store = Store(folder / "store")
    packing.pack(store, "m")
    image = store.rows("select image_id from images where split = 'unlabeled' limit 1")[0]["image_id"]
    add_review(store, image, "accept", None, "me", None)
    building.build(store, "again", {"per_class": 3, "min_confidence": 0.1})
    checkpointed = store.delta("images")  # a log that begins with a checkpoint names old files there alone
    checkpointed.create_checkpoint()
    return store


def contents(store: Store) -> dict[str, str]:
    """Digests of all that must stay: tables at every version, and every other file that is read by its name."""
    found = {}
    for table in TABLES:
        if not store.has(table):
            continue
        for version in range(deltalake.DeltaTable(store.path / FOLDERS[table]).version() + 1):
            rows = deltalake.DeltaTable(store.path / FOLDERS[table], version=version).to_pyarrow_table()
            texts = sorted(map(repr, rows.to_pylist()))
            found[f"{table} {version}"] = hashlib.sha256("\n".join(texts).encode()).hexdigest()
    named = store.rows("select path as name from manifests union all select shard from stored_packed")
    for row in [*named, *store.rows("select weights as name from models where weights is not null")]:
        path = store.path / row["name"]
        for file in sorted(path.iterdir()) if path.is_dir() else [path]:
            if not file.name.startswith("my"):
                found[file.relative_to(store.path).as_posix()] = hashlib.sha256(file.read_bytes()).hexdigest()
    assert not packs.verify(store, "256-q90").damaged
    return found


def plant(store: Store, name: str) -> str:
    """Writes a file that nothing references; its name."""
    weights = store.rows("select weights_hash from models where model = 'teacher'")[0]["weights_hash"][:12]
    name = name.format(weights=weights)
    (store.path / name).parent.mkdir(parents=True, exist_ok=True)
    (store.path / name).write_bytes(b"planted")
    return name


def told(found: leftovers.Found) -> dict[str, str]:
    """What was found: kind by name."""
    return {each.name: each.kind for each in [*found.leftovers, *found.unfinished, *found.unknown]}


@pytest.mark.long
@given(
    planted=st.sets(st.sampled_from(sorted(PLANTS))),
    commits=st.lists(st.sampled_from(["image", "review", "build", "gone"]), max_size=3),
    give_up=st.booleans(),
)
@settings(max_examples=5, deadline=None, phases=[Phase.generate])
def test_what_is_referenced_stays_and_what_is_not_goes(
    made: Store, planted: set[str], commits: list[str], give_up: bool
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(made.root, folder, dirs_exist_ok=True)
        store = Store(Path(folder) / "store")
        for number, commit in enumerate(commits):
            if commit == "image":
                pq.write_table(pa.table({"uri": [f"{number}.png"]}), f"{folder}/l.parquet")
                add_images(store, f"{folder}/l.parquet", "unlabeled", scan=False)
            if commit == "review":
                add_review(
                    store, store.rows("select image_id from images limit 1")[0]["image_id"], "skip", None, "me", None
                )
            if commit == "build":
                building.build(store, f"b{number}", {"per_class": 2, "min_confidence": 0.1})
            if commit == "gone":  # rows that only old versions have
                store.delta("metrics").delete(f"step = {number}")
        before = contents(store)
        names = {plant(store, name): PLANTS[name] for name in planted}
        found = leftovers.find(store, now=LATER)
        assert told(found) == names
        chosen = found.leftovers + (found.unfinished if give_up else [])
        assert leftovers.remove(store, chosen) == chosen
        assert contents(store) == before
        left = {name for name, kind in names.items() if (store.path / name).exists()}
        assert left == {
            name for name, kind in names.items() if kind == "unknown" or (kind.startswith("unfinished") and not give_up)
        }
        assert not leftovers.find(store, now=LATER).leftovers


def test_young_files_stay_and_a_folder_is_as_old_as_its_youngest_file(store: Store) -> None:
    old = plant(store, "manifests/.new-x1y2z3/part-00000.parquet")
    changed = (store.path / old).stat().st_ctime
    assert not leftovers.find(store, 10.0, changed + 9).leftovers
    assert told(leftovers.find(store, 10.0, changed + 11)) == {old: "half-written files"}
    time.sleep(0.05)
    new = plant(store, "manifests/.new-x1y2z3/_lineage.json")
    os.utime(store.path / new, (0, 0))  # as of bytes that are old, and a name that is not
    youngest = (store.path / new).stat().st_ctime
    assert not leftovers.find(store, 10.0, youngest + 9.99).leftovers
    assert len(leftovers.find(store, 10.0, youngest + 11).leftovers) == 2


def test_the_command(store: Store, curator: Run) -> None:
    plant(store, f"images/{ID}.parquet")
    plant(store, "models/began/weights.safetensors")
    plant(store, "notes.txt")
    answer = curator("gc", "--store", store.path, "--json")
    assert answer.code == 0
    assert answer.json["would_remove"] == 0
    assert curator("gc", "--store", store.path, "--delete").code == 0
    refused = curator("gc", "--store", store.path, "--delete", "--older-than", "59m")
    assert refused.code == 2
    assert "less than 1h" in refused.err
    answer = curator("gc", "--store", store.path, "--older-than", "0s", "--json").json
    assert (answer["would_remove"], answer["bytes"]) == (1, 7)
    assert [(kind["kind"], kind["files"], kind["examples"]) for kind in answer["kinds"]] == [
        ("table files", 1, [f"images/{ID}.parquet"]),
        ("unfinished models", 1, ["models/began/weights.safetensors"]),
    ]
    assert answer["kept_unknown"]["examples"] == ["notes.txt"]
    text = curator("gc", "--store", store.path, "--older-than", "0s").out
    assert "1 file, 7 bytes; curator gc --delete --older-than 0s --alone removes it, where nothing else uses" in text
    assert "1 file is none of curator's and stays: notes.txt" in text
    (store.path / "notes.txt").rename(store.path / "a\n\x1b[2Jb.txt")
    text = curator("gc", "--store", store.path, "--older-than", "0s").out
    assert "stays: a\\n\\x1b[2Jb.txt" in text
    (store.path / "a\n\x1b[2Jb.txt").rename(store.path / "notes.txt")
    assert "--unfinished gives it up" in text
    text = curator("gc", "--store", store.path, "--older-than", "0s", "--unfinished").out
    assert "; curator gc --delete --unfinished --older-than 0s --alone removes them, where" in text
    answer = curator("gc", "--store", store.path, "--delete", "--alone", "--older-than", "0s", "--json").json
    assert (answer["removed"], answer["bytes"]) == (1, 7)
    answer = curator(
        "gc", "--store", store.path, "--delete", "--unfinished", "--alone", "--older-than", "0s", "--json"
    ).json
    assert [kind["kind"] for kind in answer["kinds"]] == ["unfinished models"]
    assert (store.path / "notes.txt").exists()
    assert not (store.path / "models/began/weights.safetensors").exists()


def test_ages() -> None:
    assert [leftovers.seconds(text) for text in ("90s", "1.5m", "12h", "7d", "1w")] == [
        90, 90, 43200, 604800, 604800
    ]  # fmt: skip
    for text in ("", "7", "d", "-1d", "1y", "nan"):
        with pytest.raises(InputError):
            leftovers.seconds(text)


def test_what_is_locked_is_in_use(store: Store) -> None:
    names = [
        plant(store, "models/began/checkpoint-000000007/state.pt"),
        plant(store, "packs/original/000007.tar.unfinished"),
        plant(store, f"rows/{'f' * 64}/records"),
        plant(store, "labels/g000-gone-0123456789ab/part-unlabeled-torch-1-0a1b2c3d.parquet"),
    ]
    found = leftovers.find(store, now=LATER)
    assert sorted(told(found)) == sorted(names)
    rank = store.path / "labels/g000-gone-0123456789ab/rank-1"
    with (
        alone(store.path / "models/began", "training"), alone(store.path / "packs/original", "packing"),
        alone(store.path / "rows"), alone(rank, "labeling"),
    ):  # fmt: skip
        assert not told(leftovers.find(store, now=LATER))
        assert leftovers.remove(store, [*found.leftovers, *found.unfinished]) == []
    assert len(leftovers.remove(store, [*found.leftovers, *found.unfinished])) == 4


def test_links_are_not_followed(store: Store, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "records").write_bytes(b"precious")
    (store.path / "rows").mkdir(exist_ok=True)
    (store.path / "rows" / ("e" * 64)).symlink_to(outside)
    (store.path / "images" / f"{ID}.parquet").symlink_to(outside / "records")
    found = leftovers.find(store, now=LATER)
    assert told(found) == {f"rows/{'e' * 64}": "unknown", f"images/{ID}.parquet": "unknown"}
    # a folder that becomes a link after it was looked at
    name = plant(store, f"rows/{'d' * 64}/records")
    found = leftovers.find(store, now=LATER)
    (store.path / name).unlink()
    (store.path / name).parent.rmdir()
    (store.path / name).parent.symlink_to(outside)
    assert leftovers.remove(store, found.leftovers) == []
    assert (outside / "records").read_bytes() == b"precious"


def test_what_is_committed_while_it_looks_is_referenced(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is there when files are listed, and its commit comes before the logs are read."""
    opened = store.delta("images")
    file = store.path / "images" / f"{ID}.parquet"
    rows = pq.read_table(store.files("images")[0], partitioning=None).slice(0, 1)
    delta.write(rows, file)
    listed = Place.entries

    def entries(place: Place) -> Iterator[tuple[str, int, float]]:
        found = list(listed(place))
        delta.publish(store.place, opened, [file], "one more")
        return iter(found)

    monkeypatch.setattr(Place, "entries", entries)
    assert not leftovers.find(Store(store.path), 0.0, LATER).leftovers


def test_a_label_run_that_goes_on_meanwhile_keeps_its_parts(store: Store) -> None:
    """Parts of a stopped run are found as unfinished; the next run publishes them before they are removed."""
    row = store.rows("select weights_hash from models where model = 'teacher'")[0]
    folder = f"labels/g000-teacher-{row['weights_hash'][:12]}"
    table = pq.read_table(store.files("labels")[0], partitioning=None)
    file = store.path / folder / "part-unlabeled-torch-1-0a1b2c3d.parquet"
    fresh = table.slice(0, 1).set_column(0, table.schema.field(0), pa.array([12345], pa.int64()))
    pq.write_table(fresh, file)
    found = leftovers.find(store, now=LATER)
    assert told(found) == {f"{folder}/{file.name}": "unfinished label parts"}
    delta.publish(store.place, store.delta("labels"), [file], "generation 0")
    assert leftovers.remove(store, found.unfinished) == []
    assert file.exists()


def test_parts_of_what_is_labeled_already_are_no_unfinished_work(store: Store) -> None:
    row = store.rows("select weights_hash from models where model = 'teacher'")[0]
    folder = f"labels/g000-teacher-{row['weights_hash'][:12]}"
    shutil.copy(store.files("labels")[0], store.path / folder / "part-unlabeled-torch-1-0a1b2c3d.parquet")
    found = leftovers.find(store, now=LATER)
    assert told(found) == {f"{folder}/part-unlabeled-torch-1-0a1b2c3d.parquet": "label parts"}
    assert labeling.label(store, "teacher").images == 0
    assert not told(leftovers.find(store, now=LATER)), "the next run takes the same part for one that comes too late"


def test_stopped_while_it_removes_it_goes_on(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(5):
        plant(store, f"images/{number:032}.parquet")
    found = leftovers.find(store, now=LATER)
    count, removed = itertools.count(), Place.remove

    def stopped(place: Place, file: Path) -> None:
        if next(count) == 3:
            raise KeyboardInterrupt
        removed(place, file)

    with monkeypatch.context() as patched:
        patched.setattr(Place, "remove", stopped)
        with pytest.raises(KeyboardInterrupt):
            leftovers.remove(store, found.leftovers)
    rest = leftovers.find(store, now=LATER).leftovers
    assert len(rest) == 2
    assert leftovers.remove(store, rest) == rest


def test_nothing_is_told_by_a_damaged_log(store: Store) -> None:
    name = plant(store, f"images/{ID}.parquet")
    log = store.path / "reviews/_delta_log/00000000000000000000.json"
    log.write_bytes(log.read_bytes()[:50])
    with pytest.raises(StoreError, match="reviews"):
        leftovers.find(store, now=LATER)
    assert (store.path / name).exists()


@pytest.mark.long
@pytest.mark.parametrize("stop", ["building._write", "checks.expect_sound", "additions.claim", "delta.publish"])
def test_what_killed_builds_leave_is_found(store: Store, stop: str) -> None:
    """A real process that ends at this point of a build; afterwards the same build does."""
    code = """
    import os, sys
    from curator.curation import building, checks
    from curator.storage import additions, delta
    from curator.storage.store import Store
    module, _, name = sys.argv[2].partition(".")
    setattr({"building": building, "checks": checks, "additions": additions, "delta": delta}[module], name,
            lambda *a, **k: os._exit(9))
    building.build(Store(sys.argv[1]), "killed", {"per_class": 4, "min_confidence": 0.1})
    """
    before = contents(store)
    with start(code, store.path, stop) as process:
        process.communicate(timeout=120)
        assert process.returncode == 9
    found = leftovers.find(store, now=LATER)
    left = {path for path in (store.path / "manifests").glob("*/*") if path.parent.name not in ("m", "again")}
    assert {each.name for each in found.leftovers if each.name.startswith("manifests/")} == {
        path.relative_to(store.path).as_posix() for path in left
    }
    assert not found.unknown
    leftovers.remove(store, found.leftovers)
    assert not leftovers.find(store, now=LATER).leftovers
    assert contents(store) == before
    building.build(store, "killed", {"per_class": 4, "min_confidence": 0.1})


@pytest.mark.long
def test_beside_writers_it_refuses_or_loses_nothing(store: Store, tmp_path: Path, curator: Run) -> None:
    """Commands that write, as processes of their own, and gc in a loop: at 0s it refuses, at 1h nothing is old."""
    image = store.rows("select image_id from images where split = 'unlabeled' limit 1")[0]["image_id"]
    pq.write_table(pa.table({"uri": [f"more/{i}.png" for i in range(50)]}), tmp_path / "l.parquet")
    commands = [
        ["add-images", tmp_path / "l.parquet", "--split", "unlabeled", "--no-scan"],
        ["build-manifest", "beside", "--per-class", "5", "--min-confidence", "0.1"],
        ["review", "--image-id", image, "--decision", "accept", "--reason", "beside"],
    ]
    before = contents(store)
    writers = [
        subprocess.Popen([sys.executable, "-m", "curator", *map(str, command), "--store", store.path],
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for command in commands
    ]  # fmt: skip
    looks = 0
    while any(writer.poll() is None for writer in writers):
        assert curator("gc", "--delete", "--older-than", "0s", "--store", store.path).code == 2
        found = leftovers.find(store, leftovers.FLOOR)
        leftovers.remove(store, [*found.leftovers, *found.unfinished])
        looks += 1
    for writer in writers:
        said = writer.communicate()
        assert writer.returncode == 0, said
    assert looks
    assert before.items() <= contents(store).items()
    assert store.rows("select count(*) as n from images where uri like 'more/%'")[0]["n"] == 50
    assert store.rows("select count(*) as n from reviews where reason = 'beside'")[0]["n"] == 1
    assert curator("check", "--store", store.path).code == 0


def test_a_store_in_a_bucket(made: Store, bucket: str, curator: Run) -> None:
    from curator.storage.bucket import Bucket

    url = upload(made.path, f"{bucket}/store")
    there = Bucket(url)
    before = {name for name, _ in there.list()}
    with closing(Store(url).connect()) as con:
        answer = con.execute("select count(*) from labels").fetchone()
    there.put(f"images/{ID}.parquet", b"killed")
    there.put(f".probe-{ID}", b"1")
    there.put("notes.txt", b"mine")
    work = Store(url).path
    for name in ("manifests/.new-x1y2z3/part-00000.parquet", f"labels/{ID}.parquet"):
        (work / name).parent.mkdir(parents=True, exist_ok=True)
        (work / name).write_bytes(b"here")
    found = curator("gc", "--store", url, "--older-than", "0s", "--json").json
    assert {kind["kind"]: kind["files"] for kind in found["kinds"]} == {"half-written files": 2, "table files": 2}
    assert curator("gc", "--store", url, "--delete", "--older-than", "0s").code == 2
    gone = curator("gc", "--store", url, "--delete", "--older-than", "0s", "--alone", "--json").json
    assert gone["removed"] == 4
    assert {name for name, _ in there.list()} == before | {"notes.txt"}
    assert not [*work.glob("manifests/.new-*")]
    with closing(Store(url).connect()) as con:
        assert con.execute("select count(*) from labels").fetchone() == answer
    assert curator("gc", "--store", url, "--older-than", "0s", "--json").json["would_remove"] == 0
