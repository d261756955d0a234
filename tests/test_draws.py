"""The random numbers: permutations, uniformity, independence of batching, and values that must never change."""

from collections import Counter
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curator import draws

KEY = draws.key(0, "test")


@pytest.mark.parametrize("size", range(1, 301))
def test_shuffle_is_a_permutation(size: int) -> None:
    assert np.array_equal(np.sort(draws.shuffle(KEY, np.arange(size), size)), np.arange(size))


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**64), size=st.integers(1, 5000))
def test_shuffle_is_a_permutation_for_any_key(seed: int, size: int) -> None:
    order = draws.shuffle(draws.key(seed), np.arange(size), size)
    assert np.array_equal(np.sort(order), np.arange(size))


@pytest.mark.parametrize("size", [2**16 - 1, 2**16, 2**16 + 1, 250_000])
def test_shuffle_of_a_large_range_is_a_permutation(size: int) -> None:
    assert np.array_equal(np.sort(draws.shuffle(KEY, np.arange(size), size)), np.arange(size))


@pytest.mark.parametrize("size", [2**31, 300_000_000, 2**40 + 1, 2**62])
def test_shuffle_of_a_range_that_fits_no_memory(size: int) -> None:
    positions = np.concatenate([np.arange(5000), size - 1 - np.arange(5000)])
    order = draws.shuffle(KEY, positions, size)
    assert order.dtype == np.int64
    assert order.min() >= 0
    assert order.max() < size
    assert len(np.unique(order)) == len(positions)
    # 10,000 numbers spread over the range: the mean is within five standard deviations of the middle
    assert abs(order.mean() / size - 0.5) < 5 * 0.2887 / 100


@settings(max_examples=50, deadline=None)
@given(size=st.integers(1, 10**6), cuts=st.lists(st.integers(0, 200), max_size=5), data=st.data())
def test_values_do_not_depend_on_the_batching(size: int, cuts: list[int], data: st.DataObject) -> None:
    positions = np.array(data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=200)))
    pieces = np.split(positions, sorted(cuts))
    whole = draws.shuffle(KEY, positions, size)
    assert np.array_equal(whole, np.concatenate([draws.shuffle(KEY, piece, size) for piece in pieces]))
    numbers = draws.uniforms(KEY, positions, 3)
    assert np.array_equal(numbers, np.concatenate([draws.uniforms(KEY, piece, 3) for piece in pieces]))
    assert np.array_equal(numbers[:, :2], draws.uniforms(KEY, positions, 2))


def test_keys_are_told_apart_by_every_part() -> None:
    keys = [
        draws.key(0), draws.key(1), draws.key(0, "a"), draws.key(0, "b"), draws.key(0, "a", 1), draws.key(0, "a", 2),
        draws.key(0, "a", "1", "2"), draws.key(0, "a", "12"), draws.key(1, "a"), draws.key(10, "a"),
    ]  # fmt: skip
    assert len(set(keys)) == len(keys)
    assert draws.key(0, "a", 1) == draws.key(0, "a", "1")


def test_different_keys_give_different_permutations() -> None:
    orders = {tuple(draws.shuffle(draws.key(seed), np.arange(100), 100)) for seed in range(200)}
    assert len(orders) == 200
    numbers = np.concatenate([draws.uniforms(draws.key(seed), np.arange(100), 2) for seed in range(50)])
    assert len(np.unique(numbers)) == numbers.size


def test_every_order_of_a_small_range_comes_about_equally_often() -> None:
    # 24 orders of 4, 12,000 keys: 500 each, standard deviation 22
    counts = Counter(tuple(draws.shuffle(draws.key(seed), np.arange(4), 4)) for seed in range(12_000))
    assert set(counts) == set(permutations(range(4)))
    assert min(counts.values()) > 390
    assert max(counts.values()) < 610


def test_a_position_goes_everywhere_and_neighbours_part() -> None:
    # 10 boxes of 100, 2,000 keys: 200 each, standard deviation 13
    orders = np.array([draws.shuffle(draws.key(seed), [0, 1, 499], 1000) for seed in range(2000)])
    for column in orders.T:
        counts = np.bincount(column // 100, minlength=10)
        assert counts.min() > 135
        assert counts.max() < 265
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert abs(np.corrcoef(orders[:, a], orders[:, b])[0, 1]) < 0.11  # five standard deviations


def test_uniforms_are_uniform_and_unrelated() -> None:
    numbers = draws.uniforms(KEY, np.arange(50_000), 4)
    assert numbers.shape == (50_000, 4)
    assert numbers.dtype == np.float64
    assert numbers.min() >= 0
    assert numbers.max() < 1
    counts = np.apply_along_axis(lambda column: np.histogram(column, 20, (0, 1))[0], 0, numbers)
    assert abs(counts - 2500).max() < 5 * np.sqrt(2500)
    correlations = np.corrcoef(np.hstack([numbers[:-1], numbers[1:]]).T) - np.eye(8)
    assert abs(correlations).max() < 5 / np.sqrt(50_000)


def test_uniforms_use_all_53_bits() -> None:
    bits = (draws.uniforms(KEY, np.arange(1000), 1) * 2**53).astype(np.uint64)
    assert np.bitwise_or.reduce(bits) == np.uint64(2**53 - 1) == np.bitwise_or.reduce(~bits & np.uint64(2**53 - 1))


def test_no_overflow_warning_anywhere() -> None:
    # pytest makes every warning an error; a single number is where numpy would warn of a wrapped product
    for seed in range(20):
        key = draws.key(seed, 2**70)
        draws.uniforms(key, [2**63 - 1], 1)
        draws.shuffle(key, [0], 1)
        draws.shuffle(key, np.array([2**62]), 2**63 - 1)


def test_nothing_in_nothing_out() -> None:
    assert draws.shuffle(KEY, np.empty(0, np.int64), 10).shape == (0,)
    assert draws.uniforms(KEY, np.empty(0, np.int64), 5).shape == (0, 5)


def test_golden_values() -> None:
    """Manifests, splits and training runs of users depend on these streams; they must not change."""
    assert int(draws.key(0, "order", "labeled", 0)) == GOLDEN_KEY
    assert draws.shuffle(KEY, np.arange(12), 12).tolist() == GOLDEN_ORDER
    assert draws.shuffle(KEY, [0, 1, 299_999_999], 300_000_000).tolist() == GOLDEN_LARGE
    assert draws.uniforms(KEY, [0, 1, 10**12], 2).tolist() == GOLDEN_UNIFORMS


GOLDEN_KEY = 10533267735237834344
GOLDEN_ORDER = [1, 10, 0, 4, 9, 3, 5, 2, 6, 7, 8, 11]
GOLDEN_LARGE = [265748654, 24229838, 224774667]
GOLDEN_UNIFORMS = [
    [0.23007861027176935, 0.5907864604566399],
    [0.649406888710365, 0.9377258229273107],
    [0.5342108622224634, 0.9256414200810671],
]


def test_normals() -> None:
    found = draws.normals(draws.key(0, "x"), np.arange(4000), 25)
    assert (found.shape, found.dtype) == ((4000, 25), np.float32)
    assert found.mean() == pytest.approx(0, abs=0.02)
    assert found.std() == pytest.approx(1, abs=0.01)
    assert np.mean(np.abs(found) > 1.959964) == pytest.approx(0.05, abs=0.003)
    assert np.mean(found**4) == pytest.approx(3, abs=0.1)  # of a normal distribution
    assert np.abs(np.corrcoef(found.T) - np.eye(25)).max() < 0.08
    assert (draws.normals(draws.key(0, "x"), [7, 3], 25) == found[[7, 3]]).all()


def test_lots_belong_to_a_thing_and_a_purpose() -> None:
    lots = draws.Lots(1, ("a", 2), np.array([-3, 2**62, 5]))
    assert (lots.uniforms(4)[1:] == draws.Lots(1, ("a", 2), np.array([2**62, 5])).uniforms(4)).all()
    others = [lots._replace(seed=2), lots._replace(purpose=("a", 3))]
    assert all((other.uniforms(4) != lots.uniforms(4)).all() for other in others)
    assert (lots.uniforms(4, "part") != lots.uniforms(4)).all()
    assert ((lots.between(-2, 6) >= -2) & (lots.between(-2, 6) < 6)).all()
