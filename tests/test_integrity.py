"""Each fault is made for real in a copy of a small store, and `curator doctor` names it and nothing else."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import deltalake
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from bucket import upload
from conftest import CLASSES, PROBS, Answer

from curator.curation import building
from curator.decisions.reviews import add_review
from curator.errors import StoreError
from curator.generations.labels import import_labels
from curator.schema import FOLDERS, MODELS, PACKED, TABLES
from curator.storage import additions
from curator.storage.place import Place
from curator.storage.store import Store
from curator.upkeep import integrity, mending
from curator.upkeep.table_files import Files, Stated, stated

Run = Callable[..., Answer]
NOW = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
WEIGHTS, SHARD = "models/own/weights.safetensors", "packs/original/000000.tar"
LONG, MORE = deltalake.schema.PrimitiveType("long"), ("images", "images + 1")


@pytest.fixture(scope="module")
def made(made_once: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """The fixture store with a second generation, a review, a manifest, a model with weights and a pack."""
    folder = tmp_path_factory.mktemp("everything")
    shutil.copytree(made_once, folder, dirs_exist_ok=True)
    store = Store(folder / "store")
    uris = [f"pool/{name}.jpg" for name in PROBS]
    probs = [[*p[1:], p[0]] if name in "ab" else [*p] for name, p in PROBS.items()]
    pq.write_table(pa.table({"uri": uris, "probs": pa.array(probs, pa.list_(pa.float32()))}), folder / "g1.parquet")
    import_labels(store, str(folder / "g1.parquet"), 1, "later")
    ids = {row["uri"][5]: row["image_id"] for row in store.rows("select image_id, uri from images")}
    add_review(store, ids["a"], "accept", None, "me", None)
    building.build(store, "m", {"per_class": 3, "generation": 0})
    for file, data in ((WEIGHTS, b"weights"), (SHARD, b"p" * 1000)):
        (store.path / file).parent.mkdir(parents=True)
        (store.path / file).write_bytes(data)
    model = {
        "model": "own",
        "generation": 1,
        "weights": WEIGHTS,
        "weights_hash": hashlib.sha256(b"weights").hexdigest(),
    }
    model |= {"parents": ["outside"], "manifest": "m", "created_at": NOW}
    additions.append(store, "models", pa.Table.from_pylist([model], MODELS.schema))
    packed = {"image_id": ids["a"], "pack": "original", "shard": SHARD, "byte_offset": 512, "byte_length": 400}
    additions.append(store, "packed", pa.Table.from_pylist([packed | {"added_at": NOW}], PACKED.schema))
    return store


def found(store: Store, **how: Any) -> dict[str, int]:
    """The checks that found something, and how much."""
    return {one.check: one.offending for one in integrity.examine(store.path, **how).wrong}


def image(store: Store, letter: str) -> int:
    return int(store.rows("select image_id from images where uri = $uri", uri=f"pool/{letter}.jpg")[0]["image_id"])


def file_of(store: Store, table: str, number: int = 0) -> Path:
    """One of a table's files."""
    return Path(store.files(table)[number])


def flip(file: Path, at: int) -> None:
    """Turns a bit around."""
    data = bytearray(file.read_bytes())
    data[at] ^= 1
    file.write_bytes(data)


def commit(store: Store, table: str, version: int | None = None) -> Path:
    """A commit of a table; the last one by default."""
    log = store.path / FOLDERS[table] / "_delta_log"
    return log / f"{version:020}.json" if version is not None else max(log.glob("*.json"))


def next_commit(store: Store, table: str) -> Path:
    """Where the next commit of a table will lie."""
    newest = commit(store, table)
    return newest.with_stem(f"{int(newest.stem) + 1:020}")


def turn_on_deletion_vectors(store: Store, table: str) -> None:
    """As another engine does, by a commit that raises the protocol."""
    features = ["deletionVectors"]
    raised = {"minReaderVersion": 3, "minWriterVersion": 7, "readerFeatures": features, "writerFeatures": features}
    next_commit(store, table).write_text(json.dumps({"protocol": raised}) + "\n", "utf-8")


def delete(store: Store, table: str, where: str) -> None:
    """Takes rows out of a table by an ordinary commit."""
    store.delta(table).delete(where)


def state(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Every file below a folder, its bytes and when it was written."""
    files = [file for file in folder.rglob("*") if file.is_file()]
    return {str(file): (file.read_bytes(), file.stat().st_mtime_ns) for file in files}


def test_a_sound_store(store: Store, tmp_path: Path, curator: Run) -> None:
    """Nothing is found, nothing is written, and no table was left out."""
    before = state(tmp_path)
    answer = curator("doctor", "--store", store.path, "--json")
    assert (answer.code, answer.err) == (0, "")
    assert answer.json.keys() == {"ok", "checks", "not_run", "mended"}
    assert (answer.json["ok"], answer.json["not_run"], answer.json["mended"]) == (True, [], [])
    assert all(one.keys() == {"check", "offending", "rows", "mend"} for one in answer.json["checks"])
    names = [one["check"] for one in answer.json["checks"]]
    assert names[:5] == ["settings", "log", "schema", "files", "pages"]
    assert {"repeated_image", "label_image", "weights", "packs", "manifest_files", "browse_rows"} < {*names}
    assert state(tmp_path) == before
    assert curator("doctor", "--store", store.path, "--quick").out == f"{store.path}: sound, {len(names) - 1} checks\n"


def test_what_a_training_leaves_is_sound(taught_once: Store) -> None:
    assert found(taught_once) == {}


def test_what_was_decided_after_a_build_is_no_damage(store: Store, curator: Run) -> None:
    add_review(store, image(store, "b"), "reject", None, "me", None)
    assert curator("check", "m", "--store", store.path).code == 1
    assert found(store) == {}


def again(store: Store, table: str, where: str) -> None:
    """Adds the rows of an image once more."""
    additions.append(
        store, table, store.delta(table).to_pyarrow_table().filter(pc.field("image_id") == image(store, where))
    )


def rewrite_manifest(store: Store) -> None:
    file = store.path / "manifests/m/part-00000.parquet"
    rows = pq.read_table(file)
    weight = pa.array([2.0] * rows.num_rows, pa.float32())
    pq.write_table(rows.set_column(rows.schema.get_field_index("weight"), "weight", weight), file)


def restate(store: Store, old: str, new: str) -> None:
    """Changes what the last commit of the labels says of its file."""
    file = commit(store, "labels")
    text = file.read_text("utf-8")
    assert old in text
    file.write_text(text.replace(old, new), "utf-8")


def unknown_decision(store: Store) -> None:
    row = {"image_id": 7, "decision": "relabel", "new_label": 9, "reviewer": "me", "decided_at": NOW}
    additions.append(store, "reviews", pa.Table.from_pylist([row], TABLES["reviews"].schema))


def cut(file: Path, at: int) -> None:
    """Leaves so many bytes of a file, or all but so many."""
    file.write_bytes(file.read_bytes()[:at])


def update(store: Store, table: str, column: str, value: str, where: str) -> None:
    """Changes rows by an ordinary commit."""
    store.delta(table).update(updates={column: value}, predicate=where)


def leave(store: Store, letter: str) -> None:
    """Takes an image out of the store."""
    delete(store, "images", f"image_id = {image(store, letter)}")


COUNTED, HIGHEST = '\\"numRecords\\": ', '\\"maxValues\\": {\\"image_id\\": '
FAULTS: dict[str, tuple[Callable[[Store], object], dict[str, int]]] = {
    "a file is cut off": (lambda s: cut(file_of(s, "labels"), -9), {"files": 1}),
    "a bit of a page flips": (lambda s: flip(file_of(s, "images"), 300), {"pages": 1}),
    "a bit of a footer flips": (lambda s: flip(file_of(s, "images"), -6), {"files": 1}),
    "a file is gone": (lambda s: file_of(s, "reviews").unlink(), {"files": 1}),
    "the log counts other rows": (lambda s: restate(s, COUNTED, f"{COUNTED}1"), {"files": 1}),
    "the log has narrower bounds": (lambda s: restate(s, HIGHEST, f"{HIGHEST}-"), {"files": 1}),
    "a commit is gone": (lambda s: commit(s, "labels", 1).unlink(), {"log": 1}),
    "the first commit is gone": (lambda s: commit(s, "labels", 0).unlink(), {"log": 1}),
    "the last commit is empty": (lambda s: next_commit(s, "reviews").touch(), {"log": 1}),
    "the last commit is gone": (lambda s: commit(s, "reviews").unlink(), {"lost_commits": 1}),
    "rows may be deleted beside files": (lambda s: turn_on_deletion_vectors(s, "labels"), {"log": 1}),
    "a commit is torn": (lambda s: cut(commit(s, "labels", 1), -20), {"log": 1}),
    "a table is gone": (lambda s: shutil.rmtree(s.path / "reviews"), {"log": 1}),
    "a column too many": (lambda s: s.delta("reviews").alter.add_columns([deltalake.Field("x", LONG)]), {"schema": 1}),
    "weights are gone": (lambda s: (s.path / WEIGHTS).unlink(), {"weights": 1}),
    "weights are others": (lambda s: flip(s.path / WEIGHTS, 0), {"weights": 1}),
    "a shard is gone": (lambda s: (s.path / SHARD).unlink(), {"packs": 1}),
    "a shard is cut off": (lambda s: cut(s.path / SHARD, 911), {"packs": 1}),
    "an image left": (lambda s: leave(s, "d"), {"label_image": 2}),
    "an image is there twice": (lambda s: again(s, "images", "d"), {"repeated_image": 1, "repeated_uri": 1}),
    "a label is there twice": (lambda s: again(s, "labels", "d"), {"repeated_label": 2, "browse_missing": 2}),
    "a model left": (lambda s: delete(s, "models", "model = 'outside'"), {"label_model": 1, "model_parents": 1}),
    "a manifest left": (lambda s: delete(s, "manifests", "name = 'm'"), {"model_manifest": 1}),
    "a class left": (lambda s: delete(s, "classes", "label = 0"), {"class_numbers": 2, "label_values": 18}),
    "a decision that is none": (unknown_decision, {"review_values": 1}),
    "files of a manifest are gone": (lambda s: shutil.rmtree(s.path / "manifests/m"), {"manifest_files": 1}),
    "a manifest has other rows": (rewrite_manifest, {"manifest_files": 1}),
    "an image of a manifest left": (lambda s: leave(s, "b"), {"label_image": 2, "manifest_rows": 1}),
    "a file of browse is gone": (lambda s: file_of(s, "browse").unlink(), {"files": 1}),
    "browse has others": (lambda s: update(s, "browse", "confidence", "0.5", "generation = 1"), {"browse_rows": 3}),
    "browse shows others": (lambda s: update(s, "browse", "uri", "'x'", "generation = 1"), {"browse_places": 9}),
    "histograms count more": (lambda s: update(s, "histograms", *MORE, "generation = 1"), {"histogram_counts": 3}),
    "drift counts more": (lambda s: update(s, "drift", *MORE, "label_before = label_after"), {"drift_counts": 6}),
    "changes are missing": (lambda s: delete(s, "changes", "severity > 0"), {"changes_counts": 1}),
}
MENDED = {
    *("the last commit is empty", "files of a manifest are gone", "a file of browse is gone"),
    *("browse has others", "browse shows others", "histograms count more", "drift counts more"),
    "changes are missing",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault(store: Store, fault: str) -> None:
    """It is named and no other; what can be mended is mended."""
    make, want = FAULTS[fault]
    make(store)
    health = integrity.examine(store.path)
    assert {one.check: one.offending for one in health.wrong} == want, health.wrong
    assert all(one.mend and one.rows for one in health.wrong)
    if fault in MENDED:
        mended = mending.mend(store.path)
        assert (mended.ok, len(mended.mended)) == (True, 1), mended


def test_a_table_with_rows_deleted_beside_its_files_is_not_read(store: Store, curator: Run) -> None:
    """Neither by who opens it nor by who has it open: the deleted rows would come back."""
    query = ["sql", "select count(*) from labels", "--store", store.path]
    assert store.versions()["labels"] == 2
    assert curator(*query).code == 0
    turn_on_deletion_vectors(store, "labels")
    answer = curator(*query)
    assert (answer.code, answer.out) == (2, "")
    assert "the table 'labels' needs what this version of curator cannot read (deletionVectors)" in answer.err
    assert f"mend: ALTER TABLE delta.`file://{store.path / 'labels'}/` DROP FEATURE deletionVectors" in answer.err
    with pytest.raises(StoreError, match="deletionVectors"):
        store.versions()
    with pytest.raises(StoreError, match="deletionVectors"):
        add_review(store, image(store, "a"), "accept", None, "me", None)


def test_a_damaged_store_json_and_no_store(store: Store, tmp_path: Path, curator: Run) -> None:
    settings = store.path / "store.json"
    stated_as = settings.read_text("utf-8")
    settings.write_text(stated_as[:-9], "utf-8")
    answer = curator("doctor", "--store", store.path, "--mend", "--json")
    assert answer.code == 1
    (found_one,) = answer.json["checks"]
    assert found_one["check"] == "settings"
    assert "restore it; its form is" in found_one["mend"]
    settings.unlink()
    answer = curator("doctor", "--store", store.path)
    assert answer.code == 1
    assert "settings: 1 found" in answer.out
    nothing = curator("doctor", "--store", tmp_path)
    assert (nothing.code, nothing.out) == (2, "")
    assert "there is no store at" in nothing.err


def test_an_answer_of_no(store: Store, tmp_path: Path, curator: Run) -> None:
    """What offends and its mend stand in the answer; what cannot be asked is named; nothing is written."""
    file_of(store, "reviews").unlink()
    before = state(tmp_path)
    answer = curator("doctor", "--store", store.path)
    assert answer.code == 1
    assert "files: 1 found" in answer.out
    assert "restore files of reviews from a backup" in answer.out
    assert "not asked, because they read what is damaged: review_values" in answer.out
    assert "checks found something (files)" in answer.err
    assert state(tmp_path) == before
    assert curator("doctor", "--store", store.path, "--mend").code == 1
    assert state(tmp_path) == before  # a person's decisions are nobody's to make up


def test_mending_says_what_it_did(store: Store, curator: Run) -> None:
    shutil.rmtree(store.path / "browse")
    commit(store, "histograms", 1).unlink()
    answer = curator("doctor", "--store", store.path, "--mend", "--json")
    assert answer.code == 0, answer.json
    assert answer.json["mended"] == ["browse, histograms: made again from the labels"]
    assert store.rows("select count(*) as n from browse")[0]["n"] == 2 * len(PROBS)


def test_a_log_whose_beginning_a_checkpoint_stands_for(store: Store) -> None:
    """Delta's writers may remove commits behind a checkpoint; without it they are missed."""
    store.delta("labels").create_checkpoint()
    commit(store, "labels", 0).unlink()
    commit(store, "labels", 1).unlink()
    assert found(store) == {}
    (checkpoint,) = (store.path / "labels/_delta_log").glob("*.checkpoint.parquet")
    data = checkpoint.read_bytes()
    checkpoint.write_bytes(data[: len(data) // 2])
    assert found(store) == {"log": 1}
    checkpoint.unlink()
    assert found(store) == {"log": 1}


def test_flipped_bits(store: Store) -> None:
    """Of what pyarrow writes each one is found that would change a row; without checksums few of these are."""
    (said,) = stated("classes", store.delta("classes"))
    file = store.path / said.name
    whole = file.read_bytes()
    footer = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
    want = pq.read_table(file)
    files = Files(store.place, len(CLASSES))
    draw = random.Random(5)
    caught = 0
    for at in [*draw.sample(range(4, footer), 60), *draw.sample(range(footer, len(whole)), 60)]:
        flip(file, at)
        wrong = files.of_file("classes", said) or files.of_pages("classes", said, lambda _: None)
        caught += wrong is not None
        if wrong is None:
            assert pq.read_table(file).equals(want), at
        file.write_bytes(whole)
    assert caught > 60
    files.close()


def test_statistics_that_would_hide_rows(store: Store, tmp_path: Path) -> None:
    """A footer with narrower bounds than its rows: its own bytes are sound, and readers would pass over rows."""
    rows = pa.table({"label": [0, 1, 500], "class_name": ["a", "b", "c"]}).cast(TABLES["classes"].schema)
    folder = tmp_path / "classes"
    folder.mkdir()
    pq.write_table(rows, folder / "f.parquet", use_dictionary=False)
    data = (folder / "f.parquet").read_bytes()
    pages, footer = (
        data[: -8 - int.from_bytes(data[-8:-4], "little")],
        data[-8 - int.from_bytes(data[-8:-4], "little") :],
    )
    wide, narrow = (500).to_bytes(4, "little"), (400).to_bytes(4, "little")
    assert wide in footer
    (folder / "f.parquet").write_bytes(pages + footer.replace(wide, narrow))
    files = Files(Place(tmp_path), 3)
    said = Stated("classes/f.parquet", len(data), 3, {})
    assert files.of_file("classes", said) is None
    assert "values of label outside of what its footer says" in str(files.of_pages("classes", said, lambda _: None))
    files.close()


def test_counts_in_a_footer_of_labels(store: Store) -> None:
    """A selection goes by them, so they are counted again."""
    (said, *_) = stated("labels", store.delta("labels"))
    file = store.path / said.name
    kept = pq.read_table(file)
    other = kept.set_column(5, "confidence", pa.array([0.9] * kept.num_rows, pa.float32()))
    pq.write_table(other.replace_schema_metadata(pq.read_metadata(file).metadata), file)
    files = Files(store.place, len(CLASSES))
    said = said._replace(size=file.stat().st_size)
    assert files.of_pages("labels", said, lambda _: None) == "has other confidences than its footer counts"
    files.close()


def test_a_store_in_a_bucket(made: Store, bucket: str, curator: Run) -> None:
    """It is read past what this machine keeps of it: others see the damage, too."""
    from curator.storage.bucket import Bucket

    url = upload(made.path, f"{bucket}/store")
    assert curator("doctor", "--store", url).code == 0
    name = Path(made.files("labels")[0]).relative_to(made.path).as_posix()
    data = bytearray(Bucket(url).read(name))
    data[200] ^= 1
    Bucket(url).put(name, bytes(data))
    assert Store(url).rows("select count(*) as n from labels")[0]["n"] == 2 * len(PROBS)
    answer = curator("doctor", "--store", url, "--json")
    assert answer.code == 1, answer.err
    assert [(one["check"], one["rows"][0]["table"]) for one in answer.json["checks"] if one["offending"]] == [
        ("pages", "labels")
    ]
