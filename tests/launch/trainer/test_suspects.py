"""Which documents a step has read, against the ids that the loader hands out: each document holds one id alone."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from launch.config import TrainConfig
from launch.data.loader import PackedSamples, Source
from launch.data.object_store import mirror_dataset
from launch.data.packing import sample_span
from launch.data.shard_cache import ShardCache
from launch.data.shard_reader import Remote
from launch.data.trace import documents_in
from launch.trainer.suspects import Suspects, suspects_of

# lengths with their end: 30, 31, … so that documents lie across samples and shards
DOCUMENTS = [[1 + number] * (29 + number) for number in range(100)]


@pytest.fixture
def config(train_config: Callable[..., TrainConfig], make_dataset: Callable[..., Path]) -> TrainConfig:
    found = train_config()
    make_dataset(found.data.sources[0].path, DOCUMENTS, documents_per_shard=7, documents_per_batch=3)
    return found


@pytest.fixture
def samples(config: TrainConfig) -> PackedSamples:
    return PackedSamples([Source("chain", config.data.sources[0].path, 1.0)], seed=config.seed, sequence_length=64)


@pytest.mark.parametrize("ranks", [(), (0,), (1,)])
def test_documents_are_those_whose_ids_were_read(
    config: TrainConfig, samples: PackedSamples, ranks: tuple[int, ...]
) -> None:
    found = suspects_of(samples, config, batch_number=3, ranks=ranks, world_size=2)
    # batch 3 of 16 samples, in micro-batches of 4 that go to the ranks in turn
    whose = {(): range(16), (0,): [0, 1, 2, 3, 8, 9, 10, 11], (1,): [4, 5, 6, 7, 12, 13, 14, 15]}[ranks]
    assert found.samples == tuple(32 + place for place in whose)
    rows = samples.read(np.array(found.samples))
    read = set(rows.input_ids.unique().tolist()) | set(rows.labels.unique().tolist())
    assert {f"chain/train-{number - 1}" for number in read - {0}} <= {_whole(name) for name in found.documents}
    # a document of which only its end was read is named as well, and no other
    assert len(found.documents) <= len(read - {0}) + len(found.samples)


def _whole(name: str) -> str:
    """`chain/train-SHARD-ROW` as make_dataset names it, by its number in the dataset."""
    shard, row = name.removeprefix("chain/train-").split("-")
    return f"chain/train-{int(shard) * 7 + int(row)}"


def test_stretch_holds_the_documents_that_it_touches(samples: PackedSamples) -> None:
    def documents_between(start: int, stop: int) -> list[str]:
        return [span.document_id for span in documents_in(samples.streams[0], start, stop)]

    # ids 0 to 29 are the first document's, its end among them, 30 to 60 the second's
    assert documents_between(0, 30) == ["train-0-0"]
    assert documents_between(29, 31) == ["train-0-0", "train-0-1"]
    # the eighth begins the second shard, at 30 + 31 + … + 36 = 231
    assert documents_between(230, 232) == ["train-0-6", "train-1-0"]


def remote_samples(config: TrainConfig, folder: Path) -> PackedSamples:
    """The dataset in a store that is gone once its manifest has been read, behind an empty cache."""
    data = config.data.sources[0].path
    cache = ShardCache(folder / "cache", capacity_bytes=1 << 30)
    source = Source("chain", mirror_dataset(f"file://{data}", cache.directory), 1.0, Remote("file:///nowhere", cache))
    return PackedSamples([source], seed=config.seed, sequence_length=64)


def test_documents_are_named_as_far_as_their_shards_are_here(config: TrainConfig, tmp_path: Path) -> None:
    """The ranks wait meanwhile, and a store that fails now must not end the run."""
    samples = remote_samples(config, tmp_path)
    nothing = suspects_of(samples, config, batch_number=3, ranks=(0,), world_size=2)
    assert nothing.documents == ()
    assert nothing.text == (
        "documents of shards that are not here (`launch trace` names them), in 8 samples from 32 on"
    )
    stream = samples.streams[0]
    _, places = samples.locate(np.array(nothing.samples))
    [first, *_] = stream.shards(*sample_span(int(places[0]), 64))
    for number in stream.shards(*sample_span(int(places[0]), 64)):
        shard = stream.remote_shard(number)
        shard.path.parent.mkdir(exist_ok=True)
        shutil.copy(config.data.sources[0].path / stream.record(number).path, shard.path)
    some = suspects_of(samples, config, batch_number=3, ranks=(0,), world_size=2)
    assert some.documents
    assert some.documents[0].startswith(f"chain/train-{first}-")


def test_text_tells_the_first_and_counts_the_rest() -> None:
    few = Suspects((7,), ("web/1", "web/2"))
    assert few.text == "documents web/1, web/2, in 1 sample from 7 on"
    many = Suspects(tuple(range(32, 48)), tuple(f"web/{number}" for number in range(9)))
    assert many.text == "documents web/0, web/1, web/2, web/3, web/4 and 4 more, in 16 samples from 32 on"
