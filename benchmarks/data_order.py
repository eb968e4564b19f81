"""What the order of a run costs: start-up and random seeks at 10^13 tokens over 500 sources, simulated.

    python benchmarks/data_order.py --tokens 10_000_000_000_000 --sources 500

Ours computes the order: a mixture table and a keyed permutation. The peers store it: `numpy` shuffles an index of all
samples, as a `datasets` shuffle or Megatron's shuffle index does, for as many samples as fit into --stored-samples,
and is scaled from there to the whole (its time and memory grow with it). No token is read.
"""

from __future__ import annotations

import argparse
import time
import timeit
import tracemalloc
from collections.abc import Callable

import numpy as np

from launch.data.mixture import Mixture
from launch.data.permutation import MAX_SIZE, Permutation

SEQUENCE, SEEK = 2048, 4096


class ComputedOrder:
    """Sources weighted by their sizes, as `PackedSamples` orders them, in their first epochs."""

    def __init__(self, sizes: list[int]) -> None:
        self.mixture = Mixture(sizes)
        self.sizes = sizes

    def seek(self, samples: np.ndarray) -> np.ndarray:
        """Which sample of its source each sample of the run is."""
        sources, places = self.mixture.locate(samples)
        for source in np.unique(sources):
            chosen = sources == source
            size = self.sizes[source]
            places[chosen] = Permutation(size, key=int(source)).apply(places[chosen] % size)
        return places


class StoredOrder:
    """A shuffled index of every sample."""

    def __init__(self, samples: int) -> None:
        self.order = np.random.default_rng(0).permutation(samples)

    def seek(self, samples: np.ndarray) -> np.ndarray:
        return np.asarray(self.order[samples])


def start(make: Callable[[], ComputedOrder | StoredOrder]) -> tuple[ComputedOrder | StoredOrder, float, int]:
    """The order, its start-up in seconds, and the most bytes held meanwhile (in a second start: tracing is slow)."""
    started_s = time.perf_counter()
    order = make()
    elapsed_s = time.perf_counter() - started_s
    tracemalloc.start()
    make()
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return order, elapsed_s, peak_bytes


def seek_time_s(order: ComputedOrder | StoredOrder, total: int, at_once: int) -> float:
    """Seconds a sample, for random samples `at_once` a call; the best of five passes."""
    samples = np.random.default_rng(2).integers(0, total, size=(5, at_once))
    return min(timeit.repeat(lambda: [order.seek(chosen) for chosen in samples], number=1)) / samples.size


def main() -> None:
    parser = argparse.ArgumentParser(description="What the order of a run costs to start and to seek in.")
    parser.add_argument("--tokens", type=int, default=10**13, help="of the whole mixture (default 10^13)")
    parser.add_argument("--sources", type=int, default=500, help="datasets in the mixture (default 500)")
    parser.add_argument(
        "--stored-samples", type=int, default=20_000_000, help="of the peer's index (default 20 million)"
    )
    settings = parser.parse_args()
    total = settings.tokens // SEQUENCE
    shares = np.random.default_rng(1).lognormal(0, 1.5, size=settings.sources)
    sizes = [min(MAX_SIZE, max(1, int(share))) for share in shares / shares.sum() * total]
    computed, computed_start_s, computed_bytes = start(lambda: ComputedOrder(sizes))
    stored_samples = min(total, settings.stored_samples)
    stored, stored_start_s, stored_bytes = start(lambda: StoredOrder(stored_samples))
    scale = total / stored_samples
    print(f"{settings.tokens:.1e} tokens, {settings.sources} sources, {total:,} samples of {SEQUENCE:,}; one thread")
    print(f"{'':<22}{'start s':>12}{'memory MB':>14}{'seek of 1, us':>16}{f'of {SEEK}, us each':>18}")
    ours = ("ours, computed", computed, computed_start_s, computed_bytes, total)
    theirs = (f"stored, {stored_samples:,}", stored, stored_start_s, stored_bytes, stored_samples)
    for name, order, start_s, peak_bytes, samples in (ours, theirs):
        one_s, block_s = seek_time_s(order, samples, 1), seek_time_s(order, samples, SEEK)
        print(f"{name:<22}{start_s:>12.2f}{peak_bytes / 1e6:>14,.1f}{one_s * 1e6:>16.1f}{block_s * 1e6:>18.2f}")
    print(f"{'stored, scaled to all':<22}{stored_start_s * scale:>12,.0f}{stored_bytes * scale / 1e6:>14,.0f}")
    memory, startup = stored_bytes * scale / computed_bytes, stored_start_s * scale / computed_start_s
    print(f"the stored order takes {memory:,.0f} times the memory and {startup:,.0f} times the start-up")


if __name__ == "__main__":
    main()
