"""Bootstrap: resamples are what they are called, and intervals are as wide as theory has them."""

import numpy as np
import pytest

from curator.measures import bootstrap, estimates, outside
from curator.measures.evaluation import Answers, judge
from curator.quality.calibration import ece, reliability


def test_resamples() -> None:
    drawn = np.concatenate(list(bootstrap.counts(40, 0)))
    assert drawn.shape == (bootstrap.DRAWS, 40)
    assert (drawn.sum(axis=1) == 40).all()
    assert drawn.mean(axis=0) == pytest.approx(np.ones(40), abs=0.15)
    assert drawn.var() == pytest.approx(1 - 1 / 40, rel=0.03)  # binomial, of 40 draws with a probability of 1/40
    assert (np.concatenate(list(bootstrap.counts(40, 0))) == drawn).all()
    assert (np.concatenate(list(bootstrap.counts(40, 1))) != drawn).any()


def test_intervals_are_as_wide_as_the_normal_one() -> None:
    right = np.arange(2000) % 10 < 9
    low, high = bootstrap.interval(bootstrap.means(right[:, None], 0)[:, 0])
    half = 1.96 * np.sqrt(0.9 * 0.1 / 2000)
    assert (low, high) == pytest.approx((0.9 - half, 0.9 + half), abs=0.002)
    assert bootstrap.interval(bootstrap.means(np.ones((50, 1)), 0)[:, 0]) == (1, 1)
    assert all(np.isnan(bootstrap.interval(np.full(5, np.nan))))


def test_many_images_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    columns = np.random.default_rng(0).random((30, 3))
    whole = bootstrap.means(columns, 5)
    monkeypatch.setattr(bootstrap, "_AT_ONCE", 70)
    assert bootstrap.means(columns, 5) == pytest.approx(whole, abs=1e-6)


def answers(count: int = 300) -> Answers:
    rng = np.random.default_rng(2)
    return judge(rng.dirichlet(np.ones(8), count).astype(np.float32), rng.integers(0, 8, count))


def test_judging() -> None:
    probs = np.array([[0.1, 0.4, 0.4, 0.05, 0.02, 0.02, 0.01]] * 4, np.float32)
    found = judge(probs, np.array([1, 2, 6, 5]))
    assert found.top.tolist() == [1, 1, 1, 1]  # the lowest of equal ones
    assert found.right.tolist() == [True, False, False, False]
    assert found.right5.tolist() == [True, True, False, False]  # 4 and 5 are equal, 4 is fifth
    assert found.confidence == pytest.approx(0.4)


def test_measured_by_hand() -> None:
    found, other = answers(), answers(300)._replace(label=(answers().label + 1) % 8)
    told, drawn = estimates.measured([found, other], 4)
    assert drawn.shape == (2, bootstrap.DRAWS)
    counts = np.concatenate(list(bootstrap.counts(300, 4))).astype(int)
    resampled = {name: [] for name in estimates.MEASURES}
    for row in counts:
        some = np.repeat(np.arange(300), row)
        right, confidence = found.right[some], found.confidence[some]
        resampled["top1"].append(right.mean())
        resampled["top5"].append(found.right5[some].mean())
        resampled["ece"].append(ece(reliability(confidence, right)))
        resampled["confidence"].append(confidence.mean())
    for name, values in resampled.items():
        assert told[0][name][1] == pytest.approx(np.percentile(values, (2.5, 97.5)), abs=1e-5), name
    assert told[0]["ece"][0] == ece(reliability(found.confidence, found.right))
    assert told[1]["top1"][0] == other.right.mean()


def test_classes() -> None:
    found = answers()
    rows = estimates.classes(found, [f"c{i}" for i in range(8)], 0)
    assert [row["class_name"] for row in rows] == [f"c{i}" for i in range(8)]
    assert sum(row["images"] for row in rows) == 300
    for row in rows:
        own = found.right[found.label == row["label"]]
        assert row["top1"] == pytest.approx(own.mean())
        assert 0 <= row["top1_low"] <= row["top1"] <= row["top1_high"] <= 1
        spread = np.sqrt(own.mean() * (1 - own.mean()) / len(own))
        assert row["top1_high"] - row["top1_low"] == pytest.approx(2 * 1.96 * spread, rel=0.3, abs=0.02)
    only = estimates.classes(found._replace(label=np.full(300, 3)), ["a", "b", "c", "d"], 0)
    assert [row["class_name"] for row in only] == ["d"]


def test_a_class_of_one_image() -> None:
    label = np.array([0] * 20 + [1])
    found = Answers(label, np.zeros(21, np.int64), np.ones(21, bool), np.full(21, 0.5, np.float32))
    alone = estimates.classes(found, ["a", "b"], 0)[1]
    assert (alone["images"], alone["top1"], alone["top1_low"], alone["top1_high"]) == (1, 0, 0, 0)
    assert alone["wilson_high"] > 0.7


def test_separation_by_all_pairs() -> None:
    rng = np.random.default_rng(0)
    inside, beyond = rng.normal(1, 1, 40).round(1), rng.normal(0, 1, 30).round(1)  # with equal ones
    told = outside.separation({"confidence": inside}, {"confidence": beyond}, 0)
    pairs = np.sign(inside[:, None] - beyond[None, :])
    value, (low, high) = told["auroc_confidence"]
    assert value == pytest.approx((pairs.mean() + 1) / 2)
    assert low < value < high
    assert high - low == pytest.approx(0.2, abs=0.1)
    least = max(t for t in inside if (inside >= t).mean() >= 0.95)
    assert told["fpr95_confidence"][0] == pytest.approx((beyond >= least).mean())
    same = outside.separation({"x": np.ones(5)}, {"x": np.ones(9)}, 0)
    assert same["auroc_x"] == (0.5, (0.5, 0.5))
    assert same["fpr95_x"][0] == 1


def test_boldness() -> None:
    told = outside.boldness(np.array([0.2, 0.3, 0.4, 0.95], np.float32), 0)
    values = {name: value for name, (value, _) in told.items()}
    assert values == pytest.approx({"confidence": 0.4625, "above_0.3": 0.5, "above_0.5": 0.25, "above_0.9": 0.25})
