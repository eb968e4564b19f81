"""Datasets of the Hugging Face hub, or a local folder of its kind, read as a stream: nothing is stored in a cache.

Cut by the files of the dataset (its shards). The version of an input is what `datasets` knows of all files of the
split: the e-tags or the commit on the hub, the times of change on a disk.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING

from pipeline.document import Record, SourceError
from pipeline.shards.format import digest_bytes
from pipeline.source_config import HuggingFaceStreamConfig
from pipeline.sources import hub
from pipeline.sources.columns import BATCH_ROWS, column_records, require_columns, top_columns
from pipeline.sources.piece import Piece

if TYPE_CHECKING:
    from datasets import IterableDataset


# what a file of unknown size is taken for: most have hundreds of MB, so none should share a unit
UNKNOWN_BYTES = 32 << 20


def find_pieces(config: HuggingFaceStreamConfig, *, unit_size_bytes: int) -> Iterator[Piece]:
    """A file each. Sizes are the mean, or, where the dataset does not tell its own, as if each filled a unit by itself.

    Raises SourceError if the dataset cannot be had or lacks a column.
    """
    dataset, version = _open(config)
    if dataset.features is not None:
        require_columns(config, dataset.features.arrow_schema, where=config.path)
    count = dataset.num_shards
    split = (dataset.info.splits or {}).get(config.split)
    unknown_bytes = max(unit_size_bytes, UNKNOWN_BYTES)
    size_bytes = split.num_bytes // count if split is not None and split.num_bytes else unknown_bytes
    for shard in range(count):
        yield Piece(path=hub.title(config), version=version, start=shard, stop=shard + 1, size_bytes=max(1, size_bytes))


def read_piece(config: HuggingFaceStreamConfig, piece: Piece) -> Iterator[Record]:
    """Raises SourceError if the dataset has changed, cannot be had or is damaged, or a file of it lacks a column."""
    dataset, version = _open(config)
    hub.require_version(config, piece, now=version)
    # Arrow tables, not Python rows: `datasets` decodes a batch at once and fails as a whole
    shard = dataset.shard(num_shards=dataset.num_shards, index=piece.start).with_format("arrow")
    tables = shard.iter(batch_size=BATCH_ROWS)
    row = 0
    while True:
        try:
            table = next(tables, None)
        except Exception as error:  # its readers raise DatasetsError, OSError, EOFError, ArrowInvalid, and more
            raise SourceError(
                f"source {config.name!r}: file {piece.start} of {config.path} failed "
                f"at or after row {row}: {hub.reason(error)}"
            ) from None
        if table is None:
            return
        require_columns(config, table.schema, where=f"file {piece.start} of {config.path}")
        columns = table.select(top_columns(config, table.schema))
        yield from column_records(config, columns, location=f"{piece.path}:{piece.start}", first_row=row)
        row += table.num_rows


@lru_cache(maxsize=8)
def _open(config: HuggingFaceStreamConfig) -> tuple[IterableDataset, str]:
    """The stream and its version, once a process: to list thousands of files takes seconds."""
    import datasets

    try:
        builder = datasets.load_dataset_builder(config.path, config.config_name, revision=config.revision)
        dataset = builder.as_streaming_dataset(split=config.split)
        files = builder.config.data_files[config.split]
        known = repr((list(map(str, files)), files.origin_metadata))
    except Exception as error:  # as above
        raise SourceError(
            f"source {config.name!r}: streaming {config.path!r}, split {config.split!r} failed: {hub.reason(error)}"
        ) from None
    return dataset, f"{len(files)} files, {digest_bytes(known.encode())}"
