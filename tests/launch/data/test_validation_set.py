"""The validation set against the packed stream: the same sequences on every world size, a source a micro-batch."""

from __future__ import annotations

import numpy as np
import pytest

from launch.data.loader import PackedSamples, Source
from launch.data.object_store import mirror_dataset
from launch.data.packing import IGNORED_LABEL
from launch.data.shard_cache import ShardCache
from launch.data.shard_reader import Remote
from launch.data.validation_set import validation_batches, validation_shards

SEQUENCE = 8


@pytest.fixture(scope="module")
def sources(tmp_path_factory, make_dataset, random_documents):
    """Three of four sequences are web's; both have the same validation split."""
    folder, held_out = tmp_path_factory.mktemp("validation"), random_documents(12, seed=4)
    return [
        Source(name, make_dataset(folder / name, [[1] * 20], validation=held_out), weight)
        for name, weight in (("web", 0.75), ("code", 0.25))
    ]


@pytest.fixture
def samples(sources):
    return PackedSamples(sources, seed=0, sequence_length=SEQUENCE, split="validation", shuffle=False)


def dealt(samples, sequences, micro_batch_size, world_size):
    """The batches of each rank, each with the number of its source."""
    return [
        list(
            validation_batches(
                samples, sequences=sequences, micro_batch_size=micro_batch_size, rank=rank, world_size=world_size
            )
        )
        for rank in range(world_size)
    ]


def counted_rows(batch):
    labels = batch.labels.tolist()
    return [(ids, row) for ids, row in zip(batch.input_ids.tolist(), labels, strict=True) if IGNORED_LABEL not in row]


@pytest.mark.parametrize(("micro_batch_size", "world_size"), [(1, 1), (4, 1), (3, 2), (2, 3), (4, 4), (32, 2), (2, 7)])
def test_each_source_s_sequences_are_read_once_on_every_world_size(samples, micro_batch_size, world_size):
    chosen, places = samples.locate(np.arange(10))
    read = [[], []]
    for batches in dealt(samples, 10, micro_batch_size, world_size):
        for source, batch in batches:
            read[source] += counted_rows(batch)
    for source in (0, 1):
        own = samples.fetch(chosen[chosen == source], places[chosen == source])
        assert sorted(read[source]) == sorted(counted_rows(own))


@pytest.mark.parametrize(("sequences", "world_size"), [(1, 3), (10, 4), (10, 7)])
def test_every_rank_joins_each_forward_pass_with_equal_shapes(samples, sequences, world_size):
    ranks = dealt(samples, sequences, 2, world_size)
    assert len({len(batches) for batches in ranks}) == 1
    assert {batch.input_ids.shape for batches in ranks for _, batch in batches} == {(2, SEQUENCE)}


def test_rows_that_fill_up_are_ignored_whole(samples):
    [[(source, batch)]] = dealt(samples, 3, 4, 1)
    assert source == 0
    assert (batch.labels == IGNORED_LABEL).all(dim=1).tolist() == [False, False, False, True]


def test_the_set_ends_before_a_source_repeats(samples):
    # three of four samples are web's: its first repeat would be its sample number `size`
    assert samples.samples_before_repeat == samples.schedule.position(0, samples.sizes[0])
    chosen, _ = samples.locate(np.arange(samples.samples_before_repeat + 1))
    assert np.bincount(chosen[:-1])[0] == samples.sizes[0]
    assert chosen[-1] == 0
    read = [row for batches in dealt(samples, 10**6, 4, 2) for _, batch in batches for row in counted_rows(batch)]
    assert len(read) == samples.samples_before_repeat


def test_shards_of_the_set_are_those_that_reading_it_copies(tmp_path, make_dataset, random_documents):
    data = make_dataset(tmp_path / "data", [[1] * 20], validation=random_documents(60, seed=4), documents_per_shard=10)
    cache = ShardCache(tmp_path / "cache", capacity_bytes=1 << 30)
    source = Source("web", mirror_dataset(f"file://{data}", cache.directory), 1.0, Remote(f"file://{data}", cache))
    remote = PackedSamples([source], seed=0, sequence_length=SEQUENCE, split="validation", shuffle=False)
    assert remote.samples_before_repeat > 40
    expected = validation_shards(remote, sequences=40)
    assert not list(cache.directory.glob("*/**/*.arrow"))
    list(validation_batches(remote, sequences=40, micro_batch_size=4, rank=0, world_size=1))
    assert set(cache.directory.glob("*/**/*.arrow")) == expected
    assert 1 < len(expected) < 6


def test_shards_on_a_disk_are_in_no_cache(samples):
    assert validation_shards(samples, sequences=4) == frozenset()
