"""What must hold at every step, decided from numbers that are equal on all ranks, so that all ranks decide alike.

    not finite   a loss or gradient that is no number: no rank steps; too many in a row end the run
    spike        a loss far above those of the last steps: told, and by choice answered with a rewind (`rewinds.py`)

No torch, and nothing is written here. Leaving a step out is `gradients.py`, naming what was in it `suspects.py`.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from launch.config import TrainingError
from launch.supervision_config import SpikeConfig
from launch.trainer.ranks import name_ranks

# the median absolute deviation of a normal distribution is 0.6745 of its standard deviation
_MAD_TO_SIGMA = 1.4826


class DivergedError(TrainingError):
    """The run has left the numbers: going on would only train, or save, what is no weight."""


class ReplicaError(RuntimeError):
    """Ranks that should hold the same hold different things: memory, a link or a program is at fault."""


@dataclass(frozen=True)
class NotFinite:
    """What was no number in a step: in the losses of `ranks`, or, where that is empty, in the gradient's norm alone."""

    what: str
    ranks: tuple[int, ...]


def find_not_finite(losses: Sequence[float], gradient_norm: float) -> NotFinite | None:
    """Of a step: each rank's own loss, and the norm of the gradient that they share."""
    ranks = tuple(rank for rank, loss in enumerate(losses) if not math.isfinite(loss))
    if ranks:
        return NotFinite(f"the loss is {losses[ranks[0]]} on {name_ranks(ranks)}", ranks)
    if not math.isfinite(gradient_norm):
        return NotFinite(f"the gradient norm is {gradient_norm}", ())
    return None


class SkippedSteps:
    """Counts steps that were not taken, in a row; a step that was taken begins anew."""

    def __init__(self, max_in_a_row: int) -> None:
        self.in_a_row = 0
        self._max_in_a_row = max_in_a_row

    def took_step(self) -> None:
        self.in_a_row = 0

    def left_out(self, found: NotFinite, *, step: int, suspects: str, last_checkpoint: int | None) -> None:
        """Raises DivergedError when it is one too many."""
        self.in_a_row += 1
        if self.in_a_row < self._max_in_a_row:
            return
        where = "the start" if last_checkpoint is None else f"the checkpoint of step {last_checkpoint}"
        times = f", number {self.in_a_row} in a row" if self.in_a_row > 1 else ""
        raise DivergedError(
            f"step {step}: {found.what}, so the step was not taken{times}; the run stopped. Lower "
            f"optimizer.learning_rate or lengthen schedule.warmup_steps, or look at the data ({suspects}), and run "
            f"again: it goes on from {where}"
        )


@dataclass(frozen=True)
class Spike:
    """A loss `z` robust standard deviations above `median`, the usual loss of the steps before."""

    loss: float
    median: float
    z: float


class SpikeDetector:
    """Looks at each step's loss; tells the first step of a spike only, until the loss has come down again.

    z = (loss - median) / (1.4826 · median absolute deviation), over the last `window_steps` losses (Iglewicz and
    Hoaglin, "How to Detect and Handle Outliers", 1993, whose z is this one). Losses of a spike enter the window too:
    where the loss stays up, the window follows it within half its length.
    """

    def __init__(self, config: SpikeConfig) -> None:
        self._config = config
        self._losses: deque[float] = deque(maxlen=config.window_steps)
        self._is_up = False

    def look(self, loss: float) -> Spike | None:
        """`loss` of the next step, finite. None until the window is full."""
        spike = self._compare(loss) if len(self._losses) == self._losses.maxlen else None
        is_new = spike is not None and not self._is_up
        self._is_up = spike is not None
        self._losses.append(loss)
        return spike if is_new else None

    def _compare(self, loss: float) -> Spike | None:
        median = statistics.median(self._losses)
        rise = loss - median
        if rise <= self._config.min_rise:
            return None
        deviation = _MAD_TO_SIGMA * statistics.median(abs(other - median) for other in self._losses)
        z = rise / deviation if deviation else math.inf
        return Spike(loss, median, z) if z > self._config.min_z else None
