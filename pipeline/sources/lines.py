"""The lines of a piece of a file, plain or compressed, in bounded memory. Every line is of one piece of its file.

In a plain file a line belongs to the piece that its first byte lies in. Of a compressed file nobody knows the byte
before a piece, and whether that ends a line; so a piece that is not the first leaves everything up to its first line
end to the piece before, which goes on behind its own end for that.
"""

from __future__ import annotations

from typing import BinaryIO

from pipeline.document import MAX_RECORD_BYTES
from pipeline.sources.compression import FramedReader
from pipeline.sources.piece import Piece
from pipeline.sources.suffix import is_compressed


class Lines:
    """The lines of `piece`, which `file` is at the start of (as `open_piece` gives it)."""

    def __init__(self, file: BinaryIO, piece: Piece) -> None:
        self._file = file
        self._frames = file.frames if isinstance(file, FramedReader) else None
        self._stop = None if is_compressed(piece.path) else piece.stop
        self._offset = 0
        if piece.start and self._frames is not None:
            self._offset = _skip_line(file)
        elif piece.start:
            # from the byte before: if that ends a line, the first line of the range begins at `start`
            file.seek(piece.start - 1)
            self._offset = piece.start - 1 + _skip_line(file)
        self.is_over = self._is_past_end()

    def read(self) -> tuple[str, bytes]:
        """Place and bytes of the next line, at most MAX_RECORD_BYTES + 1 of them; none after the last.

        The place is the offset of the line's first byte in the decompressed file; `20+30` where it is the 30th in the
        frame of a compressed file that begins at byte 20 as it is stored.
        """
        offset = self._offset
        line = self._file.readline(MAX_RECORD_BYTES + 1)
        place = str(offset) if self._frames is None else self._frames.place_of(offset)
        self._offset += len(line)
        if len(line) > MAX_RECORD_BYTES and not line.endswith(b"\n"):
            self._offset += _skip_line(self._file)
        self.is_over = not line or self._is_past_end()
        return place, line

    def _is_past_end(self) -> bool:
        if self._frames is not None:
            return self._frames.end is not None and self._offset > self._frames.end
        return self._stop is not None and self._offset >= self._stop


def _skip_line(file: BinaryIO) -> int:
    """Bytes read to get past the end of a line."""
    count = 0
    while part := file.readline(MAX_RECORD_BYTES):
        count += len(part)
        if part.endswith(b"\n"):
            break
    return count
