"""A split as the pair of files that Megatron-LM's `IndexedDataset` maps: `PREFIX.bin` and `PREFIX.idx`.

Written from the description of the format (https://docs.nvidia.com/megatron-core/developer-guide/latest/api-guide/
datasets.html, "IndexedDataset"). The data file is the ids of all documents, one after the other. The index file is,
little-endian and unaligned:

    9 bytes    b"MMIDIDX\\x00\\x00"
    uint64     1, the version
    uint8      8, the code of uint16
    uint64     S, the number of sequences
    uint64     D + 1, the number of document indices
    int32 [S]      ids of each sequence
    int64 [S]      its first byte in the data file
    int64 [D + 1]  the sequence at which each document begins, and S

A sequence is a document here, ending in EOS, as with Megatron's `--append-eod`. Memory does not grow with documents.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from pipeline.shards.format import TOKEN_DTYPE, SplitRecord
from pipeline.shards.reader import read_rows

MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
UINT16_CODE = 8
_HEADER = struct.Struct("<9sQBQQ")

# sequences whose entries of the index are in memory together
_INDEX_SEQUENCES = 1 << 20


def write_megatron(dataset: Path, record: SplitRecord, prefix: Path) -> None:
    """Write both files, safe on disk. Raises DatasetError if a shard is damaged, and OSError."""
    with prefix.with_suffix(".bin").open("wb") as data, prefix.with_suffix(".idx").open("w+b") as index:
        index.write(_HEADER.pack(MAGIC, VERSION, UINT16_CODE, record.documents, record.documents + 1))
        for shard in record.shards:
            for rows in read_rows(dataset, shard):
                data.write(rows.ids.tobytes())
                index.write(rows.lengths.astype("<i4").tobytes())
        _write_pointers(index, record.documents)
        for first in range(0, record.documents + 1, _INDEX_SEQUENCES):
            stop = min(first + _INDEX_SEQUENCES, record.documents + 1)
            index.write(np.arange(first, stop, dtype="<i8").tobytes())
        for file in (data, index):
            file.flush()
            os.fsync(file.fileno())


def _write_pointers(index: BinaryIO, sequences: int) -> None:
    """Append the sums of the lengths, which the index holds by now, in bytes."""
    position = 0
    for first, lengths in _read_lengths(index, sequences):
        ends = position + np.cumsum(lengths, dtype=np.int64) * TOKEN_DTYPE.itemsize
        starts = np.concatenate([[position], ends[:-1]]).astype("<i8")
        position = int(ends[-1])
        index.seek(_HEADER.size + 4 * sequences + 8 * first)
        index.write(starts.tobytes())


def _read_lengths(index: BinaryIO, sequences: int) -> Iterator[tuple[int, np.ndarray[tuple[int], np.dtype[np.int32]]]]:
    for first in range(0, sequences, _INDEX_SEQUENCES):
        count = min(_INDEX_SEQUENCES, sequences - first)
        index.seek(_HEADER.size + 4 * first)
        yield first, np.frombuffer(index.read(4 * count), dtype="<i4")
