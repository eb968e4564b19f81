"""Which documents lie in a stretch of a dataset's token stream: read from the shards, for who asks after one step.

Opens each shard that the stretch touches anew, and reads its documents' lengths: seconds at most, and nothing is kept.
"""

from __future__ import annotations

from itertools import accumulate
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.shards.format import Split, read_manifest


def documents_between(dataset: Path, split: Split, start: int, stop: int) -> list[str]:
    """`document_id` of each document with an id in [start, stop) of the stream, in its order. Raises DatasetError."""
    shards = read_manifest(dataset).splits[split].shards
    starts = list(accumulate((shard.tokens for shard in shards), initial=0))
    found: list[str] = []
    for shard, first, last in zip(shards, starts, starts[1:], strict=False):
        if first < stop and start < last:
            found += _documents_in(dataset / shard.path, start - first, stop - first)
    return found


def _documents_in(shard: Path, start: int, stop: int) -> list[str]:
    """Those of one shard; `start` and `stop` may lie outside of it."""
    found: list[str] = []
    place = 0
    with pa.memory_map(str(shard)) as file:
        for batch in pa.ipc.open_stream(file):
            ends = place + np.cumsum(pa.compute.list_value_length(batch.column("input_ids")).to_numpy())
            begins = np.concatenate(([place], ends[:-1]))
            chosen = np.flatnonzero((begins < stop) & (ends > start))
            found += batch.column("document_id").take(pa.array(chosen)).to_pylist()
            place = int(ends[-1]) if len(ends) else place
            if place >= stop:
                break
    return found
