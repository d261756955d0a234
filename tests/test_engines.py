"""Engines: their answers are torch's or they are not used; which one computed stays known."""

import platform
import re
import resource
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from pictures import picture, teach, world, write
from torch import nn

from curator import progress
from curator.errors import CuratorError, InputError
from curator.generations import labels
from curator.networks import engines, inference, network
from curator.networks.network import Network
from curator.pictures.images import add_images
from curator.storage.store import Store
from curator.teachers.labeling import label

SIZE = 16
NORMAL = ((0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
LONG = 10**9  # images; work that is worth any trial


class Branching(nn.Module):
    """Takes another way for bright pictures, which no graph can follow."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean(dim=(2, 3)) if float(x.sum()) > 0 else -x.mean(dim=(2, 3))


def small(seed: int = 0) -> Network:
    torch.manual_seed(seed)
    body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return Network(nn.Sequential(body, nn.Linear(8, 3)), *NORMAL).to(memory_format=torch.channels_last).eval()


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (6, SIZE, SIZE, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def exported() -> tuple[Network, engines.OnnxRuntime]:
    pytest.importorskip("onnxruntime", reason="ONNX Runtime is an extra: pip install 'curator[onnx]'")
    made = small()
    return made, engines.OnnxRuntime(made, SIZE)


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[[], str]]:
    """What was said on standard error."""
    progress.show(True)
    yield lambda: capsys.readouterr().err
    progress.show(False)


def by_hand(made: Network, images: np.ndarray) -> np.ndarray:
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in NORMAL)
    with torch.no_grad():
        return made.body((torch.from_numpy(images).permute(0, 3, 1, 2) / 255 - mean) / std).numpy()


def test_torch_gives_the_networks_logits(images: np.ndarray) -> None:
    made = small()
    assert engines.Torch(made)(images) == pytest.approx(by_hand(made, images), abs=1e-5)


@pytest.mark.parametrize("count", [1, 2, 6])
def test_onnx_runtime_gives_them_too(
    exported: tuple[Network, engines.OnnxRuntime], images: np.ndarray, count: int
) -> None:
    made, engine = exported
    answers = engine(images[:count])
    assert answers.shape == (count, 3)
    assert answers.dtype == np.float32
    assert answers == pytest.approx(by_hand(made, images[:count]), abs=1e-5)
    assert engines.difference(engines.Torch(made)(images), engine(images)) < engines.TOLERANCE / 10


def test_probabilities_add_up_to_one() -> None:
    logits = np.random.default_rng(0).normal(0, 20, (5, 20_000)).astype(np.float32)
    probs = engines.probabilities(logits)
    assert probs.dtype == np.float32
    assert probs.sum(axis=1, dtype=np.float64) == pytest.approx(np.ones(5), abs=1e-5)


def test_an_engine_that_gives_other_answers_is_found_out(
    exported: tuple[Network, engines.OnnxRuntime],
    images: np.ndarray,
    monkeypatch: pytest.MonkeyPatch,
    said: Callable[[], str],
) -> None:
    made, honest = exported
    wrong = [0.0, 0.0, 0.0]

    class Doctored:
        name = "onnxruntime"

        def __init__(self, network: Network, size: int) -> None: ...

        def __call__(self, images: np.ndarray) -> np.ndarray:
            return honest(images) + np.array(wrong, np.float32)

    monkeypatch.setattr(engines, "OnnxRuntime", Doctored)
    monkeypatch.setattr(engines, "_seconds", lambda engine, images: 1.0 if engine.name == "torch" else 0.1)
    assert engines.choose("onnxruntime", made, images, 1).name == "onnxruntime"
    assert engines.choose("auto", made, images, LONG).name == "onnxruntime"
    assert "labeling with ONNX Runtime: 60 images/s against 6 of torch" in said()
    for wrong[0] in (0.002, float("nan"), 50.0):
        with pytest.raises(CuratorError, match="ONNX Runtime's probabilities differ from torch's by up to"):
            engines.choose("onnxruntime", made, images, 1)
        assert engines.choose("auto", made, images, LONG).name == "torch"
        assert "labeling with torch: ONNX Runtime's probabilities differ" in said()
    wrong[0] = 1e-5
    assert engines.choose("onnxruntime", made, images, 1).name == "onnxruntime"


def test_auto_takes_the_faster(
    exported: tuple[Network, engines.OnnxRuntime],
    images: np.ndarray,
    monkeypatch: pytest.MonkeyPatch,
    said: Callable[[], str],
) -> None:
    made, engine = exported
    tried = []
    monkeypatch.setattr(engines, "OnnxRuntime", lambda *_: tried.append(1) or engine)
    monkeypatch.setattr(engines, "_seconds", lambda engine, images: 0.1 if engine.name == "torch" else 0.2)
    assert engines.choose("auto", made, images, LONG).name == "torch"
    assert "labeling with torch: 60 images/s against 30 of ONNX Runtime" in said()
    assert tried == [1]
    assert engines.choose("auto", made, images, 3000).name == "torch"  # torch is done in 50 s
    assert tried == [1]
    assert said() == ""


def test_where_it_is_not_installed(
    images: np.ndarray, monkeypatch: pytest.MonkeyPatch, said: Callable[[], str]
) -> None:
    for missing in ("onnxruntime", "onnxscript"):
        with monkeypatch.context() as without:
            without.setitem(sys.modules, missing, None)
            with pytest.raises(CuratorError, match="ONNX Runtime is not installed") as error:
                engines.choose("onnxruntime", small(), images, LONG)
            assert error.value.mend == "pip install 'curator[onnx]'"
            assert engines.choose("auto", small(), images, LONG).name == "torch"
            assert re.search(
                r"labeling with torch: ONNX Runtime is not installed .*\(pip install 'curator\[onnx\]'\)", said()
            )


def test_a_network_that_cannot_be_exported(
    exported: tuple[Network, engines.OnnxRuntime], images: np.ndarray, said: Callable[[], str]
) -> None:
    made = Network(Branching(), *NORMAL).eval()
    with pytest.raises(CuratorError, match="ONNX Runtime cannot take this network") as error:
        engines.choose("onnxruntime", made, images, 1)
    assert error.value.mend == "--engine torch"
    assert engines.choose("auto", made, images, LONG).name == "torch"
    assert "labeling with torch: ONNX Runtime cannot take this network" in said()


def test_nothing_to_prove_on(images: np.ndarray) -> None:
    assert engines.choose("auto", small(), images[:0], LONG).name == "torch"
    with pytest.raises(InputError, match="no image of the first batch can be read"):
        engines.choose("onnxruntime", small(), images[:0], LONG)


def test_another_device(images: np.ndarray) -> None:
    made = small().to("meta")  # stands for a GPU
    assert engines.choose("auto", made, images, LONG).name == "torch"
    with pytest.raises(InputError, match="ONNX Runtime computes on the CPU, and the device is meta"):
        engines.choose("onnxruntime", made, images, LONG)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = world(tmp_path_factory.mktemp("made"), labeled=2, pool=3, holdout=1)
    teach(store, "schedule.steps=3", "network.architecture=pictures:Slow")
    return store


def made_by(store: Store) -> list[tuple[str, str]]:
    """Split and engine of the published parts."""
    names = [Path(uri).name for uri in store.delta("labels").file_uris()]
    return sorted(tuple(name.split("-")[1:3]) for name in names)


def more(store: Store, number: int) -> None:
    write(store.root / "pool" / f"more{number}.png", picture(0, 7000 + number))
    add_images(store, str(store.root / "pool"), "unlabeled")


def test_the_engine_is_recorded_and_goes_on(store: Store, exported: object, said: Callable[[], str]) -> None:
    done = label(store, "teacher", ["holdout", "unlabeled"], engine="onnxruntime")
    assert (done.images, done.engine) == (12, "onnxruntime")
    assert made_by(store) == [("holdout", "onnxruntime"), ("unlabeled", "onnxruntime")]
    found = store.rows("select uri, top_probs, confidence from labels join images using (image_id) order by uri")
    loaded, recipe, _ = network.load(store, "teacher")
    query = "select uri, shard, byte_offset, byte_length from stored_images where split <> 'labeled' order by uri"
    con = store.connect()
    table = con.sql(query).to_arrow_table()
    con.close()
    (answer,) = inference.predict(loaded, recipe, store.root, [table])
    assert [row["confidence"] for row in found] == pytest.approx(answer.probs.max(axis=1), abs=engines.TOLERANCE)
    assert "its probabilities are within" in said()
    done = label(store, "teacher")  # auto would take torch for six images
    assert (done.images, done.engine) == (6, "onnxruntime")
    assert "generation 0 was begun with onnxruntime, which goes on" in said()
    assert label(store, "teacher").engine is None
    more(store, 0)
    assert label(store, "teacher", engine="torch").engine == "torch"
    assert "generation 0 was begun with onnxruntime; each part's name says which made it" in said()
    assert made_by(store)[-1] == ("unlabeled", "torch")


def test_the_generations_engine_is_gone(store: Store, exported: object, monkeypatch: pytest.MonkeyPatch) -> None:
    label(store, "teacher", ["holdout"], engine="onnxruntime")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(CuratorError, match="ONNX Runtime is not installed") as error:
        label(store, "teacher")
    assert error.value.mend == "pip install 'curator[onnx]', or --engine torch for the rest of generation 0"
    assert label(store, "teacher", engine="torch").images == 15


def test_parts_that_name_no_engine_are_torchs(store: Store, said: Callable[[], str]) -> None:
    label(store, "teacher", ["holdout"])
    assert made_by(store) == [("holdout", "torch")]
    (part,) = (store.path / "labels").glob("g*/part-*")
    store.delta("labels").delete()
    part.rename(part.with_name("part-unlabeled-1700000000000000000-0123abcd.parquet"))
    assert label(store, "teacher", ["labeled"]).engine == "torch"
    assert "generation 0 was begun with torch, which goes on" in said()


def test_unknown_engines(store: Store) -> None:
    with pytest.raises(InputError, match="the engine 'onxruntime' is unknown; did you mean 'onnxruntime'"):
        label(store, "teacher", engine="onxruntime")


def test_writing_does_not_stop_the_engine(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first part, of the first batch, takes until the engine is done with the last."""
    left = threading.Semaphore(0)
    finish = labels.PartWriter.finish

    def waits(writer: labels.PartWriter) -> Path:
        assert left.acquire(timeout=20)
        return finish(writer)

    class Counted(engines.Torch):
        seen = 0

        def __call__(self, images: np.ndarray) -> np.ndarray:
            self.seen += len(images)
            if self.seen == 9:
                left.release(9)
            return super().__call__(images)

    monkeypatch.setattr(labels.PartWriter, "finish", waits)
    monkeypatch.setattr(engines, "choose", lambda wanted, network, images, work: Counted(network))
    assert label(store, "teacher", ["unlabeled"], batch_size=3, part_seconds=0).images == 9
    assert len(made_by(store)) > 1


def test_a_part_that_cannot_be_written(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(labels.PartWriter, "finish", lambda writer: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            label(store, "teacher", batch_size=1, part_seconds=0)
    assert not list((store.path / "labels").rglob("part-*.unfinished"))
    assert not store.rows("select 1 from labels")
    assert label(store, "teacher").images == 18


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library keeps memory by rules of its own")
def test_memory_is_kept_between_batches() -> None:
    def work() -> int:
        before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
        for _ in range(20):
            blocks = [np.ones(3 << 20, np.uint8) for _ in range(8)]
            del blocks
        return resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before

    engines.keep_memory()
    work()
    assert work() < 20 * 8 * 768 / 20  # pages of 4 KB
