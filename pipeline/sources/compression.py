"""Plain, gzip, bzip2, xz and Zstandard files as one kind of binary stream; several members in a row are one text.

A compressed file that ends too early raises EOFError while it is read, never a silent end; one that goes on as
something else raises DamagedError, where the standard library's bz2 and lzma would end without a word.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, cast

import zstandard
from typing_extensions import Buffer

from pipeline.document import SourceError
from pipeline.sources.piece import Piece
from pipeline.sources.storage import open_file, readable

_READ_BYTES = 1 << 20


class DamagedError(ValueError):
    """Bytes that are not of the compression that the file's suffix says."""


# what reading a damaged file raises; gzip.BadGzipFile is an OSError
_DAMAGE = (EOFError, zlib.error, gzip.BadGzipFile, zstandard.ZstdError, lzma.LZMAError, DamagedError)

# a new decompressor, which has eof and unused_data
_MEMBERS: dict[str, Callable[[], Any]] = {
    ".bz2": bz2.BZ2Decompressor,
    ".xz": lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ),
    # what `zstd --long=31` writes is whole, though it needs up to 2 GiB of memory
    ".zst": lambda: zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj(),
}


def is_compressed(path: str) -> bool:
    return _suffix(path) in _MEMBERS or _suffix(path) == ".gz"


def inner_suffix(path: str) -> str:
    """The suffix of what is in a file: `.tsv` of `a.tsv` and of `a.tsv.gz`."""
    return _suffix(os.path.splitext(path)[0] if is_compressed(path) else path)  # noqa: PTH122


@contextmanager
def open_piece(piece: Piece) -> Iterator[BinaryIO]:
    """A buffered stream of the decompressed bytes, by the file's suffix, at its start.

    Raises SourceError, naming the file, if it has changed, and while it is read if it is damaged or truncated. A
    compressed file of no bytes is truncated: compressed, even nothing has a header.
    """
    file = open_file(piece.path, version=piece.version)
    try:
        with file:
            yield _decompressed(file, _suffix(piece.path))
    except _DAMAGE as error:
        reason = error or type(error).__name__
        raise SourceError(f"{readable(piece.path)} is damaged or truncated ({reason}); fetch it again") from None


def _decompressed(file: BinaryIO, suffix: str) -> BinaryIO:
    if suffix not in _MEMBERS and suffix != ".gz":
        return file
    if not file.read(1):
        raise EOFError("it has no bytes")
    file.seek(0)
    if suffix == ".gz":
        return cast(BinaryIO, gzip.GzipFile(fileobj=file, mode="rb"))
    return io.BufferedReader(_MemberReader(file, suffix), buffer_size=_READ_BYTES)


def _suffix(path: str) -> str:
    return os.path.splitext(path)[1]  # noqa: PTH122  (a URL is no Path)


class _MemberReader(io.RawIOBase):
    """Member after member. zstandard's own `stream_reader` takes a truncated frame for an end of file."""

    def __init__(self, file: BinaryIO, suffix: str) -> None:
        self._file = file
        self._suffix = suffix
        self._member: Any = None
        self._pending = memoryview(b"")
        self._input = b""

    def readable(self) -> bool:
        return True

    def readinto(self, target: Buffer, /) -> int:
        while not self._pending:
            if self._member is None and self._suffix == ".xz":
                self._input = self._input.lstrip(b"\0")  # padding between streams
            if not self._input and self._needs_input():
                self._input = self._file.read(_READ_BYTES // 8)
                if not self._input:
                    if self._member is not None:
                        raise EOFError(f"the last {self._suffix} member has no end")
                    return 0
                continue
            if self._member is None:
                self._member = _MEMBERS[self._suffix]()
            self._pending = memoryview(self._decompress())
        view = memoryview(target).cast("B")
        count = min(len(view), len(self._pending))
        view[:count] = self._pending[:count]
        self._pending = self._pending[count:]
        return count

    def _needs_input(self) -> bool:
        return self._member is None or bool(getattr(self._member, "needs_input", True))

    def _decompress(self) -> bytes:
        given, self._input = self._input, b""
        try:
            if self._suffix == ".zst":
                content: bytes = self._member.decompress(given)
            else:
                content = self._member.decompress(given, _READ_BYTES)
        except OSError as error:  # bz2 has no class of its own
            raise DamagedError(str(error)) from None
        if self._member.eof:
            self._input = self._member.unused_data
            self._member = None
        return content
