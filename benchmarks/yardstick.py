"""How fast the machine itself is, now and again during a long run: that of shared machines swings within minutes.

While the run stands still (SIGSTOP), as many processes as it has workers encode the same texts; the time that this
takes is no part of the run's.
"""

from __future__ import annotations

import bisect
import contextlib
import multiprocessing
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import psutil

PROBE_EVERY_S = 5.0

_encode = None
_texts: list[str] = []


@dataclass(frozen=True, slots=True)
class Probe:
    """When the run stood still, by `time.monotonic`, and the megabytes of text that were encoded a second meanwhile."""

    begin: float
    end: float
    megabytes_per_s: float


class Yardstick:
    """Encodes the texts now and again, and keeps what it found."""

    def __init__(self, pool: multiprocessing.pool.Pool, *, workers: int, texts_bytes: int) -> None:
        """Of `yardstick`."""
        self._pool = pool
        self._workers = workers
        self._texts_bytes = texts_bytes
        self._start = time.monotonic()
        self._next = self._start + PROBE_EVERY_S
        self.probes: list[Probe] = []

    def probe_if_due(self, driver: psutil.Process) -> None:
        """Stops this process and all below it, encodes, and lets them go on."""
        if time.monotonic() < self._next:
            return
        with stopped(driver):
            begin = time.monotonic()
            self._pool.map(_encode_all, range(self._workers), chunksize=1)
            end = time.monotonic()
        self.probes.append(Probe(begin, end, self._workers * self._texts_bytes / 1e6 / (end - begin)))
        self._next = end + PROBE_EVERY_S

    def seconds(self, moment: float) -> float:
        """From the beginning of this to a moment of `time.monotonic`, without the time in which the run stood still."""
        earlier = self.probes[: bisect.bisect_left(self.probes, moment, key=lambda probe: probe.begin)]
        return moment - self._start - sum(min(moment, probe.end) - probe.begin for probe in earlier)

    def mean(self, begin: float, end: float) -> float:
        """Megabytes a second between two moments, counted in `seconds`: the mean of what was found, joined by lines."""
        moments = [self.seconds(probe.begin) for probe in self.probes]
        found = [probe.megabytes_per_s for probe in self.probes]
        return float(np.interp(np.linspace(begin, end, 101), moments, found).mean())


@contextlib.contextmanager
def yardstick(tokenizer: bytes, texts: list[str], *, workers: int) -> Iterator[Yardstick]:
    """With processes of its own, which have loaded the `tokenizer.json` and hold the texts."""
    with multiprocessing.get_context("spawn").Pool(workers, _load, (tokenizer, texts)) as pool:
        pool.map(_encode_all, range(workers), chunksize=1)  # the first time is not the second's
        yield Yardstick(pool, workers=workers, texts_bytes=sum(len(text.encode()) for text in texts))


@contextlib.contextmanager
def stopped(driver: psutil.Process) -> Iterator[None]:
    """The process first, so that it begins no other, then all below it. They go on whatever happens."""
    processes = [driver]
    with contextlib.suppress(psutil.NoSuchProcess):
        driver.suspend()
        processes += driver.children(recursive=True)
    try:
        for process in processes[1:]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.suspend()
        yield
    finally:
        for process in reversed(processes):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()


def _load(tokenizer: bytes, texts: list[str]) -> None:
    global _encode, _texts
    import splintr

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _encode, _texts = splintr.from_json_bytes(tokenizer).encode_flat, texts


def _encode_all(_: int) -> None:
    for text in _texts:
        _encode(text)
