"""Reads the documents of a dataset in stream order, a record batch at a time, from memory-mapped shards.

For the verbs that make a dataset of another one. Does not hash: `smollm2 pipeline verify` does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.shards.format import SCHEMA, DatasetError, ShardRecord


@dataclass(frozen=True, slots=True)
class Rows:
    """Consecutive documents: `ids` of them all, the bounds of each (one more than documents), and their names."""

    ids: NDArray[np.uint16]
    bounds: NDArray[np.int64]
    names: pa.StringArray

    def __len__(self) -> int:
        return len(self.bounds) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each document, EOS included."""
        return np.diff(self.bounds)

    def document(self, row: int) -> tuple[str, NDArray[np.uint16]]:
        """Name and ids of one document; the ids are a view."""
        return self.names[row].as_py(), self.ids[self.bounds[row] : self.bounds[row + 1]]


def read_rows(dataset: Path, shard: ShardRecord) -> Iterator[Rows]:
    """The documents of one shard. Raises DatasetError if it is missing, damaged, or not what its record says."""
    check_size(dataset, shard)
    path = dataset / shard.path
    documents = tokens = 0
    try:
        with pa.memory_map(str(path)) as file, pa.ipc.open_stream(file) as stream:
            if not stream.schema.equals(SCHEMA):
                raise _damaged(dataset, shard, "another schema")
            for batch in stream:
                rows = rows_of(batch)
                documents += len(rows)
                tokens += len(rows.ids)
                yield rows
    except (pa.ArrowInvalid, OSError) as error:
        raise _damaged(dataset, shard, " ".join(str(error).split())[:160]) from None
    if (documents, tokens) != (shard.documents, shard.tokens):
        raise _damaged(dataset, shard, f"{documents:,} documents and {tokens:,} tokens")


def rows_of(batch: pa.RecordBatch) -> Rows:
    """A batch as views of its memory."""
    column = batch.column("input_ids")
    offsets = column.offsets.to_numpy().astype(np.int64)
    ids = column.values.to_numpy()[offsets[0] : offsets[-1]]
    return Rows(ids=ids, bounds=offsets - offsets[0], names=batch.column("document_id"))


def check_size(dataset: Path, shard: ShardRecord) -> None:
    """Raises DatasetError if the shard is not there or not of its size: a map of a file cut short would kill us."""
    try:
        size_bytes = (dataset / shard.path).stat().st_size
    except FileNotFoundError:
        raise _damaged(dataset, shard, "missing") from None
    if size_bytes != shard.size_bytes:
        raise _damaged(dataset, shard, f"{size_bytes:,} bytes, wanted {shard.size_bytes:,}")


def _damaged(dataset: Path, shard: ShardRecord, reason: str) -> DatasetError:
    return DatasetError(
        f"{dataset / shard.path} cannot be read ({reason}); `smollm2 pipeline verify {dataset}` says more"
    )
