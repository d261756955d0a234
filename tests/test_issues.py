"""Confident learning: SQL against a plain reading of the paper, what is named, what is left out, what is refused."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import Answer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from curator import queries
from curator.decisions.reviews import add_review, add_reviews
from curator.errors import InputError
from curator.generations import softlabels
from curator.generations.labels import import_labels
from curator.pictures.images import add_images
from curator.quality import issues
from curator.schema import CLASSES, HELD_OUT, IMAGES, REVIEWS
from curator.storage import additions
from curator.storage.store import Store

NAMES = ("cat", "dog", "owl")
# given, probabilities: two dogs among the cats, one cat among the owls, the others as they say
PICTURES = [
    (0, (0.90, 0.05, 0.05)),
    (0, (0.80, 0.10, 0.10)),
    (0, (0.70, 0.20, 0.10)),
    (0, (0.05, 0.90, 0.05)),
    (0, (0.20, 0.75, 0.05)),
    (1, (0.10, 0.80, 0.10)),
    (1, (0.20, 0.70, 0.10)),
    (1, (0.45, 0.50, 0.05)),
    (2, (0.10, 0.10, 0.80)),
    (2, (0.85, 0.05, 0.10)),
    (2, (0.05, 0.05, 0.90)),
]


def held_out(summary: softlabels.Summary, ids: list[int], run: str = "r") -> pa.Table:
    labels = softlabels.table(summary, ids, 0, "", ["labeled"] * len(ids))
    about = {"run": pa.array([run] * len(ids)), "fold": pa.array([0] * len(ids), pa.int16())}
    columns = [about[name] if name in about else labels[name] for name in HELD_OUT.schema.names]
    return pa.table(columns, schema=HELD_OUT.schema)


@pytest.fixture(scope="module")
def made_judged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a store whose images 00.jpg, 01.jpg, ... are those of PICTURES."""
    folder = tmp_path_factory.mktemp("made")
    store = Store.create(folder / "judged", NAMES)
    uris = [f"{i:02d}.jpg" for i in range(len(PICTURES))]
    pq.write_table(pa.table({"uri": uris, "label": [label for label, _ in PICTURES]}), folder / "l.parquet")
    add_images(store, str(folder / "l.parquet"), "labeled", scan=False)
    ids = [row["image_id"] for row in store.rows("select image_id from images order by uri")]
    probs = np.array([p for _, p in PICTURES], np.float32)
    additions.append(store, "held_out", held_out(softlabels.summarize(probs, 20), ids))
    return folder


@pytest.fixture
def judged(made_judged: Path, tmp_path: Path) -> Store:
    """A copy of it that a test may spoil."""
    shutil.copytree(made_judged / "judged", tmp_path / "judged")
    return Store(tmp_path / "judged")


def names(rows: list[dict[str, Any]]) -> list[int]:
    return [int(row["uri"][:2]) for row in rows]


def test_what_is_named(judged: Store) -> None:
    found = issues.find(judged)
    assert names(found.rows) == [3, 9, 4]  # the least self-confidence first
    assert [row["suggested_class"] for row in found.rows] == ["dog", "cat", "dog"]
    assert found.rows[0]["self_confidence"] == pytest.approx(0.05, abs=1e-3)
    assert found.rows[0]["margin"] == pytest.approx(0.85, abs=1e-3)
    assert (found.images, found.suspects, found.unjudged, found.decided) == (11, 3, 0, 0)
    assert [row["suspects"] for row in found.classes] == [2, 0, 1]
    assert found.classes[1]["threshold"] == pytest.approx((0.8 + 0.7 + 0.5) / 3, abs=1e-3)
    # of 5 cats 3 reach the threshold of cats and 2 that of dogs; of 3 owls one reaches that of cats
    cells = [(row["given_class"], row["class_name"], row["images"], row["estimated"]) for row in found.cells]
    assert cells == [("cat", "dog", 2, 2), ("owl", "cat", 1, 1)]
    assert found.noise == pytest.approx(3 / 11)


def test_order_limit_and_cells(judged: Store) -> None:
    found = issues.find(judged, order="margin", limit=1, cells=1)
    assert names(found.rows) == [3]
    assert len(found.cells) == 1
    assert found.suspects == 3


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(2, 6), st.integers(1, 25), st.integers(1, 6), st.integers(0, 2**32 - 1))
def test_sql_is_the_paper(classes: int, n: int, kept: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    logits = rng.normal(size=(n, classes))
    logits[np.arange(n), np.where(rng.random(n) < 0.7, labels, rng.integers(0, classes, n))] += 2
    summary = softlabels.summarize(softlabels.softmax(logits), kept)
    con = _connection(summary, labels, classes)
    for by in issues.METHODS:
        thresholds, joint, suspects = _by_sql(con, by)
        expected = _by_the_paper(summary, labels, classes, by)
        np.testing.assert_allclose(thresholds, expected[0], rtol=1e-9)
        np.testing.assert_array_equal(joint, expected[1])
        assert suspects == expected[2]


def _connection(summary: softlabels.Summary, labels: np.ndarray, classes: int) -> Any:
    """A connection with the tables that the steps read."""
    import duckdb

    n, con = len(labels), duckdb.connect()
    con.register("stored_held_out", held_out(summary, list(range(n))))
    columns: dict[str, Any] = {field.name: pa.nulls(n, field.type) for field in IMAGES.schema}
    columns |= {
        "image_id": pa.array(range(n), pa.int64()),
        "uri": pa.array([f"{i:02d}" for i in range(n)]),
        "split": pa.array(["labeled"] * n),
        "label": pa.array(labels.astype(np.int16)),
        "status": pa.array(["unscanned"] * n),
    }
    con.register("stored_images", pa.table(columns, schema=IMAGES.schema))
    known = [list(range(classes)), [str(i) for i in range(classes)]]
    con.register("stored_classes", pa.table(known, schema=CLASSES.schema))
    con.register("stored_reviews", REVIEWS.schema.empty_table())
    issues.prepare(con)
    return con


def _by_sql(con: Any, by: str) -> tuple[list[float], list[list[int]], set[int]]:
    values = {"run": "r", "by": by, "order": "margin"}
    steps = {"judged": queries.text("issues_held_out"), "self_confidences": queries.text("self_confidences")}
    issues.keep(con, "thresholds", steps, "class_thresholds", values)
    steps |= {"confident_classes": queries.text("confident_classes")}
    issues.keep(con, "joint", steps, "confident_joint", values)
    issues.keep(con, "label_issues", steps, "label_issues", values)
    thresholds = [row[0] for row in con.execute("select threshold from thresholds order by label").fetchall()]
    joint = con.execute("select given, class, images, estimated from joint order by all").fetchall()
    suspects = {row[0] for row in con.execute("select image_id from label_issues").fetchall()}
    for name in ("thresholds", "joint", "label_issues"):
        con.execute(f"drop table {name}")
    return [np.nan if t is None else t for t in thresholds], [list(row) for row in joint], suspects


def _by_the_paper(
    summary: softlabels.Summary, labels: np.ndarray, classes: int, by: str
) -> tuple[np.ndarray, list[list[int]], set[int]]:
    """Loops over everything; of equals the first class and the lower number count."""
    n, kept = summary.top_classes.shape
    full = np.repeat((summary.tail.astype(float) / max(classes - kept, 1))[:, None], classes, axis=1)
    np.put_along_axis(full, summary.top_classes, summary.top_probs.astype(float), axis=1)
    own = full[np.arange(n), labels]
    thresholds = np.array([own[labels == c].mean() if (labels == c).any() else np.nan for c in range(classes)])
    confident = np.full(n, -1)
    for i in range(n):
        for c in summary.top_classes[i]:
            if full[i, c] >= thresholds[c] - 1e-6:
                confident[i] = c
                break
    counts = np.zeros((classes, classes), int)
    for i in range(n):
        if confident[i] >= 0:
            counts[labels[i], confident[i]] += 1
    np.fill_diagonal(counts, np.maximum(counts.diagonal(), 1))
    estimated = np.zeros_like(counts)
    for c in range(classes):
        exact = counts[c] * (labels == c).sum() / counts[c].sum()
        estimated[c] = np.floor(exact)
        for other in sorted(range(classes), key=lambda j, e=exact: (np.floor(e[j]) - e[j], counts[c, j] == 0, j))[
            : (labels == c).sum() - estimated[c].sum()
        ]:
            estimated[c, other] += 1
    joint = [[c, j, counts[c, j], estimated[c, j]] for c in range(classes) for j in range(classes) if counts[c, j]]
    if by == "joint":
        named = {i for i in range(n) if confident[i] not in (-1, labels[i]) and summary.label[i] != labels[i]}
        return thresholds, joint, named
    named = set()
    for c in range(classes):
        for j in range(classes):
            if c != j:
                pair = [
                    i for i in range(n)
                    if labels[i] == c != summary.label[i] and j in summary.top_classes[i] and full[i, j] > own[i]
                ]  # fmt: skip
                pair.sort(key=lambda i, j=j: (own[i] - full[i, j], i))
                named |= set(pair[: estimated[c, j]])
    return thresholds, joint, named


def test_a_decision_ends_a_suspicion(judged: Store) -> None:
    ids = {row["uri"]: row["image_id"] for row in judged.rows("select uri, image_id from images")}
    add_review(judged, ids["03.jpg"], "accept")
    found = issues.find(judged)
    assert names(found.rows) == [9, 4]
    assert found.decided == 1


def test_generations(store: Store, tmp_path: Path) -> None:
    """The pool labels of generation 0 by those of generation 1, which calls the first cat an owl."""
    uris = [row["uri"] for row in store.rows("select uri from images order by uri")]
    probs = [[0.02, 0.02, 0.96], *([0.8, 0.1, 0.1] for _ in range(3)), *([0.1, 0.8, 0.1] for _ in range(2))]
    probs += [[0.1, 0.1, 0.8], [0.8, 0.1, 0.1], [0.1, 0.8, 0.1]]
    file = tmp_path / "later.parquet"
    pq.write_table(pa.table({"uri": uris, "probs": pa.array(probs, pa.list_(pa.float32()))}), file)
    with pytest.raises(InputError, match="labels of generation 0, and not of 1"):
        issues.find(store, generation=0)
    import_labels(store, str(file), 1, "later")
    found = issues.find(store, generation=0)
    assert [(row["uri"], row["given_class"], row["suggested_class"]) for row in found.rows] == [
        ("pool/a.jpg", "cat", "owl")
    ]
    assert found.images == 9


def test_generations_of_different_images(store: Store, tmp_path: Path) -> None:
    pq.write_table(pa.table({"uri": ["pool/new.jpg"]}), tmp_path / "new.parquet")
    add_images(store, str(tmp_path / "new.parquet"), "unlabeled", scan=False)
    probs = pa.array([[1.0, 0.0, 0.0]], pa.list_(pa.float32()))
    pq.write_table(pa.table({"uri": ["pool/new.jpg"], "probs": probs}), tmp_path / "later.parquet")
    import_labels(store, str(tmp_path / "later.parquet"), 1, "later")
    with pytest.raises(InputError, match="labels of both"):
        issues.find(store, generation=0)


def test_a_label_outside_the_kept_classes(tmp_path: Path) -> None:
    """It has the even share of the tail."""
    con = _connection(softlabels.summarize(np.array([[0.6, 0.2, 0.1, 0.1]], np.float32), 1), np.array([3]), 4)
    steps = {"judged": queries.text("issues_held_out")}
    rows = queries.rows(con, queries.compose(steps, queries.text("self_confidences")), run="r")
    assert rows[0]["self_confidence"] == pytest.approx(0.4 / 3, abs=1e-3)


def test_the_command(judged: Store, curator: Callable[..., Answer], tmp_path: Path) -> None:
    file = tmp_path / "suspects.csv"
    answer = curator("quality", "issues", "--store", judged.path, "--limit", 1, "--csv", file, "--json")
    assert answer.code == 0
    assert (answer.json["suspects"], len(answer.json["rows"])) == (3, 1)
    with file.open(newline="") as lines:
        written = list(csv.DictReader(lines))
    assert tuple(written[0]) == (*issues.COLUMNS, *issues.TO_FILL)
    assert names(written) == [3, 9, 4]
    again = curator("quality", "issues", "--store", judged.path, "--csv", file)
    assert (again.code, "exists" in again.err) == (2, True)
    text = curator("quality", "issues", "--store", judged.path, "--limit", 1)
    assert "3 suspects" in text.out
    assert "1 of 3; --limit 3" in text.out
    # the file, filled in, is what reviews are read from
    written[1] |= {"decision": "relabel", "new_label": written[1]["suggested_class"]}
    with file.open("w", newline="") as lines:
        filled = csv.DictWriter(lines, written[0])
        filled.writeheader()
        filled.writerows(written)
    assert add_reviews(judged, str(file)).recorded == 1
    assert names(issues.find(judged).rows) == [3, 4]


def test_nothing_to_judge_by(judged: Store) -> None:
    with pytest.raises(InputError, match="--run is of the labeled split"):
        issues.find(judged, run="r", generation=0)
    with pytest.raises(InputError, match="trained without it"):
        issues.find(Store.create(judged.path.parent / "other", NAMES))
    with pytest.raises(InputError, match="no run of folds 'q': no image") as told:
        issues.find(Store(judged.path.parent / "other"), run="q")
    assert told.value.mend == "curator quality folds --recipe RECIPE --name q"
    with pytest.raises(InputError, match="did you mean 'joint'"):
        issues.find(judged, by="joins")
    with pytest.raises(InputError, match="no run of folds 'q'"):
        issues.find(judged, run="q")
    ids = [row["image_id"] for row in judged.rows("select image_id from images limit 1")]
    additions.append(
        judged, "held_out", held_out(softlabels.summarize(np.array([[1, 0, 0]], np.float32), 20), ids, "second")
    )
    with pytest.raises(InputError, match="2 runs of folds: r, second"):
        issues.find(judged)
    assert issues.find(judged, run="second").unjudged == 10
