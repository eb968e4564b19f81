"""The one exchange of a step: what each rank has to say, gathered on all of them, so that all do the same next.

A few numbers a rank, 72 bytes. On a GPU it is also where the host waits for the device, once a step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class RankReport:
    """One rank's word: its losses are means over its own micro-batches, `gradient_square` is of its share of the
    gradient, `own_time_s` what it took for work in which it waits for no other rank."""

    loss: float  # what was trained, z-loss included
    cross_entropy: float
    gradient_square: float
    own_time_s: float
    stop_flags: tuple[float, ...]


@dataclass(frozen=True)
class StepReports:
    """All ranks' reports, in the order of ranks; equal on every rank."""

    ranks: tuple[RankReport, ...]

    @property
    def losses(self) -> list[float]:
        return [report.loss for report in self.ranks]

    @property
    def loss(self) -> float:
        """Mean over the global batch."""
        return sum(self.losses) / len(self.ranks)

    @property
    def cross_entropy(self) -> float:
        """Mean over the global batch."""
        return sum(report.cross_entropy for report in self.ranks) / len(self.ranks)

    @property
    def gradient_norm(self) -> float:
        return math.sqrt(sum(report.gradient_square for report in self.ranks))

    @property
    def own_times_s(self) -> list[float]:
        return [report.own_time_s for report in self.ranks]

    @property
    def stop_flags(self) -> list[float]:
        """Summed over ranks."""
        return [sum(flags) for flags in zip(*(report.stop_flags for report in self.ranks), strict=True)]


def exchange(
    losses: Tensor, gradient_square: Tensor, *, own_time_s: float, stop_flags: Sequence[float], world_size: int
) -> StepReports:
    """`losses` is (loss, cross-entropy), float64 on the device of the engine, as `gradient_square` is."""
    own = torch.tensor([own_time_s, *stop_flags], dtype=torch.float64).to(losses.device, non_blocking=True)
    row = torch.cat((losses, gradient_square.reshape(1), own))
    rows = row.new_empty(world_size, row.numel())
    torch.distributed.all_gather(list(rows.unbind()), row)
    return StepReports(
        tuple(
            RankReport(loss, cross_entropy, square, own_s, tuple(flags))
            for loss, cross_entropy, square, own_s, *flags in rows.tolist()
        )
    )
