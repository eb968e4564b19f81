"""The gradient of a step as ZeRO-3 holds it before the optimizer's turn, and how a step is left out.

Reaches into DeepSpeed's stage-3 optimizer (0.19), whose own check comes too late for us: it knows the gradients alone,
and with Muon it has written them into the momentum by then.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def local_gradient_square(deepspeed_engine: Any) -> Tensor:
    """Sum of squares of this rank's share of the gradient, float64 on its device; after the last micro-batch.

    The shares are disjoint, so that over all ranks the sums add up to the gradient's norm squared, before clipping.
    """
    shares = [share for group in deepspeed_engine.optimizer.averaged_gradients.values() for share in group]
    return torch.nn.utils.get_total_norm(shares).double().square()


def leave_step_out(deepspeed_engine: Any) -> None:
    """In place of `deepspeed_engine.step()`: no weight and no moment changes, and the gradient is forgotten.

    DeepSpeed counts the step as done and as skipped, as it does with one that it leaves out itself.
    """
    optimizer = deepspeed_engine.optimizer
    take_step = optimizer.step
    optimizer.step = lambda: _forget(optimizer)
    try:
        deepspeed_engine.step()
    finally:
        optimizer.step = take_step


def _forget(optimizer: Any) -> None:
    # what stage3.py's step() does where its own check has found an overflow
    optimizer._pre_step()
    optimizer._partition_all_parameters()
    optimizer.overflow = True
    optimizer._overflow_clean_up(optimizer.loss_scale)
