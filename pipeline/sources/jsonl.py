"""JSON lines, plain or compressed: one object a line. Blank lines are nothing; every other line is a record.

A plain file is cut by byte ranges: a line belongs to the range that its first byte lies in. A record's location is
the offset of its first byte in the decompressed file.
"""

from __future__ import annotations

from codecs import BOM_UTF8
from collections.abc import Iterator
from typing import BinaryIO

import orjson

from pipeline.document import MAX_RECORD_BYTES, BadReason, BadRecord, Record, shorten
from pipeline.source_config import JsonArrayConfig, JsonlConfig
from pipeline.sources.compression import is_compressed, open_piece
from pipeline.sources.fields import record_of, value_at
from pipeline.sources.piece import Piece, byte_ranges, whole_file
from pipeline.sources.storage import find_files, readable


def find_pieces(config: JsonlConfig, *, unit_size_bytes: int) -> Iterator[Piece]:
    """Byte ranges of at most `unit_size_bytes`; a compressed file is one piece."""
    for file in find_files(config.files, source=config.name):
        if is_compressed(file.path):
            yield whole_file(file)
        else:
            yield from byte_ranges(file, range_size_bytes=unit_size_bytes)


def read_piece(config: JsonlConfig, piece: Piece) -> Iterator[Record]:
    """Raises SourceError, naming the file, if it is compressed and damaged or truncated."""
    name = readable(piece.path)
    stop = None if is_compressed(piece.path) else piece.stop
    with open_piece(piece) as file:
        lines = _Lines(file, start=piece.start, stop=stop)
        while not lines.is_over:
            # no name for either: a line is gone when its record is handed on, and that when the next line is read
            yield from _next_record(config, lines, name)


def _next_record(config: JsonlConfig, lines: _Lines, name: str) -> tuple[Record, ...]:
    """The record of the next line; none if the line is blank, or was the last."""
    offset, line = lines.read()
    size_bytes = len(line)
    line = line.removeprefix(BOM_UTF8).strip()
    return (json_record(config, line, location=f"{name}@{offset}", size_bytes=size_bytes),) if line else ()


def json_record(config: JsonlConfig | JsonArrayConfig, content: bytes, *, location: str, size_bytes: int) -> Record:
    """A record of the JSON text of an object, of which no more than MAX_RECORD_BYTES + 1 need be given."""
    if size_bytes > MAX_RECORD_BYTES:
        return BadRecord(location, "too_large", size_bytes, shorten(content[:1000]))
    try:
        record = orjson.loads(content)
    except orjson.JSONDecodeError:
        return BadRecord(location, _why_not_json(content), size_bytes, shorten(content[:1000]))
    if not isinstance(record, dict):
        return BadRecord(location, "not_an_object", size_bytes, shorten(content[:1000]))
    return record_of(
        config,
        lambda path: value_at(record, path),
        location=location,
        size_bytes=size_bytes,
        example=content[:1000],
    )


class _Lines:
    """The lines that begin in [start, stop)."""

    def __init__(self, file: BinaryIO, *, start: int, stop: int | None) -> None:
        self._file = file
        self._offset = start
        self._stop = stop
        if start:
            # from the byte before: if that ends a line, the first line of the range begins at `start`
            file.seek(start - 1)
            self._offset = start - 1 + _skip_line(file)
        self.is_over = stop is not None and self._offset >= stop

    def read(self) -> tuple[int, bytes]:
        """Offset and bytes of the next line, at most MAX_RECORD_BYTES + 1 of them; none after the last."""
        offset = self._offset
        line = self._file.readline(MAX_RECORD_BYTES + 1)
        self._offset += len(line)
        if len(line) > MAX_RECORD_BYTES and not line.endswith(b"\n"):
            self._offset += _skip_line(self._file)
        self.is_over = not line or (self._stop is not None and self._offset >= self._stop)
        return offset, line


def _skip_line(file: BinaryIO) -> int:
    """Bytes read to get past the end of a line."""
    count = 0
    while part := file.readline(MAX_RECORD_BYTES):
        count += len(part)
        if part.endswith(b"\n"):
            break
    return count


def _why_not_json(content: bytes) -> BadReason:
    try:
        content.decode()
    except UnicodeDecodeError:
        return "invalid_utf8"
    return "malformed_json"
