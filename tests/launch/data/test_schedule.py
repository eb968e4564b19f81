"""Stages against a reference that counts sample by sample, on random stages, sizes and world sizes."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launch.data.loader import PackedSamples, Source
from launch.data.mixture import Mixture
from launch.data.rank_order import rank_sample_indices
from launch.data.schedule import Schedule, Stage


@st.composite
def random_stages(draw: st.DrawFn) -> list[Stage]:
    sources = draw(st.integers(1, 6))
    ends = sorted(draw(st.sets(st.integers(1, 120), max_size=4)))
    weights = st.lists(st.integers(0, 9), min_size=sources, max_size=sources).filter(any)
    return [Stage(end, tuple(draw(weights))) for end in [*ends, None]]


def located_one_by_one(stages: list[Stage], samples: int) -> list[tuple[int, int]]:
    """(source, how many of its samples came before) of each sample, by counting."""
    seen = [0] * len(stages[0].weights)
    found = []
    start = 0
    for stage in stages:
        taken = [source for source, weight in enumerate(stage.weights) if weight]
        mixture = Mixture([stage.weights[source] for source in taken])
        end = samples if stage.end is None else min(stage.end, samples)
        for sample in range(start, end):
            source = taken[int(mixture.locate(np.array([sample - start]))[0][0])]
            found.append((source, seen[source]))
            seen[source] += 1
        start = max(start, end)
    return found


@settings(max_examples=60, deadline=None)
@given(random_stages())
def test_locating_equals_counting(stages):
    expected = located_one_by_one(stages, 300)
    sources, places = Schedule(stages).locate(np.arange(300))
    assert list(zip(sources.tolist(), places.tolist(), strict=True)) == expected


@settings(max_examples=60, deadline=None)
@given(random_stages())
def test_every_prefix_of_every_stage_is_within_one_sample_of_its_weights(stages):
    sources, _ = Schedule(stages).locate(np.arange(300))
    start = 0
    for stage in stages:
        end = stage.end or 300
        for source, weight in enumerate(stage.weights):
            seen = np.cumsum(sources[start:end] == source)
            wanted = [Fraction(weight) * length / sum(stage.weights) for length in range(1, end - start + 1)]
            assert all(abs(int(count) - share) < 1 for count, share in zip(seen, wanted, strict=True))
        start = end


@settings(max_examples=60, deadline=None)
@given(random_stages())
def test_counts_and_positions_equal_counting(stages):
    schedule, expected = Schedule(stages), located_one_by_one(stages, 300)
    for samples in range(0, 301, 7):
        wanted = [0] * len(stages[0].weights)
        for source, _ in expected[:samples]:
            wanted[source] += 1
        assert schedule.counts(samples).tolist() == wanted
    for sample, (source, place) in enumerate(expected):
        assert schedule.position(source, place) == sample


def test_a_source_that_is_left_out_never_comes_again():
    schedule = Schedule([Stage(10, (1, 1)), Stage(None, (1, 0))])
    assert [schedule.position(1, place) for place in (4, 5)] == [9, None]
    assert schedule.first_repeats([8, 8]) == [13, None]


def test_a_source_goes_on_where_the_stage_before_left_it():
    # three of four, then every second: worked by hand
    sources, places = Schedule([Stage(4, (3, 1)), Stage(None, (1, 1))]).locate(np.arange(8))
    assert sources.tolist() == [0, 0, 0, 1, 0, 1, 0, 1]
    assert places.tolist() == [0, 1, 2, 0, 3, 1, 4, 2]


def test_one_stage_is_the_mixture():
    sources, places = Schedule([Stage(None, (0.75, 0.2, 0.05))]).locate(np.arange(1000))
    mixture = Mixture([0.75, 0.2, 0.05]).locate(np.arange(1000))
    assert sources.tolist() == mixture[0].tolist()
    assert places.tolist() == mixture[1].tolist()


def test_seeking_far_into_the_last_stage_costs_what_seeking_near_does():
    stages = [Stage(10**9, (0.9, 0.1, 0)), Stage(3 * 10**9, (0.75, 0.2, 0.05)), Stage(None, (0.58, 0.24, 0.18))]
    schedule = Schedule(stages)
    far = 10**15
    sources, places = schedule.locate(np.arange(far, far + 50))
    for sample, source, place in zip(range(far, far + 50), sources.tolist(), places.tolist(), strict=True):
        assert schedule.position(source, place) == sample
    assert schedule.counts(10**9).tolist() == [900_000_000, 100_000_000, 0]
    assert schedule.counts(far).sum() == far


@pytest.fixture(scope="module")
def datasets(tmp_path_factory, make_dataset, random_documents):
    """Three sources of 8-token sequences: 44, 27 and 13 samples an epoch, or about that."""
    folder = tmp_path_factory.mktemp("staged")
    return [
        Source(name, make_dataset(folder / name, random_documents(count, seed=seed)), 1.0)
        for seed, (name, count) in enumerate((("web", 18), ("code", 11), ("math", 6)))
    ]


STAGES = [Stage(40, (9, 1, 0)), Stage(90, (75, 20, 5)), Stage(None, (58, 24, 18))]


def test_each_sample_comes_once_an_epoch_over_all_stages(datasets):
    samples = PackedSamples(datasets, seed=3, sequence_length=8, stages=STAGES)
    sources, places = samples.locate(np.arange(1000))
    for source, size in enumerate(samples.sizes):
        read = places[sources == source]
        whole = len(read) // size
        assert whole >= 2, "the test wants several epochs"
        for epoch in read[: whole * size].reshape(whole, size):
            assert sorted(epoch.tolist()) == list(range(size))


def test_sightings_are_where_locating_puts_a_sample(datasets):
    samples = PackedSamples(datasets, seed=3, sequence_length=8, stages=STAGES)
    sources, places = samples.locate(np.arange(1000))
    for source, size in enumerate(samples.sizes):
        for sample in (0, size // 2, size - 1):
            expected = np.flatnonzero((sources == source) & (places == sample)).tolist()
            assert samples.sightings(source, sample, before=1000) == expected


@pytest.mark.parametrize("step", [0, 3, 4, 7, 40])
def test_world_sizes_from_1_to_8_read_the_same_samples_of_a_step(datasets, step):
    samples = PackedSamples(datasets, seed=3, sequence_length=8, stages=STAGES)
    expected = [pair.tolist() for pair in samples.locate(np.arange(step * 840, (step + 1) * 840))]
    for world_size in range(1, 9):
        ranks = [
            rank_sample_indices(step, samples_per_step=840, micro_batch_size=1, rank=rank, world_size=world_size)
            for rank in range(world_size)
        ]
        seen = np.concatenate([rank.reshape(-1) for rank in ranks])
        assert len(np.unique(seen)) == 840, "no sample is read by two ranks"
        together = np.stack(ranks, axis=1).reshape(-1)
        assert [pair.tolist() for pair in samples.locate(together)] == expected
