"""The samples that a config means: for the trainer, and for who asks later what a step has read. No torch."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import cache, lru_cache, partial
from pathlib import Path

from launch.config import TrainConfig
from launch.data.loader import PackedSamples, Source
from launch.data.object_store import mirror_dataset
from launch.data.schedule import Stage
from launch.data.shard_cache import ShardCache
from launch.data.shard_reader import Remote
from launch.data_config import SourceConfig
from pipeline.shards.format import Split

_ASKED_AT_ONCE = 16


def stages_of(config: TrainConfig, split: Split) -> list[Stage]:
    """How the sources are mixed. The validation set has one mixture, whatever the stages: losses over it compare."""
    sources = config.data.sources
    if split == "validation" or not config.data.stages:
        return [Stage(None, tuple(source.weight for source in sources))]
    return [
        Stage(end, tuple(stage.weights[source.name] for source in sources))
        for stage, end in zip(config.data.stages, config.data.stage_ends(), strict=True)
    ]


def dataset_directories(config: TrainConfig) -> dict[str, Path]:
    """`dataset_directory` of all sources, by name; object stores are asked for several at once. Raises as it does."""
    remote = dict.fromkeys(source.path for source in config.data.sources if isinstance(source.path, str))
    if remote:
        with ThreadPoolExecutor(min(_ASKED_AT_ONCE, len(remote)), thread_name_prefix="manifests") as pool:
            # the first that fails is raised
            list(pool.map(partial(_mirror, cache_dir=config.data.cache_dir), remote))
    return {source.name: dataset_directory(source, config) for source in config.data.sources}


def dataset_directory(source: SourceConfig, config: TrainConfig) -> Path:
    """Where the manifest of a source lies: its own folder, or the mirror of an object store's, made here if need be.

    Raises DatasetError, StoreUnreachableError.
    """
    if isinstance(source.path, Path):
        return source.path
    assert config.data.cache_dir is not None, "DataConfig wants one for a URL"
    return _mirror(source.path, cache_dir=config.data.cache_dir)


@cache  # a process reads one version of a dataset, and asks the store once
def _mirror(url: str, *, cache_dir: Path) -> Path:
    return mirror_dataset(url, cache_dir)


def run_samples(config: TrainConfig, split: Split) -> PackedSamples:
    """Training samples in the run's order; the validation split as it lies. Raises as `dataset_directory` does."""
    return PackedSamples(
        [_source(source, config) for source in config.data.sources],
        seed=config.seed,
        sequence_length=config.data.sequence_length,
        split=split,
        shuffle=split == "train",
        stages=stages_of(config, split),
    )


def _source(source: SourceConfig, config: TrainConfig) -> Source:
    remote = None
    if isinstance(source.path, str):
        assert config.data.cache_dir is not None, "DataConfig wants one for a URL"
        remote = Remote(source.path, _shared_cache(config.data.cache_dir, config.data.cache_bytes))
    return Source(source.name, dataset_directory(source, config), source.weight, remote)


@lru_cache(maxsize=1)  # training and validation share it, so that neither removes what the other needs
def _shared_cache(directory: Path, capacity_bytes: int) -> ShardCache:
    return ShardCache(directory, capacity_bytes=capacity_bytes)
