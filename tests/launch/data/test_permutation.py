"""The keyed permutation: a bijection for every size, and not a trivial order."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from launch.data.permutation import MAX_SIZE, Permutation


@pytest.mark.parametrize("key", [0, 1, 2**64 - 1])
def test_small_sizes_are_permuted_exhaustively(key):
    for size in range(1, 700):
        assert np.array_equal(np.sort(Permutation(size, key).apply(np.arange(size))), np.arange(size)), size


@pytest.mark.parametrize("size", [2**16, 2**16 + 1, 99_991, 316**2, 316**2 + 1, 1_000_000])
def test_large_sizes_are_permuted(size):
    counts = np.bincount(Permutation(size, key=7).apply(np.arange(size)), minlength=size)
    assert counts.min() == counts.max() == 1


@pytest.mark.parametrize("size", [10**9 + 7, 2**40, MAX_SIZE])
def test_indices_of_huge_sizes_stay_distinct_and_inside(size):
    random = np.random.default_rng(0)
    indices = np.unique(
        np.concatenate([np.arange(100_000), size - 1 - np.arange(100_000), random.integers(0, size, 10**5)])
    )
    moved = Permutation(size, key=11).apply(indices)
    assert 0 <= moved.min() <= moved.max() < size
    assert len(np.unique(moved)) == len(indices)


def test_size_of_blocks_does_not_matter():
    permutation = Permutation(10**12, key=3)
    indices = np.arange(20_000) + 123_456_789
    one_by_one = [int(permutation.apply(indices[i : i + 1])[0]) for i in range(0, 20_000, 997)]
    assert permutation.apply(indices)[::997].tolist() == one_by_one


@pytest.mark.parametrize("size", [1, 2, 10, 699, 99_991, 10**9 + 7, MAX_SIZE])
def test_invert_undoes_apply(size):
    indices = np.random.default_rng(0).integers(0, size, 1000)
    permutation = Permutation(size, key=5)
    assert np.array_equal(permutation.invert(permutation.apply(indices)), indices)


def test_shape_is_kept():
    assert Permutation(100, key=1).apply(np.arange(24).reshape(2, 3, 4)).shape == (2, 3, 4)
    assert Permutation(100, key=1).apply(np.empty(0, dtype=np.int64)).shape == (0,)


def test_same_key_gives_the_same_order_for_ever():
    # written down once: a change of these numbers reshuffles every run in progress
    assert Permutation(10, key=42).apply(np.arange(10)).tolist() == [5, 8, 2, 9, 3, 7, 0, 1, 6, 4]
    assert Permutation(2**48, key=42).apply(np.arange(3)).tolist() == [
        94960796247399,
        40296037445168,
        171280665648854,
    ]


def test_keys_give_different_orders():
    orders = {tuple(Permutation(50, key).apply(np.arange(50)).tolist()) for key in range(200)}
    assert len(orders) == 200


def test_neighbouring_keys_agree_no_more_than_by_chance():
    size = 10_000
    orders = [Permutation(size, key).apply(np.arange(size)) for key in range(50)]
    agreements = [(first == second).sum() for first, second in itertools.pairwise(orders)]
    # two random orders agree in one place on average (Poisson), so 49 pairs in 49 ± 7
    assert 49 - 5 * 7 < sum(agreements) < 49 + 5 * 7


def test_an_index_goes_everywhere_equally_often_over_keys():
    size, keys = 16, 8000
    counts = np.zeros((size, size))
    for key in range(keys):
        counts[np.arange(size), Permutation(size, key).apply(np.arange(size))] += 1
    # chi-square with about 15 · 15 = 225 degrees of freedom: mean 225, deviation 21; ten deviations never happen
    assert ((counts - keys / size) ** 2 / (keys / size)).sum() < 225 + 10 * 21


@pytest.mark.parametrize("size", [1000, 65_536, 1_000_003])
def test_order_has_no_trend_and_no_runs(size):
    order = Permutation(size, key=5).apply(np.arange(size)).astype(np.float64)
    # both correlations of a random order have a deviation of 1/√size
    assert abs(np.corrcoef(order, np.arange(size))[0, 1]) < 5 / np.sqrt(size)
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 5 / np.sqrt(size)
    # neighbours stay neighbours about twice in a random order, whatever the size (Poisson with mean 2)
    assert (np.abs(np.diff(order)) == 1).sum() < 15


def test_every_window_of_the_order_is_spread_over_the_whole_range():
    size = 1_000_000
    window = Permutation(size, key=9).apply(np.arange(400_000, 410_000))
    counts = np.bincount(window // (size // 100), minlength=100)
    # chi-square with 99 degrees of freedom: mean 99, deviation 14
    assert ((counts - 100) ** 2 / 100).sum() < 99 + 6 * 14


def test_an_index_outside_is_an_error_of_the_caller():
    with pytest.raises(AssertionError, match=r"outside range\(10\)"):
        Permutation(10, key=1).apply(np.array([10]))
