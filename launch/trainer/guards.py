"""What must hold at every step for the run to go on. No torch: the values are plain numbers, equal on all ranks."""

from __future__ import annotations

import math

from launch.config import TrainingError


class DivergedError(TrainingError):
    """The loss or the gradient is no number: going on would only write it into the weights."""


def check_loss(loss: float, *, step: int, last_checkpoint: int | None) -> None:
    """Before the optimizer steps. Raises DivergedError."""
    _check("loss", loss, step, last_checkpoint)


def check_grad_norm(grad_norm: float, *, step: int, last_checkpoint: int | None) -> None:
    """After the optimizer's turn: DeepSpeed leaves a step with such a gradient out. Raises DivergedError."""
    _check("gradient norm", grad_norm, step, last_checkpoint)


def _check(what: str, value: float, step: int, last_checkpoint: int | None) -> None:
    if math.isfinite(value):
        return
    where = "the start" if last_checkpoint is None else f"the checkpoint of step {last_checkpoint}"
    raise DivergedError(
        f"step {step}: the {what} is {value}, so the step was not taken; the run stopped. Lower "
        f"optimizer.learning_rate or lengthen schedule.warmup_steps, and run again: it goes on from {where}"
    )
