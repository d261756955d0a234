"""curator in other people's loops: every block of docs/loader.md, and timm's data sets over a manifest."""

import ast
import hashlib
import json
import pickle
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import timm.data
from pictures import judged
from PIL import Image
from timm.data import ImageDataset, create_loader
from torch.utils.data import DataLoader

import curator
from curator import ManifestLoader, ManifestReader
from curator.curation import building
from curator.delivery import packing
from curator.delivery.shards import Form
from curator.errors import InputError
from curator.loading import timm_reader
from curator.storage.store import Store

ROOT = Path(__file__).resolve().parent.parent
# What a network of the documents costs is not what is tested.
SMALLER = {"size=224": "size=32", "(3, 224, 224), 256": "(3, 32, 32), 8", "resnet50": "test_resnet"}
# Stands in for timm's script, with the same calls for data.
TRAIN = """
import argparse, json
from timm.data import create_dataset, create_loader
parser = argparse.ArgumentParser()
for name in ("--data-dir", "--dataset", "--train-split", "--val-split"):
    parser.add_argument(name)
args = parser.parse_args()
counts = {}
for split, train in ((args.train_split, True), (args.val_split, False)):
    data = create_dataset(
        args.dataset, root=args.data_dir, split=split, is_training=train, class_map="", download=False, batch_size=8,
        input_img_mode="RGB", input_key=None, target_key=None, num_samples=None, trust_remote_code=False,
    )
    loader = create_loader(data, (3, 32, 32), 8, is_training=train, use_prefetcher=False, num_workers=1)
    counts[split] = len(data), sum(len(labels) for _, labels in loader)
print(json.dumps(counts))
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = judged(tmp_path_factory.mktemp("made"))
    building.build(store, "g0-1000", {"per_class": 12, "min_confidence": 0.3})
    return store


def blocks() -> list[str]:
    text = (ROOT / "docs" / "loader.md").read_text("utf-8")
    found = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert len(found) == text.count("```python") > 5
    for large, small in SMALLER.items():
        assert any(large in block for block in found)
        found = [block.replace(large, small) for block in found]
    return found


@pytest.fixture(scope="module")
def printed(made: Store) -> list[str]:
    """What the blocks print, one after the other in a fresh process, with warnings as errors.

    A block that begins with a file's name is that file. Behind the blocks come the script that stands in for timm's,
    and a reader that was sent from this process, as to a worker that is spawned.
    """
    program = ["import os", "os.environ.update(RANK='1', WORLD_SIZE='2', OMP_NUM_THREADS='1')"]
    for block in blocks():
        named = re.match(r"# (\w+\.py)\n", block)
        if named:
            (made.root / named[1]).write_text(block, "utf-8")
        else:
            program.append(block)
    (made.root / "train.py").write_text(TRAIN, "utf-8")
    script = "with_curator.py train.py --data-dir store --dataset curator/g0-1000 --train-split train+labeled"
    arguments = [*script.split(), "--val-split", "validation"]
    program += ["import hashlib, json, pickle, runpy, sys", f"sys.argv = {arguments}"]
    program += ["runpy.run_path(sys.argv[0], run_name='__main__')"]
    sent = pickle.dumps(ManifestReader(made, "m", "train+labeled"))
    program += [f"reader = pickle.loads({sent!r})", "items = [reader[i] for i in range(len(reader))]"]
    program += ["print(json.dumps([[hashlib.md5(file.read()).hexdigest(), label] for file, label in items]))"]
    (made.root / "blocks.py").write_text("\n".join(program), "utf-8")
    done = subprocess.run(
        [sys.executable, "-W", "error", "blocks.py"], cwd=made.root, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.long
def test_every_block_of_the_documents_runs(printed: list[str]) -> None:
    assert printed[0] == "torch.Size([36, 32, 32, 3]) torch.uint8"
    assert printed[1] == "torch.Size([36, 3]) torch.float32"
    assert "torch.Size([8, 3, 32, 32]) torch.Size([8])" in printed


@pytest.mark.long
def test_timms_script_has_manifests_by_name(printed: list[str]) -> None:
    # 36 rows and 15 labeled images, in full batches of 8; 3 images of the holdout
    assert json.loads(printed[-2]) == {"train+labeled": [51, 48], "validation": [3, 3]}


@pytest.mark.long
def test_a_reader_can_be_sent_to_another_process(made: Store, printed: list[str]) -> None:
    reader = ManifestReader(made, "m", "train+labeled")
    items = [reader[i] for i in range(len(reader))]
    assert json.loads(printed[-1]) == [[hashlib.md5(file.read()).hexdigest(), label] for file, label in items]


def test_the_front_door_is_light() -> None:
    code = "import curator, json, sys; print(json.dumps([curator.__all__, sorted(sys.modules)]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    names, loaded = json.loads(done.stdout)
    assert not {"torch", "timm", "cv2", "numpy", "pyarrow", "duckdb"} & set(loaded)
    assert [getattr(curator, name).__name__ for name in names] == names
    assert set(names) <= set(dir(curator))
    with pytest.raises(AttributeError, match="no attribute 'Loader'"):
        curator.Loader  # noqa: B018
    stated = ast.parse((ROOT / "curator" / "__init__.pyi").read_text("utf-8"))
    imports = [node for node in stated.body if isinstance(node, ast.ImportFrom)]
    modules = {alias.asname: node.module for node in imports for alias in node.names}
    assert modules == {name: getattr(curator, name).__module__ for name in names}


def test_a_reader_has_the_images_of_a_pass_with_the_classes_that_they_fill(made: Store) -> None:
    reader = ManifestReader(made, "m")
    rows = pq.read_table(made.path / "manifests" / "m").to_pylist()
    found = Counter((reader.filename(i), reader[i][1]) for i in range(len(reader)))
    assert found == {(row["uri"], row["label"]): row["copies"] for row in rows}
    first = next(iter(ManifestLoader.open(made, "m", size=8, batch_size=36)))
    ids = {row["uri"]: row["image_id"] for row in rows}
    assert [ids[uri] for uri in reader.filenames()] == first.image_ids.tolist()
    uri = reader.filename(7)
    assert reader[7][0].read() == (made.root / uri).read_bytes()
    assert reader.filename(7, basename=True) == Path(uri).name
    assert reader.filename(7, absolute=True) == str(made.root / uri)
    with pytest.raises(IndexError):
        reader[36]


def test_the_class_is_the_one_that_an_image_fills_not_the_most_probable(made: Store) -> None:
    building.build(made, "second", {"per_class": 4, "min_confidence": 0.3, "policy": "top-p", "settings": {"floor": 0}})
    rows = pq.read_table(made.path / "manifests" / "second").to_pylist()
    assert any(row["label"] != row["top_classes"][0] for row in rows)
    reader = ManifestReader(made, "second")
    labels = {row["uri"]: row["label"] for row in rows}
    assert all(reader[i][1] == labels[reader.filename(i)] for i in range(len(reader)))


def test_the_splits(made: Store) -> None:
    truth = {row["uri"]: row for row in made.rows("select uri, split, label from images")}
    for manifest, split, parts in (
        ("m", "labeled", {"labeled": 15}),
        ("m", "train+labeled", {"unlabeled": 36, "labeled": 15}),
        ("m", "labeled+labeled", {"labeled": 30}),
        (None, "train", {"labeled": 15}),
        (None, "validation", {"holdout": 3}),
    ):
        reader = ManifestReader(made.path, manifest, split)
        assert Counter(truth[uri]["split"] for uri in reader.filenames()) == parts
        assert len(reader) == sum(parts.values())
        for i in range(len(reader)):
            assert truth[reader.filename(i)]["label"] in (None, reader[i][1])
    for split in ("test", "train+validation", ""):
        with pytest.raises(InputError, match=f"no split '{re.escape(split)}'"):
            ManifestReader(made, "m", split)
    with pytest.raises(InputError, match="no manifest 'n'"):
        ManifestReader(made, "n")


def test_a_reader_works_in_forked_workers(made: Store) -> None:
    data = ImageDataset(made.root, ManifestReader(made, "m"), transform=np.array)
    seen = []
    for images, labels in DataLoader(data, 4, num_workers=2, multiprocessing_context="fork"):
        seen += zip(images.numpy(), labels.tolist(), strict=True)
    assert len(seen) == 36
    for i, (image, label) in enumerate(seen):
        assert np.array_equal(image, np.asarray(data[i][0]))
        assert label == data[i][1]


def test_timms_loader(made: Store) -> None:
    data = ImageDataset(made.root, ManifestReader(made, "m", "train+labeled"))
    labels: Counter[int] = Counter()
    for images, found in create_loader(
        data, (3, 16, 16), 10, use_prefetcher=False, num_workers=0, persistent_workers=False
    ):
        assert tuple(images.shape[1:]) == (3, 16, 16)
        labels.update(found.tolist())
    assert labels == {0: 17, 1: 17, 2: 17}


def test_timm_takes_another_image_for_one_that_is_missing(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    (row,) = [row for row in pq.read_table(store.path / "manifests" / "m").to_pylist() if row["copies"] == 12]
    (store.root / row["uri"]).unlink()
    data = ImageDataset(store.root, ManifestReader(store, "m"))
    broken = [i for i, uri in enumerate(data.filenames()) if uri == row["uri"]]
    assert len(broken) == 12  # more than timm bears in a row, if they stood in a row
    for i in broken:
        data[i]
        assert f"index {i}). {row['uri']}: No such file or directory" in caplog.text


def test_a_reader_reads_the_pack_that_fits(store: Store) -> None:
    packing.pack(store, "m", Form(16, 90))

    def side(reader: ManifestReader) -> int:
        (size,) = {Image.open(reader[i][0]).size for i in range(len(reader))}
        return size[0]

    packed = ManifestReader(store, "m", "train+labeled", size=16)
    assert side(packed) == side(pickle.loads(pickle.dumps(packed))) == 16
    assert side(ManifestReader(store, "m", pack="16-q90")) == 16
    assert side(ManifestReader(store, "m")) == side(ManifestReader(store, "m", size=17)) == 20
    with pytest.raises(InputError, match="no pack '17-q90'"):
        ManifestReader(store, "m", pack="17-q90")


def test_other_names_are_still_timms(made: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    before = timm.data.create_dataset
    monkeypatch.setattr(timm.data, "create_dataset", before)
    timm_reader.register()
    timm_reader.register()
    assert len(timm.data.create_dataset("curator/hard", str(made.path), "train")) == 36
    folder = timm.data.create_dataset("", str(made.root / "labeled"), search_split=False)
    assert (len(folder), type(folder.reader).__name__) == (15, "ReaderImageFolder")
