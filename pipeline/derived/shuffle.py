"""A dataset of the same documents in a random order, by a seed, in bounded memory.

Each document draws a number, and the new order is that of the numbers. Documents are first laid into buckets by ranges
of the numbers, then each bucket is sorted in memory; so the bytes do not depend on the size of the buckets, and the
reference is one line: `sorted(range(documents), key=numbers.__getitem__)`. Needs room for the documents twice, and
memory for about two buckets.
"""

from __future__ import annotations

import logging
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

log = logging.getLogger(__name__)

BUCKET_SIZE_BYTES = 128 << 20
# every bucket is opened again for each quarter of one that is laid: small ones cost the square of the dataset
_MOST_BUCKETS = 2048
_LARGEST_BUCKET_BYTES = 2 << 30  # Arrow counts the ids of a bucket in 32 bits
_BUCKET_SCHEMA = SCHEMA.append(pa.field("number", pa.uint64()))


def shuffle(
    dataset: Path,
    output: Path,
    *,
    seed: int,
    bucket_size_bytes: int = BUCKET_SIZE_BYTES,
    shard_size_bytes: int = SHARD_SIZE_BYTES,
) -> DatasetManifest:
    """Make the dataset `output`; a document stays in its split. Buckets are larger where there would be too many.

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
        size_bytes = bucket_size_for(record, asked_bytes=bucket_size_bytes)
        buckets = _Buckets(scratch / ".buckets", record, bucket_size_bytes=size_bytes)
        _scatter(
            dataset,
            record,
            buckets,
            Draw(seed, purpose="shuffle", split=name),
            # laid together, and held two to three times meanwhile; each of 2,048 buckets gets at least 16 KiB of it
            scatter_size_bytes=size_bytes // 4,
        )
        for rows, order in buckets.sorted():
            new.add(name, rows, order, source=source)
            del rows, order  # before the next bucket is read


def bucket_size_for(record: SplitRecord, *, asked_bytes: int) -> int:
    """What was asked for; of a split that has more than 2,048 of these, a 2,048th, up to 2 GiB. That is logged."""
    size_bytes = max(asked_bytes, min(_LARGEST_BUCKET_BYTES, -(-_size_bytes(record) // _MOST_BUCKETS)))
    if size_bytes > asked_bytes:
        log.info(
            "shuffle: buckets of %s bytes, not %s, of which there would be more than %s; it takes memory for about two",
            f"{size_bytes:,}",
            f"{asked_bytes:,}",
            f"{_MOST_BUCKETS:,}",
        )
    return size_bytes


def _size_bytes(record: SplitRecord) -> int:
    return sum(shard.size_bytes for shard in record.shards)


def _scatter(dataset: Path, record: SplitRecord, buckets: _Buckets, draw: Draw, *, scatter_size_bytes: int) -> None:
    held: list[Rows] = []
    held_bytes = 0
    for shard in record.shards:
        for rows in read_rows(dataset, shard):
            size_bytes = rows.ids.nbytes + rows.names.nbytes
            if held and held_bytes + size_bytes > scatter_size_bytes:
                buckets.lay(held, draw)
                held, held_bytes = [], 0
            held.append(rows)
            held_bytes += size_bytes
    if held:
        buckets.lay(held, draw)


class _Buckets:
    """Files of documents whose numbers are in one range each. A file is a row of Arrow streams, one for each `lay`."""

    def __init__(self, directory: Path, record: SplitRecord, *, bucket_size_bytes: int) -> None:
        self._directory = directory
        self._count = max(1, -(-_size_bytes(record) // bucket_size_bytes))
        # numbers of bucket k are below the k-th of these; the last bucket takes what is left
        self._limits = np.array([(k << 64) // self._count for k in range(1, self._count)], dtype=np.uint64)
        directory.mkdir(exist_ok=True)

    def lay(self, held: list[Rows], draw: Draw) -> None:
        """Append documents to their buckets, in their order: one piece a bucket, not one for each of `held`."""
        numbers = draw.take(sum(map(len, held)))
        buckets = np.searchsorted(self._limits, numbers, side="right")
        order = np.argsort(buckets, kind="stable")
        batch = _batch(held, numbers).take(pa.array(order))
        bounds = np.searchsorted(buckets[order], np.arange(self._count + 1))
        for bucket in np.flatnonzero(np.diff(bounds)).tolist():
            piece = batch.slice(bounds[bucket], bounds[bucket + 1] - bounds[bucket])
            with self._path(bucket).open("ab") as file, pa.ipc.new_stream(file, _BUCKET_SCHEMA) as stream:
                stream.write_batch(piece)

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


def _batch(held: list[Rows], numbers: NDArray[np.uint64]) -> pa.RecordBatch:
    lengths = np.concatenate([rows.lengths for rows in held])
    bounds = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    ids = np.concatenate([rows.ids for rows in held])
    input_ids = pa.ListArray.from_arrays(pa.array(bounds), pa.array(ids))
    names = pa.concat_arrays([rows.names for rows in held])
    return pa.RecordBatch.from_arrays([input_ids, names, pa.array(numbers)], schema=_BUCKET_SCHEMA)


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
