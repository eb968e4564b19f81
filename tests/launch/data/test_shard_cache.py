"""The cache of shards: what it removes, whom it lets wait, and what a kill leaves; a real S3 server, and folders."""

from __future__ import annotations

import errno
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from launch.data import object_store
from launch.data.loader import PackedSamples, Source
from launch.data.object_store import StoreUnreachableError, mirror_dataset
from launch.data.shard_cache import RemoteShard, ShardCache
from launch.data.shard_reader import Remote
from launch.supervision_config import WatchdogConfig
from pipeline.shards import format as contract
from pipeline.shards.format import DatasetError, read_manifest

ROOT = Path(__file__).resolve().parents[3]
SHARDS = 6


class Counted(MemoryFileSystem):  # type: ignore[misc]
    """fsspec's memory that counts how often a file is opened, and fails as often as it is told to."""

    protocol = "counted"
    store: ClassVar[dict[str, Any]] = {}
    opened: ClassVar[list[str]] = []
    failures: ClassVar[list[Exception]] = []

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return "/" + path.removeprefix("counted://").lstrip("/")

    def _open(self, path: str, mode: str = "rb", **settings: Any) -> Any:
        if mode == "rb":
            self.opened.append(path)
            if self.failures:
                raise self.failures.pop()
            time.sleep(0.05)
        return super()._open(path, mode=mode, **settings)


fsspec.register_implementation("counted", Counted, clobber=True)


@pytest.fixture
def dataset(tmp_path: Path, make_dataset: Callable[..., Path], random_documents: Callable[..., Any]) -> Path:
    """Six shards of about 400 ids."""
    return make_dataset(tmp_path / "data", random_documents(120, seed=3), documents_per_shard=20)


@pytest.fixture
def counted(dataset: Path) -> str:
    """The dataset in a store that counts."""
    Counted.store.clear()
    Counted.opened.clear()
    Counted.failures.clear()
    system = fsspec.filesystem("counted")
    for file in dataset.rglob("*"):
        if file.is_file():
            system.pipe(f"/data/{file.relative_to(dataset)}", file.read_bytes())
    Counted.opened.clear()
    return "counted://data"


def shards_of(url: str, mirror: Path) -> list[RemoteShard]:
    records = read_manifest(mirror).splits["train"].shards
    return [
        RemoteShard(f"{url}/{record.path}", mirror / record.path, record.size_bytes, record.digest)
        for record in records
    ]


def names(cache: ShardCache) -> list[int]:
    return sorted(int(path.name.split("-")[1]) for path in cache.directory.glob("*/*.arrow"))


def cache_of(tmp_path: Path, shards: list[RemoteShard], room: int) -> ShardCache:
    """With room for so many of the largest shard."""
    largest = max(shard.size_bytes for shard in shards)
    return ShardCache(tmp_path / "cache", capacity_bytes=room * largest)


def samples_of(url: str, cache_dir: Path, cache: ShardCache) -> PackedSamples:
    source = Source("chain", mirror_dataset(url, cache_dir), 1.0, Remote(url, cache))
    return PackedSamples([source], seed=1, sequence_length=8)


def test_a_dataset_in_s3_reads_as_on_the_disk_within_its_bound(bucket: Any, dataset: Path, tmp_path: Path) -> None:
    for file in dataset.rglob("*"):
        if file.is_file():
            bucket.put(f"sets/data/{file.relative_to(dataset)}", file.read_bytes())
    mirror = mirror_dataset("s3://data/sets/data/", tmp_path / "cache")
    cache = cache_of(tmp_path, shards_of("s3://data/sets/data", mirror), room=2)
    remote = samples_of("s3://data/sets/data", tmp_path / "cache", cache)
    local = PackedSamples([Source("chain", dataset, 1.0)], seed=1, sequence_length=8)
    for start in range(0, 18, 6):
        indices = np.arange(start, start + 6)
        assert remote.read(indices).input_ids.equal(local.read(indices).input_ids)
        held = sum(path.stat().st_size for path in cache.directory.glob("*/*.arrow"))
        assert held <= cache.capacity_bytes
    assert (mirror / "tokenizer.json").read_bytes() == (dataset / "tokenizer.json").read_bytes()


def test_a_store_without_credentials_is_one_line(bucket: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setattr(object_store, "PATIENCE_S", 0.0)
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    with pytest.raises(
        DatasetError, match=r"^s3://data/x/manifest.json cannot be read \(.*set the store's credentials in[^\n]*$"
    ):
        mirror_dataset("s3://data/x", tmp_path / "cache")


def test_a_dataset_that_is_not_there_is_one_line(counted: str, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"^dataset counted://other is not finished, or not there \(no manifest"):
        mirror_dataset("counted://other", tmp_path / "cache")


def test_what_validation_reads_is_removed_only_for_what_is_read_now(counted: str, tmp_path: Path) -> None:
    shards = shards_of(counted, mirror_dataset(counted, tmp_path / "cache"))
    cache = cache_of(tmp_path, shards, room=2)
    cache.kept = frozenset([shards[0].path])
    cache.needs = lambda: [shards[number].path for number in (1, 2, 3)]
    cache.ensure(shards[0])
    cache.ensure(shards[1])
    # 1 is needed sooner, and 0 is kept
    assert not cache.prefetch(shards[2], next_use=1)
    assert names(cache) == [0, 1]
    cache.ensure(shards[2])
    assert names(cache) == [0, 2]
    # the largest of them has all of the folder for itself
    alone = cache_of(tmp_path, shards, room=1)
    alone.kept = cache.kept
    alone.ensure(shards[3])
    assert names(alone) == [3]


def test_full_disk_is_told_as_one_and_not_asked_of_the_store_again(
    counted: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*parts: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    shards = shards_of(counted, mirror_dataset(counted, tmp_path / "cache"))
    cache = cache_of(tmp_path, shards, room=3)
    Counted.opened.clear()
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(
        DatasetError,
        match=r"^data.cache_dir=.* has no room for shard counted://data/.* of [\d,]+ bytes \(No space left on device\)"
        r"; free space there, or lower data.cache_bytes=\d+$",
    ):
        cache.ensure(shards[0])
    assert Counted.opened == []
    assert list(cache.directory.glob("*/.*.partial")) == []


def test_what_is_needed_last_is_removed_first(counted: str, tmp_path: Path) -> None:
    shards = shards_of(counted, mirror_dataset(counted, tmp_path / "cache"))
    cache = cache_of(tmp_path, shards, room=3)
    for number in (0, 1, 2):
        cache.ensure(shards[number])
    cache.needs = lambda: [shards[number].path for number in (3, 2, 4, 0)]
    # 1 is not needed at all, then 0 comes last
    cache.ensure(shards[3])
    assert names(cache) == [0, 2, 3]
    assert cache.prefetch(shards[4], next_use=2)
    assert names(cache) == [2, 3, 4]


def test_a_shard_is_not_removed_for_one_that_is_needed_later(counted: str, tmp_path: Path) -> None:
    shards = shards_of(counted, mirror_dataset(counted, tmp_path / "cache"))
    cache = cache_of(tmp_path, shards, room=2)
    cache.needs = lambda: [shards[number].path for number in (4, 5, 0)]
    cache.ensure(shards[4])
    cache.ensure(shards[5])
    assert not cache.prefetch(shards[0], next_use=2)
    assert names(cache) == [4, 5]
    # but for one that is read now
    cache.ensure(shards[0])
    assert names(cache) == [0, 4]


def test_every_order_of_needs_keeps_the_soonest(counted: str, tmp_path: Path) -> None:
    shards = shards_of(counted, mirror_dataset(counted, tmp_path / "cache"))
    cache = cache_of(tmp_path, shards, room=3)
    for order in itertools.islice(itertools.permutations(range(SHARDS)), 0, 720, 60):
        paths = [shards[number].path for number in order]
        cache.needs = lambda paths=paths: paths  # type: ignore[misc]
        for use, number in enumerate(order):
            cache.prefetch(shards[number], next_use=use)
        assert set(names(cache)) >= set(order[:2])
        assert sum(path.stat().st_size for path in cache.directory.glob("*/*.arrow")) <= cache.capacity_bytes


def test_many_readers_copy_a_shard_once(counted: str, tmp_path: Path) -> None:
    shards = shards_of(counted, mirror_dataset(counted, tmp_path / "cache"))
    caches = [cache_of(tmp_path, shards, room=SHARDS) for _ in range(8)]
    Counted.opened.clear()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda cache: [cache.ensure(shard) for shard in shards], caches))
    assert sorted(Counted.opened) == [f"/data/{shard.path.name}" for shard in shards]
    assert names(caches[0]) == list(range(SHARDS))


def test_readers_wait_for_room_that_a_copy_takes(counted: str, tmp_path: Path) -> None:
    shards = shards_of(counted, mirror_dataset(counted, tmp_path / "cache"))
    cache = cache_of(tmp_path, shards, room=1)
    with ThreadPoolExecutor(SHARDS) as pool:
        list(pool.map(cache.ensure, shards))
    assert len(names(cache)) == 1


def test_a_store_that_fails_for_a_while_is_asked_again(
    counted: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_store, "FIRST_WAIT_S", 0.001)
    shards = shards_of(counted, mirror_dataset(counted, tmp_path / "cache"))
    cache = cache_of(tmp_path, shards, room=2)
    Counted.failures += [OSError("the line is cut")] * 3
    cache.ensure(shards[0])
    assert contract.digest_file(shards[0].path) == shards[0].digest
    Counted.failures += [OSError("the line is cut")] * 1000
    monkeypatch.setattr(object_store, "PATIENCE_S", 0.1)
    # and is nobody's mistake, so that a restart may help
    with pytest.raises(
        StoreUnreachableError, match=r"00001-000.arrow cannot be read \(OSError: the line is cut\); check th"
    ):
        cache.ensure(shards[1])
    assert names(cache) == [0]
    assert list(cache.directory.rglob("*.partial")) == []


@pytest.mark.parametrize(("question_s", "asked_ahead", "asked"), [(0.0, 3, 9), (10.0, 2, 6)])
def test_a_reader_is_patient_for_less_than_the_watchdog(
    counted: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, question_s: float, asked_ahead: int, asked: int
) -> None:
    """Who reads a shard may have to wait first for the lock of who copies it ahead. The libraries ask several times
    themselves: s3fs takes about ten seconds to say that a connection is refused."""
    clock = [0.0]
    monkeypatch.setattr(object_store, "time", SimpleNamespace(monotonic=lambda: clock[0]))

    class Noted(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            clock[0] += timeout or 0.0
            return False

    def fail(self: Counted, path: str, **settings: Any) -> Any:
        self.opened.append(path)
        clock[0] += question_s
        raise OSError("the line is cut")

    shards = shards_of(counted, mirror_dataset(counted, tmp_path / "cache"))
    cache = cache_of(tmp_path, shards, room=2)
    cache.closed = Noted()
    monkeypatch.setattr(Counted, "_open", fail)
    Counted.opened.clear()
    with pytest.raises(StoreUnreachableError):
        cache.prefetch(shards[0], next_use=0)
    assert len(Counted.opened) == asked_ahead
    with pytest.raises(StoreUnreachableError):
        cache.ensure(shards[0])
    assert len(Counted.opened) == asked_ahead + asked
    assert clock[0] < WatchdogConfig().floor_s


def test_closing_ends_the_wait_for_a_store_that_fails(
    counted: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_store, "PATIENCE_S", 1000.0)
    monkeypatch.setattr(object_store, "FIRST_WAIT_S", 300.0)
    shards = shards_of(counted, mirror_dataset(counted, tmp_path / "cache"))
    cache = cache_of(tmp_path, shards, room=2)
    Counted.failures += [OSError("the line is cut")] * 4
    threading.Timer(0.5, cache.closed.set).start()
    began_s = time.monotonic()
    with pytest.raises(StoreUnreachableError):
        cache.ensure(shards[0])
    assert time.monotonic() - began_s < 60


def test_no_copy_begins_once_it_is_closed(counted: str, tmp_path: Path) -> None:
    shards = shards_of(counted, mirror_dataset(counted, tmp_path / "cache"))
    cache = cache_of(tmp_path, shards, room=2)
    cache.closed.set()
    Counted.opened.clear()
    with pytest.raises(StoreUnreachableError, match="is not copied: the reading has ended"):
        cache.ensure(shards[0])
    assert Counted.opened == []
    assert list(cache.directory.rglob("*.partial")) == []


def test_a_replaced_shard_is_refused_by_its_digest(counted: str, tmp_path: Path) -> None:
    shards = shards_of(counted, mirror_dataset(counted, tmp_path / "cache"))
    content = bytearray(fsspec.filesystem("counted").cat_file("/data/data-00000-000.arrow"))
    content[-20] ^= 1
    fsspec.filesystem("counted").pipe("/data/data-00000-000.arrow", bytes(content))
    cache = cache_of(tmp_path, shards, room=2)
    with pytest.raises(DatasetError, match=r"^shard .*00000-000.arrow has .* it was replaced or is damaged; put th"):
        cache.ensure(shards[0])
    assert names(cache) == []


def test_a_shard_that_the_store_lost_is_named(counted: str, tmp_path: Path) -> None:
    samples = samples_of(counted, tmp_path / "cache", ShardCache(tmp_path / "cache", capacity_bytes=1 << 20))
    fsspec.filesystem("counted").rm("/data/data-00003-000.arrow")
    with pytest.raises(DatasetError, match=r"data-00003-000.arrow cannot be read .*its manifest names the file"):
        samples.read(np.arange(60))


def test_a_cache_that_holds_no_shard_is_refused(counted: str, tmp_path: Path) -> None:
    shards = shards_of(counted, mirror_dataset(counted, tmp_path / "cache"))
    cache = ShardCache(tmp_path / "cache", capacity_bytes=100)
    # however many find it out together
    with ThreadPoolExecutor(SHARDS) as pool:
        for told in [pool.submit(cache.ensure, shard) for shard in shards]:
            with pytest.raises(DatasetError, match=r"bytes does not fit into data.cache_bytes=100; raise it$"):
                told.result()


def test_room_that_a_killed_copy_took_is_found_again(counted: str, tmp_path: Path) -> None:
    shards = shards_of(counted, mirror_dataset(counted, tmp_path / "cache"))
    cache = cache_of(tmp_path, shards, room=1)
    left = shards[1].path.with_name(".data-00001-000.arrow.0123abcd.partial")
    left.write_bytes(bytes(cache.capacity_bytes))
    cache.ensure(shards[0])
    assert not left.exists()


def test_a_copy_is_no_leftover_until_it_has_its_name(
    counted: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = shards_of(counted, mirror_dataset(counted, tmp_path / "cache"))
    cache, other = (cache_of(tmp_path, shards, room=2) for _ in range(2))
    usual = ShardCache._locked

    def locked(self: ShardCache, file: Path) -> Any:
        if self is cache:
            other.remove_leftovers()
        return usual(self, file)

    monkeypatch.setattr(ShardCache, "_locked", locked)
    cache.ensure(shards[0])
    assert names(cache) == [0]


def test_a_manifest_that_another_process_writes_is_no_leftover_and_takes_no_room(counted: str, tmp_path: Path) -> None:
    shards = shards_of(counted, mirror_dataset(counted, tmp_path / "cache"))
    cache = cache_of(tmp_path, shards, room=1)
    written = contract.partial_path(shards[0].path.with_name("manifest.json"))
    written.write_bytes(bytes(cache.capacity_bytes))
    cache.remove_leftovers()
    assert written.exists()
    # one that was left by a kill would be waited for without end
    cache.ensure(shards[0])
    assert names(cache) == [0]


def test_another_version_of_a_dataset_has_a_folder_of_its_own(
    counted: str, dataset: Path, tmp_path: Path, make_dataset: Callable[..., Path]
) -> None:
    first = mirror_dataset(counted, tmp_path / "cache")
    manifest = make_dataset(tmp_path / "next", [[1] * 50] * 40) / "manifest.json"
    fsspec.filesystem("counted").pipe("/data/manifest.json", manifest.read_bytes())
    second = mirror_dataset(counted, tmp_path / "cache")
    assert first != second
    assert read_manifest(first).digest() != read_manifest(second).digest()


COPY_FOR_EVER = """
import sys, time
from pathlib import Path
from fsspec.implementations.local import LocalFileSystem, LocalFileOpener
import fsspec

class Slow(LocalFileSystem):
    protocol = "slow"
    def _open(self, path, mode="rb", **settings):
        file = super()._open(path, mode=mode, **settings)
        if "arrow" in path:
            print("copying", flush=True)
            time.sleep(600)
        return file

fsspec.register_implementation("slow", Slow)
from launch.data.shard_cache import RemoteShard, ShardCache
from pipeline.shards.format import read_manifest

mirror, dataset, capacity = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
record = read_manifest(mirror).splits["train"].shards[0]
cache = ShardCache(mirror.parent, capacity_bytes=capacity)
url = f"slow://{dataset}/{record.path}"
cache.ensure(RemoteShard(url, mirror / record.path, record.size_bytes, record.digest))
"""


def test_a_kill_in_the_middle_of_a_copy_leaves_nothing_that_is_read(dataset: Path, tmp_path: Path) -> None:
    url = f"file://{dataset}"
    mirror = mirror_dataset(url, tmp_path / "cache")
    shards = shards_of(url, mirror)
    cache = cache_of(tmp_path, shards, room=2)
    command = [sys.executable, "-c", COPY_FOR_EVER, str(mirror), str(dataset), str(cache.capacity_bytes)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "copying\n"
        [partial] = cache.directory.rglob("*.partial")
        # one that is alive is left alone, and its room is taken
        cache.remove_leftovers()
        assert partial.stat().st_size == shards[0].size_bytes
        process.send_signal(signal.SIGKILL)
    assert partial.exists()
    cache.remove_leftovers()
    assert not partial.exists()
    cache.ensure(shards[0])
    assert contract.digest_file(shards[0].path) == shards[0].digest
