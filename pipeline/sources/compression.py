"""Plain, gzip, bzip2, xz and Zstandard files as one kind of binary stream; several members in a row are one text.

A compressed file that ends too early raises EOFError while it is read, never a silent end; one that goes on as
something else raises DamagedError, where the standard library's bz2 and lzma would end without a word.

Of Zstandard files and those of bgzip a part can be read, from where a frame begins (`frames.py`).
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, cast

import zstandard
from typing_extensions import Buffer

from pipeline.document import SourceError
from pipeline.sources.frames import is_bgzip
from pipeline.sources.piece import Piece
from pipeline.sources.storage import open_file, readable
from pipeline.sources.suffix import suffix_of

_READ_BYTES = 1 << 20
# zstandard's decompressor knows no limit, and a block of 128 KiB may take four bytes: this may hold 64 MiB
_READ_BYTES_OF_ZSTD = 1 << 11


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
    "bgzip": lambda: zlib.decompressobj(16 + zlib.MAX_WBITS),
}
# of formats whose files are cut
_FRAMED = (".zst", "bgzip")


class Frames:
    """Which frames the text of a piece comes from, as far as it has been read. Offsets of the text are the piece's."""

    def __init__(self, piece: Piece) -> None:
        self._stop = piece.stop
        self._starts = deque([(0, piece.start)])
        self.end: int | None = None  # of the text, where the piece ends

    def note_start(self, offset: int, *, stored_at: int) -> None:
        """A frame begins at the text's `offset`, and at byte `stored_at` of the file."""
        self._starts.append((offset, stored_at))
        if stored_at >= self._stop and self.end is None:
            if stored_at > self._stop:
                raise DamagedError(f"no frame begins at byte {self._stop}")
            self.end = offset

    def place_of(self, offset: int) -> str:
        """Where a byte of the text is found again: its offset in its frame, behind the frame's own. In order."""
        while len(self._starts) > 1 and self._starts[1][0] <= offset:
            self._starts.popleft()
        start, stored_at = self._starts[0]
        return f"{stored_at}+{offset - start}" if stored_at else str(offset)


class FramedReader(io.BufferedReader):
    """A stream that knows the frames that it is read from."""

    def __init__(self, file: BinaryIO, kind: str, frames: Frames, *, start: int) -> None:
        super().__init__(_MemberReader(file, kind, frames, start=start), buffer_size=_READ_BYTES)
        self.frames = frames


@contextmanager
def open_piece(piece: Piece) -> Iterator[BinaryIO]:
    """A buffered stream of the decompressed bytes, by the file's suffix, on to the end of the file.

    It is at the start of a plain file, and at that of the piece's first frame in a compressed one.

    Raises SourceError, naming the file, if it has changed, and while it is read if it is damaged or truncated. A
    compressed file of no bytes is truncated: compressed, even nothing has a header.
    """
    file = open_file(piece.path, version=piece.version)
    try:
        with file:
            yield _decompressed(file, piece)
    except _DAMAGE as error:
        reason = error or type(error).__name__
        raise SourceError(f"{readable(piece.path)} is damaged or truncated ({reason}); fetch it again") from None


def _decompressed(file: BinaryIO, piece: Piece) -> BinaryIO:
    kind = suffix_of(piece.path)
    if kind not in _MEMBERS and kind != ".gz":
        return file
    file.seek(piece.start)
    head = file.read(18)
    if not head:
        raise EOFError("it has no bytes")
    file.seek(piece.start)
    # behind blocks of bgzip, where alone such a file is cut, any member of gzip may follow
    if kind == ".gz" and (piece.start or is_bgzip(head)):
        kind = "bgzip"
    if kind in _FRAMED:
        return cast(BinaryIO, FramedReader(file, kind, Frames(piece), start=piece.start))
    if kind == ".gz":
        return cast(BinaryIO, gzip.GzipFile(fileobj=file, mode="rb"))
    return io.BufferedReader(_MemberReader(file, kind), buffer_size=_READ_BYTES)


class _MemberReader(io.RawIOBase):
    """Member after member. zstandard's own `stream_reader` takes a truncated frame for an end of file."""

    def __init__(self, file: BinaryIO, kind: str, frames: Frames | None = None, *, start: int = 0) -> None:
        self._file = file
        self._kind = kind
        self._frames = frames
        self._stored_offset = start
        self._text_offset = 0
        self._member: Any = None
        self._pending = memoryview(b"")
        self._input = b""

    def readable(self) -> bool:
        return True

    def readinto(self, target: Buffer, /) -> int:
        while not self._pending:
            if self._member is None and self._kind == ".xz":
                self._input = self._input.lstrip(b"\0")  # padding between streams
            if not self._input and self._needs_input():
                self._input = self._file.read(_READ_BYTES_OF_ZSTD if self._kind == ".zst" else _READ_BYTES // 8)
                self._stored_offset += len(self._input)
                if not self._input:
                    if self._member is not None:
                        raise EOFError(f"the last {self._kind} member has no end")
                    return 0
                continue
            if self._member is None:
                self._member = _MEMBERS[self._kind]()
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
            if self._kind == ".zst":
                content: bytes = self._member.decompress(given)
            else:
                content = self._member.decompress(given, _READ_BYTES)
        except OSError as error:  # bz2 has no class of its own
            raise DamagedError(str(error)) from None
        if self._member.eof:
            self._input = self._member.unused_data
            self._member = None
        elif self._kind == "bgzip":
            self._input = self._member.unconsumed_tail
        self._text_offset += len(content)
        if self._member is None and self._frames is not None:
            self._frames.note_start(self._text_offset, stored_at=self._stored_offset - len(self._input))
        return content
