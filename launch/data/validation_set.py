"""The fixed set of validation sequences, cut into micro-batches of one source each and dealt to the ranks.

The set is the first sequences of the validation splits in their mixture, and is the same at every world size: only
which rank computes which micro-batch differs. A micro-batch is of one source, so that the mean losses that a model
returns add up to a sum for each source.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from launch.data.loader import PackedSamples
from launch.data.packing import IGNORED_LABEL, Batch, sample_span


def validation_shards(samples: PackedSamples, *, sequences: int) -> frozenset[Path]:
    """In the cache of an object store, the shards that the first sequences lie in."""
    sources, places = samples.locate(np.arange(min(sequences, samples.samples_before_repeat), dtype=np.int64))
    paths = set()
    for source in np.unique(sources):
        stream = samples.streams[source]
        if stream.remote is not None:
            first, behind = sample_span(places[sources == source], samples.sequence_length)
            numbers = np.unique(stream.shard_numbers(np.concatenate([first, behind - 1])))
            paths |= {stream.remote_shard(number).path for number in numbers.tolist()}
    return frozenset(paths)


def validation_batches(
    samples: PackedSamples, *, sequences: int, micro_batch_size: int, rank: int, world_size: int
) -> Iterator[tuple[int, Batch]]:
    """One rank's share of the first sequences, each read by one rank once: the number of the source, and a micro-batch.

    Every rank gets equally many batches of equal shape, because every rank must join each forward pass of a sharded
    model: rows that fill up have IGNORED_LABEL for all labels, and a mean must be taken over the others. Fewer
    sequences are read if the split has fewer (`samples.samples_before_repeat`). Give samples with
    `split="validation", shuffle=False`.
    """
    wanted = min(sequences, samples.samples_before_repeat)
    sources, places = samples.locate(np.arange(wanted, dtype=np.int64))
    parts = [
        (int(source), own[start : start + micro_batch_size])
        for source in np.unique(sources)
        for own in (places[sources == source],)
        for start in range(0, len(own), micro_batch_size)
    ]
    for first in range(0, len(parts), world_size):
        mine = first + rank
        source, rows = parts[min(mine, len(parts) - 1)]
        counted = len(rows) if mine < len(parts) else 0
        filled = np.concatenate([rows, np.repeat(rows[-1], micro_batch_size - len(rows))])
        batch = samples.fetch(np.full(micro_batch_size, source), filled)
        batch.labels[counted:] = IGNORED_LABEL
        yield source, batch
