"""Which shards a node reads next, in order, and a thread that copies them into the cache before they are read.

The order of samples is arithmetic, so what comes next is too: no rank has to tell another what it will read. One rank
of a node copies; any of them may have to remove a shard, and then knows the same order.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from launch.data.object_store import StoreUnreachableError
from launch.data.packing import sample_span
from launch.data.shard_cache import RemoteShard, ShardCache
from pipeline.shards.format import DatasetError

if TYPE_CHECKING:
    from launch.data.loader import PackedSamples

Indices = NDArray[np.int64]

CLOSE_WAIT_S = 5.0  # for a thread of the process's that a store holds up: who has to stop has not long (30 s in a pod)
_HORIZON = 1 << 16  # samples of the node: what is read later than that may be removed
_COPIES_AT_ONCE = 4
_PAUSE_S = 1.0
_SHARDS_OF_A_SOURCE = 1 << 32


class ReadAhead:
    """What the ranks of a node read from a step on; the cache is told what that is.

    offsets: what they read in step 0, in order, as sample numbers of the run
    step: the step that is being read
    closed: ends the copies when it is set; `close` sets it and waits for them
    """

    def __init__(
        self,
        samples: PackedSamples,
        cache: ShardCache,
        *,
        offsets: Indices,
        samples_per_step: int,
        step: Callable[[], int],
        closed: threading.Event,
    ) -> None:
        self._samples = samples
        self._cache = cache
        self._offsets = offsets.reshape(-1)
        self._samples_per_step = samples_per_step
        self._step = step
        self._known: tuple[int | None, list[RemoteShard]] = None, []  # asked for often within a step
        cache.needs, cache.closed = self.paths, closed
        self._closed = closed
        self._thread: threading.Thread | None = None

    def upcoming(self) -> list[RemoteShard]:
        """The shards in the store that the node reads next, the soonest first, each once."""
        step = self._step()
        known_step, shards = self._known
        if known_step != step:
            shards = self._shards_from(step)
            self._known = step, shards
        return shards

    def _shards_from(self, step: int) -> list[RemoteShard]:
        steps = -(-_HORIZON // len(self._offsets))
        starts = np.arange(step, step + steps, dtype=np.int64) * self._samples_per_step
        sources, samples = self._samples.locate((starts[:, None] + self._offsets).reshape(-1))
        codes = np.full((len(samples), 2), -1, dtype=np.int64)
        streams = self._samples.streams
        for source in np.unique(sources):
            if streams[source].remote is not None:
                chosen = sources == source
                first, behind = sample_span(samples[chosen], self._samples.sequence_length)
                for column, places in enumerate((first, behind - 1)):
                    codes[chosen, column] = source * _SHARDS_OF_A_SOURCE + streams[source].shard_numbers(places)
        found, places = np.unique(codes.reshape(-1), return_index=True)
        ordered = found[np.argsort(places)]
        return [
            streams[code // _SHARDS_OF_A_SOURCE].remote_shard(code % _SHARDS_OF_A_SOURCE)
            for code in ordered[ordered >= 0].tolist()
        ]

    def paths(self) -> list[Path]:
        return [shard.path for shard in self.upcoming()]

    def start(self) -> None:
        """Copy what comes next in a thread, until `close`."""
        self._cache.remove_leftovers()
        self._thread = threading.Thread(target=self._fill, name="read-ahead", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread, after the part of each copy that is under way; one that hangs is waited for CLOSE_WAIT_S. May
        be called twice."""
        self._closed.set()
        if self._thread is not None:
            self._thread.join(CLOSE_WAIT_S)
        if self._cache.closed is self._closed:
            self._cache.closed = threading.Event()  # for who reads after this

    def _fill(self) -> None:
        with ThreadPoolExecutor(_COPIES_AT_ONCE, thread_name_prefix="read-ahead") as pool:
            while not self._closed.is_set():
                missing = [(use, shard) for use, shard in enumerate(self.upcoming()) if not shard.path.exists()]
                soonest = missing[:_COPIES_AT_ONCE]
                copied = list(pool.map(lambda one: self._copy(one[1], next_use=one[0]), soonest))
                if not any(copied):
                    self._closed.wait(_PAUSE_S)

    def _copy(self, shard: RemoteShard, *, next_use: int) -> bool:
        try:
            return self._cache.prefetch(shard, next_use=next_use)
        except (DatasetError, StoreUnreachableError):
            # who reads the shard finds the same, and says it
            return False
