"""Soft labels as numbers, against statements of the same rules in plain Python."""

import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curator.errors import InputError
from curator.generations import softlabels
from curator.schema import LABELS

FLOATS = ["float16", "float32", "float64"]


def distributions(n: int, classes: int, scale: float = 3.0, seed: int = 0) -> np.ndarray:
    """Softmax outputs [n, classes] of random logits."""
    return softlabels.softmax(np.random.default_rng(seed).normal(0, scale, (n, classes)))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ([0.5, 0.5, 0], None),
        ([1, 0, 0], None),
        ([1, -0.0, 0], None),
        ([0.5, 0.25, 0.2505], None),
        ([0.5, 0.25, 0.2495], None),
        ([0.5, 0.25, 0.2520], "sums to 1.00"),
        ([0.5, 0.25, 0.2480], "sums to 0.99"),
        ([0, 0, 0], "sums to 0, not to 1"),
        ([0.5, math.nan, 0.5], "NaN or infinity"),
        ([math.inf, 0, 0], "NaN or infinity"),
        ([math.inf, -math.inf, 1], "NaN or infinity"),
        ([1.001, -0.001, 0], "outside 0 to 1"),
        ([0.6, 0.6, -0.2], "outside 0 to 1"),
        ([1.001, 0, 0], "outside 0 to 1"),
    ],
)
def test_problems_of_one_row(row: list[float], reason: str | None, dtype: str) -> None:
    found = softlabels.problems(np.array([[0.2, 0.3, 0.5], row], dtype))
    if reason is None:
        assert found == {}
    else:
        assert list(found) == [1]
        assert reason in found[1]


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_softmax_over_many_classes_is_taken_in_every_width(dtype: str) -> None:
    assert softlabels.problems(distributions(200, 1000).astype(dtype)) == {}


def test_the_tolerance_of_the_sum_is_a_thousandth() -> None:
    rows = np.array([[0.5, 0.50099], [0.5, 0.50101], [0.5, 0.49901], [0.5, 0.49899]])
    assert list(softlabels.problems(rows)) == [1, 3]
    assert softlabels.problems(rows[:0]) == {}


def test_a_top_leaves_no_more_than_the_other_classes_can_hold() -> None:
    """0.3 on top of three classes leaves 0.7 to two others, which could hold 0.6 and be no higher than the top."""
    left = np.array([2, 2, 1, 0])
    rows = np.array([[0.34], [0.3], [0.5], [0.5]])
    found = softlabels.problems(rows, left)
    assert list(found) == [1, 3]
    assert found[1] == "sums to 0.3, and the rest is more than the other classes can hold"
    assert found[3] == "sums to 0.5, not to 1"


# What is kept


def stated(row: np.ndarray, kept: int) -> dict[str, object]:
    """The summary of one float32 row, in plain Python numbers."""
    values = [float(p) for p in row]
    order = sorted(range(len(values)), key=lambda c: (-values[c], c))
    top = order[: min(kept, len(values))]
    second = values[order[1]] if len(order) > 1 else 0.0
    return {
        "label": top[0],
        "confidence": np.float32(values[top[0]]),
        "margin": np.float32(values[top[0]]) - np.float32(second),
        "entropy": -math.fsum(p * math.log(p) for p in values if p > 0),
        "top_classes": top,
        "top_probs": [values[c] for c in top],
        "tail": math.fsum(values[c] for c in order[len(top) :]),
    }


def check_summary(probs: np.ndarray, kept: int) -> None:
    """Compares `summarize` with the statement above: exact, but for entropy and rounding (see test_storage.py)."""
    got = softlabels.summarize(probs, kept)
    for column in got:
        assert len(column) == len(probs)
    for i, row in enumerate(probs):
        want = stated(row, kept)
        assert got.label[i] == want["label"]
        assert got.confidence[i] == want["confidence"]
        assert got.margin[i] == want["margin"]
        assert got.entropy[i] == pytest.approx(want["entropy"], rel=1e-5, abs=1e-6)
        assert got.top_classes[i].tolist() == want["top_classes"]
        np.testing.assert_allclose(got.top_probs[i], want["top_probs"], rtol=2**-6, atol=0)
        assert got.tail[i] == pytest.approx(want["tail"], rel=2**-6, abs=1e-7)
    for column in (got.confidence, got.margin, got.entropy, got.top_probs, got.tail):
        assert column.dtype == np.float32


weights = st.integers(0, 5)  # few values, so that ties and zeros are common


@given(st.lists(st.lists(weights, min_size=4, max_size=4).filter(any), min_size=1, max_size=4), st.integers(1, 6))
@settings(deadline=None)
def test_summarize_with_ties(rows: list[list[int]], kept: int) -> None:
    probs = np.array(rows, np.float32)
    check_summary(probs / probs.sum(axis=1, keepdims=True), kept)


@pytest.mark.parametrize(("classes", "kept"), [(1, 20), (2, 1), (10, 10), (50, 20), (1000, 20), (1000, 1)])
def test_summarize_of_softmax_outputs(classes: int, kept: int) -> None:
    check_summary(distributions(30, classes), kept)


def test_ties_take_the_lowest_class_in_every_place() -> None:
    got = softlabels.summarize(np.full((3, 300), 1 / 300, np.float32), 20)
    assert got.label.tolist() == [0, 0, 0]
    assert got.top_classes.tolist() == [list(range(20))] * 3
    assert got.margin.tolist() == [0, 0, 0]
    assert got.tail == pytest.approx(280 / 300, abs=2**-12)


def test_negative_zero_is_zero() -> None:
    got = softlabels.summarize(np.array([[-0.0, 1.0, -0.0, 0.0]], np.float32), 4)
    assert got.top_classes.tolist() == [[1, 0, 2, 3]]
    assert not np.signbit(got.top_probs).any()
    assert got.entropy.tolist() == [0]
    assert not np.signbit(got.entropy).any()


def test_one_class() -> None:
    got = softlabels.summarize(np.ones((2, 1), np.float32), 20)
    assert [column.tolist() for column in got] == [[0, 0], [1, 1], [1, 1], [0, 0], [[0], [0]], [[1], [1]], [0, 0]]


def test_nothing_is_renormalised() -> None:
    got = softlabels.summarize(np.array([[0.6, 0.3, 0.0995]], np.float32), 2)
    assert got.confidence[0] == np.float32(0.6)
    assert got.tail[0] == pytest.approx(0.0995, abs=2**-12)
    assert softlabels.summarize(np.array([[0.6, 0.3, 0.0995]], np.float32), 3).tail.tolist() == [0]


def test_confidence_is_not_rounded_and_stored_probabilities_are() -> None:
    got = softlabels.summarize(np.array([[0.7001, 0.2999]], np.float32), 20)
    assert got.confidence[0] == np.float32(0.7001)
    assert got.margin[0] == np.float32(0.7001) - np.float32(0.2999)
    assert got.top_probs[0, 0] != np.float32(0.7001)


# Labels of which only the top is known


def test_summarize_top_orders_and_spreads_the_rest() -> None:
    got = softlabels.summarize_top(np.array([[4, 1, 2]]), np.array([[0.2, 0.5, 0.2]], np.float32), 20, 6)
    assert got.label.tolist() == [1]
    assert got.top_classes.tolist() == [[1, 2, 4]]
    assert got.top_probs[0] == pytest.approx([0.5, 0.2, 0.2], abs=2**-12)
    assert got.tail[0] == pytest.approx(0.1, abs=2**-12)
    spread = [0.5, 0.2, 0.2] + [0.1 / 3] * 3
    assert got.entropy[0] == pytest.approx(-sum(p * math.log(p) for p in spread), rel=1e-6)


@given(st.integers(1, 8), st.integers(1, 8), st.integers(0, 1000))
@settings(deadline=None)
def test_summarize_top_of_all_classes_is_summarize(classes: int, kept: int, seed: int) -> None:
    probs = distributions(3, classes, seed=seed)
    order = np.argsort(np.random.default_rng(seed).random((3, classes)), axis=1)
    want = softlabels.summarize(probs, kept)
    got = softlabels.summarize_top(order, np.take_along_axis(probs, order, axis=1), kept, classes)
    for name, a, b in zip(want._fields, got, want, strict=True):
        if name == "margin" and classes == 1:
            continue
        # What is left over comes from two sums, and may be rounded to neighbouring steps.
        np.testing.assert_allclose(a, b, rtol=2**-5 if name == "tail" else 1e-5, atol=1e-6, err_msg=name)


def test_summarize_top_cuts_to_the_kept_classes() -> None:
    got = softlabels.summarize_top(np.array([[0, 1, 2]]), np.array([[0.5, 0.3, 0.1]], np.float32), 2, 4)
    assert got.top_classes.tolist() == [[0, 1]]
    assert got.tail[0] == pytest.approx(0.2, abs=2**-12)
    assert got.margin[0] == np.float32(0.5) - np.float32(0.3)
    alone = softlabels.summarize_top(np.array([[2]]), np.array([[0.6]], np.float32), 20, 5)
    assert alone.margin[0] == pytest.approx(0.6 - 0.1), "the rest, spread evenly, is the second"


def test_summarize_top_of_rows_of_different_length() -> None:
    classes, probs = np.array([[-1, 3, 0], [2, 1, 0]]), np.array([[0, 0.7, 0.0], [0.1, 0.2, 0.7]], np.float32)
    got = softlabels.summarize_top(classes, probs, 20, 4)
    assert got.top_classes.tolist() == [[3, 0, -1], [0, 1, 2]]
    assert got.tail == pytest.approx([0.3, 0], abs=2**-12)
    assert got.margin == pytest.approx([0.7 - 0.15, 0.5])


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 1000))
@settings(deadline=None)
def test_expand_gives_the_distribution_back(classes: int, kept: int, seed: int) -> None:
    probs = distributions(3, classes, seed=seed)
    got = softlabels.summarize(probs, kept)
    read = softlabels.expand(got.top_classes, got.top_probs, got.tail, classes)
    assert read.shape == probs.shape
    assert read.dtype == np.float32
    assert read.sum(axis=1) == pytest.approx(1, abs=1e-6)
    kept_of = np.take_along_axis(probs, got.top_classes, axis=1)
    np.testing.assert_allclose(np.take_along_axis(read, got.top_classes, axis=1), kept_of, rtol=2**-5)
    if kept >= classes:
        np.testing.assert_allclose(read, probs, rtol=2**-5)
    else:
        rest = read.copy()
        np.put_along_axis(rest, got.top_classes, np.nan, axis=1)
        spread = np.nanmax(rest, axis=1) - np.nanmin(rest, axis=1)
        assert (spread == 0).all(), "the tail is spread evenly"


def test_expand_reads_short_rows() -> None:
    read = softlabels.expand(
        np.array([[2, -1], [0, 1]]), np.array([[1, 9], [0.75, 0.25]], np.float32), np.zeros(2, np.float32), 3
    )
    assert read.tolist() == [[0, 0, 1], [0.75, 0.25, 0]]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 10.0])
def test_expand_with_a_temperature(temperature: float) -> None:
    top, tail = np.array([[0.5, 0.3]], np.float32), np.array([0.2], np.float32)
    read = softlabels.expand(np.array([[3, 0]]), top, tail, 4, temperature)
    powers = [p ** (1 / temperature) for p in (0.3, 0.1, 0.1, 0.5)]
    assert read[0] == pytest.approx([p / sum(powers) for p in powers], rel=1e-5)


@pytest.mark.parametrize("temperature", [1e-3, 1e-2, 1e3])
def test_expand_stays_a_distribution_at_extreme_temperatures(temperature: float) -> None:
    probs = distributions(20, 1000)
    got = softlabels.summarize(probs, 20)
    read = softlabels.expand(got.top_classes, got.top_probs, got.tail, 1000, temperature)
    assert np.isfinite(read).all()
    assert read.sum(axis=1) == pytest.approx(1, abs=1e-5)


# Somebody's file


def test_table_is_of_the_labels_schema_and_keeps_rows_of_different_length() -> None:
    summary = softlabels.summarize_top(
        np.array([[3, -1], [2, 1]]), np.array([[0.75, 0], [0.25, 0.5]], np.float32), 20, 4
    )
    table = softlabels.table(summary, [7, 8], 3, "m", ["unlabeled", "holdout"])
    assert table.schema == LABELS.schema
    assert table["top_classes"].to_pylist() == [[3], [1, 2]]
    assert table["top_probs"].to_pylist() == [[0.75], [0.5, 0.25]]
    assert table["image_id"].to_pylist() == [7, 8]
    assert set(table["generation"].to_pylist()) == {3}


def test_read_says_what_is_wrong_with_each_row() -> None:
    batch = pa.record_batch(
        {
            "top_classes": pa.array([[0, 1], [0, 0], [0, 3], [None], None, [], [1], [2, 1, 0], [0, 1, 2]]),
            "top_probs": pa.array(
                [[0.7, 0.2], [0.7, 0.2], [0.7, 0.2], [0.9], [0.9], [], [None], [0.5, 0.4], [0.2, 0.2, 0.2]],
                pa.list_(pa.float32()),
            ),
        }
    )
    summary, good, bad = softlabels.read(batch, 3, 20)
    assert good.tolist() == [0]
    assert summary.label.tolist() == [0]
    assert bad == {
        1: "names a class twice or outside 0 to 2",
        2: "names a class twice or outside 0 to 2",
        3: "names a class twice or outside 0 to 2",
        4: "has 1 top_probs and null instead of top_classes",
        5: "has 0 top_probs and 0 top_classes",
        6: "holds NaN or infinity",
        7: "has 2 top_probs and 3 top_classes",
        8: "sums to 0.6, not to 1",
    }


def test_logits_and_probabilities_give_the_same_summary() -> None:
    logits = np.random.default_rng(0).normal(0, 4, (10, 5))
    lists = pa.array(list(logits))
    a, good, bad = softlabels.read(pa.record_batch({"logits": lists}), 5, 3)
    assert (good.tolist(), bad) == (list(range(10)), {})
    b, _, _ = softlabels.read(pa.record_batch({"probs": pa.array(list(softlabels.softmax(logits)))}), 5, 3)
    for x, y in zip(a, b, strict=True):
        np.testing.assert_array_equal(x, y)


def test_softmax_does_not_overflow() -> None:
    assert softlabels.softmax(np.array([[1e4, 0], [-1e4, -1e4]], np.float32)).tolist() == [[1, 0], [0.5, 0.5]]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"top_probs": [[1.0]]}, "no soft labels; its columns are top_probs"),
        ({"confidence": [1.0]}, "no soft labels; its columns are confidence"),
        ({"probs": [0.3]}, "holds double, not lists of numbers"),
        ({"probs": [["a"]]}, "not lists of numbers"),
        ({"top_probs": [[1.0]], "top_classes": [[0.0]]}, "not lists of integers"),
    ],
)
def test_read_refuses_other_columns(columns: dict[str, list[object]], message: str) -> None:
    with pytest.raises(InputError, match=message):
        softlabels.read(pa.record_batch({name: pa.array(values) for name, values in columns.items()}), 3, 20)
