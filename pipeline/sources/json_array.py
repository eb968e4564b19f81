"""Files that are one JSON array of objects, plain or compressed, read element by element in bounded memory.

The elements are cut apart by their brackets and strings alone, so that one that is not JSON is one bad record. A
record's location is the offset of its first byte in the decompressed file.
"""

from __future__ import annotations

import re
from codecs import BOM_UTF8
from collections.abc import Iterator
from typing import BinaryIO

from pipeline.document import MAX_RECORD_BYTES, Record, SourceError
from pipeline.source_config import JsonArrayConfig
from pipeline.sources.compression import open_piece
from pipeline.sources.jsonl import json_record
from pipeline.sources.piece import Piece, whole_file
from pipeline.sources.storage import find_files, readable

_SPACE = b" \t\r\n"
_READ_BYTES = 1 << 20
_OUTSIDE = re.compile(rb'["\[\]{},]')
# in a string: what ends it, or an escape with the byte after it, which may lie in the next chunk
_INSIDE = re.compile(rb'"|\\(?s:.)?')


def find_pieces(config: JsonArrayConfig, *, unit_size_bytes: int) -> Iterator[Piece]:
    """Each file is a piece: where an element begins can be told from the start of the file only."""
    return map(whole_file, find_files(config.files, source=config.name))


def read_piece(config: JsonArrayConfig, piece: Piece) -> Iterator[Record]:
    """Raises SourceError, naming the file, if it is no array, or one that has no end or goes on behind it."""
    name = readable(piece.path)
    with open_piece(piece) as file:
        try:
            for offset, size_bytes, content in _elements(file):
                yield json_record(config, content, location=f"{name}@{offset}", size_bytes=size_bytes)
        except _NotAnArrayError as error:
            raise SourceError(f"{name} is not a whole JSON array ({error}); fetch it again, or name its type") from None


class _NotAnArrayError(ValueError):
    pass


class _Cutter:
    """Collects an element's bytes, no more than MAX_RECORD_BYTES + 1 of them."""

    def __init__(self) -> None:
        self.start = 0
        self.size_bytes = 0
        self._content = bytearray()

    def add(self, part: bytes, *, offset: int) -> None:
        if self.size_bytes == 0:
            stripped = part.lstrip(_SPACE)
            self.start = offset + len(part) - len(stripped)
            part = stripped
        self.size_bytes += len(part)
        self._content += part[: MAX_RECORD_BYTES + 1 - len(self._content)]

    def take(self) -> tuple[int, int, bytes]:
        element = self.start, self.size_bytes, bytes(self._content).rstrip(_SPACE)
        self.size_bytes = 0
        self._content.clear()
        return element


def _elements(file: BinaryIO) -> Iterator[tuple[int, int, bytes]]:
    """Offset, size and bytes of each element, at most MAX_RECORD_BYTES + 1 of its bytes."""
    offset, chunk = _open_bracket(file)
    cutter = _Cutter()
    depth, in_string, any_before = 1, False, False
    while chunk:
        position = begin = 0
        while match := (_INSIDE if in_string else _OUTSIDE).search(chunk, position):
            position = match.end()
            token = match.group()
            if in_string:
                if token == b"\\":  # the chunk ends in the middle of an escape
                    more = file.read(1)
                    if not more:
                        break
                    chunk += more
                    position += 1
                elif token == b'"':
                    in_string = False
            elif token == b'"':
                in_string = True
            elif token in b"[{":
                depth += 1
            elif token in b"]}":
                depth -= 1
            if (token == b"," and depth == 1 and not in_string) or depth == 0:
                cutter.add(chunk[begin : match.start()], offset=offset + begin)
                if cutter.size_bytes or any_before or depth:
                    yield cutter.take()
                any_before, begin = True, position
            if depth == 0:
                _require_end(token, chunk[position:], file)
                return
        cutter.add(chunk[begin:], offset=offset + begin)
        offset += len(chunk)
        chunk = file.read(_READ_BYTES)
    raise _NotAnArrayError("it has no end")


def _open_bracket(file: BinaryIO) -> tuple[int, bytes]:
    """Past the array's bracket: where that is, and the rest of the first chunk."""
    first = file.read(_READ_BYTES)
    content = first.removeprefix(BOM_UTF8).lstrip(_SPACE)
    if not content.startswith(b"["):
        raise _NotAnArrayError(f"it begins with {content[:20].decode(errors='backslashreplace')!r}")
    return len(first) - len(content) + 1, content[1:] or file.read(_READ_BYTES)


def _require_end(bracket: bytes, rest: bytes, file: BinaryIO) -> None:
    if bracket != b"]":
        raise _NotAnArrayError("its last bracket is }")
    while rest:
        if rest.strip(_SPACE):
            raise _NotAnArrayError("something follows its end")
        rest = file.read(_READ_BYTES)
