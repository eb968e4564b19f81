"""Whether what a checkpoint would hold is numbers: this rank's share of the weights and of the optimizer's moments."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from launch.trainer.guards import DivergedError
from launch.trainer.ranks import RankEnvironment


def check_state(deepspeed_engine: Any, *, step: int, ranks: RankEnvironment, last_checkpoint: int | None) -> None:
    """Before a save, on all ranks. Raises DivergedError on all of them, naming what one of them has found."""
    found: list[str | None] = [None] * ranks.world_size
    torch.distributed.all_gather_object(found, first_not_finite(deepspeed_engine))
    for rank, name in enumerate(found):
        if name is not None:
            before = "before any checkpoint" if last_checkpoint is None else f"after step {last_checkpoint}"
            raise DivergedError(
                f"step {step}: {name} is not finite (on rank {rank}), so it was not saved; the run stopped. It went "
                f"wrong {before}: lower optimizer.learning_rate, and run again: it goes on from there"
            )


def first_not_finite(deepspeed_engine: Any) -> str | None:
    """`model.layers.0.mlp.up_proj.weight` or `exp_avg of …`, the first of this rank's tensors that holds NaN or inf."""
    optimizer = deepspeed_engine.optimizer
    for number, weights in enumerate(optimizer.fp32_partitioned_groups_flat):
        state = optimizer.optimizer.state.get(weights, {})
        for kind, values in {"": weights, **state}.items():
            # AdamW's state also counts steps, in a tensor of one number
            if isinstance(values, Tensor) and values.numel() == weights.numel() and not _is_finite(values):
                place = int(torch.isfinite(values.flatten()).logical_not().nonzero()[0])
                name = _parameter_at(place, optimizer.fp16_groups[number], deepspeed_engine.module)
                return f"{kind} of {name}" if kind else name
    return None


def _is_finite(values: Tensor) -> bool:
    # one pass and no copy; NaN comes through both
    low, high = torch.aminmax(values)
    return math.isfinite(low) and math.isfinite(high)


def _parameter_at(place: int, group: list[Any], module: torch.nn.Module) -> str:
    """Whose share of a flat sub-group a place lies in."""
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    for parameter in group:
        if place < parameter.partition_numel():
            return names[id(parameter)]
        place -= parameter.partition_numel()
    raise AssertionError("a place beyond the sub-group")
