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
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing.synchronize import Barrier

import numpy as np
import psutil

PROBE_EVERY_S = 5.0
BARRIER_S = 60.0


@dataclass(frozen=True, slots=True)
class Probe:
    """From when to when the run stood still, by `time.monotonic`, and what the machine encoded a second meanwhile."""

    begin_s: float
    end_s: float
    megabytes_per_s: float


class Yardstick:
    """Measures the machine when it is made, and again whenever the run is stopped for it."""

    def __init__(self, encode: Callable[[], float]) -> None:
        """`encode` gives megabytes a second (`open_yardstick`)."""
        self._encode = encode
        megabytes_per_s = encode()
        self._start_s = self._last_s = time.monotonic()
        self.probes = [Probe(self._start_s, self._start_s, megabytes_per_s)]

    def probe_if_due(self, driver: psutil.Process) -> None:
        """Stops this process and all below it, measures, and lets them go on."""
        begin_s = time.monotonic()
        if begin_s - self._last_s < PROBE_EVERY_S:
            return
        with stopped(driver):
            megabytes_per_s = self._encode()
        self._last_s = time.monotonic()
        self.probes.append(Probe(begin_s, self._last_s, megabytes_per_s))

    def run_seconds(self, moment_s: float) -> float:
        """From the beginning to a moment of `time.monotonic`, without the time in which the run stood still."""
        earlier = self.probes[: bisect.bisect_left(self.probes, moment_s, key=lambda probe: probe.begin_s)]
        return moment_s - self._start_s - sum(min(moment_s, probe.end_s) - probe.begin_s for probe in earlier)

    def mean_megabytes_per_s(self, begin_s: float, end_s: float) -> float:
        """Between two moments, counted in `run_seconds`: the mean of what was found, joined by lines."""
        moments = [self.run_seconds(probe.begin_s) for probe in self.probes]
        found = [probe.megabytes_per_s for probe in self.probes]
        return float(np.interp(np.linspace(begin_s, end_s, 101), moments, found).mean())


@contextlib.contextmanager
def open_yardstick(tokenizer: bytes, texts: list[str], *, workers: int) -> Iterator[Yardstick]:
    """With processes of its own, which have loaded the `tokenizer.json` and hold the texts."""
    context = multiprocessing.get_context("spawn")
    initial = (tokenizer, texts, context.Barrier(workers))
    megabytes = workers * sum(len(text.encode()) for text in texts) / 1e6
    with ProcessPoolExecutor(workers, context, _load, initial) as pool:

        def encode() -> float:
            started = time.perf_counter()
            list(pool.map(_encode_all, range(workers)))
            return megabytes / (time.perf_counter() - started)

        encode()  # loads, and meets every text for the first time
        yield Yardstick(encode)


@contextlib.contextmanager
def stopped(driver: psutil.Process) -> Iterator[None]:
    """The process first, so that it begins no other, then all below it. They go on whatever happens."""
    processes = [driver]
    try:
        with contextlib.suppress(psutil.NoSuchProcess):
            driver.suspend()
            processes += driver.children(recursive=True)
        for process in processes[1:]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.suspend()
        yield
    finally:
        for process in reversed(processes):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()


# of a process of the pool, whose calls share nothing else
_encode: Callable[[str], bytes]
_texts: list[str]
_all_begin: Barrier


def _load(tokenizer: bytes, texts: list[str], all_begin: Barrier) -> None:
    global _encode, _texts, _all_begin
    import splintr

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _encode, _texts, _all_begin = splintr.from_json_bytes(tokenizer).encode_flat, texts, all_begin


def _encode_all(_: int) -> None:
    _all_begin.wait(BARRIER_S)  # one call for each process
    for text in _texts:
        _encode(text)
