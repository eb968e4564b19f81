"""Parquet files, cut by row groups. Text is a column of strings or of UTF-8 bytes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config import ParquetConfig
from pipeline.document import BadRecord, Document, SourceError
from pipeline.sources.columns import raw_values
from pipeline.sources.fields import document_of
from pipeline.sources.piece import Piece, file_version, find_files, readable

_BATCH_ROWS = 256


def find_pieces(config: ParquetConfig, *, unit_size_bytes: int) -> Iterator[Piece]:
    """One row group each. Reads the files' footers only.

    Raises SourceError, naming the file, if it is truncated or lacks a column.
    """
    for path in find_files(config.files, source=config.name):
        version = file_version(path.stat())
        with _open(path) as file:
            metadata = file.metadata
            columns = file.schema_arrow.names
            for name in _columns(config):
                if name not in columns:
                    raise SourceError(
                        f"source {config.name!r}: {path} has no column {name!r}; it has {', '.join(columns)}"
                    )
            text_column = metadata.schema.names.index(config.text_field) if _is_flat(file) else None
            for group in range(metadata.num_row_groups):
                row_group = metadata.row_group(group)
                size_bytes = (
                    row_group.total_byte_size
                    if text_column is None
                    else row_group.column(text_column).total_uncompressed_size
                )
                yield Piece(path=str(path), version=version, start=group, stop=group + 1, size_bytes=size_bytes)


def read_piece(config: ParquetConfig, piece: Piece) -> Iterator[Document | BadRecord]:
    """Raises SourceError, naming the file, if a page of it is damaged."""
    path = Path(piece.path)
    try:
        with _open(path) as file:
            row = 0
            for batch in file.iter_batches(
                batch_size=_BATCH_ROWS,
                row_groups=range(piece.start, piece.stop),
                columns=list(dict.fromkeys(_columns(config))),
                use_threads=False,
            ):
                texts = raw_values(batch.column(config.text_field))
                identities = raw_values(batch.column(config.id_field)) if config.id_field else [None] * batch.num_rows
                for text, identity in zip(texts, identities, strict=True):
                    yield document_of(
                        text,
                        identity=identity,
                        location=f"{readable(path)}:{piece.start}:{row}",
                        size_bytes=len(text) if isinstance(text, bytes) else 0,
                        example=text,
                    )
                    row += 1
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        raise _damaged(path, error) from None


def _columns(config: ParquetConfig) -> list[str]:
    return [config.text_field, config.id_field] if config.id_field else [config.text_field]


def _open(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path, memory_map=False)
    except (pa.ArrowInvalid, OSError) as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> SourceError:
    reason = " ".join(str(error).split())[:160]
    return SourceError(f"{readable(path)} is not a whole Parquet file ({reason}); fetch it again")


def _is_flat(file: pq.ParquetFile) -> bool:
    """Whether leaf columns are the columns, so that a name is a position."""
    return list(file.metadata.schema.names) == list(file.schema_arrow.names)
