"""A piece of input: what a source can be cut into. A unit of work is made of consecutive pieces of one source."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
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


class PackedPieces:
    """Pieces in their order, in 28 bytes each and two strings a file: a sixth of what row groups are as objects.

    Every look at a piece makes it anew.
    """

    def __init__(self, pieces: Iterable[Piece]) -> None:
        self._files: list[tuple[str, str]] = []
        self._numbers_of_files, self._starts = array("I"), array("q")
        self._stops, self._sizes = array("q"), array("q")
        for piece in pieces:
            file = (piece.path, piece.version)
            if not self._files or self._files[-1] != file:
                self._files.append(file)
            self._numbers_of_files.append(len(self._files) - 1)
            self._starts.append(piece.start)
            self._stops.append(piece.stop)
            self._sizes.append(piece.size_bytes)

    def __iter__(self) -> Iterator[Piece]:
        columns = (self._numbers_of_files, self._starts, self._stops, self._sizes)
        for number, start, stop, size_bytes in zip(*columns, strict=True):
            path, version = self._files[number]
            yield Piece(path, version, start, stop, size_bytes)

    def __len__(self) -> int:
        return len(self._starts)


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
