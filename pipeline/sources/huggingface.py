"""Datasets of the Hugging Face hub, or saved by `save_to_disk`, cut by ranges of rows."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING

import pyarrow as pa

from pipeline.document import Record, SourceError
from pipeline.source_config import HuggingFaceConfig
from pipeline.sources.columns import column_records, require_columns, top_columns
from pipeline.sources.piece import Piece

if TYPE_CHECKING:
    from datasets import Dataset

_BATCH_ROWS = 256


def find_pieces(config: HuggingFaceConfig, *, unit_size_bytes: int) -> Iterator[Piece]:
    """Ranges of rows of about `unit_size_bytes` each, by the mean size of a row.

    Raises SourceError if the dataset cannot be had or lacks a column.
    """
    dataset = _load(config)
    require_columns(config, dataset.features.arrow_schema, where=config.path)
    row_bytes = max(1, dataset.data.nbytes // max(1, len(dataset)))
    rows_a_piece = max(1, unit_size_bytes // row_bytes)
    for start in range(0, len(dataset), rows_a_piece):
        stop = min(start + rows_a_piece, len(dataset))
        yield Piece(
            path=_title(config),
            version=f"{len(dataset)} rows, fingerprint {dataset._fingerprint}",
            start=start,
            stop=stop,
            size_bytes=(stop - start) * row_bytes,
        )


def read_piece(config: HuggingFaceConfig, piece: Piece) -> Iterator[Record]:
    """Raises SourceError if the rows are damaged."""
    dataset = _load(config)
    columns = top_columns(config, dataset.features.arrow_schema)
    # Arrow tables, not Python rows: `datasets` decodes a batch at once and fails as a whole
    rows = dataset.select_columns(columns).with_format("arrow")
    for first in range(piece.start, piece.stop, _BATCH_ROWS):
        batch = rows[first : min(first + _BATCH_ROWS, piece.stop)]
        try:
            yield from column_records(config, batch, location=piece.path, first_row=first)
        except pa.ArrowException as error:
            raise SourceError(
                f"{piece.path}: rows from {first} are damaged ({_reason(error)}); fetch it again"
            ) from None


def _title(config: HuggingFaceConfig) -> str:
    return "/".join(filter(None, (config.path, config.config_name, config.split)))


@lru_cache(maxsize=8)
def _load(config: HuggingFaceConfig) -> Dataset:
    """Once a process: opening a dataset of thousands of files takes seconds."""
    import datasets

    datasets.disable_progress_bars()
    try:
        if config.loader == "load_from_disk":
            dataset = datasets.load_from_disk(config.path)
        else:
            dataset = datasets.load_dataset(
                config.path, config.config_name, split=config.split, revision=config.revision
            )
    except Exception as error:  # its readers raise DatasetsError, OSError, EOFError, KeyError, and more
        raise SourceError(
            f"source {config.name!r}: datasets.{config.loader} of {config.path!r} failed: {_reason(error)}"
        ) from None
    if isinstance(dataset, datasets.DatasetDict):
        if config.split not in dataset:
            raise SourceError(
                f"source {config.name!r}: {config.path} has no split {config.split!r}; it has {', '.join(dataset)}"
            )
        dataset = dataset[config.split]
    return dataset


def _reason(error: Exception) -> str:
    """One line. A DatasetGenerationError says only that there was an error; what it was stands in its cause."""
    root = error.__cause__ or error
    return f"{type(root).__name__}: {' '.join(str(root).split())[:200]}"
