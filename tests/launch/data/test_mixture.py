"""The mixture schedule against counting one by one."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from launch.data.mixture import MAX_PERIOD, Mixture, whole_weights

WEIGHTS = [
    [1.0],
    [0.9, 0.1],
    [0.75, 0.20, 0.05],
    [0.58, 0.24, 0.14, 0.04],
    [1, 1, 1],
    [0.1, 0.2, 0.3, 0.15, 0.25],
    [1000, 1, 1, 1],
    [3, 5, 7, 11, 13, 17, 19, 23, 29],
    [*range(1, 61)],
]


def ids(weights):
    return f"{len(weights)} sources"


@pytest.mark.parametrize("weights", WEIGHTS, ids=ids)
def test_no_prefix_is_a_whole_sample_from_its_share(weights):
    mixture = Mixture(weights)
    length = 2 * mixture.period + 1
    sources, _ = mixture.locate(np.arange(length))
    total = sum(mixture.weights)
    prefix = np.arange(1, length + 1)
    for source, weight in enumerate(mixture.weights):
        seen = np.cumsum(sources == source)
        # |seen - prefix·w/W| < 1, in whole numbers
        assert np.abs(seen * total - prefix * weight).max() < total


@pytest.mark.parametrize("weights", WEIGHTS, ids=ids)
def test_index_within_source_is_how_often_it_was_seen_before(weights):
    mixture = Mixture(weights)
    sources, indices = mixture.locate(np.arange(2 * mixture.period + 5))
    seen = [0] * len(weights)
    for source, index in zip(sources.tolist(), indices.tolist(), strict=True):
        assert index == seen[source]
        seen[source] += 1


def test_random_weights_are_fair_at_every_prefix():
    random = np.random.default_rng(0)
    for _ in range(100):
        weights = random.integers(1, 60, size=random.integers(2, 12)).tolist()
        mixture = Mixture(weights)
        sources, _ = mixture.locate(np.arange(mixture.period))
        share = np.array(mixture.weights) / mixture.period
        seen = np.cumsum(sources[:, None] == np.arange(len(weights)), axis=0)
        # 1e-9: the products are rounded, the bound itself is strict
        assert np.abs(seen - np.arange(1, mixture.period + 1)[:, None] * share).max() < 1 + 1e-9


def test_half_and_half_alternates():
    assert Mixture([0.5, 0.5]).locate(np.arange(4))[0].tolist() == [0, 1, 0, 1]


def test_three_to_one_worked_by_hand():
    # W = 4; source 0 may stand in slots 0-1, 1-2, 2-3, source 1 anywhere, and the nearest deadline goes first
    sources, indices = Mixture([3, 1]).locate(np.arange(8))
    assert sources.tolist() == [0, 0, 0, 1, 0, 0, 0, 1]
    assert indices.tolist() == [0, 1, 2, 0, 3, 4, 5, 1]


def test_seeking_far_equals_counting_whole_tables():
    mixture = Mixture([0.75, 0.20, 0.05])
    far = 10**15 * mixture.period
    sources, indices = mixture.locate(np.arange(far, far + 20))
    near_sources, near_indices = mixture.locate(np.arange(20))
    assert sources.tolist() == near_sources.tolist()
    assert (indices - near_indices).tolist() == [10**15 * mixture.weights[source] for source in sources]


def test_position_is_the_inverse():
    mixture = Mixture([0.58, 0.24, 0.14, 0.04])
    sources, indices = mixture.locate(np.arange(500))
    positions = [mixture.position(s, i) for s, i in zip(sources.tolist(), indices.tolist(), strict=True)]
    assert positions == list(range(500))


@pytest.mark.parametrize("weights", WEIGHTS, ids=ids)
def test_counts_are_those_of_counting(weights):
    mixture = Mixture(weights)
    length = min(2 * mixture.period + 3, 500)
    sources, _ = mixture.locate(np.arange(length))
    for samples in range(length + 1):
        assert mixture.counts(samples).tolist() == np.bincount(sources[:samples], minlength=len(weights)).tolist()


def test_decimals_mean_what_they_say():
    assert whole_weights([0.9, 0.1]) == (9, 1)
    assert whole_weights([0.74, 0.16, 0.10]) == (37, 8, 5)
    assert whole_weights([1, 1, 2]) == (1, 1, 2)
    assert whole_weights([1e12, 3e12]) == (1, 3)


def test_fine_weights_are_rounded_to_slots():
    weights = [0.123456789, 0.876543211, 1e-12]
    whole = whole_weights(weights)
    assert sum(whole) == MAX_PERIOD
    assert whole[2] == 1
    assert abs(Fraction(whole[0], MAX_PERIOD) - Fraction("0.123456789")) < Fraction(2, MAX_PERIOD)


def test_five_hundred_sources_of_odd_sizes_get_a_slot_each():
    weights = np.random.default_rng(1).lognormal(0, 3, size=500).tolist()
    whole = whole_weights(weights)
    assert sum(whole) == MAX_PERIOD
    assert min(whole) >= 1
    share, wanted = np.array(whole) / MAX_PERIOD, np.array(weights) / sum(weights)
    # one slot each is set aside: 500 / 65,536 of the mixture is the most that any share can lose
    assert np.all(np.abs(share - wanted) <= wanted * 500 / MAX_PERIOD + 2 / MAX_PERIOD)


def test_equal_weights_are_interleaved_whatever_their_scale():
    assert Mixture([0.3, 0.3, 0.3]).weights == (1, 1, 1)
