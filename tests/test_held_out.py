"""Out-of-sample soft labels from another tool: what is taken, what is refused, and what it is good for."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from conftest import CLASSES, Answer
from test_labels import write

from curator.decisions.reviews import add_review
from curator.errors import InputError
from curator.generations.held_out import import_held_out
from curator.pictures.images import add_images
from curator.quality import issues
from curator.storage.store import Store

# The class that each labeled image is given, and its probabilities: the second cat is a dog.
GIVEN = {
    "lab/0.jpg": ("cat", (0.9, 0.05, 0.05)),
    "lab/1.jpg": ("cat", (0.05, 0.9, 0.05)),
    "lab/2.jpg": ("cat", (0.8, 0.1, 0.1)),
    "lab/3.jpg": ("dog", (0.1, 0.8, 0.1)),
    "lab/4.jpg": ("owl", (0.1, 0.1, 0.8)),
}


def probabilities(*rows: tuple[float, ...]) -> pa.Array:
    return pa.array([list(row) for row in rows], pa.list_(pa.float32()))


@pytest.fixture
def labeled(store: Store, tmp_path: Path) -> Store:
    """The fixture store with labeled images beside its pool."""
    labels = [name for name, _ in GIVEN.values()]
    add_images(store, write(tmp_path / "lab.parquet", uri=[*GIVEN], label=labels), "labeled", scan=False)
    return store


@pytest.fixture
def mine(tmp_path: Path) -> str:
    return write(tmp_path / "mine.parquet", uri=[*GIVEN], probs=probabilities(*(p for _, p in GIVEN.values())))


def test_what_is_stored_and_found(labeled: Store, mine: str, curator: Callable[..., Answer]) -> None:
    answer = curator("quality", "folds", "--from", mine, "--store", labeled.path, "--json")
    assert answer.code == 0, answer.err
    assert answer.json == {"run": "mine", "images": 5, "missing": 0, "top1": 0.8}
    rows = labeled.rows("select uri, fold, h.class_name, confidence from held_out as h join images using (image_id)")
    assert {row["uri"] for row in rows} == GIVEN.keys()
    for row in rows:
        best = max(GIVEN[row["uri"]][1])
        assert (row["fold"], row["class_name"]) == (-1, CLASSES[GIVEN[row["uri"]][1].index(best)])
        assert row["confidence"] == pytest.approx(best)
    assert [row["uri"] for row in issues.find(labeled).rows] == ["lab/1.jpg"]
    assert not (labeled.path / "folds" / "mine").exists()


def test_by_image_id_of_some_images_as_logits(labeled: Store, tmp_path: Path, curator: Callable[..., Answer]) -> None:
    ids = {row["uri"]: row["image_id"] for row in labeled.rows("select uri, image_id from images")}
    file = write(
        tmp_path / "m.parquet",
        image_id=[ids["lab/1.jpg"], ids["lab/0.jpg"]],
        logits=probabilities((0, 9, 0), (9, 0, 0)),
    )
    answer = curator("quality", "folds", "--from", file, "--name", "two", "--store", labeled.path)
    assert answer.code == 0, answer.err
    assert (
        "run 'two': 2 images labeled by another tool; the most probable class is the given one for 50.0%" in answer.out
    )
    assert "3 labeled images are not in the file" in answer.out
    assert issues.find(labeled, "two").unjudged == 3


def test_several_runs_stand_side_by_side(labeled: Store, mine: str) -> None:
    import_held_out(labeled, mine)
    import_held_out(labeled, mine, "again")
    with pytest.raises(InputError, match="there are 2 runs of folds"):
        issues.find(labeled)
    assert issues.find(labeled, "again").suspects == 1
    with pytest.raises(InputError, match="there is a run of folds 'again'"):
        import_held_out(labeled, mine, "again")
    assert labeled.rows("select count(*) as n from held_out")[0]["n"] == 10


def test_decisions_change_what_is_judged(labeled: Store, mine: str) -> None:
    """The probabilities stay; the label that they are compared with is the one that training takes."""
    import_held_out(labeled, mine)
    ids = {row["uri"]: row["image_id"] for row in labeled.rows("select uri, image_id from images")}
    before = issues.find(labeled)
    assert (before.suspects, before.decided) == (1, 0)
    assert before.noise > 0
    add_review(labeled, ids["lab/1.jpg"], "relabel", "dog")
    after = issues.find(labeled)
    assert (after.suspects, after.decided, after.images, after.noise) == (0, 1, 5, 0)
    assert [row["images"] for row in after.classes] == [2, 2, 1]
    assert after.classes[1]["threshold"] == pytest.approx((0.9 + 0.8) / 2, abs=1e-3)
    add_review(labeled, ids["lab/0.jpg"], "reject")
    rest = issues.find(labeled)
    assert (rest.decided, rest.images, rest.unjudged) == (2, 4, 0)
    assert [row["images"] for row in rest.classes] == [1, 2, 1]
    for uri in ("lab/0.jpg", "lab/1.jpg"):
        add_review(labeled, ids[uri], "skip")
    assert issues.find(labeled) == before


GOOD = (0.9, 0.05, 0.05)


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"uri": ["lab/0.jpg", "lab/1.jpg"], "probs": probabilities(GOOD, (0.9, 0.05, 0.06))}, "row 1 "),
        ({"uri": ["lab/0.jpg", "lab/1.jpg"], "probs": probabilities(GOOD, (float("nan"), 0.5, 0.5))}, "row 1 "),
        (
            {"uri": ["lab/0.jpg", "lab/9.jpg"], "probs": probabilities(GOOD, GOOD)},
            "row 1 names an image that is not in",
        ),
        (
            {"uri": ["lab/0.jpg", "lab/0.jpg"], "probs": probabilities(GOOD, GOOD)},
            "row 1 names an image that an earlier",
        ),
        (
            {"uri": ["pool/a.jpg", "lab/0.jpg"], "probs": probabilities(GOOD, GOOD)},
            "row 0 names an image of the split unl",
        ),
        ({"probs": probabilities(GOOD)}, "has no column 'image_id' or 'uri'"),
        ({"uri": pa.array([], pa.string()), "probs": probabilities()}, "has no rows|no column"),
    ],
)
def test_one_wrong_row_stops_it_all(labeled: Store, tmp_path: Path, columns: dict[str, Any], said: str) -> None:
    file = write(tmp_path / "wrong.parquet", **columns)
    with pytest.raises(InputError, match=said):
        import_held_out(labeled, file, "r")
    assert labeled.rows("select * from held_out") == []
    assert not (labeled.path / "folds" / "r").exists()


def test_wrong_calls(labeled: Store, mine: str, curator: Callable[..., Answer]) -> None:
    where = ("--store", labeled.path)
    for arguments, said in (
        ((), "neither a recipe to train by nor a file of labels is given"),
        (("--from", mine, "--recipe", "tiny-teacher"), "--recipe has no meaning beside --from"),
        (("--from", mine, "--folds", 5, "--seed", 1), "--folds, --seed has no meaning beside --from"),
        (("--from", mine, "--name", "a/b"), "'a/b' cannot be the name of a run"),
        (("--from", "nowhere.parquet"), "nowhere.parquet"),
    ):
        answer = curator("quality", "folds", *arguments, *where)
        assert answer.code == 2
        assert said in answer.err
    assert labeled.rows("select * from held_out") == []
