"""Datasets of the Hugging Face hub, or saved by `save_to_disk`, cut by ranges of rows."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING

import pyarrow as pa

from pipeline.document import Record, SourceError
from pipeline.source_config import HuggingFaceConfig
from pipeline.sources import hub
from pipeline.sources.columns import BATCH_ROWS, column_records, require_columns, top_columns
from pipeline.sources.piece import Piece

if TYPE_CHECKING:
    from datasets import Dataset


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
            path=hub.title(config),
            version=_version(dataset),
            start=start,
            stop=stop,
            size_bytes=(stop - start) * row_bytes,
        )


def read_piece(config: HuggingFaceConfig, piece: Piece) -> Iterator[Record]:
    """Raises SourceError if the dataset has changed or its rows are damaged."""
    dataset = _load(config)
    hub.require_version(config, piece, now=_version(dataset))
    columns = top_columns(config, dataset.features.arrow_schema)
    # Arrow tables, not Python rows: `datasets` decodes a batch at once and fails as a whole
    rows = dataset.select_columns(columns).with_format("arrow")
    for first in range(piece.start, piece.stop, BATCH_ROWS):
        batch = rows[first : min(first + BATCH_ROWS, piece.stop)]
        try:
            yield from column_records(config, batch, location=piece.path, first_row=first)
        except pa.ArrowException as error:
            raise SourceError(
                f"{piece.path}: rows from {first} are damaged ({hub.reason(error)}); fetch it again"
            ) from None


def _version(dataset: Dataset) -> str:
    return f"{len(dataset)} rows, fingerprint {dataset._fingerprint}"


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
            f"source {config.name!r}: datasets.{config.loader} of {config.path!r} failed: {hub.reason(error)}"
        ) from None
    if isinstance(dataset, datasets.DatasetDict):
        if config.split not in dataset:
            raise SourceError(
                f"source {config.name!r}: {config.path} has no split {config.split!r}; it has {', '.join(dataset)}"
            )
        dataset = dataset[config.split]
    return dataset
