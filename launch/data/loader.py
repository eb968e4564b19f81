"""Samples of a run by their index, and the background reader that hands each rank its micro-batches.

Sample k of a run is a pure function of (seed, sources and stages, k):

    k → schedule → (source, j) → epoch, place = divmod(j, samples of the source)
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

from launch.config import LocalError
from launch.data import read_ahead
from launch.data.packing import Batch, pack, sample_span, samples_in
from launch.data.permutation import Permutation
from launch.data.rank_order import node_sample_indices, rank_sample_indices
from launch.data.read_ahead import ReadAhead
from launch.data.schedule import Schedule, Stage
from launch.data.shard_cache import ShardCache
from launch.data.shard_reader import AGAIN, Remote, TokenStream
from pipeline.shards.format import DatasetError, Split, TokenizerRecord

Indices = NDArray[np.int64]

_LOCATED_AT_ONCE = 4096  # samples: below this numpy's cost a call outweighs the permutation's own


@dataclass(frozen=True)
class Source:
    """One dataset directory in a mixture. The name is part of the order: renaming a source reshuffles it.

    A dataset in an object store is `remote`, and `path` the mirror of it.
    """

    name: str
    path: Path
    weight: float
    remote: Remote | None = None


class PackedSamples:
    """The samples of a run, addressed by their index from 0; there is no last one, sources begin new epochs.

    `stages` say how the sources are mixed; without them their weights do, from the beginning to the end. With
    `shuffle=False` each source is read in stream order. That the sources go together, and each has a sample, is the
    caller's to have checked (`launch/trainer/inputs.py`). Raises DatasetError for one that is missing.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        *,
        seed: int,
        sequence_length: int,
        split: Split = "train",
        shuffle: bool = True,
        stages: Sequence[Stage] = (),
    ) -> None:
        assert len({source.name for source in sources}) == len(sources) > 0, "a name says which order a source has"
        self.sources = tuple(sources)
        self.seed = seed
        self.sequence_length = sequence_length
        self.shuffle = shuffle
        self.streams = [TokenStream(source.path, split, remote=source.remote) for source in sources]
        self.sizes = [samples_in(stream.total_tokens, sequence_length) for stream in self.streams]
        assert all(self.sizes), f"a source without a sample: {self.sizes}"
        assert len({stream.tokenizer.digest for stream in self.streams}) == 1, "sources of different tokenizers"
        self.schedule = Schedule(stages or [Stage(None, tuple(source.weight for source in sources))])
        self.tokenizer: TokenizerRecord = self.streams[0].tokenizer

    @property
    def cache(self) -> ShardCache | None:
        """Of the sources in an object store, which have one together."""
        return next((source.remote.cache for source in self.sources if source.remote is not None), None)

    @property
    def samples_before_repeat(self) -> int:
        """Samples before one of the sources begins its second epoch."""
        return min(repeat for repeat in self.schedule.first_repeats(self.sizes) if repeat is not None)

    def locate(self, sample_indices: Indices) -> tuple[Indices, Indices]:
        """The source of each sample, by number, and which sample of that source's stream it is; same shape."""
        sources, places = self.schedule.locate(np.asarray(sample_indices, dtype=np.int64))
        samples = np.empty_like(places)
        for source in np.unique(sources):
            chosen = sources == source
            samples[chosen] = self._order(int(source), places[chosen])
        return sources, samples

    def sightings(self, source: int, sample: int, *, before: int) -> list[int]:
        """Which samples of the run, of those before a number, are a sample of a source's stream: the inverse of
        `locate`, an epoch each."""
        found: list[int] = []
        while True:
            epoch = len(found)
            place = sample
            if self.shuffle:
                place = int(self._permutation(source, epoch).invert(np.array([sample]))[0])
            index = self.schedule.position(source, epoch * self.sizes[source] + place)
            if index is None or index >= before:
                return found
            found.append(index)

    def read(self, sample_indices: Indices) -> Batch:
        """The samples as a batch, a row an index."""
        return self.fetch(*self.locate(sample_indices))

    def fetch(self, sources: Indices, samples: Indices) -> Batch:
        """The batch of what `locate` found, a row each. Raises DatasetError for an id beyond the vocabulary too."""
        rows = np.empty((len(sources), self.sequence_length + 1), dtype=np.uint16)
        for row, source, sample in zip(rows, sources.tolist(), samples.tolist(), strict=True):
            row[:] = self.streams[source].read(*sample_span(sample, self.sequence_length))
        if rows.max() >= self.tokenizer.vocab_size:
            raise self._beyond_vocabulary(rows, sources, samples)
        return pack(rows, eos_token_id=self.tokenizer.eos_token_id)

    def _beyond_vocabulary(self, rows: NDArray[np.uint16], sources: Indices, samples: Indices) -> DatasetError:
        """On a device such an id is an assertion that names nothing, or another token's embedding."""
        row, column = np.unravel_index(rows.argmax(), rows.shape)
        stream = self.streams[sources[row]]
        place = int(samples[row]) * self.sequence_length + int(column)
        (number,) = stream.shards(place, place + 1)
        return DatasetError(
            f"shard {stream.dataset / stream.record(number).path} holds id {rows[row, column]}, but its tokenizer has "
            f"{self.tokenizer.vocab_size} tokens; {AGAIN}"
        )

    def check_shards(self) -> None:
        """Raises DatasetError naming the first shard that is missing or of another size than its manifest says."""
        for stream in self.streams:
            stream.check_shards()

    def _order(self, source: int, places: Indices) -> Indices:
        epochs, within = np.divmod(places, self.sizes[source])
        if not self.shuffle:
            return within
        ordered = np.empty_like(within)
        for epoch in np.unique(epochs):
            chosen = epochs == epoch
            ordered[chosen] = self._permutation(source, int(epoch)).apply(within[chosen])
        return ordered

    def _permutation(self, source: int, epoch: int) -> Permutation:
        return Permutation(self.sizes[source], _epoch_key(self.seed, self.sources[source].name, epoch))


class Loader:
    """Micro-batches of one rank from a step on, without end, read ahead by a thread. A context manager.

    With `pin_memory` batches lie in page-locked memory, from which a copy to a CUDA device runs beside its work. An
    error of the thread is raised by `next`, there and ever after. `wait_time_s` is how long `next` has waited in
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
        local_rank: int = 0,
        local_size: int = 1,
        prefetch_batches: int = 2,
        pin_memory: bool = False,
    ) -> None:
        self.wait_time_s = 0.0
        self._samples = samples
        self._first_indices = rank_sample_indices(
            0, samples_per_step=samples_per_step, micro_batch_size=micro_batch_size, rank=rank, world_size=world_size
        )
        self._rank = rank
        self._first_step = first_step
        self._samples_per_step = samples_per_step
        self._micro_batches_read = 0
        self._closed = threading.Event()
        self._ahead = self._read_ahead_of_node(range(rank - local_rank, rank - local_rank + local_size), world_size)
        if self._ahead is not None and local_rank == 0:
            self._ahead.start()
        self._batches: queue.Queue[Batch | Exception] = queue.Queue(maxsize=prefetch_batches)
        self._pin_memory = pin_memory
        self._error: Exception | None = None
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
        """End the thread and wait for it, as `ReadAhead.close` does; may be called twice."""
        self._closed.set()
        self._thread.join(read_ahead.CLOSE_WAIT_S)
        if self._ahead is not None:
            self._ahead.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _read_ahead_of_node(self, ranks: range, world_size: int) -> ReadAhead | None:
        """For datasets in an object store, whose cache then knows what these ranks read next."""
        if self._samples.cache is None:
            return None
        micro_batch_size = self._first_indices.shape[1]
        return ReadAhead(
            self._samples,
            self._samples.cache,
            offsets=node_sample_indices(
                samples_per_step=self._samples_per_step,
                micro_batch_size=micro_batch_size,
                ranks=ranks,
                world_size=world_size,
            ),
            samples_per_step=self._samples_per_step,
            step=lambda: self._first_step + self._micro_batches_read // len(self._first_indices),
            closed=self._closed,
        )

    def _read_ahead(self) -> None:
        try:
            for sources, samples in self._located_micro_batches():
                batch = self._samples.fetch(sources, samples)
                self._micro_batches_read += 1
                if not self._hand_over(batch.pinned() if self._pin_memory else batch):
                    return
        except DatasetError as error:
            self._hand_over(LocalError(f"rank {self._rank}: {error}"))
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


@lru_cache(maxsize=4096)
def _epoch_key(seed: int, name: str, epoch: int) -> int:
    """64 bits that differ for every seed, source and epoch."""
    return int.from_bytes(hashlib.blake2b(f"{seed}/{epoch}/{name}".encode(), digest_size=8).digest())
