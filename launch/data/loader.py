"""Samples of a run by their index, and the background reader that hands each rank its micro-batches.

Sample k of a run is a pure function of (seed, sources and weights, k):

    k → mixture → (source, j) → epoch, place = divmod(j, samples of the source)
      → keyed permutation of (seed, source's name, epoch) → sample of the stream

Step t trains on samples [t·G, (t+1)·G), and the world size only says which rank reads which of them. So the only state
of the loader is the number of samples consumed: a run continues at any step, on any number of ranks, by arithmetic.
"""

from __future__ import annotations

import hashlib
import queue
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from launch.data.mixture import Mixture
from launch.data.packing import IGNORED_LABEL, Batch, pack, sample_span, samples_in
from launch.data.permutation import Permutation
from launch.data.shard_reader import TokenStream
from pipeline.shards.format import Split, TokenizerRecord

Indices = NDArray[np.int64]

_LOCATED_AT_ONCE = 4096  # samples: below this numpy's cost a call outweighs the permutation's own


@dataclass(frozen=True)
class Source:
    """One dataset directory in a mixture. The name is part of the order: renaming a source reshuffles it."""

    name: str
    path: Path
    weight: float


class PackedSamples:
    """The samples of a run, addressed by their index from 0; there is no last one, sources begin new epochs.

    With `shuffle=False` each source is read in stream order. That the sources go together, and each has a sample, is
    the caller's to have checked (`launch/trainer/inputs.py`). Raises DatasetError for one that is missing.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        *,
        seed: int,
        sequence_length: int,
        split: Split = "train",
        shuffle: bool = True,
    ) -> None:
        assert len({source.name for source in sources}) == len(sources) > 0, "a name says which order a source has"
        self.sources = tuple(sources)
        self.seed = seed
        self.sequence_length = sequence_length
        self.shuffle = shuffle
        self._streams = [TokenStream(source.path, split) for source in sources]
        self._sizes = [samples_in(stream.total_tokens, sequence_length) for stream in self._streams]
        assert all(self._sizes), f"a source without a sample: {self._sizes}"
        assert len({stream.tokenizer.digest for stream in self._streams}) == 1, "sources of different tokenizers"
        self.mixture = Mixture([source.weight for source in sources])
        self.tokenizer: TokenizerRecord = self._streams[0].tokenizer

    @property
    def samples_before_repeat(self) -> int:
        """Samples before one of the sources begins its second epoch."""
        return min(self.mixture.first_repeats(self._sizes))

    def locate(self, sample_indices: Indices) -> tuple[Indices, Indices]:
        """The source of each sample, by number, and which sample of that source's stream it is; same shape."""
        sources, places = self.mixture.locate(np.asarray(sample_indices, dtype=np.int64))
        samples = np.empty_like(places)
        for source in np.unique(sources):
            chosen = sources == source
            samples[chosen] = self._order(int(source), places[chosen])
        return sources, samples

    def read(self, sample_indices: Indices) -> Batch:
        """The samples as a batch, a row an index."""
        return self.fetch(*self.locate(sample_indices))

    def fetch(self, sources: Indices, samples: Indices) -> Batch:
        """The batch of what `locate` found, a row each."""
        rows = np.empty((len(sources), self.sequence_length + 1), dtype=np.uint16)
        for row, source, sample in zip(rows, sources.tolist(), samples.tolist(), strict=True):
            row[:] = self._streams[source].read(*sample_span(sample, self.sequence_length))
        return pack(rows, eos_token_id=self.tokenizer.eos_token_id)

    def check_shards(self) -> None:
        """Raises DatasetError naming the first shard that is missing or of another size than its manifest says."""
        for stream in self._streams:
            stream.check_shards()

    def _order(self, source: int, places: Indices) -> Indices:
        epochs, within = np.divmod(places, self._sizes[source])
        if not self.shuffle:
            return within
        ordered = np.empty_like(within)
        for epoch in np.unique(epochs):
            chosen = epochs == epoch
            key = _epoch_key(self.seed, self.sources[source].name, int(epoch))
            ordered[chosen] = Permutation(self._sizes[source], key).apply(within[chosen])
        return ordered


def rank_sample_indices(
    step: int, *, samples_per_step: int, micro_batch_size: int, rank: int, world_size: int
) -> Indices:
    """What one rank reads in a step: sample indices [accumulation, micro_batch_size].

    Micro-step m of rank r reads t·G + (m·world_size + r)·micro_batch_size + [0, micro_batch_size), so that the ranks
    together read the step's samples in order. The step divides: `TrainConfig.accumulation_steps` sees to that.
    """
    together = micro_batch_size * world_size
    assert samples_per_step % together == 0, f"{samples_per_step} samples in parts of {together}"
    in_step = np.arange(samples_per_step, dtype=np.int64).reshape(-1, world_size, micro_batch_size)
    return step * samples_per_step + in_step[:, rank, :]


class Loader:
    """Micro-batches of one rank from a step on, without end, read ahead by a thread. A context manager.

    An error of the thread is raised by `next`, there and ever after. `wait_time_s` is how long `next` has waited in
    all: where it grows as fast as the clock, reading is what limits the run.
    """

    def __init__(
        self,
        samples: PackedSamples,
        *,
        first_step: int,
        samples_per_step: int,
        micro_batch_size: int,
        rank: int,
        world_size: int,
        prefetch_batches: int = 2,
    ) -> None:
        self.wait_time_s = 0.0
        self._samples = samples
        self._first_indices = rank_sample_indices(
            0, samples_per_step=samples_per_step, micro_batch_size=micro_batch_size, rank=rank, world_size=world_size
        )
        self._first_step = first_step
        self._samples_per_step = samples_per_step
        self._batches: queue.Queue[Batch | Exception] = queue.Queue(maxsize=prefetch_batches)
        self._error: Exception | None = None
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._read_ahead, name="loader", daemon=True)
        self._thread.start()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Batch:
        assert not self._closed.is_set(), "the loader is closed"
        if self._error is None:
            started_s = time.perf_counter()
            item = self._batches.get()
            self.wait_time_s += time.perf_counter() - started_s
            if isinstance(item, Batch):
                return item
            self._error = item
        raise self._error

    def close(self) -> None:
        """End the thread and wait for it; may be called twice."""
        self._closed.set()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _read_ahead(self) -> None:
        try:
            for sources, samples in self._located_micro_batches():
                if not self._hand_over(self._samples.fetch(sources, samples)):
                    return
        except Exception as error:  # whatever it is, `next` raises it
            self._hand_over(error)

    def _located_micro_batches(self) -> Iterator[tuple[Indices, Indices]]:
        """Sources and samples of each micro-batch, located for many steps at once."""
        steps = -(-_LOCATED_AT_ONCE // self._first_indices.size)
        step = self._first_step
        while True:
            starts = np.arange(step, step + steps, dtype=np.int64) * self._samples_per_step
            indices = (starts[:, None, None] + self._first_indices).reshape(-1, self._first_indices.shape[1])
            yield from zip(*self._samples.locate(indices), strict=True)
            step += steps

    def _hand_over(self, item: Batch | Exception) -> bool:
        """Wait for room in the queue; False if the loader was closed meanwhile."""
        while not self._closed.is_set():
            try:
                self._batches.put(item, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False


def validation_batches(
    samples: PackedSamples, *, sequences: int, micro_batch_size: int, rank: int, world_size: int
) -> Iterator[Batch]:
    """One rank's share of the first sequences, each read by one rank once, whatever the world size.

    Every rank gets equally many batches of equal shape, because every rank must join each forward pass of a sharded
    model: rows beyond the last sequence have IGNORED_LABEL for all labels, and a mean must be taken over the others.
    Fewer sequences are read if the split has fewer (`samples.samples_before_repeat`). Give samples with
    `split="validation", shuffle=False`.
    """
    wanted = min(sequences, samples.samples_before_repeat)
    for start in range(0, wanted, micro_batch_size * world_size):
        indices = start + rank * micro_batch_size + np.arange(micro_batch_size, dtype=np.int64)
        batch = samples.read(np.minimum(indices, wanted - 1))
        batch.labels[indices >= wanted] = IGNORED_LABEL
        yield batch


@lru_cache(maxsize=4096)
def _epoch_key(seed: int, name: str, epoch: int) -> int:
    """64 bits that differ for every seed, source and epoch."""
    return int.from_bytes(hashlib.blake2b(f"{seed}/{epoch}/{name}".encode(), digest_size=8).digest())
