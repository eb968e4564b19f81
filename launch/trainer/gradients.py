"""The gradient of a step as ZeRO holds it before the optimizer's turn: looked at, handed over, or left out.

Reaches into DeepSpeed's optimizers (0.19), whose own check is not enough for us: it knows the gradient alone and not
the loss, stages 1 and 2 do not make it in bfloat16, and with Muon it comes when the momentum has been spoilt.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


def local_gradient_square(deepspeed_engine: Any) -> Tensor:
    """Sum of squares of this rank's share of the gradient, float64 on its device; after the last micro-batch.

    The shares are disjoint, so that over all ranks the sums add up to the gradient's norm squared, before clipping.
    """
    optimizer = deepspeed_engine.optimizer
    if _is_stage_one(optimizer):
        shares = optimizer.fp32_groups_gradient_flat_partition
    else:
        shares = [share for group in optimizer.averaged_gradients.values() for share in group]
    return torch.nn.utils.get_total_norm(shares).double().square()


def hand_over_in_place(deepspeed_engine: Any) -> None:
    """From now on stage 3's optimizer takes the gradient where it lies: DeepSpeed would copy this rank's share, of four
    bytes an element, once a step. Its sums are the clipped ones after a step, until the next one overwrites them."""
    deepspeed_engine.optimizer.flatten = end_to_end


def end_to_end(tensors: Sequence[Tensor]) -> Tensor:
    """The elements of all tensors, of one dtype, in one dimension: a view where they lie end to end, else a copy."""
    first, end = tensors[0], tensors[0].storage_offset()
    for tensor in tensors:
        is_same_buffer = tensor.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        if not is_same_buffer or tensor.storage_offset() != end or not tensor.is_contiguous():
            return torch.cat([tensor.flatten() for tensor in tensors])
        end += tensor.numel()
    return first.as_strided((end - first.storage_offset(),), (1,))


def leave_step_out(deepspeed_engine: Any) -> None:
    """In place of `deepspeed_engine.step()`: no weight and no moment changes, and the gradient is forgotten.

    DeepSpeed counts the step as done and as skipped, as it does with one that it leaves out itself.
    """
    with _overflow_found(deepspeed_engine.optimizer, stage=deepspeed_engine.zero_optimization_stage()):
        deepspeed_engine.step()


@contextmanager
def _overflow_found(optimizer: Any, *, stage: int) -> Iterator[None]:
    """DeepSpeed's check for an overflow finds one, whatever the gradient is, and deals with it in its own way."""

    def find(*arguments: Any, **options: Any) -> bool:
        optimizer.overflow = True
        return True

    def forget() -> None:
        # as BF16_Optimizer.step() does, which has no check of its own to replace
        optimizer.overflow = True
        optimizer.clear_hp_grads()
        optimizer.clear_lp_grads()

    replaced: dict[str, Any] = {"_overflow_check_and_loss_scale_update": find}
    if _is_stage_one(optimizer):
        replaced = {"step": forget}
    elif stage < 3:
        replaced = {"check_overflow": find, "check_grad_overflow": True}
    before = {name: getattr(optimizer, name) for name in replaced}
    vars(optimizer).update(replaced)
    try:
        yield
    finally:
        vars(optimizer).update(before)


def _is_stage_one(optimizer: Any) -> bool:
    """DeepSpeed's BF16_Optimizer, which it takes for stage 1 with bfloat16 weights and sums in float32."""
    return hasattr(optimizer, "fp32_groups_gradient_flat_partition")
