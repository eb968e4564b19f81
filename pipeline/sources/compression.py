"""Plain, gzip and Zstandard files as one kind of binary stream; several members or frames in a row are one text.

A compressed file that ends too early raises EOFError while it is read, never a silent end.
"""

from __future__ import annotations

import gzip
import io
import zlib
from pathlib import Path
from typing import BinaryIO, cast

import zstandard
from typing_extensions import Buffer

COMPRESSED_SUFFIXES = (".gz", ".zst")

# what reading a damaged file raises; gzip.BadGzipFile is an OSError
DAMAGE = (EOFError, zlib.error, gzip.BadGzipFile, zstandard.ZstdError)

_READ_BYTES = 1 << 20


def open_binary(path: Path) -> BinaryIO:
    """A buffered stream of the decompressed bytes, by the file's suffix.

    Raises EOFError for a compressed file of no bytes: compressed, even nothing has a header.
    """
    if path.suffix in COMPRESSED_SUFFIXES and path.stat().st_size == 0:
        raise EOFError("it has no bytes")
    if path.suffix == ".gz":
        return cast(BinaryIO, gzip.open(path, "rb"))
    if path.suffix == ".zst":
        return io.BufferedReader(_ZstandardReader(path), buffer_size=_READ_BYTES)
    return path.open("rb", buffering=_READ_BYTES)


class _ZstandardReader(io.RawIOBase):
    """Frame after frame. zstandard's own `stream_reader` takes a truncated frame for an end of file."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        self._frame: zstandard.ZstdDecompressionObj | None = None
        self._pending = memoryview(b"")
        self._input = b""

    def readable(self) -> bool:
        return True

    def readinto(self, target: Buffer, /) -> int:
        while not self._pending:
            if not self._input:
                self._input = self._file.read(_READ_BYTES // 8)
            if not self._input:
                if self._frame is not None:
                    raise EOFError("the last Zstandard frame has no end")
                return 0
            if self._frame is None:
                self._frame = zstandard.ZstdDecompressor().decompressobj()
            self._pending = memoryview(self._frame.decompress(self._input))
            self._input = self._frame.unused_data if self._frame.eof else b""
            if self._frame.eof:
                self._frame = None
        view = memoryview(target).cast("B")
        count = min(len(view), len(self._pending))
        view[:count] = self._pending[:count]
        self._pending = self._pending[count:]
        return count

    def close(self) -> None:
        self._file.close()
        super().close()
