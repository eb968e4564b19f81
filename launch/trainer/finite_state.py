"""Whether what a checkpoint would hold is numbers: this rank's share of the weights and of the optimizer's moments."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from checkpoint.manifest import Probe
from launch.trainer.guards import DivergedError
from launch.trainer.ranks import RankEnvironment


def check_state(deepspeed_engine: Any, *, step: int, ranks: RankEnvironment, last_checkpoint: int | None) -> None:
    """Before a save, on all ranks. Raises DivergedError on all of them, naming what one of them has found."""
    found: list[str | None] = [None] * ranks.world_size
    torch.distributed.all_gather_object(found, first_not_finite(deepspeed_engine))
    for rank, name in enumerate(found):
        if name is not None:
            raise DivergedError(
                f"step {step}: {name} is not finite (on rank {rank}), so nothing was saved; the run stopped. Lower "
                f"optimizer.learning_rate and run again: it goes on from {_place(last_checkpoint)}"
            )


def check_probe(probe: Probe, *, step: int, last_checkpoint: int | None) -> None:
    """Before a save, on all ranks, which have measured the same. Raises DivergedError if no export could prove itself
    by it: with weights that are numbers a forward pass may still have none."""
    loss = probe.mean_negative_log_likelihood
    if not math.isfinite(loss):
        raise DivergedError(
            f"step {step}: the loss on the probe is {loss}, so nothing was saved; the run stopped. Lower "
            f"optimizer.learning_rate and run again: it goes on from {_place(last_checkpoint)}"
        )


def _place(last_checkpoint: int | None) -> str:
    return "the start" if last_checkpoint is None else f"the checkpoint of step {last_checkpoint}"


def first_not_finite(deepspeed_engine: Any) -> str | None:
    """`layers.0.mlp.up_proj.weight` or `exp_avg of …`: the first of this rank's tensors that holds NaN or infinity."""
    optimizer = deepspeed_engine.optimizer
    for number, weights in enumerate(_masters(optimizer)):
        state = optimizer.optimizer.state.get(weights, {})
        for kind, values in {"": weights, **state}.items():
            # AdamW's state also counts steps, in a tensor of one number
            if isinstance(values, Tensor) and values.numel() == weights.numel() and not _is_finite(values):
                place = int(torch.isfinite(values.flatten()).logical_not().nonzero()[0])
                name = _parameter_at(place, _shares(optimizer, number), deepspeed_engine.module)
                return f"{kind} of {name}" if kind else name
    return None


def _is_finite(values: Tensor) -> bool:
    # one pass and no copy; NaN comes through both
    low, high = torch.aminmax(values)
    return math.isfinite(low) and math.isfinite(high)


def _masters(optimizer: Any) -> list[Tensor]:
    """This rank's share of the fp32 weights, a flat tensor a group: of DeepSpeed's stages 3, 2, and 1 with bfloat16."""
    for name in ("fp32_partitioned_groups_flat", "single_partition_of_fp32_groups", "fp32_groups_flat_partition"):
        if hasattr(optimizer, name):
            masters: list[Tensor] = getattr(optimizer, name)
            return masters
    raise AssertionError(f"no ZeRO optimizer: {type(optimizer).__name__}")


def _shares(optimizer: Any, number: int) -> list[tuple[Tensor, int]]:
    """The parameters whose shares lie one after another in a flat group of this rank, and the sizes of the shares."""
    if hasattr(optimizer, "fp32_partitioned_groups_flat"):
        return [(parameter, parameter.partition_numel()) for parameter in optimizer.fp16_groups[number]]
    if hasattr(optimizer, "single_partition_of_fp32_groups"):
        parameters, skipped = optimizer.params_in_partition[number], optimizer.first_offset[number]
    else:
        size = optimizer.fp32_groups_flat_partition[number].numel()
        rank = torch.distributed.get_rank(optimizer.real_dp_process_group[number])
        parameters, skipped = optimizer.bf16_groups[number], rank * size
    shares = []
    for parameter in parameters:
        # the first may have begun on the rank before
        shares.append((parameter, max(0, parameter.numel() - skipped)))
        skipped = max(0, skipped - parameter.numel())
    return shares


def _parameter_at(place: int, shares: list[tuple[Tensor, int]], module: torch.nn.Module) -> str:
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    for parameter, size in shares:
        if place < size:
            return names[id(parameter)]
        place -= size
    return "the filling after the last parameter"
