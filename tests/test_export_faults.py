"""What an export does about pictures that are gone, destinations that are taken, options that are wrong, and a kill."""

import shutil
import signal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from exported import publish, read_tars, rows_of, tree, world
from pictures import picture, start, wait_for, write

from curator.curation import building, manifests
from curator.delivery import exports
from curator.delivery.exports import FORMATS, TABLES, export
from curator.errors import InputError
from curator.pictures.images import add_images
from curator.storage.store import Store


@pytest.fixture(scope="module")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pictured")
    world(root)
    return root


@pytest.fixture
def store(made_once: Path, tmp_path: Path) -> Store:
    """18 pictures of 6 classes, 5 rows of each class with copies: 2, 2 and 1."""
    shutil.copytree(made_once, tmp_path / "world")
    return Store(tmp_path / "world" / "store")


@pytest.mark.long
@pytest.mark.parametrize("form", ["folder", "webdataset", "huggingface"])
def test_unreadable_images_are_left_out_and_named(store: Store, tmp_path: Path, curator: Any, form: str) -> None:
    pool = store.root / "pool"
    (pool / "00.png").unlink()
    data = bytearray((pool / "06.jpg").read_bytes())
    data[-20] ^= 1  # one bit: the picture still decodes, and is another one
    (pool / "06.jpg").write_bytes(data)
    (pool / "12.JPG").write_bytes(b"")
    answer = curator("export", "m", "--format", form, tmp_path / "dest", "--store", store.path, "--json")
    assert answer.code == 1
    assert "lacks 3 of the 18 images" in answer.err
    document = answer.json
    assert (document["name"], document["format"], document["path"]) == ("m", form, str(tmp_path / "dest"))
    assert (document["rows"], document["unreadable"]) == (15, 3)
    problems = {problem["uri"]: problem["problem"] for problem in document["problems"]}
    assert problems.keys() == {"pool/00.png", "pool/06.jpg", "pool/12.JPG"}
    assert problems["pool/00.png"] == "No such file or directory"
    assert problems["pool/06.jpg"] == "its bytes are not those that were scanned"
    kept = {row["image_id"]: row for row in rows_of(store) if row["uri"] not in problems}
    assert document["copies"] == sum(row["copies"] for row in kept.values())
    if form == "folder":
        found = {int(link.name.split("-")[0]) for link in (tmp_path / "dest").glob("*/*")}
        assert not (tmp_path / "dest" / "cat").exists()  # ImageFolder refuses a class without an image
        assert document["images"] == document["files"] == document["copies"]
    elif form == "webdataset":
        found = {int(sample["__key__"]) for sample in read_tars(tmp_path / "dest")}
        assert document["images"] == 15
    else:
        found = set(pq.read_table(tmp_path / "dest" / "data")["image_id"].to_pylist())
    assert found == kept.keys()
    text = curator("export", "m", "--format", form, tmp_path / "again", "--store", store.path)
    assert text.code == 1
    assert "3 images" in text.out
    assert "pool/06.jpg: its bytes" in text.out


def test_pictures_that_were_never_scanned_are_decoded(tmp_path: Path) -> None:
    root = tmp_path / "world"
    for i in range(3):
        write(root / "pool" / f"{i}.png", picture(0, i))
    (root / "pool" / "2").write_bytes((root / "pool" / "1.png").read_bytes())
    pq.write_table(pa.table({"uri": ["pool/0.png", "pool/1.png", "pool/2"]}), root / "listing.parquet")
    store = publish(root, ["x", "y"], scan=False, listing=str(root / "listing.parquet"))
    (root / "pool" / "0.png").write_bytes((root / "pool" / "0.png").read_bytes()[:-40])
    done = export(store, "m", "webdataset", tmp_path / "tars")
    assert [problem["uri"] for problem in done.problems] == ["pool/0.png"]
    assert [sorted(sample)[-1] for sample in read_tars(tmp_path / "tars")] == ["png", "png"]  # one by its bytes
    with pytest.raises(InputError, match=r"endings that readers of image folders pass over: pool/2"):
        export(store, "m", "folder", tmp_path / "links")


def test_no_image_can_be_read(store: Store, tmp_path: Path) -> None:
    shutil.rmtree(store.root / "pool")
    for form in FORMATS:
        if form in TABLES:
            assert export(store, "m", form, tmp_path / f"m.{form}").unreadable == 0
            continue
        with pytest.raises(InputError, match="none of the 18 images can be read"):
            export(store, "m", form, tmp_path / form)
        assert not (tmp_path / form).exists()
    assert not [file for file in tmp_path.iterdir() if file.name.startswith(".")]


@pytest.mark.parametrize("form", FORMATS)
def test_a_destination_that_is_taken(
    store: Store, tmp_path: Path, curator: Any, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    dest = tmp_path / "dest"
    if form in TABLES:
        dest.write_text("mine")
    else:
        dest.mkdir()
        (dest / "mine").write_text("mine")
    before = tree(dest)
    answer = curator("export", "m", "--format", form, dest, "--store", store.path)
    assert (answer.code, answer.out) == (2, "")
    assert "exists and is not empty" in answer.err
    assert "mend: give another destination, or remove this one" in answer.err
    assert tree(dest) == before
    (tmp_path / "empty").mkdir()
    if form in TABLES:
        with pytest.raises(InputError, match="is a folder"):
            export(store, "m", form, tmp_path / "empty")
        with pytest.raises(InputError, match="exists"):
            export(store, "m", form, "/dev/null")
    else:
        export(store, "m", form, tmp_path / "empty")
        assert tree(tmp_path / "empty")
        with pytest.raises(InputError, match="exists"):
            export(store, "m", form, store.path / "store.json")
        (tmp_path / "here").mkdir()
        monkeypatch.chdir(tmp_path / "here")
        with pytest.raises(InputError, match="current folder"):
            export(store, "m", form, ".")


def test_what_is_asked_wrongly(store: Store, tmp_path: Path, curator: Any) -> None:
    answer = curator("export", "m", "--format", "webdatset", tmp_path / "x", "--store", store.path)
    assert answer.code == 2
    assert "did you mean 'webdataset'?" in answer.err
    assert all(form in answer.err for form in FORMATS)
    answer = curator("export", "n", "--format", "csv", tmp_path / "x", "--store", store.path)
    assert answer.code == 2
    assert "there is no manifest 'n'" in answer.err
    for form, options in [
        ("csv", {"repeat_copies": True}),
        ("folder", {"shard_rows": 5}),
        ("webdataset", {"extract": True}),
        ("webdataset", {"shard_rows": 0}),
        ("huggingface", {"shard_bytes": -1}),
    ]:
        with pytest.raises(InputError):
            export(store, "m", form, tmp_path / "x", **options)  # type: ignore[arg-type]
    assert not (tmp_path / "x").exists()


def test_images_of_the_holdout_are_not_handed_on(store: Store, tmp_path: Path) -> None:
    (store.root / "test").mkdir()
    shutil.copy(store.root / "pool" / "03.png", store.root / "test" / "t.png")
    (store.root / "test.csv").write_text("uri,label\ntest/t.png,cat\n")
    add_images(store, str(store.root / "test.csv"), "holdout")
    for form in FORMATS:
        with pytest.raises(InputError, match=r"in the holdout, or show an image of it, by now: pool/03\.png"):
            export(store, "m", form, tmp_path / "dest")
    assert not (tmp_path / "dest").exists()


@pytest.mark.parametrize("form", ["csv", "webdataset"])
def test_a_damaged_manifest(store: Store, tmp_path: Path, curator: Any, form: str) -> None:
    (part,) = manifests.files(manifests.find(store, "m"))
    data = bytearray(part.read_bytes())
    data[100:400] = bytes(300)
    part.write_bytes(data)
    answer = curator("export", "m", "--format", form, tmp_path / "dest", "--store", store.path)
    assert answer.code == 2
    assert "damaged" in answer.err
    part.write_bytes(b"PAR1")
    answer = curator("export", "m", "--format", form, tmp_path / "dest", "--store", store.path)
    assert answer.code == 2
    assert "curator check m" in answer.err
    assert not (tmp_path / "dest").exists()


@pytest.mark.long
@pytest.mark.parametrize(("how", "left"), [(signal.SIGKILL, 1), (signal.SIGINT, 0)])
def test_an_interrupted_export_leaves_nothing(store: Store, tmp_path: Path, how: int, left: int) -> None:
    building.build(store, "long", {"per_class": 20_000})
    code = """
        import sys
        from curator.cli import main
        main(["export", "long", "--format", "webdataset", "--repeat-copies", "--shard-rows", "100", *sys.argv[1:]])
    """
    dest = tmp_path / "out" / "dest"
    with start(code, dest, "--store", store.path) as process:
        wait_for(lambda: len(list((tmp_path / "out").glob(".export-*/made/*.tar"))) > 2, process)
        process.send_signal(how)
        process.wait()
    assert not dest.exists()
    assert len(list((tmp_path / "out").iterdir())) == left
    assert exports.export(store, "m", "webdataset", dest).images == len(read_tars(dest)) == 18


def test_the_answer_in_words(store: Store, tmp_path: Path, curator: Any) -> None:
    answer = curator("export", "m", "--format", "folder", tmp_path / "links", "--store", store.path)
    assert answer.code == 0
    assert answer.out == f"m: 18 rows, 30 with copies, as folder\n30 links in 30 files\n{tmp_path / 'links'}\n"
    answer = curator("export", "m", "--format", "csv", tmp_path / "m.csv", "--store", store.path, "--json")
    assert answer.json == {
        "name": "m", "format": "csv", "path": str(tmp_path / "m.csv"), "rows": 18, "copies": 30, "images": 0,
        "files": 1, "unreadable": 0, "problems": [],
    }  # fmt: skip
