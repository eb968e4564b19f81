"""Which source each sample of a run comes from, as a function of the sample's index. No state, no randomness.

The weights become whole numbers w_1 … w_n of sum W. A table of W slots says whose each slot is, w_i of them source
i's, and repeats for ever: sample k is slot k mod W, after k div W whole tables. Seeking is a division.

The table keeps every prefix fair: after k samples, source i has had ⌊k·w_i/W⌋ or ⌈k·w_i/W⌉. So its (j+1)-th sample
must lie in the slots from ⌊j·W/w_i⌋ to ⌈(j+1)·W/w_i⌉ - 1. Such a table exists for all weights (Tijdeman, "The chairman
assignment problem", Discrete Mathematics 32, 1980), and filling each slot with the sample whose last allowed slot
comes first finds it, as for any unit jobs with release times and deadlines (on one machine this is the proportionate
progress of Baruah, Cohen, Plaxton and Varvel, Algorithmica 15, 1996). The source is spread as evenly as it can be,
rather than drawn: a run of any length sees the mixture that its config names, to within one sample a source.

A stage with other weights is another `Mixture`, counted from the sample where it begins (`schedule.py`).
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

MAX_PERIOD = 1 << 16  # slots; finer weights are rounded to 1/65,536 of the mixture, at least one slot a source


class Mixture:
    """The schedule of sources with positive weights, which need not sum to one.

    `weights` holds the whole numbers in use; they are exactly in proportion to what was given unless that takes more
    than MAX_PERIOD slots.
    """

    def __init__(self, weights: Sequence[float]) -> None:
        self.weights = whole_weights(weights)
        self.period = sum(self.weights)
        self._counts = np.array(self.weights, dtype=np.int64)
        self._source_of_slot = _fair_table(self.weights)
        # the slots of each source, ascending: one sort for all of them
        by_source = np.argsort(self._source_of_slot, kind="stable")
        self._slots_of_source = np.split(by_source, np.cumsum(self._counts)[:-1])
        self._index_of_slot = np.empty(self.period, dtype=np.int64)
        for slots in self._slots_of_source:
            self._index_of_slot[slots] = np.arange(len(slots))

    def locate(self, samples: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The source of each sample and how many samples of that source came before it; same shape."""
        tables, slots = np.divmod(samples, self.period)
        sources = self._source_of_slot[slots]
        return sources, tables * self._counts[sources] + self._index_of_slot[slots]

    def position(self, source: int, index: int) -> int:
        """The sample that is the index-th (from 0) of a source: the inverse of `locate`."""
        tables, occurrence = divmod(index, self.weights[source])
        return tables * self.period + int(self._slots_of_source[source][occurrence])

    def counts(self, samples: int) -> NDArray[np.int64]:
        """How many of the first samples are each source's."""
        tables, slot = divmod(samples, self.period)
        within = [np.searchsorted(slots, slot) for slots in self._slots_of_source]
        return tables * self._counts + np.array(within, dtype=np.int64)


def whole_weights(weights: Sequence[float]) -> tuple[int, ...]:
    """Whole numbers without a common divisor in proportion to the weights, of a sum of at most MAX_PERIOD.

    Exact where that is possible; a decimal such as 0.1 means one tenth. Otherwise the largest remainders round up.
    """
    assert 0 < len(weights) <= MAX_PERIOD, len(weights)
    assert all(0 < weight < math.inf for weight in weights), weights
    exact = [Fraction(repr(float(weight))) for weight in weights]
    scale = math.lcm(*(fraction.denominator for fraction in exact))
    whole = [int(fraction * scale) for fraction in exact]
    divisor = math.gcd(*whole)
    if sum(whole) // divisor <= MAX_PERIOD:
        return tuple(number // divisor for number in whole)
    spare = MAX_PERIOD - len(weights)  # one slot each, the others in proportion
    shares = [Fraction(number * spare, sum(whole)) for number in whole]
    slots = [1 + math.floor(share) for share in shares]
    by_remainder = sorted(range(len(slots)), key=lambda i: (math.floor(shares[i]) - shares[i], i))
    for i in by_remainder[: MAX_PERIOD - sum(slots)]:
        slots[i] += 1
    return tuple(slots)


@lru_cache(maxsize=32)  # training, validation and the checks before them ask for the same
def _fair_table(weights: tuple[int, ...]) -> NDArray[np.int64]:
    """The source of each slot of one period: of the samples that may come now, the one with the nearest deadline."""
    period = sum(weights)
    table = np.empty(period, dtype=np.int64)
    waiting = [(0, source, 0) for source in range(len(weights))]  # first allowed slot, source, index in the source
    ready: list[tuple[int, int, int]] = []  # last allowed slot, source, index in the source
    for slot in range(period):
        while waiting and waiting[0][0] <= slot:
            _, source, index = heapq.heappop(waiting)
            last = -(-(index + 1) * period // weights[source]) - 1
            heapq.heappush(ready, (last, source, index))
        last, source, index = heapq.heappop(ready)
        assert last >= slot, "no fair table; Tijdeman's theorem says that there is one"
        table[slot] = source
        if index + 1 < weights[source]:
            heapq.heappush(waiting, ((index + 1) * period // weights[source], source, index + 1))
    table.flags.writeable = False
    return table
