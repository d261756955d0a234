"""Manifests in the forms of other tools, read back with these tools and compared row by row."""

import csv
import json
import shutil
import tarfile
import warnings
from collections import Counter
from pathlib import Path
from types import ModuleType
from urllib.parse import unquote

import numpy as np
import polars
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from exported import CLASSES, publish, read_tars, rows_of, samples_of, tree, world
from hypothesis import given
from hypothesis import strategies as st
from pictures import picture, write
from PIL import Image

from curator.curation import building, manifests
from curator.delivery.exports import FORMATS, TABLES, export
from curator.delivery.samples import folder_name
from curator.errors import InputError
from curator.schema import MANIFEST_ROW
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


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """4 pictures in a tar shard and 2 files, of 2 classes; to be read only."""
    root = tmp_path_factory.mktemp("sharded")
    for i in range(6):
        write(root / ("packed" if i < 4 else "pool") / f"{i}.png", picture(i % 2, i))
    with tarfile.open(root / "s.tar", "w") as tar:
        for i in range(4):
            tar.add(root / "packed" / f"{i}.png", f"{i}.png")
    return publish(root, ["x", "y"], pool=str(root / "pool"), shard=str(root / "s.tar"))


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """The datasets library, cut off from the network and the home folder."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        patch.setenv("HF_HOME", str(tmp_path_factory.mktemp("hf")))
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("HF_DATASETS_OFFLINE", "1")
        import datasets

    datasets.disable_progress_bars()
    return datasets


def test_csv(store: Store, tmp_path: Path) -> None:
    done = export(store, "m", "csv", tmp_path / "m.csv")
    assert done == ("m", "csv", str(tmp_path / "m.csv"), 18, 30, 0, 1, 0, [])
    wanted = rows_of(store)
    with (tmp_path / "m.csv").open(encoding="utf-8", newline="") as lines:
        found = list(csv.DictReader(lines))
    assert len(found) == len(wanted) == 18
    types = {column.name: column.type for column in MANIFEST_ROW.columns}
    for line, row in zip(found, wanted, strict=True):
        assert list(line) == list(row)
        for name, value in row.items():
            text = line[name]
            if value is None:
                assert text == ""
            elif pa.types.is_list(types[name]):
                assert np.array_equal(np.float32(json.loads(text)), np.float32(value))
            elif pa.types.is_floating(types[name]):
                assert np.float32(text) == np.float32(value)
            else:
                assert text == str(value)
    again = pyarrow.csv.read_csv(
        tmp_path / "m.csv", convert_options=pyarrow.csv.ConvertOptions(column_types={"weight": pa.float32()})
    )
    assert again["image_id"].to_pylist() == [row["image_id"] for row in wanted]


def test_jsonl(store: Store, tmp_path: Path) -> None:
    export(store, "m", "jsonl", tmp_path / "m.jsonl")
    found = [json.loads(line) for line in (tmp_path / "m.jsonl").read_text("utf-8").splitlines()]
    assert found == rows_of(store)  # a float32 read as float64 is the same number


def test_parquet(store: Store, tmp_path: Path) -> None:
    export(store, "m", "parquet", tmp_path / "m.parquet")
    (part,) = manifests.files(manifests.find(store, "m"))
    found = pq.read_table(tmp_path / "m.parquet")
    assert found.equals(pq.read_table(part))
    assert found.schema.equals(pq.read_schema(part))
    lineage = json.loads(pq.read_metadata(tmp_path / "m.parquet").metadata[building.FOOTER_KEY])
    assert lineage == manifests.find(store, "m").lineage
    assert polars.read_parquet(tmp_path / "m.parquet").to_dicts() == rows_of(store)


def test_tables_of_more_rows_than_a_batch(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for form in TABLES:
        export(store, "m", form, tmp_path / f"whole.{form}")
    monkeypatch.setattr("curator.digests.ROWS", 4)
    for form in TABLES:
        export(store, "m", form, tmp_path / f"parts.{form}")
        if form != "parquet":  # whose row groups may differ
            assert (tmp_path / f"parts.{form}").read_bytes() == (tmp_path / f"whole.{form}").read_bytes()
    assert pq.read_table(tmp_path / "parts.parquet").equals(pq.read_table(tmp_path / "whole.parquet"))


def test_folder(store: Store, tmp_path: Path) -> None:
    from torchvision.datasets import ImageFolder

    dest = tmp_path / "world" / "links"
    done = export(store, "m", "folder", dest)
    assert (done.rows, done.copies, done.images, done.files, done.unreadable) == (18, 30, 30, 30, 0)
    found = ImageFolder(str(dest))
    assert sorted(unquote(name) for name in found.classes) == sorted(CLASSES)
    rows = samples_of(store)
    seen: Counter[int] = Counter()
    for (path, _), (pixels, index) in zip(found.samples, found, strict=True):
        row = rows[int(Path(path).name.split("-")[0])]
        assert unquote(found.classes[index]) == row["class_name"]
        assert Path(path).is_symlink()
        assert np.array_equal(np.asarray(pixels), np.asarray(Image.open(store.root / row["uri"]).convert("RGB")))
        assert Path(path).suffix == Path(row["uri"]).suffix
        seen[row["image_id"]] += 1
    assert seen == {image_id: row["copies"] for image_id, row in rows.items()}
    (tmp_path / "world").rename(tmp_path / "moved")  # the links are relative
    assert len(ImageFolder(str(tmp_path / "moved" / "links"))[0]) == 2


def test_folder_links_to_files_outside_the_root(tmp_path: Path) -> None:
    write(tmp_path / "elsewhere" / "0.png", picture(0, 0))
    (tmp_path / "world").mkdir()
    store = publish(tmp_path / "world", ["x", "y"], pool=str(tmp_path / "elsewhere"), per_class=1)
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    export(store, "m", "folder", tmp_path / "link" / "deep" / "links")
    (link,) = (tmp_path / "real" / "deep" / "links" / "x").iterdir()
    assert link.read_bytes() == (tmp_path / "elsewhere" / "0.png").read_bytes()


@given(st.lists(st.text(min_size=1), min_size=2, max_size=2, unique=True))
def test_folder_names(names: list[str]) -> None:
    first, second = map(folder_name, names)
    assert [unquote(first), unquote(second)] == names
    assert first != second
    for name in (first, second):
        assert not name.startswith((".", "_"))
        assert not name.endswith((".", " "))
        assert not set(name) & set('/\\:*?"<>|\0\n')


def test_webdataset(store: Store, tmp_path: Path) -> None:
    done = export(store, "m", "webdataset", tmp_path / "tars", shard_rows=7)
    assert (done.rows, done.copies, done.images, done.files) == (18, 30, 18, 3)
    names = ["_lineage.json", "m-000000.tar", "m-000001.tar", "m-000002.tar"]
    assert sorted(file.name for file in (tmp_path / "tars").iterdir()) == names
    rows = samples_of(store)
    found = read_tars(tmp_path / "tars")
    assert sorted(sample["json"]["image_id"] for sample in found) == sorted(rows)
    for sample, raw in zip(found, read_tars(tmp_path / "tars", decode=False), strict=True):
        row = rows[int(sample["__key__"])]
        assert sample["json"] == row
        assert sample["cls"] == row["label"]
        ending = Path(row["uri"]).suffix[1:].lower()
        assert raw[ending] == (store.root / row["uri"]).read_bytes()
        assert np.array_equal(np.asarray(sample[ending]), np.asarray(Image.open(store.root / row["uri"])))
    with tarfile.open(tmp_path / "tars" / "m-000000.tar") as tar:
        members = tar.getmembers()
    assert len(members) == 3 * 7
    assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in members} == {(0, 0, 0, "", "", 0o644)}
    # a file of one class alone would have to be shuffled with all others
    labels = [sample["cls"] for sample in found]
    assert labels != sorted(labels)
    assert len(set(labels[:7])) > 3


def test_copies_repeated(store: Store, tmp_path: Path, datasets: ModuleType) -> None:
    done = export(store, "m", "webdataset", tmp_path / "tars", repeat_copies=True)
    assert (done.rows, done.copies, done.images) == (18, 30, 30)
    found = read_tars(tmp_path / "tars")
    wanted = {image_id: row["copies"] for image_id, row in samples_of(store).items()}
    assert Counter(sample["json"]["image_id"] for sample in found) == wanted
    assert {sample["json"]["copies"] for sample in found} == {1}  # so that nobody repeats them twice
    assert len({sample["__key__"] for sample in found}) == 30
    export(store, "m", "huggingface", tmp_path / "hf", repeat_copies=True)
    data = datasets.load_dataset(str(tmp_path / "hf"), cache_dir=str(tmp_path / "cache"), split="train")
    assert Counter(data["image_id"]) == wanted


def test_huggingface(store: Store, tmp_path: Path, datasets: ModuleType) -> None:
    done = export(store, "m", "huggingface", tmp_path / "hf", shard_rows=7)
    assert (done.rows, done.copies, done.images, done.files) == (18, 30, 18, 3)
    data = datasets.load_dataset(str(tmp_path / "hf"), cache_dir=str(tmp_path / "cache"))
    assert list(data) == ["train"]
    data = data["train"]
    assert isinstance(data.features["image"], datasets.Image)
    assert data.features["label"] == datasets.ClassLabel(names=CLASSES)
    assert data.features["top_probs"] == datasets.Sequence(datasets.Value("float32"))
    rows = samples_of(store)
    assert sorted(data["image_id"]) == sorted(rows)
    raw = data.cast_column("image", datasets.Image(decode=False))
    for sample, encoded in zip(data, raw, strict=True):
        row = rows[sample["image_id"]]
        pixels = sample.pop("image")
        assert sample == row
        assert data.features["label"].int2str(sample["label"]) == row["class_name"]
        assert encoded["image"]["bytes"] == (store.root / row["uri"]).read_bytes()
        assert np.array_equal(np.asarray(pixels), np.asarray(Image.open(store.root / row["uri"])))
    stream = datasets.load_dataset(str(tmp_path / "hf"), cache_dir=str(tmp_path / "cache"), streaming=True)
    assert [sample["image_id"] for sample in stream["train"]] == data["image_id"][:]


@pytest.mark.parametrize("form", ["webdataset", "huggingface"])
def test_no_file_is_larger_than_told(store: Store, tmp_path: Path, form: str) -> None:
    most = 40_000
    done = export(store, "m", form, tmp_path / "big", shard_bytes=most)
    files = [file for file in (tmp_path / "big").rglob("*") if file.suffix in (".tar", ".parquet")]
    assert len(files) == done.files < 18
    assert max(file.stat().st_size for file in files) <= most
    assert export(store, "m", form, tmp_path / "small", shard_bytes=1).files == 18


@pytest.mark.parametrize("form", FORMATS)
def test_pictures_in_tar_shards(sharded: Store, tmp_path: Path, form: str, datasets: ModuleType) -> None:
    rows = samples_of(sharded)
    packed = {image_id for image_id, row in rows.items() if "::" in row["uri"]}
    assert len(packed) == 4
    originals = {
        image_id: (sharded.root / ("packed" if image_id in packed else "pool") / Path(row["uri"].split("::")[-1]).name)
        for image_id, row in rows.items()
    }
    dest = tmp_path / "dest"
    if form == "folder":
        with pytest.raises(InputError, match="lie in tar shards") as caught:
            export(sharded, "m", form, dest)
        assert "--extract" in caught.value.mend
        assert "webdataset" in caught.value.mend
        assert not dest.exists()
        done = export(sharded, "m", form, dest, extract=True)
        assert (done.images, done.unreadable) == (10, 0)
        for link in dest.glob("*/*"):
            image_id = int(link.name.split("-")[0])
            assert link.read_bytes() == originals[image_id].read_bytes()
            assert link.parent.name == rows[image_id]["class_name"]
        return
    done = export(sharded, "m", form, dest)
    assert (done.rows, done.unreadable) == (6, 0)
    if form == "webdataset":
        found = {int(sample["__key__"]): sample["png"] for sample in read_tars(dest, decode=False)}
        assert found == {image_id: file.read_bytes() for image_id, file in originals.items()}
    if form == "huggingface":
        data = datasets.load_dataset(str(dest), cache_dir=str(tmp_path / "cache"), split="train")
        raw = data.cast_column("image", datasets.Image(decode=False))
        found = {sample["image_id"]: sample["image"]["bytes"] for sample in raw}
        assert found == {image_id: file.read_bytes() for image_id, file in originals.items()}


@pytest.mark.parametrize("form", FORMATS)
def test_the_same_bytes(store: Store, tmp_path: Path, form: str) -> None:
    one, two = tmp_path / "a" / "m", tmp_path / "b" / "m"
    assert export(store, "m", form, one)._replace(path="") == export(store, "m", form, two)._replace(path="")
    assert tree(one) == tree(two)
    assert tree(one)
