"""What comes next, against reading it; and a loader over a cache that holds less than the dataset."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fsspec.implementations.local import LocalFileSystem

from launch.data import object_store, read_ahead
from launch.data.loader import Loader, PackedSamples, Source
from launch.data.object_store import StoreUnreachableError, mirror_dataset
from launch.data.packing import sample_span
from launch.data.rank_order import node_sample_indices, rank_sample_indices
from launch.data.read_ahead import ReadAhead
from launch.data.shard_cache import ShardCache
from launch.data.shard_reader import Remote

STEP = {"samples_per_step": 12, "micro_batch_size": 2, "world_size": 3}


@pytest.fixture
def dataset(tmp_path: Path, make_dataset: Callable[..., Path], random_documents: Callable[..., Any]) -> Path:
    """Ten shards of about 200 ids."""
    return make_dataset(tmp_path / "data", random_documents(100, seed=3), documents_per_shard=10)


def remote_samples(dataset: Path, cache: ShardCache) -> PackedSamples:
    url = f"file://{dataset}"
    source = Source("chain", mirror_dataset(url, cache.directory), 1.0, Remote(url, cache))
    return PackedSamples([source], seed=1, sequence_length=8)


def test_a_nodes_samples_are_its_ranks_in_order_of_time() -> None:
    together = node_sample_indices(ranks=range(1, 3), **STEP)
    expected = [rank_sample_indices(0, rank=rank, **STEP) for rank in (1, 2)]
    assert together.tolist() == [[expected[0][micro].tolist(), expected[1][micro].tolist()] for micro in (0, 1)]


@pytest.mark.parametrize("step", [0, 7])
def test_upcoming_shards_are_those_that_reading_touches_first(
    dataset: Path, tmp_path: Path, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read_ahead, "_HORIZON", 40)
    samples = remote_samples(dataset, ShardCache(tmp_path / "cache", capacity_bytes=1 << 20))
    assert samples.cache is not None
    offsets = node_sample_indices(ranks=range(1, 3), **STEP)
    ahead = ReadAhead(
        samples, samples.cache, offsets=offsets, samples_per_step=12, step=lambda: step, closed=threading.Event()
    )
    expected: list[Path] = []
    stream = samples.streams[0]
    for later in range(step, step + 5):  # 8 samples of these ranks a step
        _, located = samples.locate(later * 12 + offsets.reshape(-1))
        for sample in located.tolist():
            numbers = stream.shards(*sample_span(sample, 8))
            expected += [path for number in numbers if (path := stream.remote_shard(number).path) not in expected]
    assert ahead.paths() == expected
    assert samples.cache.needs() == expected


def test_what_comes_next_is_there_before_it_is_read(dataset: Path, tmp_path: Path) -> None:
    cache = ShardCache(tmp_path / "cache", capacity_bytes=1 << 20)
    samples = remote_samples(dataset, cache)
    with Loader(samples, first_step=0, rank=0, **STEP):
        deadline_s = time.monotonic() + 60
        while len(list(cache.directory.glob("*/*.arrow"))) < 10:
            assert time.monotonic() < deadline_s
            time.sleep(0.05)


def unplug(monkeypatch: pytest.MonkeyPatch) -> tuple[list[str], Callable[[], None]]:
    """No file of a store opens from now on, until what is returned is called; and what is asked for meanwhile."""
    usual, asked = LocalFileSystem.open, list[str]()

    def fail(self: LocalFileSystem, path: str, *parts: Any, **settings: Any) -> Any:
        asked.append(path)
        raise ConnectionResetError("Connection reset by peer")

    monkeypatch.setattr(LocalFileSystem, "open", fail)
    return asked, lambda: monkeypatch.setattr(LocalFileSystem, "open", usual)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


def test_a_store_that_comes_back_is_read_ahead_of_again(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_store, "AHEAD_PATIENCE_S", 0.0)
    monkeypatch.setattr(read_ahead, "_PAUSE_S", 0.01)
    cache = ShardCache(tmp_path / "cache", capacity_bytes=1 << 20)
    samples = remote_samples(dataset, cache)
    offsets = node_sample_indices(ranks=range(3), **STEP)
    ahead = ReadAhead(samples, cache, offsets=offsets, samples_per_step=12, step=lambda: 0, closed=threading.Event())
    asked, plug_in = unplug(monkeypatch)
    ahead.start()
    try:
        wait_for(lambda: len(asked) > 20)
        plug_in()
        wait_for(lambda: len(list(cache.directory.glob("*/*.arrow"))) == 10)
    finally:
        ahead.close()


def test_a_store_that_does_not_answer_is_raised_as_such_and_not_as_the_users_mistake(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_store, "PATIENCE_S", 0.0)
    samples = remote_samples(dataset, ShardCache(tmp_path / "cache", capacity_bytes=1 << 20))
    unplug(monkeypatch)
    with Loader(samples, first_step=0, rank=0, **STEP) as loader:
        for _ in range(2):
            with pytest.raises(StoreUnreachableError, match=r"\(ConnectionResetError: Connection reset by peer\)"):
                next(loader)


def test_closing_waits_for_no_store_that_does_not_answer(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("FIRST_WAIT_S", "PATIENCE_S", "AHEAD_PATIENCE_S"):
        monkeypatch.setattr(object_store, name, 300.0)
    monkeypatch.setattr(read_ahead, "CLOSE_WAIT_S", 300.0)
    cache = ShardCache(tmp_path / "cache", capacity_bytes=1 << 20)
    samples = remote_samples(dataset, cache)
    asked, plug_in = unplug(monkeypatch)
    loader = Loader(samples, first_step=0, rank=0, **STEP)
    wait_for(lambda: len(asked) >= 4)  # by now they wait to ask again, or for the lock of who does
    began_s = time.monotonic()
    loader.close()
    assert time.monotonic() - began_s < 60
    plug_in()
    # who reads on has a cache that copies
    local = PackedSamples([Source("chain", dataset, 1.0)], seed=1, sequence_length=8)
    assert samples.read(np.arange(60)).input_ids.equal(local.read(np.arange(60)).input_ids)
    with Loader(samples, first_step=0, rank=0, **STEP):
        own = cache.closed
        loader.close()
        assert cache.closed is own


def test_closing_leaves_a_store_that_hangs_behind(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual, asked, answers = LocalFileSystem.open, list[str](), threading.Event()

    def hang(self: LocalFileSystem, path: str, *parts: Any, **settings: Any) -> Any:
        asked.append(path)
        answers.wait(300)
        return usual(self, path, *parts, **settings)

    monkeypatch.setattr(read_ahead, "CLOSE_WAIT_S", 0.2)
    samples = remote_samples(dataset, ShardCache(tmp_path / "cache", capacity_bytes=1 << 20))
    monkeypatch.setattr(LocalFileSystem, "open", hang)
    before = set(threading.enumerate())
    loader = Loader(samples, first_step=0, rank=0, **STEP)
    wait_for(lambda: len(asked) == 4)
    began_s = time.monotonic()
    loader.close()
    assert time.monotonic() - began_s < 60
    # and once it answers nothing is left
    answers.set()
    wait_for(lambda: set(threading.enumerate()) <= before)


def test_two_ranks_share_a_cache_smaller_than_their_dataset(dataset: Path, tmp_path: Path) -> None:
    largest = max(file.stat().st_size for file in dataset.glob("*.arrow"))
    local = PackedSamples([Source("chain", dataset, 1.0)], seed=1, sequence_length=8)
    ranks = [
        Loader(
            remote_samples(dataset, ShardCache(tmp_path / "cache", capacity_bytes=3 * largest)),
            first_step=5,
            samples_per_step=8,
            micro_batch_size=2,
            rank=rank,
            world_size=2,
            local_rank=rank,
            local_size=2,
        )
        for rank in (0, 1)
    ]
    with ranks[0], ranks[1]:
        for step in range(5, 15):
            for rank, loader in enumerate(ranks):
                settings = {"samples_per_step": 8, "micro_batch_size": 2, "rank": rank, "world_size": 2}
                for indices in rank_sample_indices(step, **settings):
                    assert next(loader).input_ids.equal(local.read(indices).input_ids)
                assert sum(sizes_at_once(tmp_path / "cache").values()) <= 3 * largest


def sizes_at_once(cache: Path) -> dict[Path, int]:
    """Of all shards that lie there at one moment: a reader in the background removes some while they are listed."""

    def listed() -> dict[Path, int]:
        sizes = {}
        for file in cache.glob("*/*.arrow"):
            with contextlib.suppress(FileNotFoundError):
                sizes[file] = file.stat().st_size
        return sizes

    before = listed()
    while (after := listed()) != before:
        before = after
    return after


def test_an_order_without_remote_sources_needs_nothing(dataset: Path) -> None:
    samples = PackedSamples([Source("chain", dataset, 1.0)], seed=1, sequence_length=8)
    assert samples.cache is None
    with Loader(samples, first_step=0, rank=0, **STEP) as loader:
        assert next(loader).input_ids.equal(samples.read(np.array([0, 1])).input_ids)
