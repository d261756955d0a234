"""Calibration: the temperature against its definition, the SQL that applies it, the bins, what is stored."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import Answer
from hypothesis import given, settings
from hypothesis import strategies as st

from curator import queries
from curator.curation.account import wilson
from curator.decisions.reviews import add_review
from curator.errors import InputError
from curator.generations import softlabels
from curator.generations.labels import import_labels
from curator.pictures.images import add_images
from curator.quality import calibration, reliability
from curator.storage import additions
from curator.storage.store import Store

NAMES = ("cat", "dog", "owl", "fox")
N, SHARPENED = 400, 2.0


def drawn(n: int, classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits [N, C] that are right about their own uncertainty, and the classes [N] drawn from them."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(n, classes)) * 2
    cumulated = softlabels.softmax(logits).cumsum(axis=1)
    return logits, np.minimum((rng.random(n)[:, None] > cumulated).sum(axis=1), classes - 1)


@pytest.fixture(scope="module")
def made_sharp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a store whose holdout a model called "sharp" labeled with logits twice too large."""
    folder = tmp_path_factory.mktemp("made")
    store = Store.create(folder / "store", NAMES)
    logits, truth = drawn(N, len(NAMES))
    uris = [f"{i:04d}.jpg" for i in range(N)]
    pq.write_table(pa.table({"uri": uris, "label": truth}), folder / "h.parquet")
    add_images(store, str(folder / "h.parquet"), "holdout", scan=False)
    rows = pa.array((logits * SHARPENED).tolist(), pa.list_(pa.float32()))
    pq.write_table(pa.table({"uri": uris, "logits": rows}), folder / "l.parquet")
    import_labels(store, str(folder / "l.parquet"), 0, "sharp")
    return folder


@pytest.fixture
def judged(made_sharp: Path, tmp_path: Path) -> Store:
    """A copy of it that a test may spoil."""
    shutil.copytree(made_sharp / "store", tmp_path / "judged")
    return Store(tmp_path / "judged")


def test_the_temperature_undoes_what_was_done(judged: Store) -> None:
    found = calibration.calibrate(judged)
    assert (found.model, found.generation, found.images) == ("sharp", 0, N)
    assert found.temperature == pytest.approx(SHARPENED, rel=0.2)
    assert found.nll_after < found.nll_before
    assert found.ece_after < found.ece_before / 2


def test_it_is_where_the_nll_is_least(judged: Store) -> None:
    """Looked for on a grid, from the logits that were imported."""
    logits, truth = drawn(N, len(NAMES))

    def nll(temperature: float) -> float:
        probs = softlabels.softmax(logits * SHARPENED / temperature)
        return float(-np.log(probs[np.arange(N), truth].astype(np.float64)).mean())

    grid = np.arange(1.5, 2.6, 0.001)
    best = grid[np.argmin([nll(t) for t in grid])]
    found = calibration.calibrate(judged, dry_run=True)
    assert found.temperature == pytest.approx(best, abs=0.01)  # the stored probabilities are rounded
    assert found.nll_before == pytest.approx(nll(1.0), abs=0.003)
    assert nll(found.temperature) <= found.nll_after <= nll(found.temperature) + 0.01


def test_what_is_stored(judged: Store) -> None:
    before = judged.rows("select * from labels order by image_id")
    assert not calibration.calibrate(judged, dry_run=True).stored
    assert judged.rows("select * from calibrations") == []
    found = calibration.calibrate(judged)
    rows = judged.rows("select * from calibrations")
    assert found.stored
    assert len(rows) == 1
    assert {name: rows[0][name] for name in ("temperature", "nll_before", "nll_after", "ece_before", "ece_after")} == {
        name: getattr(found, name) for name in ("temperature", "nll_before", "nll_after", "ece_before", "ece_after")
    }
    assert not calibration.calibrate(judged).stored  # the same again
    assert judged.rows("select * from labels order by image_id") == before


def test_reading_stores_and_fits_nothing(judged: Store) -> None:
    found = calibration.read(judged, 0)
    assert found is not None
    assert (found.fit, found.bins_after, judged.rows("select * from calibrations")) == (None, [], [])
    fitted = calibration.calibrate(judged, min_confidence=0.8)
    assert (found.bins, found.ece, found.nll) == (fitted.bins, fitted.ece_before, fitted.nll_before)
    images, right = found.above(0.8, len(NAMES))
    assert images.tolist() == [row["images"] for row in fitted.classes]
    assert (right / images).tolist() == [row["precision"] for row in fitted.classes]
    after = calibration.read(judged, 0)
    assert after is not None
    assert after.fit is not None
    assert after.fit["temperature"] == fitted.temperature
    assert calibration.ece(after.bins_after) == pytest.approx(fitted.ece_after, abs=0.02)
    assert calibration.read(judged, 1) is None


def test_a_store_that_is_older_than_the_table(judged: Store) -> None:
    shutil.rmtree(judged.path / "calibrations", ignore_errors=True)
    assert judged.rows("select * from calibrations") == []
    assert calibration.calibrate(judged).stored
    assert len(judged.rows("select * from calibrations")) == 1


def test_the_newest_fit_counts(judged: Store) -> None:
    calibration.calibrate(judged)
    row = judged.rows("select * from calibrations")[0]
    later = row | {"temperature": 3.0, "fitted_at": row["fitted_at"].replace(year=row["fitted_at"].year + 1)}
    additions.append(judged, "calibrations", pa.Table.from_pylist([later], calibration.CALIBRATIONS.schema))
    con = judged.connect()
    newest = queries.rows(con, queries.text("calibration"), generation=0, model="sharp")
    assert [row["temperature"] for row in newest] == [3.0]
    assert queries.rows(con, queries.text("calibration"), generation=1, model="sharp") == []
    con.close()
    fitted = calibration.calibrate(judged)  # a year earlier, by the clock
    found = calibration.read(judged, 0)
    assert found is not None
    assert found.fit is not None
    assert (fitted.stored, found.fit["temperature"]) == (True, row["temperature"])


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 12), st.integers(1, 12), st.floats(0.05, 20), st.integers(0, 2**32 - 1))
def test_calibrated_sql(classes: int, kept: int, temperature: float, seed: int) -> None:
    """Against expand(), which makes targets, given the confidence as it was before rounding."""
    rng = np.random.default_rng(seed)
    summary = softlabels.summarize(softlabels.softmax(rng.normal(size=(20, classes)) * rng.uniform(0.1, 10)), kept)
    con = duckdb.connect()
    labels = softlabels.table(summary, range(20), 0, "m", ["holdout"] * 20)
    con.register("uncalibrated", labels)
    con.register("stored_classes", pa.table({"label": range(classes)}))
    answer = con.sql(queries.text("calibrated"), params={"T": temperature}).to_arrow_table()
    assert answer.schema.names == [*labels.schema.names, "calibrated"]
    assert answer.schema.field("calibrated").type == pa.float32()
    top = summary.top_probs.copy()
    top[:, 0] = summary.confidence
    targets = softlabels.expand(summary.top_classes, top, summary.tail, classes, temperature)
    expected = targets[np.arange(20), summary.label]
    np.testing.assert_allclose(answer["calibrated"].to_numpy(), expected, rtol=2e-5)
    if temperature == 1:
        np.testing.assert_allclose(answer["calibrated"].to_numpy(), summary.confidence, atol=0.002)


def test_without_rounding_it_is_the_softmax(judged: Store) -> None:
    """A temperature divides the logits; what is left is what rounding took, and the confidence at 1 is as it was."""
    logits, _ = drawn(N, len(NAMES))
    con = judged.connect()
    for temperature in (0.5, 1.0, 2.0):
        steps = {"uncalibrated": "select * from stored_labels"}
        rows = queries.rows(
            con,
            f"select i.uri, c.calibrated from ({queries.compose(steps, queries.text('calibrated'))}) as c"
            " join images as i using (image_id) order by i.uri",
            T=temperature,
        )
        expected = softlabels.softmax(logits * SHARPENED / temperature).max(axis=1)
        np.testing.assert_allclose([row["calibrated"] for row in rows], expected, atol=0.003)
    con.close()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1, width=32), st.booleans()), min_size=1, max_size=50))
def test_bins_and_their_error(images: list[tuple[float, bool]]) -> None:
    """Each image in the bin of its confidence, and the gaps of the bins weighed by their images."""
    confidence = np.array([c for c, _ in images], np.float32)
    right = np.array([r for _, r in images])
    bins = calibration.reliability(confidence, right)
    assert sum(row["images"] for row in bins) == len(images)
    inside: dict[int, list[tuple[float, bool]]] = {}
    for value, hit in zip(confidence, right, strict=True):
        inside.setdefault(min(int(value * np.float32(15)), 14), []).append((float(value), bool(hit)))
    gaps = [abs(sum(hit - value for value, hit in each)) for each in inside.values()]
    assert calibration.ece(bins) == pytest.approx(sum(gaps) / len(images), abs=1e-9)
    for row in bins:
        assert row["low"] - 1e-7 <= row["confidence"] <= row["high"] + 1e-7
        assert row["accuracy_low"] - 1e-9 <= row["accuracy"] <= row["accuracy_high"] + 1e-9


def test_error_by_hand() -> None:
    def error(confidence: list[float], right: list[bool]) -> float:
        return calibration.ece(calibration.reliability(np.array(confidence), np.array(right)))

    assert error([0.7, 0.7, 0.7, 0.7, 0.95, 0.95], [True, True, False, False, True, True]) == pytest.approx(0.9 / 6)
    assert (error([1.0] * 3, [True] * 3), error([1.0] * 3, [False] * 3)) == (0, 1)
    assert error([0.95, 1.0], [True, False]) == pytest.approx(0.95 / 2)  # 1 is in the last bin
    confidence = np.random.default_rng(0).uniform(0, 1, 200_000)
    right = np.random.default_rng(1).uniform(0, 1, 200_000) < confidence
    assert calibration.ece(calibration.reliability(confidence, right)) < 0.01


def test_decisions_on_the_holdout(judged: Store) -> None:
    """A rejected image does not count, a relabeled one under its new class."""
    before = calibration.calibrate(judged, dry_run=True)
    rows = judged.rows(
        "select l.image_id, l.label, i.label as truth from labels as l join images as i using (image_id) order by 1"
    )
    hits, misses = ([row for row in rows if (row["label"] == row["truth"]) is right] for right in (True, False))
    add_review(judged, hits[0]["image_id"], "reject")
    add_review(judged, misses[0]["image_id"], "relabel", NAMES[misses[0]["label"]])
    after = calibration.calibrate(judged, min_confidence=0, dry_run=True)
    assert (before.images, after.images) == (N, N - 1)
    assert after.top1 * (N - 1) == pytest.approx(before.top1 * N)  # one right image less, and one more
    assert sum(row["images"] for row in after.classes) == N - 1


def test_the_precision_of_each_class(judged: Store) -> None:
    found = calibration.calibrate(judged, min_confidence=0.8, dry_run=True)
    rows = judged.rows(
        "select l.label, count(*) as n, count(*) filter (l.label = i.label) as hits from labels as l"
        " join images as i using (image_id) where l.confidence > 0.8::FLOAT group by all order by all"
    )
    for row, expected in zip(found.classes, rows, strict=True):
        low, high = wilson(expected["hits"], expected["n"])
        assert (row["label"], row["images"]) == (expected["label"], expected["n"])
        assert row["precision"] == expected["hits"] / expected["n"]
        assert (row["precision_low"], row["precision_high"]) == (low, high)
    assert calibration.calibrate(judged, min_confidence=1.0, dry_run=True).classes[0]["precision"] is None


@pytest.mark.parametrize(
    ("rows", "label", "at_an_end"),
    [
        ([[1, 0], [1, 0], [1, 0]], 1, True),
        ([[0.5, 0.5], [0.5, 0.5], [0.5, 0.5]], 1, True),
        ([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]], 1, True),
        ([[0.1, 0.9], [0.2, 0.8], [0.7, 0.3]], 1, True),
        ([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3]], 1, False),
    ],
)
def test_a_holdout_that_says_nothing_about_the_temperature(
    rows: list[list[float]], label: int, at_an_end: bool, tmp_path: Path, curator: Callable[..., Answer]
) -> None:
    """One that is never wrong wants no doubt at all, and even distributions stay even: a number all the same."""
    store = Store.create(tmp_path / "store", NAMES[:2])
    uris = [f"{i}.jpg" for i in range(3)]
    pq.write_table(pa.table({"uri": uris, "label": [0, 0, label]}), tmp_path / "h.parquet")
    add_images(store, str(tmp_path / "h.parquet"), "holdout", scan=False)
    probs = pa.array(rows, pa.list_(pa.float32()))
    pq.write_table(pa.table({"uri": uris, "probs": probs}), tmp_path / "l.parquet")
    import_labels(store, str(tmp_path / "l.parquet"), 0, "m")
    found = calibration.calibrate(store)
    assert calibration.LEAST <= found.temperature <= calibration.MOST
    assert np.isfinite([found.nll_before, found.nll_after]).all()
    assert found.is_at_an_end == at_an_end, found.temperature
    text = curator("quality", "calibration", "--store", store.path, "--dry-run").out
    assert ("the holdout sets no bound" in text) == at_an_end, text


def test_the_command(judged: Store, curator: Callable[..., Answer], tmp_path: Path) -> None:
    answer = curator("quality", "calibration", "--store", judged.path, "--plot", tmp_path / "a.png", "--json")
    assert answer.code == 0, answer.err
    assert {"model", "generation", "temperature", "ece_before", "ece_after", "bins", "classes"} <= answer.json.keys()
    assert answer.json["stored"]
    text = curator("quality", "calibration", "--store", judged.path, "--plot", tmp_path / "b.png", "--dry-run")
    assert "overconfident), not stored" in text.out
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    for wrong, what in (("a.png", "exists"), ("a.gif", "does not end in"), ("none/a.png", "there is no folder")):
        refused = curator("quality", "calibration", "--store", judged.path, "--plot", tmp_path / wrong)
        assert (refused.code, what in refused.err) == (2, True)


def test_svg_and_pdf_are_the_same_again(judged: Store, tmp_path: Path) -> None:
    found = calibration.calibrate(judged, dry_run=True)
    for ending in ("svg", "pdf"):
        for name in ("a", "b"):
            reliability.draw(found, tmp_path / f"{name}.{ending}")
        assert (tmp_path / f"a.{ending}").read_bytes() == (tmp_path / f"b.{ending}").read_bytes()


def test_models_that_labeled_no_holdout(store: Store, judged: Store) -> None:
    with pytest.raises(InputError, match="no model has labeled the holdout"):
        calibration.calibrate(store)
    with pytest.raises(InputError, match="there is no model 'nope'") as told:
        calibration.calibrate(store, "nope")
    assert told.value.mend == "the models are outside"
    # one that was named by an import has no weights to label with
    with pytest.raises(InputError, match="no model has labeled the holdout") as told:
        calibration.calibrate(store, "outside")
    assert told.value.mend.startswith("curator import-labels FILE --generation 0 --model outside")
    with pytest.raises(InputError, match="there is no model 'shap'; did you mean 'sharp'"):
        calibration.calibrate(judged, "shap")


def test_a_true_class_that_was_cut() -> None:
    """It has its share of the tail, at every temperature."""
    table: dict[str, Any] = {
        "image_id": [0], "is_right": [False], "confidence": pa.array([0.6], pa.float32()),
        "top_probs": pa.array([[0.6]], pa.list_(pa.float32())), "tail": pa.array([0.4], pa.float32()),
        "cut": [4], "rank": [0],
    }  # fmt: skip
    judged = calibration._judged(pa.table(table))
    assert np.exp(-judged.nll(1.0))[0] == pytest.approx(0.1)
    roots = np.sqrt([0.6, 0.1, 0.1, 0.1, 0.1])
    assert np.exp(-judged.nll(2.0))[0] == pytest.approx(roots[1] / roots.sum())
    assert judged.confidence(2.0)[0] == pytest.approx(roots[0] / roots.sum())
