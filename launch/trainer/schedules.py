"""Learning rate as a pure function of the step: a factor from 0 to 1 of the peak. No torch.

`step` counts updates from 0. All warm up alike: the first update has 1/warmup_steps of the peak and the
warmup_steps-th has all of it, so that no update is wasted at zero. At `total_steps`, which is after the last update,
a schedule has come down to `min_factor`, and stays there.

A new schedule is a function here and a line in SCHEDULES.
"""

from __future__ import annotations

import math
from typing import Protocol

from launch.config import ScheduleConfig


class Schedule(Protocol):
    def __call__(
        self, *, step: int, total_steps: int, warmup_steps: int = 0, decay_steps: int = 0, min_factor: float = 0.0
    ) -> float: ...


def wsd(*, step: int, total_steps: int, warmup_steps: int = 0, decay_steps: int = 0, min_factor: float = 0.0) -> float:
    """Warm up, stay at the peak, decay linearly over the last `decay_steps`.

    Warmup-stable-decay of MiniCPM (Hu et al., arXiv:2404.06395, §4.2), as SmolLM2 uses it (arXiv:2502.02737, §4).
    """
    remaining = _share_left(step, start=total_steps - decay_steps, stop=total_steps)
    return _warmup(step, warmup_steps) * _between(min_factor, remaining)


def cosine(
    *, step: int, total_steps: int, warmup_steps: int = 0, decay_steps: int = 0, min_factor: float = 0.0
) -> float:
    """Warm up, then half a cosine down to the end (Loshchilov and Hutter, arXiv:1608.03983, eq. 5, one cycle).

    It is one decay from the warmup on: `decay_steps` has no part in it.
    """
    remaining = _share_left(step, start=warmup_steps, stop=total_steps)
    return _warmup(step, warmup_steps) * _between(min_factor, (1 - math.cos(math.pi * remaining)) / 2)


def linear(
    *, step: int, total_steps: int, warmup_steps: int = 0, decay_steps: int = 0, min_factor: float = 0.0
) -> float:
    """Warm up, then a straight line down to the end (Defazio et al., arXiv:2310.07831).

    It is one decay from the warmup on: `decay_steps` has no part in it.
    """
    remaining = _share_left(step, start=warmup_steps, stop=total_steps)
    return _warmup(step, warmup_steps) * _between(min_factor, remaining)


SCHEDULES: dict[str, Schedule] = {"wsd": wsd, "cosine": cosine, "linear": linear}


def learning_rate_factor(config: ScheduleConfig, *, step: int, steps: int) -> float:
    """Of the peak, for the update that makes `step` steps complete; schedules count updates from 0."""
    return SCHEDULES[config.name](
        step=step - 1,
        total_steps=steps,
        warmup_steps=config.warmup_steps,
        decay_steps=config.decay_steps,
        min_factor=config.min_factor,
    )


def _warmup(step: int, warmup_steps: int) -> float:
    return min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0


def _share_left(step: int, *, start: int, stop: int) -> float:
    """1 up to `start`, 0 from `stop` on, a straight line between."""
    if step >= stop:
        return 0.0
    return min(1.0, (stop - step) / (stop - start)) if stop > start else 1.0


def _between(min_factor: float, share: float) -> float:
    return min_factor + (1 - min_factor) * share
