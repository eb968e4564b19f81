"""Samples by index against packing in plain Python, and the background reader against both."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest

from launch.config import LocalError
from launch.data.loader import Loader, PackedSamples, Source
from launch.data.rank_order import rank_sample_indices
from pipeline.shards.format import DatasetError

SEQUENCE = 8


@pytest.fixture
def documents(random_documents):
    """Two sources of about 6,000 and 1,400 ids."""
    return {"web": random_documents(300, seed=1), "code": random_documents(70, seed=2)}


@pytest.fixture
def sources(tmp_path, make_dataset, documents, random_documents) -> list[Source]:
    held_out = random_documents(12, seed=4)
    return [
        Source(
            name,
            make_dataset(tmp_path / name, rows, validation=held_out, documents_per_shard=50, documents_per_batch=7),
            weight,
        )
        for (name, rows), weight in zip(documents.items(), (0.75, 0.25), strict=True)
    ]


def samples_of(sources, **settings) -> PackedSamples:
    return PackedSamples(sources, **{"seed": 7, "sequence_length": SEQUENCE, **settings})


def rows_in_plain_python(rows) -> list[tuple[list[int], list[int], list[int]]]:
    """Every sample of a source as (input_ids, labels, document_ids)."""
    stream = [token for row in rows for token in [*row, 0]]
    packed = []
    for start in range(0, len(stream) - SEQUENCE, SEQUENCE):
        inputs = stream[start : start + SEQUENCE]
        numbers, number = [], 0
        for token in inputs:
            numbers.append(number)
            number += token == 0
        packed.append((inputs, stream[start + 1 : start + SEQUENCE + 1], numbers))
    return packed


def as_rows(batch) -> list[tuple[list[int], list[int], list[int]]]:
    return list(zip(batch.input_ids.tolist(), batch.labels.tolist(), batch.document_ids.tolist(), strict=True))


def test_unshuffled_samples_are_the_packed_stream(sources, documents):
    expected = rows_in_plain_python(documents["web"])
    samples = samples_of(sources[:1], shuffle=False)
    assert samples.samples_before_repeat == len(expected)
    assert as_rows(samples.read(np.arange(len(expected)))) == expected


def test_an_id_beyond_the_vocabulary_names_its_shard(tmp_path, make_dataset):
    rows = [[1 + number % 90] * 20 for number in range(20)]
    rows[13][5] = 100  # the fourth document of the second shard
    folder = make_dataset(tmp_path / "web", rows, documents_per_shard=10, vocab_size=100)
    samples = samples_of([Source("web", folder, 1.0)], shuffle=False)
    place = 13 * 21 + 5
    samples.read(np.arange(place // SEQUENCE))
    with pytest.raises(DatasetError) as caught:
        samples.read(np.arange(place // SEQUENCE + 1))
    assert str(caught.value) == (
        f"shard {folder}/data-00001-000.arrow holds id 100, but its tokenizer has 100 tokens; copy the dataset "
        "again, or remove it and run the pipeline again"
    )


def test_one_epoch_reads_each_sample_once_in_another_order(sources, documents):
    expected = rows_in_plain_python(documents["web"])
    read = as_rows(samples_of(sources[:1]).read(np.arange(len(expected))))
    assert sorted(read) == sorted(expected)
    assert read != expected


def test_epochs_have_different_orders_of_the_same_samples(sources):
    samples = samples_of(sources[:1])
    size = samples.samples_before_repeat
    _, first = samples.locate(np.arange(size))
    _, second = samples.locate(np.arange(size, 2 * size))
    assert np.array_equal(np.sort(first), np.sort(second))
    assert not np.array_equal(first, second)


def test_mixture_gives_each_source_its_share_and_its_own_samples(sources, documents):
    samples = samples_of(sources)
    chosen, places = samples.locate(np.arange(400))
    assert np.bincount(chosen).tolist() == [300, 100]
    expected = [rows_in_plain_python(documents[source.name]) for source in sources]
    read = as_rows(samples.read(np.arange(400)))
    assert read == [expected[source][place] for source, place in zip(chosen, places, strict=True)]


def test_order_of_a_source_does_not_depend_on_the_others(sources):
    both, alone = samples_of(sources), samples_of(sources[1:])
    chosen, places = both.locate(np.arange(400))
    assert places[chosen == 1].tolist() == alone.locate(np.arange(100))[1].tolist()


def test_reading_in_any_order_gives_the_same_rows(sources):
    samples = samples_of(sources)
    indices = np.random.default_rng(0).permutation(3000)
    rows = as_rows(samples.read(np.arange(3000)))
    assert as_rows(samples_of(sources).read(indices)) == [rows[index] for index in indices]


def test_seeds_and_names_change_the_order(sources):
    order = samples_of(sources).locate(np.arange(100))[1].tolist()
    renamed = [Source("other", sources[0].path, 0.75), sources[1]]
    assert samples_of(sources).locate(np.arange(100))[1].tolist() == order
    assert samples_of(sources, seed=8).locate(np.arange(100))[1].tolist() != order
    assert samples_of(renamed).locate(np.arange(100))[1].tolist() != order


def test_sources_that_do_not_go_together_are_an_error_of_the_caller(tmp_path, make_dataset, sources):
    other = Source("other", make_dataset(tmp_path / "other", [[1] * 20], vocab_size=100), 1.0)
    tiny = Source("tiny", make_dataset(tmp_path / "tiny", [[1] * 7]), 1.0)
    for unfit, reason in (
        ([], "a name says"),
        ([sources[0], sources[0]], "a name says"),
        ([*sources, other], "different tokenizers"),
        ([*sources, tiny], "without a sample"),
    ):
        with pytest.raises(AssertionError, match=reason):
            samples_of(unfit)


def test_a_source_of_exactly_one_sample_repeats_it(tmp_path, make_dataset):
    one = Source("one", make_dataset(tmp_path / "one", [[1] * 8]), 1.0)
    assert samples_of([one]).read(np.arange(2)).input_ids.tolist() == [[1] * 8] * 2


@pytest.mark.parametrize(("micro_batch_size", "world_size"), [(1, 1), (2, 1), (1, 4), (3, 2), (4, 3), (12, 1)])
def test_ranks_together_read_the_steps_samples_in_order(micro_batch_size, world_size):
    ranks = [
        rank_sample_indices(5, samples_per_step=12, micro_batch_size=micro_batch_size, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    assert ranks[0].shape == (12 // (micro_batch_size * world_size), micro_batch_size)
    together = np.stack(ranks, axis=1).reshape(-1)
    assert together.tolist() == list(range(60, 72))


def test_a_step_that_does_not_divide_is_an_error_of_the_caller():
    with pytest.raises(AssertionError, match="10 samples in parts of 4"):
        rank_sample_indices(0, samples_per_step=10, micro_batch_size=2, rank=0, world_size=2)


def loader_of(samples, **settings) -> Loader:
    defaults = {"first_step": 0, "samples_per_step": 8, "micro_batch_size": 2, "rank": 0, "world_size": 2}
    return Loader(samples, **{**defaults, **settings})


def test_loader_gives_the_ranks_micro_batches_in_order(sources):
    samples = samples_of(sources)
    with loader_of(samples, rank=1) as loader:
        for step in range(3):
            for indices in rank_sample_indices(step, samples_per_step=8, micro_batch_size=2, rank=1, world_size=2):
                assert as_rows(next(loader)) == as_rows(samples.read(indices))


def test_loader_over_many_located_blocks_equals_reading(sources, monkeypatch):
    monkeypatch.setattr("launch.data.loader._LOCATED_AT_ONCE", 10)
    samples = samples_of(sources)
    with loader_of(samples, world_size=1) as loader:
        read = [row for _ in range(40) for row in as_rows(next(loader))]
    assert read == as_rows(samples.read(np.arange(80)))


def test_resuming_at_a_step_continues_exactly(sources):
    samples = samples_of(sources)
    with loader_of(samples) as loader:
        whole = [as_rows(next(loader)) for _ in range(20)]
    with loader_of(samples, first_step=7) as loader:
        assert [as_rows(next(loader)) for _ in range(6)] == whole[14:20]


def test_resuming_on_another_world_size_continues_the_same_samples(sources):
    samples = samples_of(sources)

    def step_rows(step, world_size, micro_batch_size):
        rows = []
        for rank in range(world_size):
            settings = {"rank": rank, "world_size": world_size, "micro_batch_size": micro_batch_size}
            with loader_of(samples, first_step=step, **settings) as loader:
                rows += [row for _ in range(8 // world_size // micro_batch_size) for row in as_rows(next(loader))]
        return sorted(rows)

    assert step_rows(3, 2, 2) == step_rows(3, 1, 8) == step_rows(3, 4, 1)


def test_loader_reads_no_further_ahead_than_asked(sources):
    samples = samples_of(sources)
    read = []
    fetch = samples.fetch
    samples.fetch = lambda *found: read.append(found) or fetch(*found)
    with loader_of(samples, prefetch_batches=3) as loader:
        next(loader)
        deadline = time.monotonic() + 5
        while len(read) < 5 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.2)
        # one taken, three in the queue, one in the thread's hand
        assert len(read) == 5


def test_error_in_the_thread_is_raised_by_next_and_again(sources):
    samples = samples_of(sources)
    for shard in Path(sources[0].path).glob("*.arrow"):
        shard.unlink()
    with loader_of(samples) as loader:
        for _ in range(2):
            with pytest.raises(LocalError, match=r"^rank 0: shard .* is missing"):
                next(loader)


def test_close_ends_the_thread_and_may_be_called_twice(sources):
    loader = loader_of(samples_of(sources))
    assert any(thread.name == "loader" for thread in threading.enumerate())
    loader.close()
    loader.close()
    assert not any(thread.name == "loader" for thread in threading.enumerate())


def test_wait_time_counts_only_waiting(sources):
    samples = samples_of(sources)
    fetch = samples.fetch
    samples.fetch = lambda *found: time.sleep(0.05) or fetch(*found)
    with loader_of(samples, prefetch_batches=1) as loader:
        for _ in range(4):
            next(loader)
        # the first batch at least was waited for from start to end
        assert 0.05 <= loader.wait_time_s < 1
        time.sleep(0.3)
        waited_s = loader.wait_time_s
        next(loader)
        # read while we slept: less than one reading, on a busy machine too
        assert loader.wait_time_s - waited_s < 0.05
