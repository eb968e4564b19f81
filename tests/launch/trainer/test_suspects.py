"""Which documents a step has read, against the ids that the loader hands out: each document holds one id alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from launch.config import TrainConfig
from launch.data.loader import PackedSamples, Source
from launch.data.object_store import mirror_dataset
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


@pytest.fixture
def remote(config: TrainConfig, tmp_path: Path) -> PackedSamples:
    """The dataset in a store, behind an empty cache."""
    url = f"file://{config.data.sources[0].path}"
    cache = ShardCache(tmp_path / "cache", capacity_bytes=1 << 30)
    source = Source("chain", mirror_dataset(url, cache.directory), 1.0, Remote(url, cache))
    return PackedSamples([source], seed=config.seed, sequence_length=64)


def shards_here(samples: PackedSamples) -> list[Path]:
    assert samples.cache is not None
    return sorted(samples.cache.directory.glob("*/**/*.arrow"))


def test_nothing_is_copied_from_a_store_to_name_documents(config: TrainConfig, remote: PackedSamples) -> None:
    """The ranks wait meanwhile, and the watchdog would take it for a hang."""
    found = suspects_of(remote, config, batch_number=3, ranks=(0,), world_size=2)
    assert shards_here(remote) == []
    assert found.text == "documents of shards that are not here (`launch trace` names them), in 8 samples from 32 on"
    remote.read(np.array(found.samples[:1]))
    read = shards_here(remote)
    some = suspects_of(remote, config, batch_number=3, ranks=(0,), world_size=2)
    assert some.documents
    assert shards_here(remote) == read


def test_shard_that_cannot_be_read_leaves_its_documents_unnamed(config: TrainConfig, remote: PackedSamples) -> None:
    """What only tells of a bad step must not end the run."""
    found = suspects_of(remote, config, batch_number=3, ranks=(0,), world_size=2)
    remote.read(np.array(found.samples))
    for shard in shards_here(remote):
        shard.write_bytes(b"damaged")
    assert suspects_of(remote, config, batch_number=3, ranks=(0,), world_size=2).documents == ()


def test_text_tells_the_first_and_counts_the_rest() -> None:
    few = Suspects((7,), ("web/1", "web/2"))
    assert few.text == "documents web/1, web/2, in 1 sample from 7 on"
    many = Suspects(tuple(range(32, 48)), tuple(f"web/{number}" for number in range(9)))
    assert many.text == "documents web/0, web/1, web/2, web/3, web/4 and 4 more, in 16 samples from 32 on"
