"""Which source each sample of a run comes from, over stages of different mixtures. No state, no randomness.

A stage is a `Mixture` counted from the sample where it begins, so that every prefix of every stage is within one sample
of its weights. A source's samples are numbered over the whole run: those of a stage go on where the stages before it
have left the source, whose count there is arithmetic too. Seeking is a search among the stages and a division.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from launch.data.mixture import Mixture

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Stage:
    """Samples up to number `end` of the run (None: without end), mixed by a weight for every source, 0 for none."""

    end: int | None
    weights: tuple[float, ...]


class Schedule:
    """Stages one after the other. The last goes on behind its end: a reader that works ahead may look there."""

    def __init__(self, stages: Sequence[Stage]) -> None:
        assert stages
        ends = [stage.end for stage in stages[:-1]]
        starts = [0, *(end for end in ends if end is not None)]
        assert len(starts) == len(stages), "a stage without end that is not the last"
        assert all(first < second for first, second in pairwise(starts)), starts
        self.stages = tuple(stages)
        self._starts = np.array(starts, dtype=np.int64)
        self._taken = [np.flatnonzero(np.array(stage.weights) > 0) for stage in stages]
        self.mixtures = [
            Mixture([stage.weights[source] for source in taken])
            for stage, taken in zip(stages, self._taken, strict=True)
        ]
        # of each source, in the stages before each stage
        self._before = np.zeros((len(stages), len(stages[0].weights)), dtype=np.int64)
        for number in range(1, len(stages)):
            self._before[number] = self.counts(starts[number])

    def locate(self, samples: Indices) -> tuple[Indices, Indices]:
        """The source of each sample and how many samples of that source came before it; same shape."""
        numbers = np.searchsorted(self._starts, samples, side="right") - 1
        sources, places = np.empty_like(samples), np.empty_like(samples)
        for number in np.unique(numbers):
            chosen = numbers == number
            found, index = self.mixtures[number].locate(samples[chosen] - self._starts[number])
            sources[chosen] = self._taken[number][found]
            places[chosen] = self._before[number, sources[chosen]] + index
        return sources, places

    def counts(self, samples: int) -> Indices:
        """How many of the first samples of the run are each source's."""
        number = int(np.searchsorted(self._starts, samples, side="left")) - 1
        if number < 0:
            return np.zeros_like(self._before[0])
        counts: Indices = self._before[number].copy()
        counts[self._taken[number]] += self.mixtures[number].counts(samples - int(self._starts[number]))
        return counts

    def position(self, source: int, index: int) -> int | None:
        """The sample that is the index-th (from 0) of a source, None if it never comes: the inverse of `locate`."""
        for number, taken in reversed(list(enumerate(self._taken))):
            before = int(self._before[number, source])
            if before > index:
                continue
            # here, or nowhere: the stages before this one hold less
            within = int(np.searchsorted(taken, source))
            if within == len(taken) or taken[within] != source:
                return None
            return int(self._starts[number]) + self.mixtures[number].position(within, index - before)
        raise AssertionError(f"index {index}")

    def first_repeats(self, sizes: Sequence[int]) -> list[int | None]:
        """For each source, of so many samples an epoch, the sample of the run that begins its second epoch."""
        return [self.position(source, size) for source, size in enumerate(sizes)]
