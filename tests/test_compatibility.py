"""A store that this format's first release wrote is read, and the route goes on; other formats and later parts of one.

The store is tests/fixtures/store-FORMAT, see tests/make_store.py.
"""

from __future__ import annotations

import hashlib
import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import deltalake
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import Answer
from deltalake.transaction import AddAction
from pictures import picture, write

from curator import __version__ as version
from curator import queries
from curator.curation.building import build
from curator.curation.manifests import find
from curator.decisions import reviews
from curator.generations.labels import import_labels
from curator.pictures.images import add_images
from curator.schema import FOLDERS, LATER, TABLES
from curator.storage.store import FORMAT, Store

Run = Callable[..., Answer]
KEPT = Path(__file__).parent / "fixtures" / f"store-{FORMAT}"

# Commands that answer from what is there, and their exit codes.
READS = {
    "manifests": 0,
    "show g0": 0,
    "show g1": 0,
    "diff g0 g1": 0,
    "check": 0,
    "report g1 --output page.html": 0,
    "export g0 rows.csv --format csv": 0,
    "export g1 shards --format webdataset": 0,
    """sql 'select label, sum(copies) from "g0" group by all order by all'""": 0,
    "sql 'select uri, confidence from labels join images using (image_id)'": 0,
    "pack 16-q90 --verify": 0,
    "index": 0,
    "quality duplicates --dry-run": 0,
    "quality leaks --dry-run": 1,
    "quality issues": 0,
    "quality issues --generation 0": 0,
    "quality disagreement": 0,
    "quality queue": 0,
    "quality audit --per-class 5 --min-confidence 0": 0,
    "quality domain": 0,
    "build-manifest again --as-of g0 --dry-run": 0,
}


def digests(folder: Path) -> dict[str, str]:
    """What each file of a folder holds."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A copy of the store that was kept, for tests that read."""
    folder = tmp_path_factory.mktemp("kept")
    shutil.copytree(KEPT, folder, dirs_exist_ok=True)
    return Store(folder / "store")


@pytest.fixture
def old(tmp_path: Path) -> Store:
    """A copy of the store that was kept, for tests that write."""
    shutil.copytree(KEPT, tmp_path, dirs_exist_ok=True)
    return Store(tmp_path / "store")


def test_every_table_has_rows(kept: Store) -> None:
    assert {name: kept.rows(f"select count(*) > 0 as has from {name}")[0]["has"] for name in TABLES} == dict.fromkeys(
        TABLES, True
    )
    assert set(queries.names("views")) == set(TABLES)
    assert kept.rows("select generation, count(*) as n from labels group by all order by all") == [
        {"generation": generation, "n": kept.rows("select count(*) as n from images")[0]["n"]} for generation in (0, 1)
    ]
    assert {row["decision"] for row in kept.rows("select decision from reviews")} == {
        "accept", "reject", "relabel", "skip"
    }  # fmt: skip


@pytest.mark.parametrize("command", READS)
def test_reading(kept: Store, curator: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    monkeypatch.chdir(tmp_path)
    done = curator(*shlex.split(command), "--store", kept.path, "--quiet")
    assert done.code == READS[command], done.err
    assert done.out


def test_one_image(kept: Store, curator: Run) -> None:
    image = kept.rows("select image_id from images where uri = 'pool/0004.png'")[0]["image_id"]
    told = curator("show", "g0", "--image-id", image, "--store", kept.path, "--json").json
    assert told["in"] is False
    assert "reject" in told["reason"]


@pytest.mark.parametrize("name", ["g0", "g1"])
def test_the_same_manifest_is_built_again(old: Store, name: str) -> None:
    before = find(old, name)
    again = build(old, "again", {}, as_of=name)
    assert again.sha256 == before.sha256
    files = [pq.read_table(folder / "part-00000.parquet") for folder in (before.path, again.path)]
    assert files[0].equals(files[1])


def test_the_route_goes_on(old: Store, curator: Run) -> None:
    write(old.root / "more" / "new.png", picture(1, 5000))
    assert add_images(old, str(old.root / "more"), "unlabeled").added == 1
    labeled = curator("label", "--model", "student", "--store", old.path, "--json").json
    assert labeled["images"] == 1
    image = old.rows("select image_id from images where uri = 'more/new.png'")[0]["image_id"]
    reviews.add_review(old, image, "relabel", "disc", "bob", None)

    trained = curator(
        "train", "--recipe", old.root / "recipe.toml", "--manifest", "g1", "--init", "student", "--name", "next",
        "--set", "schedule.steps=2", "--store", old.path, "--json",
    ).json  # fmt: skip
    assert (trained["generation"], trained["steps"]) == (2, 2)
    uris = [row["uri"] for row in old.rows("select uri from images where split = 'unlabeled' order by uri")]
    probs = pa.array([[0.1, 0.7, 0.2]] * len(uris), pa.list_(pa.float32()))
    pq.write_table(pa.table({"uri": uris, "probs": probs}), old.root / "probs.parquet")
    assert import_labels(old, str(old.root / "probs.parquet"), 2, "next").images == len(uris)

    built = build(old, "g2", {"generation": 2, "per_class": 3})
    assert built.empty_classes == ["square"]
    assert curator("check", "--store", old.path).code == 0
    assert curator("quality", "duplicates", "--store", old.path).code == 0
    assert old.rows("select max(generation) as g from drift") == [{"g": 2}]


@pytest.mark.parametrize(
    ("stated", "said", "mend"),
    [
        (
            FORMAT + 1,
            f"has format {FORMAT + 1}; this version of curator reads format {FORMAT}",
            "pip install --upgrade",
        ),
        (FORMAT - 1, f"has format {FORMAT - 1}; this version of curator reads format {FORMAT}", "an earlier one wrote"),
        (str(FORMAT), f"is damaged ('format' is '{FORMAT}', which is no whole number)", "restore it"),
        (True, "is damaged ('format' is True", "restore it"),
    ],
)
def test_other_formats(old: Store, curator: Run, stated: object, said: str, mend: str) -> None:
    settings = old.path / "store.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"format": stated}))
    before = digests(old.path)
    for command in (["manifests"], ["init"], ["add-images", old.root / "pool", "--split", "unlabeled"]):
        done = curator(*command, "--store", old.path)
        assert (done.code, done.out) == (2, "")
        assert said in done.err
        assert mend in done.err
    assert digests(old.path) == before


@pytest.mark.parametrize("name", sorted(LATER))
def test_a_table_that_the_store_is_too_old_to_have(old: Store, name: str) -> None:
    shutil.rmtree(old.path / FOLDERS[name])
    assert old.rows(f"select * from {name}") == []
    assert Store(old.path).every_version()[name] == -1


def test_a_table_of_a_later_release_is_passed_over(old: Store, curator: Run) -> None:
    deltalake.write_deltalake(old.path / "lineages", pa.table({"image_id": [1], "shape": ["round"]}))
    before = digests(old.path / "lineages")
    assert build(old, "more", {"per_class": 2}).rows == 6
    assert curator("check", "--store", old.path).code == 0
    refused = curator("sql", "select * from lineages", "--store", old.path)
    assert refused.code == 2
    assert "lineages" in refused.err
    assert digests(old.path / "lineages") == before


def add_later_column(store: Store, table: str) -> None:
    """What a later release may do: a column more, and two files with it, the first and the last that a reader opens."""
    field = deltalake.Field("trust", deltalake.schema.PrimitiveType("double"))
    store.delta(table).alter.add_columns(field)
    row = (
        store.delta(table).to_pyarrow_table().slice(0, 1).drop_columns("trust").append_column("trust", pa.array([0.5]))
    )
    for name in ("-later.parquet", "~later.parquet"):
        file, opened = store.path / FOLDERS[table] / name, store.delta(table)
        pq.write_table(row, file)
        added = AddAction(name, file.stat().st_size, {}, 0, True, json.dumps({"numRecords": 1}))
        opened.create_write_transaction([added], "append", opened.schema())


@pytest.mark.parametrize("table", ["reviews", "images", "labels"])
def test_a_column_of_a_later_release_is_left_out_and_its_table_not_written_to(
    old: Store, curator: Run, table: str
) -> None:
    before = old.rows(f"select * from {table} order by all")
    add_later_column(old, table)
    store = Store(old.path)
    assert store.files(table)[0].endswith("-later.parquet")
    rows = store.rows(f"select * from {table}")
    assert len(rows) == len(before) + 2
    assert all(row in rows for row in before)
    assert store.rows(f"select * from stored_{table} limit 1")[0].keys() == {*TABLES[table].schema.names}

    write(store.root / "more" / "new.png", picture(1, 5000))
    images = store.rows("select image_id, uri from images where split = 'unlabeled' order by uri limit 3")
    probs = pa.array([[0.1, 0.7, 0.2]] * 3, pa.list_(pa.float32()))
    pq.write_table(pa.table({"uri": [row["uri"] for row in images], "probs": probs}), store.root / "probs.parquet")
    command = {
        "reviews": ["review", "--image-id", images[0]["image_id"], "--decision", "accept"],
        "images": ["add-images", store.root / "more", "--split", "unlabeled"],
        "labels": ["import-labels", store.root / "probs.parquet", "--generation", 5, "--model", "other"],
    }
    state = digests(store.path / FOLDERS[table])
    done = curator(*command[table], "--store", store.path)
    assert (done.code, done.out) == (2, "")
    assert f"the table '{table}' has columns that curator {version} does not know (trust)" in done.err
    assert "mend: pip install --upgrade curator" in done.err
    assert digests(store.path / FOLDERS[table]) == state
