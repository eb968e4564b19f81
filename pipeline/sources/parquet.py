"""Parquet files, cut by row groups. Text is a column of strings or of UTF-8 bytes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.document import Record, SourceError, one_line
from pipeline.source_config import ParquetConfig
from pipeline.sources.columns import BATCH_ROWS, column_records, require_columns, top_columns
from pipeline.sources.fields import paths_of
from pipeline.sources.piece import Piece
from pipeline.sources.storage import find_files, open_file, readable


def find_pieces(config: ParquetConfig, *, unit_size_bytes: int) -> Iterator[Piece]:
    """One row group each. Reads the files' footers only.

    Raises SourceError, naming the file, if it is truncated or lacks a column.
    """
    for stored in find_files(config.files, source=config.name):
        with _open(stored.path, version=stored.version) as file:
            require_columns(config, file.schema_arrow, where=readable(stored.path))
            for group in range(file.metadata.num_row_groups):
                yield Piece(
                    path=stored.path,
                    version=stored.version,
                    start=group,
                    stop=group + 1,
                    size_bytes=_size_bytes(config, file.metadata.row_group(group)),
                )


def read_piece(config: ParquetConfig, piece: Piece) -> Iterator[Record]:
    """A row group at a time, in the memory of one. Raises SourceError, naming the file, if a page of it is damaged."""
    with _open(piece.path, version=piece.version) as file:
        for group in range(piece.start, piece.stop):
            yield from _records(config, file, group, location=f"{readable(piece.path)}:{group}")


def _records(config: ParquetConfig, file: pq.ParquetFile, group: int, *, location: str) -> Iterator[Record]:
    row = 0
    for batch in file.iter_batches(
        batch_size=BATCH_ROWS,
        row_groups=[group],
        columns=top_columns(config, file.schema_arrow),
        use_threads=False,
    ):
        yield from column_records(config, batch, location=location, first_row=row)
        row += batch.num_rows


@contextmanager
def _open(path: str, *, version: str) -> Iterator[pq.ParquetFile]:
    try:
        with open_file(path, version=version) as stream, pq.ParquetFile(stream, memory_map=False) as file:
            yield file
    except (pa.ArrowException, OSError) as error:
        reason = one_line(error)
        raise SourceError(
            f"{readable(path)} is not a whole Parquet file ({reason}); fetch it again, or name its type"
        ) from None


def _size_bytes(config: ParquetConfig, group: pq.RowGroupMetaData) -> int:
    """Of the columns that are read, decompressed."""
    paths = paths_of(config)
    columns = [group.column(index) for index in range(group.num_columns)]
    sizes = [column.total_uncompressed_size for column in columns if column.path_in_schema in paths]
    return sum(sizes) if sizes else int(group.total_byte_size)
