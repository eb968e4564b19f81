"""JSON lines, plain or compressed: one object a line. Blank lines are nothing; every other line is a record.

A plain file is cut by byte ranges, a compressed one where its format allows it (`frames.py`). A record's location is
where its line begins (`lines.py`).
"""

from __future__ import annotations

from codecs import BOM_UTF8
from collections.abc import Iterator

import orjson

from pipeline.document import MAX_RECORD_BYTES, BadReason, BadRecord, Record, shorten
from pipeline.source_config import JsonArrayConfig, JsonlConfig
from pipeline.sources.compression import open_piece
from pipeline.sources.fields import record_of, value_at
from pipeline.sources.frames import frame_ranges
from pipeline.sources.lines import Lines
from pipeline.sources.long_json import LONG_BYTES, NO_LONG_STRINGS, parse
from pipeline.sources.piece import Piece, byte_ranges
from pipeline.sources.storage import find_files, readable
from pipeline.sources.suffix import is_compressed


def find_pieces(config: JsonlConfig, *, unit_size_bytes: int) -> Iterator[Piece]:
    """Byte ranges of at most `unit_size_bytes`; of a compressed file some frames, or all of it."""
    for file in find_files(config.files, source=config.name):
        if is_compressed(file.path):
            yield from frame_ranges(file, unit_size_bytes=unit_size_bytes)
        else:
            yield from byte_ranges(file, range_size_bytes=unit_size_bytes)


def read_piece(config: JsonlConfig, piece: Piece) -> Iterator[Record]:
    """Raises SourceError, naming the file, if it is compressed and damaged or truncated."""
    name = readable(piece.path)
    with open_piece(piece) as file:
        lines = Lines(file, piece)
        while not lines.is_over:
            # no name for either: a line is gone before its record is handed on, and that is not held while it is used
            records = _next_record(config, lines, name)
            if records:
                yield records.pop()


def _next_record(config: JsonlConfig, lines: Lines, name: str) -> list[Record]:
    """The record of the next line; none if the line is blank, or was the last."""
    place, line = lines.read()
    size_bytes = len(line)
    content: bytes | bytearray = line.removeprefix(BOM_UTF8).strip()
    del line
    if len(content) >= LONG_BYTES:
        content = bytearray(content)
    return [json_record(config, content, location=f"{name}@{place}", size_bytes=size_bytes)] if content else []


def json_record(
    config: JsonlConfig | JsonArrayConfig, content: bytes | bytearray, *, location: str, size_bytes: int
) -> Record:
    """A record of the JSON text of an object, of which no more than MAX_RECORD_BYTES + 1 need be given.

    A bytearray is parsed as a long text, in less memory, and may be empty afterwards.
    """
    example = bytes(content[:1000])
    if size_bytes > MAX_RECORD_BYTES:
        return BadRecord(location, "too_large", size_bytes, shorten(example))
    strings = NO_LONG_STRINGS
    try:
        if isinstance(content, bytearray):
            record, strings = parse(content)
        else:
            record = orjson.loads(content)
    except orjson.JSONDecodeError:
        return BadRecord(location, _why_not_json(content), size_bytes, shorten(example))
    if not isinstance(record, dict):
        return BadRecord(location, "not_an_object", size_bytes, shorten(example))
    return record_of(
        config,
        lambda path: strings.real(value_at(record, path)),
        location=location,
        size_bytes=size_bytes,
        example=example,
    )


def _why_not_json(content: bytes | bytearray) -> BadReason:
    try:
        content.decode()
    except UnicodeDecodeError:
        return "invalid_utf8"
    return "malformed_json"
