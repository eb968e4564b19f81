"""What was in a step that went wrong: its samples and their documents, by the data order. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from launch.config import TrainConfig
from launch.data.loader import PackedSamples
from launch.data.object_store import StoreUnreachableError
from launch.data.packing import sample_span
from launch.data.rank_order import rank_sample_indices
from launch.data.trace import documents_in
from pipeline.shards.format import DatasetError

MAX_SAMPLES_READ = 64  # whose documents are looked up; a step of a big run has thousands
_DOCUMENTS_TOLD = 5


@dataclass(frozen=True)
class Suspects:
    """`samples` are indices of the run's order, `documents` are `source/document_id`, of the first samples at least,
    as far as their shards are on this machine."""

    samples: tuple[int, ...]
    documents: tuple[str, ...]

    @property
    def text(self) -> str:
        """`documents web/12, web/99 and 3 more, in 4 samples from 320 on`"""
        if not self.documents:
            return f"documents of shards that are not here (`launch trace` names them), {self._where}"
        more = len(self.documents) - _DOCUMENTS_TOLD
        named = ", ".join(self.documents[:_DOCUMENTS_TOLD]) + (f" and {more} more" if more > 0 else "")
        return f"documents {named}, {self._where}"

    @property
    def _where(self) -> str:
        return f"in {len(self.samples)} sample{'s' if len(self.samples) > 1 else ''} from {self.samples[0]} on"


def suspects_of(
    samples: PackedSamples, config: TrainConfig, *, batch_number: int, ranks: Sequence[int], world_size: int
) -> Suspects:
    """Of a global batch, counted from 1: what the given ranks have read, or without any what all have."""
    indices = np.concatenate(
        [
            rank_sample_indices(
                batch_number - 1,
                samples_per_step=config.samples_per_step,
                micro_batch_size=config.micro_batch_size,
                rank=rank,
                world_size=world_size,
            ).ravel()
            for rank in (ranks or range(world_size))
        ]
    )
    indices.sort()
    sources, places = samples.locate(indices[:MAX_SAMPLES_READ])
    documents: dict[str, None] = {}
    for number, place in zip(sources.tolist(), places.tolist(), strict=True):
        source, stream = samples.sources[number], samples.streams[number]
        span = sample_span(place, samples.sequence_length)
        # the ranks wait: no time to copy shards from a store
        if not stream.is_here(*span):
            continue
        # nor may what only tells of a fault be one: a shard that is removed at this moment
        with suppress(DatasetError, StoreUnreachableError):
            for document in documents_in(stream, *span):
                documents[f"{source.name}/{document.document_id}"] = None
    return Suspects(tuple(indices.tolist()), tuple(documents))
