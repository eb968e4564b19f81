"""Which rank is slower than the others, by the time that each takes for work of its own (`own_time.py`). No torch."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from launch.supervision_config import WatchdogConfig


@dataclass(frozen=True)
class Straggler:
    """A rank whose own time was `ratio` times the ranks' median, as a mean over a window of steps."""

    rank: int
    ratio: float

    @property
    def text(self) -> str:
        return f"rank {self.rank} is slow: its own work takes {self.ratio:.1f} times as long as the median rank's"


class StragglerWatch:
    """Means of windows of steps that do not overlap, so that a slow rank is told once a window."""

    def __init__(self, config: WatchdogConfig, *, world_size: int) -> None:
        self._config = config
        self._sums_s = [0.0] * world_size
        self._steps = 0

    def look(self, own_times_s: Sequence[float]) -> Straggler | None:
        """`own_times_s` of one step, in the order of ranks."""
        self._sums_s = [total + own for total, own in zip(self._sums_s, own_times_s, strict=True)]
        self._steps += 1
        if self._steps < self._config.straggler_steps:
            return None
        slowest = max(range(len(self._sums_s)), key=self._sums_s.__getitem__)
        # the low one: of two ranks the median is the faster one's, or none could ever be 1.5 times it
        median_s = statistics.median_low(self._sums_s)
        ratio = self._sums_s[slowest] / median_s if median_s else 1.0
        self._sums_s, self._steps = [0.0] * len(self._sums_s), 0
        return Straggler(slowest, ratio) if ratio > self._config.straggler_ratio else None
