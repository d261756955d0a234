"""Sources: folders, tar shards and listings, read in a stable order, and what is wrong with them said plainly."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curator import progress
from curator.errors import InputError
from curator.pictures import listings, sources
from curator.pictures.reading import read_bytes


def read(source: object, split: str | None = "unlabeled", labels: bool = False, root: Path = Path("/"), **more: Any):
    batches = sources.read(str(source), split, labels, root, **more)
    return [row for batch in batches for row in batch.to_pylist()]


def tree(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(os.fsencode(name))
    return root


def shard(path: Path, members: dict[str, bytes], **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **options) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def parquet(path: Path, **columns: Any) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


# Folders


def test_a_folder_is_read_deep_and_in_order(tmp_path: Path) -> None:
    tree(tmp_path / "d", "b/2.jpg", "a/deep/er/1.PNG", "z.webp", "b/10.jpeg", "a.tif")
    found = read(tmp_path / "d", root=tmp_path)
    names = ["a/deep/er/1.PNG", "a.tif", "b/10.jpeg", "b/2.jpg", "z.webp"]
    assert [row["name"] for row in found] == names
    assert [row["uri"] for row in found] == [f"d/{name}" for name in names]
    assert [row["position"] for row in found] == [0, 1, 2, 3, 4]
    assert {row["split"] for row in found} == {"unlabeled"}
    assert [row["uri"] for row in read(tmp_path, root=tmp_path)] == [f"d/{name}" for name in names]


def test_a_file_has_one_uri_however_it_is_reached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree(tmp_path, "data/pool/a.jpg", "there/x")
    monkeypatch.chdir(tmp_path / "there")
    for source in ("../data/pool", tmp_path / "data" / "pool", "../there/../data/./pool/"):
        assert [row["uri"] for row in read(source, root=tmp_path)] == ["data/pool/a.jpg"]
    outside = read("../data/pool", root=tmp_path / "there")
    assert [row["uri"] for row in outside] == [f"{tmp_path}/data/pool/a.jpg"]


def test_class_folders(tmp_path: Path) -> None:
    tree(tmp_path / "d", "cat/1.jpg", "cat/more/2.jpg", "dog/1.jpg")
    found = read(tmp_path / "d", "labeled", True)
    assert [(row["name"], row["class_name"]) for row in found] == [
        ("cat/1.jpg", "cat"),
        ("cat/more/2.jpg", "cat"),
        ("dog/1.jpg", "dog"),
    ]
    tree(tmp_path / "d", "lost.jpg")
    with pytest.raises(InputError, match=r"'lost.jpg' lies directly in .*/d, not in a class folder"):
        read(tmp_path / "d", "labeled", True)


def test_other_files_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tree(tmp_path / "d", "a.jpg", "Thumbs.db", "notes.txt", "b/readme.txt", "LICENSE")
    progress.show(True)
    assert len(read(tmp_path / "d")) == 1
    progress.show(False)
    said = capsys.readouterr().err
    assert said.startswith("left out 4 files that are not images by their ending: 2 .txt")
    assert "1 .db" in said
    assert "1 no ending" in said


def test_folders_without_images(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"there are no images in the folder '.*/empty'\n") as error:
        read(tmp_path / "empty")
    assert ".jpg" in error.value.mend
    with pytest.raises(InputError, match="it holds 2 other files"):
        read(tree(tmp_path / "texts", "a.txt", "b.txt"))


def test_links(tmp_path: Path) -> None:
    tree(tmp_path / "d", "a/1.jpg")
    tree(tmp_path / "elsewhere", "2.jpg")
    (tmp_path / "d" / "b").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "d" / "a" / "loop").symlink_to(tmp_path / "d")
    (tmp_path / "d" / "a" / "self").symlink_to(".")
    (tmp_path / "d" / "gone.jpg").symlink_to("nowhere")
    assert [row["name"] for row in read(tmp_path / "d")] == ["a/1.jpg", "b/2.jpg", "gone.jpg"]


def test_a_name_that_is_no_text(tmp_path: Path) -> None:
    tree(tmp_path / "d", "a.jpg", os.fsdecode(b"caf\xe9.jpg"))
    with pytest.raises(InputError, match=r"caf.*xe9.jpg.* is not UTF-8|caf.*udce9.jpg.* is not UTF-8"):
        read(tmp_path / "d")


# Shards


def test_shards_hold_the_bytes_where_the_listing_says(tmp_path: Path) -> None:
    pictures = {f"{c}/{i}.jpg": os.urandom(100 + 700 * i) for c in ("cat", "dog") for i in range(3)}
    long = "cat/" + "x" * 150 + ".jpg"  # needs a header of its own
    pictures[long] = b"long"
    shard(tmp_path / "t" / "a-1.tar", pictures | {"cat/1.json": b"{}"})
    shard(tmp_path / "t" / "a-0.tar", {"./owl/ü.png": b"owl", "dir/": b""}, format=tarfile.PAX_FORMAT)
    found = read(tmp_path / "t" / "a-*.tar", "labeled", True, tmp_path)
    assert [row["uri"] for row in found] == ["t/a-0.tar::owl/ü.png", *(f"t/a-1.tar::{name}" for name in pictures)]
    assert [row["position"] for row in found] == list(range(8))
    for row in found:
        data = read_bytes(tmp_path, row["uri"], row["shard"], row["byte_offset"], row["byte_length"])
        assert data == (pictures | {"owl/ü.png": b"owl"})[row["name"]]
        assert row["class_name"] == row["name"].split("/")[0]
    assert len(read(tmp_path / "**" / "*.tar", root=tmp_path)) == 8
    shard(tmp_path / "odd[1]*.tar", {"a.jpg": b"x"})
    assert len(read(tmp_path / "odd[1]*.tar")) == 1


def test_a_shard_with_a_picture_outside_the_class_folders(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"'a\.jpg' lies directly in"):
        read(shard(tmp_path / "a.tar", {"a.jpg": b"x"}), "labeled", True)


@pytest.mark.parametrize("damage", ["gzip", "cut", "cut between", "header", "text", "empty", "joined"])
def test_shards_that_cannot_be_read_whole(tmp_path: Path, damage: str) -> None:
    path = shard(tmp_path / "a.tar", {f"{i}.jpg": b"x" * 900 for i in range(30)})
    data = path.read_bytes()
    path.write_bytes(
        {
            "gzip": gzip.compress(data),
            "cut": data[: 512 + 400],
            "cut between": data[: 3 * 1536],
            "header": data[: 3 * 1536] + b"\x01" * 512 + data[3 * 1536 + 512 :],
            "text": b"hello",
            "empty": b"",
            "joined": data + data,
        }[damage]
    )
    with pytest.raises(InputError, match=r"'.*a.tar' is not a readable, uncompressed tar file") as error:
        read(path)
    assert error.value.mend


def test_shards_without_images_or_missing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="it holds 1 other files"):
        read(shard(tmp_path / "a.tar", {"a.txt": b"x"}))
    with pytest.raises(InputError, match="there is no shard"):
        read(tmp_path / "b-*.tar")


# Listings


@pytest.mark.parametrize("ending", ["parquet", "csv", "tsv"])
def test_listings_of_every_kind(tmp_path: Path, ending: str) -> None:
    columns = {"uri": ["001", "b.jpg", "null"], "label": ["cat", "nan", "01"], "split": ["labeled", "holdout", None]}
    path = tmp_path / f"l.{ending}"
    if ending == "parquet":
        parquet(path, **columns)
    else:
        rows = [list(columns), *zip(*columns.values(), strict=True)]
        comma = "," if ending == "csv" else "\t"
        path.write_text("\ufeff" + "".join(comma.join(str(cell or "") for cell in row) + "\n" for row in rows))
    found = read(path, "unlabeled")
    assert [row["uri"] for row in found] == columns["uri"]
    assert [row["class_name"] for row in found] == columns["label"]
    assert [row["split"] for row in found] == ["labeled", "holdout", "unlabeled"]
    assert [row["label"] for row in found] == [None, None, None]


@pytest.mark.parametrize("numbers", [pa.array([2, 0, None], pa.uint8()), pa.array([2.0, 0.0, None]), [2, 0, None]])
def test_labels_as_indexes(tmp_path: Path, numbers: Any) -> None:
    found = read(parquet(tmp_path / "l.parquet", uri=["a", "b", "c"], label=numbers))
    assert [(row["label"], row["class_name"]) for row in found] == [(2, None), (0, None), (None, None)]
    labels = listings.read_labels(tmp_path / "l.parquet").to_pylist()
    assert [row["label"] for row in labels] == [2, 0, None]


def test_listings_of_other_types(tmp_path: Path) -> None:
    words = pa.array(["a", "b", "a"]).dictionary_encode()
    path = parquet(tmp_path / "l.parquet", uri=pa.array([7, 8, 9]), label=words, split=pa.array(["labeled"] * 3))
    assert [(row["uri"], row["class_name"]) for row in read(path)] == [("7", "a"), ("8", "b"), ("9", "a")]


@pytest.mark.parametrize("base", ["data", "data/", "/mnt/x"])
def test_base_goes_before_the_uri(tmp_path: Path, base: str) -> None:
    found = read(parquet(tmp_path / "l.parquet", uri=["a.jpg", "b/c.jpg"]), base=base)
    assert [row["uri"] for row in found] == [f"{base.rstrip('/')}/a.jpg", f"{base.rstrip('/')}/b/c.jpg"]
    assert [row["name"] for row in found] == ["a.jpg", "b/c.jpg"]


def test_positions_and_rows_go_on_over_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uris: list[str | None] = [f"{i}.jpg" for i in range(1000)]
    path = tmp_path / "l.parquet"
    pq.write_table(pa.table({"uri": uris}), path, row_group_size=130)
    found = read(path)
    assert [row["uri"] for row in found] == uris
    assert [row["position"] for row in found] == list(range(1000))
    uris[777] = None
    pq.write_table(pa.table({"uri": uris}), path, row_group_size=130)
    with pytest.raises(InputError, match=r"row 777 of '.*l.parquet' has no uri"):
        read(path)
    monkeypatch.setattr(listings, "BATCH", 7)
    assert len(read(tree(tmp_path / "d", *(f"{i:02}.jpg" for i in range(30))))) == 30


@pytest.mark.parametrize(
    ("name", "text", "said", "mend"),
    [
        ("l.csv", "url,label\na,b\n", "has no column 'uri'; did you mean 'url'?", "url, label"),
        ("l.csv", "uri,uri\na,b\n", "multiple columns named uri", "write the file again"),
        ("l.csv", "uri,label\n,b\n", "row 0 of", "fill it in"),
        ("l.csv", "uri,split\na,train\n", "the unknown split 'train'", "labeled, unlabeled, holdout"),
        ("l.csv", "uri\n", "has no rows", "one row per image"),
        ("l.csv", "", "cannot be read as csv", "write the file again"),
        ("l.csv", "uri,label\na,b,c\n", "cannot be read as csv", "write the file again"),
        ("l.csv", "uri,byte_offset\na,x\n", "the column 'byte_offset'", "correct its values"),
        ("l.parquet", "PAR1 not really", "cannot be read as parquet", "write the file again"),
        ("l.txt", "a.jpg\n", "is neither a folder, a .tar shard nor a listing", ".parquet, .csv, .tsv"),
        ("l.tar.gz", "", "is neither a folder, a .tar shard nor a listing", ".tar files"),
    ],
)
def test_listings_that_cannot_be_used(tmp_path: Path, name: str, text: str, said: str, mend: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError) as error:
        read(tmp_path / name)
    assert said in error.value.what
    assert mend in error.value.mend


def test_columns_of_a_useless_type(tmp_path: Path) -> None:
    for columns in ({"uri": [["a"]]}, {"uri": ["a"], "label": [1.5]}, {"uri": ["a"], "byte_offset": ["x"]}):
        with pytest.raises(InputError, match="cannot be used as"):
            read(parquet(tmp_path / "l.parquet", **columns))
    pq.write_table(pa.table([pa.array(["a"]), pa.array(["b"])], names=["uri", "uri"]), tmp_path / "l.parquet")
    with pytest.raises(InputError, match="duplicate field names"):
        read(tmp_path / "l.parquet")
    with pytest.raises(InputError, match="row 1 of"):
        read(parquet(tmp_path / "l.parquet", uri=["a", ""]))


def test_splits(tmp_path: Path) -> None:
    path = parquet(tmp_path / "l.parquet", uri=["a"])
    with pytest.raises(InputError, match="the split of the images is not given"):
        read(path, None)
    with pytest.raises(InputError, match=r"the split 'hold-out' is unknown; did you mean 'holdout'\?"):
        read(path, "hold-out")
    with pytest.raises(InputError, match="there is no folder or file"):
        read(tmp_path / "nowhere")


def test_hidden_files_and_folders_are_not_images(tmp_path: Path) -> None:
    folder = tree(tmp_path / "a", "cat/1.jpg", "cat/._1.jpg", ".ipynb_checkpoints/2.jpg", "dog/.thumbs/3.jpg")
    assert [row["class_name"] for row in read(folder, "labeled", labels=True)] == ["cat"]
    file = shard(tmp_path / "s.tar", {"./cat/1.jpg": b"1", ".cache/2.jpg": b"2", "cat/._1.jpg": b"3"})
    assert [row["name"] for row in read(file, "labeled", labels=True)] == ["cat/1.jpg"]
