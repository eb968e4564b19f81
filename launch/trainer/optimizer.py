"""AdamW over two groups of parameters: matrices, which weight decay pulls to zero, and norms' gains, which it must not.

By the model's own table of names, because under ZeRO-3 a partitioned parameter has no shape of its own; a parameter
that the table does not know stops the start (KeyError), so that none decays by accident.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from launch.config import OptimizerConfig
from model.parameters import row_of


def decays(name: str) -> bool:
    """Whether weight decay applies to a parameter. Raises KeyError for a name that is not the model's."""
    return row_of(name).role != "norm"


def parameter_groups(named: Iterable[tuple[str, nn.Parameter]], config: OptimizerConfig) -> list[dict[str, Any]]:
    """The decay and the no-decay group, each in the order of the model."""
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for name, parameter in named:
        groups[decays(name)].append(parameter)
    return [
        {"params": groups[True], "weight_decay": config.weight_decay},
        {"params": groups[False], "weight_decay": 0.0},
    ]


def build_optimizer(model: nn.Module, config: OptimizerConfig, *, device_type: str) -> torch.optim.Optimizer:
    """AdamW for DeepSpeed to wrap; fused where the device has it."""
    return torch.optim.AdamW(
        parameter_groups(model.named_parameters(), config),
        lr=config.learning_rate,
        betas=config.betas,
        eps=config.eps,
        fused=device_type == "cuda",
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Of every group; before each step, so that the schedule alone decides, whatever a checkpoint holds."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
