"""Arrow IPC: files, cut by record batches, and streams, which can only be read from their start.

A stream must end in its end-of-stream marker. The format lets a writer leave it out, but without it a stream that is
cut between two batches cannot be told from a whole one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

import pyarrow as pa

from pipeline.document import Record, SourceError, one_line
from pipeline.source_config import ArrowConfig
from pipeline.sources.columns import BATCH_ROWS, column_records, require_columns, top_columns
from pipeline.sources.piece import Piece, whole_file
from pipeline.sources.storage import StoredFile, find_files, open_file, readable

_FILE_MAGIC = b"ARROW1"
_END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"


def find_pieces(config: ArrowConfig, *, unit_size_bytes: int) -> Iterator[Piece]:
    """One record batch of a file each, sized by the mean; a stream is one piece. Reads schemas and footers only.

    Raises SourceError, naming the file, if it is truncated or lacks a column.
    """
    for stored in find_files(config.files, source=config.name):
        with _open(stored.path, version=stored.version) as stream:
            if not _is_file(stream):
                _require_end(stream, stored)
                require_columns(config, pa.ipc.open_stream(stream).schema, where=readable(stored.path))
                yield whole_file(stored)
                continue
            reader = pa.ipc.open_file(stream)
            require_columns(config, reader.schema, where=readable(stored.path))
            batches = reader.num_record_batches
            for batch in range(batches):
                size_bytes = stored.size_bytes // batches
                yield Piece(stored.path, stored.version, start=batch, stop=batch + 1, size_bytes=size_bytes)


def read_piece(config: ArrowConfig, piece: Piece) -> Iterator[Record]:
    """A record batch at a time, in the memory of one. Raises SourceError, naming the file, if it is damaged."""
    name = readable(piece.path)
    with _open(piece.path, version=piece.version) as stream:
        if _is_file(stream):
            reader = pa.ipc.open_file(stream)
            for number in range(piece.start, piece.stop):
                # no name for the batch, which is gone before the next is read
                yield from _records(config, reader.get_batch(number), location=f"{name}:{number}", first_row=0)
            return
        row = 0
        for batch in pa.ipc.open_stream(stream):
            yield from _records(config, batch, location=name, first_row=row)
            row += batch.num_rows


def _records(config: ArrowConfig, batch: pa.RecordBatch, *, location: str, first_row: int) -> Iterator[Record]:
    columns = batch.select(top_columns(config, batch.schema))
    for start in range(0, batch.num_rows, BATCH_ROWS):
        part = columns.slice(start, BATCH_ROWS)
        yield from column_records(config, part, location=location, first_row=first_row + start)


def _is_file(stream: BinaryIO) -> bool:
    """At the start of the stream, and back there."""
    magic = stream.read(len(_FILE_MAGIC))
    stream.seek(0)
    return magic == _FILE_MAGIC


def _require_end(stream: BinaryIO, stored: StoredFile) -> None:
    stream.seek(max(0, stored.size_bytes - len(_END_OF_STREAM)))
    end = stream.read()
    stream.seek(0)
    if end != _END_OF_STREAM:
        raise pa.ArrowInvalid("a stream without its end-of-stream marker")


@contextmanager
def _open(path: str, *, version: str) -> Iterator[BinaryIO]:
    try:
        with open_file(path, version=version) as stream:
            yield stream
    except (pa.ArrowException, OSError) as error:
        reason = one_line(error)
        raise SourceError(
            f"{readable(path)} is not a whole Arrow file or stream ({reason}); fetch it again, or name its type"
        ) from None
