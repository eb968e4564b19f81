"""Bytes that lie in files, named without being read, and a reader of them with one buffer. Standard library only.

Behind the door `zero_layout.py`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from checkpoint.records import CheckpointError

BUFFER_BYTES = 8 * 1024 * 1024


@dataclass(frozen=True)
class Extent:
    """Consecutive bytes of a file; zeros where `path` is None."""

    path: Path | None
    offset_bytes: int
    size_bytes: int


class ExtentReader:
    """Reads extents through one buffer; keeps the files open that it has read from. To be closed."""

    def __init__(self) -> None:
        self._buffer = memoryview(bytearray(BUFFER_BYTES))
        self._descriptors: dict[Path, int] = {}

    def chunks(self, extents: Iterable[Extent]) -> Iterator[memoryview]:
        """The bytes in order, in pieces that are valid until the next one."""
        for extent in extents:
            for begin in range(0, extent.size_bytes, BUFFER_BYTES):
                chunk = self._buffer[: min(BUFFER_BYTES, extent.size_bytes - begin)]
                self.read_into(chunk, Extent(extent.path, extent.offset_bytes + begin, len(chunk)))
                yield chunk

    def read_into(self, target: memoryview, extent: Extent) -> None:
        """Fill bytes, as many as the extent has. Raises CheckpointError if its file ends early."""
        if extent.path is None:
            target[:] = bytes(len(target))
            return
        if extent.path not in self._descriptors:
            self._descriptors[extent.path] = os.open(extent.path, os.O_RDONLY)
        descriptor, filled = self._descriptors[extent.path], 0
        while filled < len(target):
            count = os.preadv(descriptor, [target[filled:]], extent.offset_bytes + filled)
            if not count:
                raise CheckpointError(
                    f"{extent.path} ends early ({filled:,} of {len(target):,} bytes); take another step"
                )
            filled += count

    def close(self) -> None:
        for descriptor in self._descriptors.values():
            os.close(descriptor)
