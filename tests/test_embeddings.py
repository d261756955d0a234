"""Embeddings: what the network's last layer reads, every image once whatever stops a run, and twins found by them."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from conftest import Answer
from pictures import NOISY, teach, world
from safetensors.torch import load_file

from curator.errors import InputError
from curator.networks import network
from curator.noise.augment import center_crop
from curator.pictures.decode import decode
from curator.pictures.images import add_images
from curator.repeats import neighbors
from curator.repeats.duplicates import Rule, find
from curator.storage.store import Store
from curator.teachers import embedding
from curator.teachers.embedding import embed, packed

Run = Callable[..., Answer]


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = world(tmp_path_factory.mktemp("learned"), labeled=4, pool=5, holdout=2)
    teach(store, *NOISY, "network.test_crop=0.8", "schedule.steps=3")
    return store


@pytest.fixture
def store(learned: Store, tmp_path: Path) -> Store:
    shutil.copytree(learned.root, tmp_path / "copy")
    return Store(tmp_path / "copy" / "store")


def vectors(store: Store) -> dict[str, np.ndarray]:
    rows = store.rows("select uri, vector from embeddings join images using (image_id)")
    assert len({row["uri"] for row in rows}) == len(rows)
    return {row["uri"]: np.frombuffer(row["vector"], np.int8) for row in rows}


def test_an_embedding_is_what_the_last_layer_reads(store: Store) -> None:
    done = embed(store, "teacher", batch_size=7)
    found = vectors(store)
    assert (done.images, done.already_there, done.failed, len(found)) == (33, 0, 0, 33)
    body = timm.create_model("test_resnet", num_classes=3)
    state = load_file(store.path / "models" / "teacher" / "weights.safetensors")
    body.load_state_dict({name.removeprefix("body."): tensor for name, tensor in state.items()})
    body.eval()
    out = np.empty((16, 16, 3), np.uint8)
    for uri, vector in found.items():
        center_crop(decode((store.root / uri).read_bytes()), 16, 0.8, out)
        pixels = (torch.from_numpy(out.copy()).permute(2, 0, 1).float() / 255 - 0.5) / 0.5
        with torch.inference_mode():
            read = body.forward_head(body.forward_features(pixels[None]), pre_logits=True)[0].numpy()
        assert len(vector) == len(read) == done.dimensions
        assert vector == pytest.approx(read * 127 / np.abs(read).max(), abs=0.51)


def test_a_killed_run_goes_on(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = embedding.Features.__call__, []

    def dies(self: embedding.Features, images: np.ndarray) -> np.ndarray:
        calls.append(len(images))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(self, images)

    monkeypatch.setattr(embedding.Features, "__call__", dies)
    with pytest.raises(KeyboardInterrupt):
        embed(store, "teacher", batch_size=4, commit_seconds=0)
    assert len(vectors(store)) == 12
    done = embed(store, "teacher", batch_size=4)
    assert (done.images, done.already_there, len(vectors(store))) == (21, 12, 33)
    assert embed(store, "teacher").images == 0


def test_splits_and_pictures_that_are_gone(store: Store) -> None:
    gone = next(iter(sorted((store.root / "pool").rglob("*.png"))))
    gone.unlink()
    assert embed(store, "teacher", ["holdout"]).images == 6
    done = embed(store, "teacher")
    assert (done.images, done.already_there, done.failed) == (26, 6, 1)
    with pytest.raises(InputError, match="unknown"):
        embed(store, "teacher", ["pol"])


def test_a_network_without_a_linear_layer() -> None:
    body = torch.nn.Sequential(torch.nn.Conv2d(3, 3, 1), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    with pytest.raises(InputError, match="no linear layer"):
        embedding.Features(network.Network(body, (0.5,) * 3, (0.5,) * 3))


def test_label_with_embeddings_and_the_twins_they_show(store: Store, curator: Run) -> None:
    one = next(iter(sorted((store.root / "holdout").rglob("*.png"))))
    shutil.copy(one, store.root / "pool" / "copy.png")
    with (store.root / "pool" / "copy.png").open("ab") as file:
        file.write(b"more")  # other bytes
    add_images(store, str(store.root / "pool"), "unlabeled")
    refused = curator("quality", "leaks", "--embeddings", "teacher", "--store", store.path)
    assert (refused.code, "label --model teacher --embeddings" in refused.err) == (2, True)
    done = curator("label", "--model", "teacher", "--embeddings", "--json", "--store", store.path)
    assert done.code == 0
    assert done.json["images"] == done.json["embeddings"]["images"] == 34
    found = find(store, Rule(distance=0, model="teacher", cosine=0.9999))
    assert found.scan.embedded == 34
    rows = store.rows("select i.uri, d.* from duplicates as d join images as i using (image_id)")
    twins = {row["uri"]: row for row in rows}
    assert twins["pool/copy.png"]["leak"]
    assert twins["pool/copy.png"]["distance"] < 1e-4


@pytest.mark.parametrize("exact", [True, False])
def test_close_vectors(exact: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not exact:
        monkeypatch.setattr(neighbors, "_EXACT", 0)
    rng = np.random.default_rng(0)
    middles = rng.standard_normal((40, 64))
    points = np.repeat(middles, 3, axis=0) + 0.1 * rng.standard_normal((120, 64))
    whole = packed(points.astype(np.float32))
    cosines = np.corrcoef(points) * 0 + (points @ points.T) / np.outer(*[np.linalg.norm(points, axis=1)] * 2)
    wanted = {(i, j) for i in range(120) for j in range(i + 1, 120) if cosines[i, j] >= 0.9}
    found = neighbors.close_vectors(whole, 0.9)
    assert (
        set(zip(found.left.tolist(), found.right.tolist(), strict=True))
        == wanted
        == {(i, j) for i in range(120) for j in range(i + 1, 120) if i // 3 == j // 3}
    )
    assert 1 - found.distance == pytest.approx(cosines[found.left, found.right], abs=0.01)
    few = np.arange(0, 30, 3)
    some = neighbors.close_vectors(whole, 0.9, few)
    both = {(i, j) for i, j in wanted if i in few or j in few}
    assert set(zip(some.left.tolist(), some.right.tolist(), strict=True)) == both


@pytest.mark.long
def test_two_ranks_share_the_work(store: Store) -> None:
    script = store.root / "script.py"
    script.write_text(
        "import sys\nfrom curator.cli import run\n"
        "sys.exit(run(['label', '--model', 'teacher', '--embeddings', '--batch-size', '4', '--engine', 'torch',"
        " '--quiet', '--store', sys.argv[1]]))\n"
    )
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    done = subprocess.run([*torchrun, str(store.path)], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert len(vectors(store)) == 33
