"""A split of a dataset as one stream of token ids, read from memory-mapped Arrow shards.

Contract: opening a stream reads the manifest and nothing else, so that it costs the same for any number of tokens; a
shard is mapped, and checked against the manifest, when it is first touched. Ids inside one record batch are handed
out as views of the map: no copy, and no memory but the page cache. Of a shard that was touched less than a kilobyte
stays, and 16 bytes a record batch: no object of Arrow's, for a run touches tens of thousands.

A map stays for the life of the stream but holds no file descriptor, so a process may read more shards than it may
open files. Where the dataset lies in an object store, a shard is copied to the cache when it is touched, and its map is
given up once the cache has removed it. A dataset that is replaced meanwhile is refused: a shard that is touched must be
in the manifest of now with the digest that it had when the stream was opened. Does not know of samples, order or
epochs; does not hash what lies on a disk (`smollm2 pipeline verify` does).
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from contextlib import suppress
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from launch.data.shard_cache import RemoteShard, ShardCache
from pipeline.shards.format import (
    MANIFEST_FILE,
    TOKEN_DTYPE,
    DatasetError,
    Split,
    SplitRecord,
    TokenizerRecord,
    read_manifest,
)

Tokens = NDArray[np.uint16]

# a run of the pipeline leaves a finished dataset alone, so that running it again is not enough
AGAIN = "copy the dataset again, or remove it and run the pipeline again"


_REMOVED_AT_MOST = 5  # times in a row, by other ranks that share a cache


@dataclass(frozen=True, slots=True)
class StreamShard:
    """What a stream remembers of a shard: a quarter of what its record takes, and a run has tens of thousands."""

    path: str
    documents: int
    tokens: int
    size_bytes: int
    digest: str


class _Shard(NamedTuple):
    """One mapped shard: the whole map as if it were ids, where each record batch ends in the stream, and how much
    further on it lies in the map. Arrays of the standard library, which bisect reads faster than numpy's."""

    mapped: Tokens
    ends: array[int]
    shifts: array[int]


@dataclass(frozen=True)
class Remote:
    """Where the shards of a mirrored dataset come from."""

    url: str
    cache: ShardCache


class TokenStream:
    """All ids of a split, in the manifest's order of shards; of a `remote` dataset, `dataset` is the mirror.

    Raises DatasetError if the dataset is missing or unfinished, or has no such split.
    """

    def __init__(self, dataset: Path, split: Split, *, remote: Remote | None = None) -> None:
        self._stamp = _stamp(dataset)
        manifest = read_manifest(dataset)
        record = manifest.splits.get(split, SplitRecord(documents=0, tokens=0, shards=()))
        self.dataset = dataset
        self.split = split
        self.remote = remote
        self.tokenizer: TokenizerRecord = manifest.tokenizer
        self._records = [
            StreamShard(shard.path, shard.documents, shard.tokens, shard.size_bytes, shard.digest)
            for shard in record.shards
        ]
        self._starts = list(accumulate((shard.tokens for shard in record.shards), initial=0))
        self._present: set[tuple[str, str]] | None = None  # of a manifest that was written since
        self._shards: dict[int, _Shard] = {}
        if self._starts[-1] != record.tokens:
            raise DatasetError(
                f"dataset {dataset}: the {split} split's shards hold {self._starts[-1]:,} tokens, its manifest says "
                f"{record.tokens:,}; {AGAIN}"
            )

    @property
    def total_tokens(self) -> int:
        """Ids in the stream."""
        return self._starts[-1]

    def read(self, start: int, stop: int) -> Tokens:
        """Ids [start, stop) as a read-only view where one record batch holds them all, as a copy otherwise.

        Raises DatasetError, naming the shard, if a shard that is touched for the first time is not what the manifest
        says, StoreUnreachableError for a store that does not answer. `0 <= start < stop <= total_tokens` is the
        caller's to keep.
        """
        assert 0 <= start < stop <= self._starts[-1], f"[{start}, {stop}) of {self.total_tokens}"
        number = bisect_right(self._starts, start) - 1
        mapped, ends, shifts = self._shards.get(number) or self._open(number)
        batch = bisect_right(ends, start)
        shift, end = shifts[batch], ends[batch]
        if stop <= end:
            return mapped[start + shift : stop + shift]
        return np.concatenate([mapped[start + shift : end + shift], self.read(end, stop)])

    def shards(self, start: int, stop: int) -> range:
        """The numbers of the shards that hold ids [start, stop)."""
        first, last = (bisect_right(self._starts, place) - 1 for place in (start, stop - 1))
        return range(first, last + 1)

    def is_here(self, start: int, stop: int) -> bool:
        """Whether ids [start, stop) can be read without a copy from an object store."""
        numbers = self.shards(start, stop)
        return self.remote is None or all((self.dataset / self._records[number].path).exists() for number in numbers)

    @property
    def shard_count(self) -> int:
        return len(self._records)

    def shard_start(self, number: int) -> int:
        """The place of a shard's first id in the stream."""
        return self._starts[number]

    def record(self, number: int) -> StreamShard:
        return self._records[number]

    def shard_numbers(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """The number of the shard that each id lies in."""
        return np.searchsorted(np.array(self._starts), places, side="right") - 1

    def remote_shard(self, number: int) -> RemoteShard:
        assert self.remote is not None
        record = self._records[number]
        url = f"{self.remote.url.rstrip('/')}/{record.path}"
        return RemoteShard(url, self.dataset / record.path, record.size_bytes, record.digest)

    def check_shards(self) -> None:
        """Compare every shard's size with the manifest, opening none: what would fail hours later fails now.

        Raises DatasetError naming the first shard that differs. Of a remote dataset nothing is asked.
        """
        if self.remote is None:
            for record in self._records:
                _check_size(self.dataset / record.path, record)

    def map_shard(self, number: int) -> list[pa.RecordBatch]:
        """The record batches of a shard, on its map, with all their columns. Raises as `read` does."""
        return self._map(number)[1]

    def _map(self, number: int) -> tuple[pa.Buffer, list[pa.RecordBatch]]:
        record = self._records[number]
        path = self.dataset / record.path
        self._check_not_replaced(record)
        if self.remote is None:
            return _map(path, record)
        for _ in range(_REMOVED_AT_MOST - 1):
            self.remote.cache.ensure(self.remote_shard(number))
            # another rank may remove it before it is mapped here
            with suppress(DatasetError):
                return _map(path, record)
        self.remote.cache.ensure(self.remote_shard(number))
        return _map(path, record)

    def _open(self, number: int) -> _Shard:
        record = self._records[number]
        path = self.dataset / record.path
        if self.remote is not None:
            self._give_up_removed()
        mapped, rows = self._map(number)
        try:
            columns = [batch.column("input_ids") for batch in rows]
            documents = sum(len(column) for column in columns)
            batches = [column.flatten().to_numpy(zero_copy_only=True) for column in columns]
        except (pa.ArrowInvalid, pa.ArrowKeyError, KeyError) as error:
            raise _unreadable(path, error) from None
        batches = [ids for ids in batches if len(ids)]
        tokens = sum(len(ids) for ids in batches)
        if (documents, tokens) != (record.documents, record.tokens):
            raise DatasetError(
                f"shard {path} holds {documents:,} documents and {tokens:,} tokens, the manifest says "
                f"{record.documents:,} and {record.tokens:,}; {AGAIN}"
            )
        if batches[0].dtype != np.uint16:
            raise DatasetError(f"shard {path} holds {batches[0].dtype} ids, wanted uint16; {AGAIN}")
        shard = self._shards[number] = _shard(mapped, batches, start=self._starts[number], path=path)
        return shard

    def _give_up_removed(self) -> None:
        """A removed file takes its space until it is not mapped any more."""
        for number in [number for number in self._shards if not (self.dataset / self._records[number].path).exists()]:
            del self._shards[number]

    def _check_not_replaced(self, record: StreamShard) -> None:
        stamp = _stamp(self.dataset)
        if stamp != self._stamp:
            now = read_manifest(self.dataset).splits.get(self.split)
            self._stamp, self._present = stamp, set() if now is None else _digests(now)
        # `pipeline run --append` writes a new manifest too, and leaves the shards that there were
        if self._present is not None and (record.path, record.digest) not in self._present:
            raise DatasetError(
                f"dataset {self.dataset} was replaced while it is read: {record.path} is not what it was "
                f"({record.digest[:19]}…); put the dataset of this run back, or start another run"
            )


def _digests(split: SplitRecord) -> set[tuple[str, str]]:
    return {(shard.path, shard.digest) for shard in split.shards}


def _stamp(dataset: Path) -> tuple[int, int, int] | None:
    """Differs when the manifest was written again; None without one."""
    try:
        status = (dataset / MANIFEST_FILE).stat()
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


def _map(path: Path, record: StreamShard) -> tuple[pa.Buffer, list[pa.RecordBatch]]:
    """The whole map, and the record batches on it."""
    _check_size(path, record)
    try:
        with pa.memory_map(str(path)) as file:
            # closing the file gives the descriptor back; the map lives as long as the arrays on it
            rows = list(pa.ipc.open_stream(file))
            file.seek(0)
            return file.read_buffer(), rows
    except (pa.ArrowInvalid, OSError) as error:
        raise _unreadable(path, error) from None


def _shard(mapped: pa.Buffer, batches: list[Tokens], *, start: int, path: Path) -> _Shard:
    places = [ids.ctypes.data - mapped.address for ids in batches]
    if any(not 0 <= place <= mapped.size - ids.nbytes for place, ids in zip(places, batches, strict=True)):
        raise DatasetError(f"shard {path} holds its ids compressed, wanted them as they are; {AGAIN}")
    bounds = array("q", accumulate((len(ids) for ids in batches), initial=start))
    width = TOKEN_DTYPE.itemsize  # Arrow puts every buffer at a multiple of 8 bytes
    shifts = array("q", (place // width - begin for place, begin in zip(places, bounds[:-1], strict=True)))
    return _Shard(np.frombuffer(mapped, dtype=TOKEN_DTYPE, count=mapped.size // width), bounds[1:], shifts)


def _unreadable(path: Path, error: Exception) -> DatasetError:
    reason = " ".join(str(error).split())[:120]
    return DatasetError(f"shard {path} is not readable as Arrow ({reason}); {AGAIN}")


def _check_size(path: Path, record: StreamShard) -> None:
    try:
        size_bytes = path.stat().st_size
    except FileNotFoundError:
        raise DatasetError(f"shard {path} is missing; {AGAIN}") from None
    if size_bytes != record.size_bytes:
        raise DatasetError(f"shard {path} has {size_bytes:,} bytes, the manifest says {record.size_bytes:,}; {AGAIN}")
