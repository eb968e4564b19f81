"""JSON lines, plain, .gz or .zst: one object a line. Blank lines are nothing; every other line is a record.

A plain file is cut by byte ranges: a line belongs to the range that its first byte lies in. A record's location is
the offset of its first byte in the decompressed file.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import orjson

from pipeline.config import JsonlConfig
from pipeline.document import MAX_RECORD_BYTES, BadReason, BadRecord, Document, SourceError, shorten
from pipeline.sources.compression import COMPRESSED_SUFFIXES, DAMAGE, open_binary
from pipeline.sources.fields import document_of
from pipeline.sources.piece import Piece, find_files, readable, whole_file

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def find_pieces(config: JsonlConfig, *, unit_size_bytes: int) -> Iterator[Piece]:
    """Byte ranges of at most `unit_size_bytes`; a compressed file is one piece."""
    for file in find_files(config.files, source=config.name):
        whole = whole_file(file)
        if file.suffix in COMPRESSED_SUFFIXES:
            yield whole
            continue
        for start in range(0, whole.stop, unit_size_bytes):
            stop = min(start + unit_size_bytes, whole.stop)
            yield Piece(path=whole.path, version=whole.version, start=start, stop=stop, size_bytes=stop - start)


def read_piece(config: JsonlConfig, piece: Piece) -> Iterator[Document | BadRecord]:
    """Raises SourceError, naming the file, if it is compressed and damaged or truncated."""
    path = Path(piece.path)
    name = readable(path)
    compressed = path.suffix in COMPRESSED_SUFFIXES
    try:
        with open_binary(path) as file:
            for offset, line in _lines(file, start=piece.start, stop=None if compressed else piece.stop):
                record = _record(config, line, location=f"{name}:{offset}")
                if record is not None:
                    yield record
    except DAMAGE as error:
        raise SourceError(f"{name} is damaged or truncated ({error or type(error).__name__}); fetch it again") from None


def _lines(file: BinaryIO, *, start: int, stop: int | None) -> Iterator[tuple[int, bytes]]:
    """Offset and bytes of each line that begins in [start, stop), at most MAX_RECORD_BYTES + 1 of its bytes."""
    offset = start
    if start:
        # from the byte before: if that ends a line, the first line of the range begins at `start`
        file.seek(start - 1)
        offset = start - 1 + _skip_line(file)
    while stop is None or offset < stop:
        line = file.readline(MAX_RECORD_BYTES + 1)
        if not line:
            return
        yield offset, line
        offset += len(line)
        if len(line) > MAX_RECORD_BYTES and not line.endswith(b"\n"):
            offset += _skip_line(file)


def _skip_line(file: BinaryIO) -> int:
    """Bytes read to get past the end of a line."""
    count = 0
    while part := file.readline(MAX_RECORD_BYTES):
        count += len(part)
        if part.endswith(b"\n"):
            break
    return count


def _record(config: JsonlConfig, line: bytes, *, location: str) -> Document | BadRecord | None:
    size_bytes = len(line)
    if size_bytes > MAX_RECORD_BYTES:
        return BadRecord(location, "too_large", size_bytes, shorten(line[:1000]))
    content = line.removeprefix(_BYTE_ORDER_MARK).strip()
    if not content:
        return None
    try:
        record = orjson.loads(content)
    except orjson.JSONDecodeError:
        return BadRecord(location, _why_not_json(content), size_bytes, shorten(content[:1000]))
    if not isinstance(record, dict):
        return BadRecord(location, "not_an_object", size_bytes, shorten(content[:1000]))
    return document_of(
        record.get(config.text_field),
        identity=record.get(config.id_field) if config.id_field else None,
        location=location,
        size_bytes=size_bytes,
        example=content[:1000],
    )


def _why_not_json(content: bytes) -> BadReason:
    try:
        content.decode()
    except UnicodeDecodeError:
        return "invalid_utf8"
    return "malformed_json"
