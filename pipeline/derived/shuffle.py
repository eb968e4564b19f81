"""A dataset of the same documents in a random order, by a seed, in memory that does not grow with the dataset.

Each document draws a number, and the new order is that of the numbers. Documents are first laid into buckets by ranges
of the numbers, then each bucket is sorted in memory; so the bytes do not depend on the size of the buckets, and the
reference is one line: `sorted(range(documents), key=numbers.__getitem__)`. Needs room for the documents twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.derived.draw import Draw
from pipeline.derived.new_dataset import SHARD_SIZE_BYTES, NewDataset, read_tokenizer_of
from pipeline.derived.new_directory import new_directory
from pipeline.shards.format import (
    SCHEMA,
    DatasetManifest,
    OriginRecord,
    SplitRecord,
    digest_bytes,
    read_manifest,
)
from pipeline.shards.reader import Rows, read_rows, rows_of

BUCKET_SIZE_BYTES = 128 << 20
_BUCKET_SCHEMA = SCHEMA.append(pa.field("number", pa.uint64()))


def shuffle(
    dataset: Path,
    output: Path,
    *,
    seed: int,
    bucket_size_bytes: int = BUCKET_SIZE_BYTES,
    shard_size_bytes: int = SHARD_SIZE_BYTES,
) -> DatasetManifest:
    """Make the dataset `output`; a document stays in its split.

    Raises PipelineError if `output` exists, DatasetError if the dataset is damaged.
    """
    manifest = read_manifest(dataset)
    with new_directory(output) as directory, NewDataset(directory, shard_size_bytes=shard_size_bytes) as new:
        tokenizer_content = read_tokenizer_of(dataset, manifest)
        add_shuffled(new, dataset, manifest, scratch=directory, seed=seed, bucket_size_bytes=bucket_size_bytes)
        return new.finish(_manifest(manifest, name=output.name, seed=seed), tokenizer_content)


def add_shuffled(
    new: NewDataset, dataset: Path, manifest: DatasetManifest, *, scratch: Path, seed: int, bucket_size_bytes: int
) -> None:
    """Add all documents to `new` in the order of their numbers. The buckets lie in `scratch` for a while."""
    source = next(iter(manifest.sources)) if len(manifest.sources) == 1 else None
    for name, record in manifest.splits.items():
        buckets = _Buckets(scratch / ".buckets", record, bucket_size_bytes=bucket_size_bytes)
        _scatter(
            dataset,
            record,
            buckets,
            Draw(seed, purpose="shuffle", split=name),
            # laid together: with hundreds of buckets each still gets pieces of many kilobytes
            scatter_size_bytes=bucket_size_bytes // 2,
        )
        for rows, order in buckets.sorted():
            new.add(name, rows, order, source=source)
            del rows, order  # before the next bucket is read


def _scatter(dataset: Path, record: SplitRecord, buckets: _Buckets, draw: Draw, *, scatter_size_bytes: int) -> None:
    held: list[Rows] = []
    for shard in record.shards:
        for rows in read_rows(dataset, shard):
            held.append(rows)
            if sum(rows.ids.nbytes for rows in held) >= scatter_size_bytes:
                buckets.lay(held, draw)
                held = []
    if held:
        buckets.lay(held, draw)


class _Buckets:
    """Files of documents whose numbers are in one range each. A file is a row of Arrow streams, one for each `lay`."""

    def __init__(self, directory: Path, record: SplitRecord, *, bucket_size_bytes: int) -> None:
        size_bytes = sum(shard.size_bytes for shard in record.shards)
        self._directory = directory
        self._count = max(1, -(-size_bytes // bucket_size_bytes))
        # numbers of bucket k are below the k-th of these; the last bucket takes what is left
        self._limits = np.array([(k << 64) // self._count for k in range(1, self._count)], dtype=np.uint64)
        directory.mkdir(exist_ok=True)

    def lay(self, held: list[Rows], draw: Draw) -> None:
        """Append documents to their buckets, in their order."""
        pieces: dict[int, list[pa.RecordBatch]] = {}
        for rows in held:
            numbers = draw.take(len(rows))
            buckets = np.searchsorted(self._limits, numbers, side="right")
            order = np.argsort(buckets, kind="stable")
            batch = _batch(rows, numbers).take(pa.array(order))
            bounds = np.searchsorted(buckets[order], np.arange(self._count + 1))
            for bucket in np.flatnonzero(np.diff(bounds)).tolist():
                pieces.setdefault(bucket, []).append(batch.slice(bounds[bucket], bounds[bucket + 1] - bounds[bucket]))
        for bucket, batches in pieces.items():
            with self._path(bucket).open("ab") as file, pa.ipc.new_stream(file, _BUCKET_SCHEMA) as stream:
                for batch in batches:
                    stream.write_batch(batch)

    def sorted(self) -> Iterator[tuple[Rows, list[int]]]:
        """The documents of one bucket after the other, and their order. A bucket is removed when it is done."""
        for bucket in range(self._count):
            path = self._path(bucket)
            if not path.exists():
                continue
            batch = _read_streams(path)
            path.unlink()
            # equal numbers stay in the order of the stream
            order = np.argsort(batch["number"].to_numpy(), kind="stable").tolist()
            yield rows_of(batch), order
            del batch, order
        self._directory.rmdir()

    def _path(self, bucket: int) -> Path:
        return self._directory / f"{bucket:06d}.arrow"


def _batch(rows: Rows, numbers: NDArray[np.uint64]) -> pa.RecordBatch:
    input_ids = pa.ListArray.from_arrays(pa.array(rows.bounds.astype(np.int32)), pa.array(rows.ids))
    return pa.RecordBatch.from_arrays([input_ids, rows.names, pa.array(numbers)], schema=_BUCKET_SCHEMA)


def _read_streams(path: Path) -> pa.RecordBatch:
    """A file of Arrow streams as one batch, the only copy in memory."""
    tables = []
    with pa.memory_map(str(path)) as file:
        while file.tell() < file.size():
            with pa.ipc.open_stream(file) as stream:
                tables.append(stream.read_all())
    (batch,) = pa.concat_tables(tables).combine_chunks().to_batches()
    return batch


def _manifest(whole: DatasetManifest, *, name: str, seed: int) -> DatasetManifest:
    origin = OriginRecord(verb="shuffle", options={"seed": seed}, datasets=(whole.digest(),))
    return DatasetManifest(
        name=name,
        tokenizer=whole.tokenizer,
        splits={},
        documents_in=whole.documents_in,
        text_bytes_kept=whole.text_bytes_kept,
        dropped=whole.dropped,
        config_digest=digest_bytes(origin.model_dump_json().encode()),
        encoding=whole.encoding,
        sources=whole.sources,
        origin=origin,
    )
