"""A split of a dataset as one stream of token ids, read from memory-mapped Arrow shards.

Contract: opening a stream reads the manifest and nothing else, so that it costs the same for any number of tokens; a
shard is mapped, and checked against the manifest, when it is first touched. Ids inside one record batch are handed
out as views of the map: no copy, and no memory but the page cache.

A map stays for the life of the stream but holds no file descriptor, so a process may read more shards than it may
open files. Does not know of samples, order or epochs; does not hash (`smollm2 pipeline verify` does).
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.shards.format import DatasetError, ShardRecord, Split, SplitRecord, TokenizerRecord, read_manifest

Tokens = NDArray[np.uint16]

# a run of the pipeline leaves a finished dataset alone, so that running it again is not enough
AGAIN = "copy the dataset again, or remove it and run the pipeline again"


@dataclass(frozen=True)
class _Shard:
    """The record batches of one mapped shard: where each begins in the shard, with the end at last, and its ids."""

    starts: list[int]
    batches: list[Tokens]


class TokenStream:
    """All ids of a split, in the manifest's order of shards.

    Raises DatasetError if the dataset is missing or unfinished, or has no such split.
    """

    def __init__(self, dataset: Path, split: Split) -> None:
        manifest = read_manifest(dataset)
        record = manifest.splits.get(split, SplitRecord(documents=0, tokens=0, shards=()))
        self.dataset = dataset
        self.split = split
        self.tokenizer: TokenizerRecord = manifest.tokenizer
        self._records = record.shards
        self._starts = list(accumulate((shard.tokens for shard in record.shards), initial=0))
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
        says. `0 <= start < stop <= total_tokens` is the caller's to keep.
        """
        assert 0 <= start < stop <= self.total_tokens, f"[{start}, {stop}) of {self.total_tokens}"
        number = bisect_right(self._starts, start) - 1
        shard = self._shards.get(number) or self._open(number)
        first = start - self._starts[number]
        batch = bisect_right(shard.starts, first) - 1
        length = stop - start
        begin = first - shard.starts[batch]
        view = shard.batches[batch][begin : begin + length]
        if len(view) == length:
            return view
        return np.concatenate([view, self.read(start + len(view), stop)])

    def check_shards(self) -> None:
        """Compare every shard's size with the manifest, opening none: what would fail hours later fails now.

        Raises DatasetError naming the first shard that differs.
        """
        for record in self._records:
            _check_size(self.dataset / record.path, record)

    def _open(self, number: int) -> _Shard:
        record = self._records[number]
        path = self.dataset / record.path
        _check_size(path, record)
        try:
            with pa.memory_map(str(path)) as file:
                # closing the file gives the descriptor back; the map lives as long as the arrays on it
                columns = [batch.column("input_ids") for batch in pa.ipc.open_stream(file)]
            documents = sum(len(column) for column in columns)
            batches = [column.flatten().to_numpy(zero_copy_only=True) for column in columns]
        except (pa.ArrowInvalid, pa.ArrowKeyError, KeyError, OSError) as error:
            reason = " ".join(str(error).split())[:120]
            raise DatasetError(f"shard {path} is not readable as Arrow ({reason}); {AGAIN}") from None
        batches = [ids for ids in batches if len(ids)]
        starts = list(accumulate((len(ids) for ids in batches), initial=0))
        if (documents, starts[-1]) != (record.documents, record.tokens):
            raise DatasetError(
                f"shard {path} holds {documents:,} documents and {starts[-1]:,} tokens, the manifest says "
                f"{record.documents:,} and {record.tokens:,}; {AGAIN}"
            )
        if batches[0].dtype != np.uint16:
            raise DatasetError(f"shard {path} holds {batches[0].dtype} ids, wanted uint16; {AGAIN}")
        shard = self._shards[number] = _Shard(starts, batches)
        return shard


def _check_size(path: Path, record: ShardRecord) -> None:
    try:
        size_bytes = path.stat().st_size
    except FileNotFoundError:
        raise DatasetError(f"shard {path} is missing; {AGAIN}") from None
    if size_bytes != record.size_bytes:
        raise DatasetError(f"shard {path} has {size_bytes:,} bytes, the manifest says {record.size_bytes:,}; {AGAIN}")
