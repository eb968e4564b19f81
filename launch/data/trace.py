"""Which documents a sample of a run holds, and which batches a document. Reads the order and the shards it leads to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from launch.data.loader import PackedSamples
from launch.data.packing import sample_span
from launch.data.shard_reader import TokenStream


@dataclass(frozen=True)
class DocumentSpan:
    """Tokens [start, stop) of a document of `tokens`, its end-of-sequence id counted; `shard` below the dataset."""

    document_id: str
    shard: str
    start: int
    stop: int
    tokens: int


@dataclass(frozen=True)
class SampleTrace:
    """A sample of the run: the `sample`-th of its source's stream, in its `epoch`-th reading, from 0. The documents are
    those of its inputs and of the last label, one id behind them."""

    index: int
    source: str
    epoch: int
    sample: int
    documents: tuple[DocumentSpan, ...]


def trace_samples(samples: PackedSamples, indices: Sequence[int]) -> list[SampleTrace]:
    """In their order. Raises DatasetError for a shard that cannot be read, StoreUnreachableError."""
    wanted = np.asarray(indices, dtype=np.int64)
    sources, places = samples.schedule.locate(wanted)
    _, located = samples.locate(wanted)
    return [
        SampleTrace(
            index=index,
            source=samples.sources[source].name,
            epoch=place // samples.sizes[source],
            sample=sample,
            documents=tuple(documents_in(samples.streams[source], *sample_span(sample, samples.sequence_length))),
        )
        for index, source, place, sample in zip(
            wanted.tolist(), sources.tolist(), places.tolist(), located.tolist(), strict=True
        )
    ]


def documents_in(stream: TokenStream, start: int, stop: int) -> Iterator[DocumentSpan]:
    """The documents whose ids are [start, stop) of a stream."""
    for number in stream.shards(start, stop):
        record, place = stream.record(number), stream.shard_start(number)
        for batch in stream.map_shard(number):
            if place >= stop:
                return
            ends = place + _ends(batch)
            first, last = np.searchsorted(ends, [start, stop - 1], side="right")
            for row in range(int(first), min(int(last) + 1, len(ends))):
                begins = int(ends[row - 1]) if row else place
                yield DocumentSpan(
                    document_id=batch.column("document_id")[row].as_py(),
                    shard=record.path,
                    start=max(start, begins) - begins,
                    stop=min(stop, int(ends[row])) - begins,
                    tokens=int(ends[row]) - begins,
                )
            place = int(ends[-1]) if len(ends) else place


def find_document(samples: PackedSamples, document_id: str) -> Iterator[tuple[int, int, int]]:
    """(source, first sample, last sample) of each document of that name, in every source. Reads all document ids."""
    for source, stream in enumerate(samples.streams):
        for number in range(stream.shard_count):
            place = stream.shard_start(number)
            for batch in stream.map_shard(number):
                ends = place + _ends(batch)
                for row in np.flatnonzero(pc.equal(batch.column("document_id"), document_id)).tolist():
                    begins = int(ends[row - 1]) if row else place
                    # the last id of a sample is also the first of the next one
                    first = max(0, begins - 1) // samples.sequence_length
                    yield source, first, (int(ends[row]) - 1) // samples.sequence_length
                place = int(ends[-1]) if len(ends) else place


def document_batches(
    samples: PackedSamples, document_id: str, *, samples_per_step: int, batches: int
) -> list[int] | None:
    """Which of the first global batches, counted from 0, hold the document; None if no dataset has it."""
    found, seen = False, set()
    for source, first, last in find_document(samples, document_id):
        found = True
        for sample in range(first, min(last, samples.sizes[source] - 1) + 1):
            for index in samples.sightings(source, sample, before=batches * samples_per_step):
                seen.add(index // samples_per_step)
    return sorted(seen) if found else None


def _ends(batch: pa.RecordBatch) -> NDArray[np.int64]:
    """Where each document of a record batch ends, in ids from the batch's first."""
    offsets = batch.column("input_ids").offsets.to_numpy().astype(np.int64)
    return np.asarray(offsets[1:] - offsets[0])
