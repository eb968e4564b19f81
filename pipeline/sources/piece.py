"""A piece of input: what a source can be cut into. A unit of work is made of consecutive pieces of one source."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.sources.storage import StoredFile
from pipeline.sources.suffix import EXPANSION, is_compressed


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a file or table that can be read alone.

    `version` changes when the file does. `start` and `stop` are bytes of a JSONL file as it is stored, row groups of a
    Parquet file, record batches of an Arrow file, rows of a Hugging Face dataset, or files of one that is streamed.
    `size_bytes` is what is read, decompressed, for grouping and for the progress; it may be an estimate.
    """

    path: str
    version: str
    start: int
    stop: int
    size_bytes: int


def whole_file(file: StoredFile) -> Piece:
    """A file as one piece."""
    return byte_range(file, 0, file.size_bytes)


def byte_ranges(file: StoredFile, *, range_size_bytes: int) -> Iterator[Piece]:
    """A file as consecutive ranges of at most `range_size_bytes`."""
    for start in range(0, file.size_bytes, range_size_bytes):
        yield byte_range(file, start, min(start + range_size_bytes, file.size_bytes))


def byte_range(file: StoredFile, start: int, stop: int) -> Piece:
    size_bytes = (stop - start) * (EXPANSION if is_compressed(file.path) else 1)
    return Piece(path=file.path, version=file.version, start=start, stop=stop, size_bytes=size_bytes)
