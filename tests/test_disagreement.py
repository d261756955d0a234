"""Two generations compared: against a plain count in Python, and the tables are never stale, doubled or torn."""

import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import deltalake
import numpy as np
import pyarrow as pa
import pytest
from conftest import CLASSES, PROBS, Answer
from test_labels import URIS, write

from curator.errors import InputError
from curator.generations import drift
from curator.generations.labels import import_labels
from curator.pictures.images import add_images
from curator.quality import disagreement
from curator.quality.disagreement import between
from curator.storage.store import Store

# In the second generation c is a dog, d an owl, e is hardly sure of dog any more; the others stay as they were.
SECOND = PROBS | {"c": (0.10, 0.85, 0.05), "d": (0.10, 0.10, 0.80), "e": (0.30, 0.40, 0.30)}
HOLDOUT = {"x": ("cat", (0.9, 0.1, 0.0), (0.2, 0.8, 0.0)), "y": ("dog", (0.9, 0.1, 0.0), (0.2, 0.8, 0.0))}


@pytest.fixture(scope="module")
def made_twice(made_once: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the fixture store with a second generation, and two holdout images in both."""
    folder = tmp_path_factory.mktemp("second")
    store = Store(shutil.copytree(made_once / "store", folder / "store"))
    uris = [f"held/{name}.jpg" for name in HOLDOUT]
    listing = write(folder / "held.parquet", uri=uris, label=[row[0] for row in HOLDOUT.values()])
    add_images(store, listing, "holdout", scan=False)
    give(store, folder, 0, "outside", uris, [row[1] for row in HOLDOUT.values()])
    give(store, folder, 1, "second", URIS + uris, [*SECOND.values(), *(row[2] for row in HOLDOUT.values())])
    return folder


@pytest.fixture
def second(made_twice: Path, tmp_path: Path) -> Store:
    """The store of `made_twice`, at tmp_path/second."""
    return Store(shutil.copytree(made_twice / "store", tmp_path / "second"))


def give(
    store: Store, folder: Path, generation: int, model: str, uris: list[str], rows: list[tuple[float, ...]]
) -> None:
    probs = pa.array([list(row) for row in rows], pa.list_(pa.float32()))
    import_labels(store, write(folder / "given.parquet", uri=uris, probs=probs), generation, model)


def kept(store: Store) -> list[tuple[int, int]]:
    """The generations of the table drift, with the images that each counts."""
    rows = store.rows("select generation, sum(images)::BIGINT as n from drift group by 1 order by 1")
    return [(row["generation"], row["n"]) for row in rows]


def test_flips_drift_and_images(second: Store) -> None:
    found = between(second)
    assert (found.generation, found.previous, found.split) == (1, 0, "unlabeled")
    assert found.totals["images"] == 9
    assert found.totals["flipped"] == 2
    assert (found.totals["only_before"], found.totals["only_after"]) == (0, 0)
    classes = {row["class_name"]: row for row in found.classes}
    assert [row["class_name"] for row in found.classes] == ["cat", "dog", "owl"]
    cat = classes["cat"]
    assert (cat["before"], cat["after"], cat["left_it"], cat["came"]) == (5, 3, 2, 0)
    assert cat["flipped"] == 0.4
    assert cat["mostly_to"] == "dog"  # of as many, the lower class
    assert cat["confidence_before"] == pytest.approx(np.mean([0.9, 0.8, 0.8, 0.5, 0.34]), abs=1e-6)
    assert cat["confidence_after"] == pytest.approx(np.mean([0.9, 0.8, 0.34]), abs=1e-6)
    assert (classes["dog"]["left_it"], classes["dog"]["came"], classes["owl"]["came"]) == (0, 1, 1)
    flips = [(row["class_before"], row["class_after"], row["images"]) for row in found.flips]
    assert flips == [("cat", "dog", 1), ("cat", "owl", 1)]
    images = [(row["uri"], row["severity"]) for row in found.images]
    assert [uri for uri, _ in images] == ["pool/c.jpg", "pool/d.jpg", "pool/e.jpg"]
    assert [severity for _, severity in images] == pytest.approx([0.8, 0.5, -0.7], abs=1e-6)


def test_one_class(second: Store) -> None:
    found = between(second, class_name="owl")
    assert [row["uri"] for row in found.images] == ["pool/d.jpg"]
    assert [row["class_after"] for row in found.flips] == ["owl"]


def test_the_holdout(second: Store) -> None:
    found = between(second)
    assert found.holdout == {"images": 2, "right_before": 1, "right_after": 1, "mended": 1, "broken": 1}
    assert found.confusion == [
        {"truth": "cat", "taken_for": "dog", "before": 0, "after": 1},
        {"truth": "dog", "taken_for": "cat", "before": 1, "after": 0},
    ]


def test_made_when_a_generation_is_published(second: Store) -> None:
    assert kept(second) == [(1, 11)]


def test_images_labeled_later_count(second: Store, tmp_path: Path) -> None:
    """Of either generation; the hook follows the one that is published, the question finds the other."""
    listing = write(tmp_path / "more.parquet", uri=["pool/j.jpg"])
    add_images(second, listing, "unlabeled", scan=False)
    give(second, tmp_path, 1, "second", ["pool/j.jpg"], [(1.0, 0.0, 0.0)])
    assert kept(second) == [(1, 12)]
    assert between(second).totals["only_after"] == 1
    give(second, tmp_path, 0, "outside", ["pool/j.jpg"], [(0.0, 1.0, 0.0)])
    totals = between(second).totals
    assert (totals["images"], totals["flipped"], totals["only_after"]) == (10, 3, 0)
    assert kept(second) == [(1, 12)]


def test_a_store_without_the_tables(second: Store) -> None:
    before = between(second)
    for name in ("drift", "changes"):
        shutil.rmtree(second.path / name)
    assert between(second) == before


def test_whether_it_is_kept_is_asked_without_making_it(second: Store) -> None:
    assert [disagreement.pair(second)[1] for _ in range(2)] == [True, True]
    for name in ("drift", "changes"):
        shutil.rmtree(second.path / name)
    wanted, kept = disagreement.pair(second, 1)
    assert (wanted.generation, wanted.previous, kept) == (1, 0, False)
    assert not (second.path / "drift").exists()


def test_a_kill_between_the_two_tables(second: Store) -> None:
    before = between(second)
    second.delta("drift").delete("generation = 1")  # as if `changes` alone had been committed
    assert between(second) == before
    assert second.rows("select count(*) as n, count(distinct image_id) as images from changes")[0] == {
        "n": 5, "images": 5,
    }  # fmt: skip


@pytest.mark.long
def test_tables_that_another_tool_merged(second: Store, tmp_path: Path) -> None:
    give(second, tmp_path, 2, "third", URIS, list(PROBS.values()))
    assert kept(second) == [(1, 11), (2, 11)]
    for name in ("drift", "changes"):
        deltalake.DeltaTable(str(second.path / name)).optimize.compact()
    first = between(second, 1)
    add_images(second, write(tmp_path / "more.parquet", uri=["pool/j.jpg"]), "unlabeled", scan=False)
    give(second, tmp_path, 2, "third", ["pool/j.jpg"], [(1.0, 0.0, 0.0)])
    assert between(second, 2).totals["only_after"] == 1
    assert between(second, 1) == first
    assert kept(second) == [(1, 11), (2, 12)]


def test_a_failure_does_not_take_the_labels_back(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(drift, "keep", full)
    give(store, tmp_path, 1, "second", URIS, list(SECOND.values()))
    monkeypatch.undo()
    assert kept(store) == []
    assert between(store).totals["flipped"] == 2


@pytest.mark.long
def test_two_that_ask_at_once_make_it_once(second: Store) -> None:
    second.delta("drift").delete("generation = 1")
    program = [Path(sys.executable).with_name("curator"), "quality", "disagreement", "--json", "--store", second.path]
    runs = [subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    answers = [run.communicate() for run in runs]
    assert [run.returncode for run in runs] == [0, 0, 0], answers
    assert len({out for out, _ in answers}) == 1
    assert kept(second) == [(1, 11)]
    assert second.rows("select count(*) as n from changes")[0]["n"] == 5


@pytest.mark.parametrize("seed", range(2))
def test_as_counted_one_by_one(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    store = Store.create(tmp_path / "store", [f"c{i}" for i in range(6)])
    n = 3000
    add_images(store, write(tmp_path / "l.parquet", uri=[f"{i}.jpg" for i in range(n)]), "unlabeled", scan=False)
    ids = {row["uri"]: row["image_id"] for row in store.rows("select uri, image_id from images")}
    said: list[dict[int, tuple[int, float]]] = []
    for generation in (0, 3):
        probs = rng.dirichlet([0.3] * 6, n).astype(np.float32)
        chosen = rng.permutation(n)[: n - 100]
        rows = pa.array([row.tolist() for row in probs[chosen]], pa.list_(pa.float32()))
        file = write(tmp_path / "p.parquet", uri=[f"{i}.jpg" for i in chosen], probs=rows)
        import_labels(store, file, generation, f"m{generation}")
        said.append({ids[f"{i}.jpg"]: (int(probs[i].argmax()), float(probs[i].max())) for i in chosen})
    found = between(store, limit=10_000)
    assert (found.generation, found.previous) == (3, 0)
    both = [(i, *said[0][i], *said[1][i]) for i in said[0].keys() & said[1].keys()]
    assert found.totals["images"] == len(both)
    assert found.totals["only_before"] == found.totals["only_after"] == n - 100 - len(both)
    flips = Counter((a, b) for _, a, _, b, _ in both if a != b)
    got = {(int(r["class_before"][1:]), int(r["class_after"][1:])): r["images"] for r in found.flips}
    assert got == flips
    assert found.totals["flipped"] == sum(flips.values())
    mean = np.mean([confidence for *_, confidence in both])
    assert found.totals["confidence_after"] == pytest.approx(mean, abs=2e-6)
    worst = sorted(
        ((a == b, -(min(p, q) if a != b else abs(p - q)), i) for i, a, p, b, q in both if a != b or abs(p - q) >= 0.25),
    )
    assert [row["image_id"] for row in found.images] == [i for *_, i in worst]


def test_first_generation_and_unknown_words(second: Store) -> None:
    for arguments, message in (
        ({"generation": 0}, "generation 0 is the first one"),
        ({"generation": 7}, "there is no generation 7"),
        ({"split": "holdot"}, "the split 'holdot' is unknown; did you mean 'holdout'"),
        ({"class_name": "caat"}, "there is no class 'caat'; did you mean 'cat'"),
    ):
        with pytest.raises(InputError, match=message):
            between(second, **arguments)


def test_history(second: Store, ids: dict[str, int]) -> None:
    rows = disagreement.history(second, ids["c"])
    assert [(row["generation"], row["model"], row["class_name"]) for row in rows] == [
        (0, "outside", "cat"), (1, "second", "dog"),
    ]  # fmt: skip
    with pytest.raises(InputError, match="there is no image 5"):
        disagreement.history(second, 5)


def test_command(second: Store, ids: dict[str, int], curator: Callable[..., Answer]) -> None:
    answer = curator("quality", "disagreement", "--store", second.path)
    assert answer.code == 0
    assert "2 of 9 images" in answer.out
    assert "severity\n" in answer.out  # the last column: where a picture lies is for programs
    assert "byte_offset" not in answer.out
    found = curator("quality", "disagreement", "--class", "owl", "--limit", 1, "--json", "--store", second.path).json
    assert [row["image_id"] for row in found["images"]] == [ids["d"]]
    assert found["flipped"] == 2
    assert set(CLASSES) == {row["class_name"] for row in found["classes"]}
    one = curator("quality", "disagreement", "--image-id", ids["d"], "--json", "--store", second.path).json
    assert [row["class_name"] for row in one["generations"]] == ["cat", "owl"]
    shown = curator("quality", "disagreement", "--image-id", ids["d"], "--store", second.path).out.splitlines()[0]
    assert shown.split() == ["generation", "model", "class_name", "confidence", "margin", "entropy"]


def test_killed_at_any_moment(second: Store) -> None:
    """The process is killed while it makes the tables; the next question answers as if nothing had been."""
    want = between(second)
    program = [Path(sys.executable).with_name("curator"), "quality", "disagreement", "--json", "--store", second.path]
    for delay in (0.45, 0.6):
        second.delta("drift").delete("generation = 1")
        run = subprocess.Popen(program, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            run.wait(delay)
        except subprocess.TimeoutExpired:
            os.kill(run.pid, signal.SIGKILL)
            run.wait()
        assert between(second) == want
        assert kept(second) == [(1, 11)]
