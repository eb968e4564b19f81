"""Comma- and tab-separated values as RFC 4180 has them, plain or compressed: a quoted field may hold line ends.

A file is one piece: whether a line end ends a row can be told from the start of the file only. A record's location is
the offset of its row's first byte in the decompressed file.
"""

from __future__ import annotations

import csv
from codecs import BOM_UTF8
from collections.abc import Iterator
from typing import BinaryIO

from pipeline.document import MAX_RECORD_BYTES, BadRecord, Record, SourceError, shorten
from pipeline.source_config import CsvConfig
from pipeline.sources.compression import open_piece
from pipeline.sources.fields import paths_of, record_of
from pipeline.sources.piece import Piece, whole_file
from pipeline.sources.storage import find_files, readable
from pipeline.sources.suffix import inner_suffix

_CLOSE = "close them, or write a quote within quotes twice"
# a row is collected in memory; one quote that nothing closes takes the rest of the file for one field
_MAX_FIELD_CHARACTERS = MAX_RECORD_BYTES


def find_pieces(config: CsvConfig, *, unit_size_bytes: int) -> Iterator[Piece]:
    """Each file is a piece."""
    return map(whole_file, find_files(config.files, source=config.name))


def read_piece(config: CsvConfig, piece: Piece) -> Iterator[Record]:
    """Raises SourceError, naming the file, if it lacks a column, or ends or becomes too large within quotes."""
    name = readable(piece.path)
    delimiter = config.delimiter or ("\t" if inner_suffix(piece.path) == ".tsv" else ",")
    csv.field_size_limit(_MAX_FIELD_CHARACTERS)
    with open_piece(piece) as file:
        lines = _Lines(file)
        rows = csv.reader(lines, delimiter=delimiter, strict=True)
        names = list(config.column_names or _header(rows, name))
        for path in paths_of(config):
            if path not in names:
                there = shorten(_raw(", ".join(names)))
                raise SourceError(f"source {config.name!r}: {name} has no column {path!r}; it has {there}")
            if names.count(path) > 1:
                raise SourceError(f"source {config.name!r}: {name} has two columns named {path!r}; rename one")
        while True:
            start = lines.offset
            location = f"{name}@{start}"
            try:
                row = next(rows, None)
            except csv.Error as error:
                if "unexpected end of data" in str(error):
                    raise SourceError(
                        f"{name} ends within quotes that open at or after byte {start}; {_CLOSE}"
                    ) from None
                if "field larger than" in str(error):
                    raise SourceError(f"{name} has quotes without an end, at or after byte {start}; {_CLOSE}") from None
                yield BadRecord(
                    location, "malformed_row", lines.offset - start, f"{error}: {shorten(_raw(lines.last[:1000]))}"
                )
                continue
            if row is None:
                return
            if not row:
                continue
            yield _record(config, names, row, location=location, size_bytes=lines.offset - start)


class _Lines:
    """Lines as text; bytes that are not UTF-8 as surrogates. `offset` is that of the first byte not yet given out."""

    def __init__(self, file: BinaryIO) -> None:
        self.offset = 0
        self.last = ""
        self._file = file

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        # a line over the limit comes in parts, and makes the field that they are parts of too large
        line = self._file.readline(MAX_RECORD_BYTES)
        if not line:
            raise StopIteration
        if self.offset == 0:
            self.offset = len(line)
            line = line.removeprefix(BOM_UTF8)
        else:
            self.offset += len(line)
        self.last = line.decode(errors="surrogateescape")
        return self.last


def _header(rows: Iterator[list[str]], name: str) -> list[str]:
    try:
        header = next(rows, None)
    except csv.Error as error:
        raise SourceError(f"{name} has no header row ({error}); is it CSV?") from None
    if not header:
        raise SourceError(f"{name} has no header row; name its columns (column_names), or remove it")
    return header


def _record(config: CsvConfig, names: list[str], row: list[str], *, location: str, size_bytes: int) -> Record:
    if len(row) != len(names):
        example = f"{len(row)} fields, wanted {len(names)}: {shorten(_raw(' | '.join(row))[:1000])}"
        return BadRecord(location, "malformed_row", size_bytes, example)
    values = dict(zip(names, map(_raw, row), strict=True))
    # an empty field is the only way that CSV has to say that there is none
    return record_of(
        config,
        lambda path: values[path] or None,
        location=location,
        size_bytes=size_bytes,
        example=_raw(" | ".join(row))[:1000],
    )


def _raw(text: str) -> bytes:
    return text.encode(errors="surrogateescape")
