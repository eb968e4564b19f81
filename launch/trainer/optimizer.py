"""The optimizers, over groups of parameters: which decay, and with Muon which are orthogonalised.

    adamw   AdamW (arXiv:1711.05101): weight decay pulls matrices to zero, and not norms' gains
    muon    Muon (https://kellerjordan.github.io/posts/muon/) for the layers' matrices, AdamW for all else

By the model's own table of names, because under ZeRO-3 a partitioned parameter has no shape of its own; a parameter
that the table does not know stops the start (KeyError), so that none decays by accident.

Muon is DeepSpeed's, which orthogonalises whole matrices where ZeRO-3 has cut them. Its momentum is kept in
`zero.reduce_dtype`, and the norm that DeepSpeed reports and clips by is that of Muon's updates and the other gradients
together: the config asks for float32 and for no clipping.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import nn

from launch.config import OptimizerConfig
from model.parameters import row_of

Group = Literal["muon", "decay", "no_decay"]
# The published Newton–Schulz iteration, in bf16. DeepSpeed's other one saves half of its products on a GPU, in fp16.
_NEWTON_SCHULZ = "standard"


def group_of(name: str, config: OptimizerConfig) -> Group:
    """The group of one of the model's parameters. Raises KeyError for a name that is not the model's."""
    row = row_of(name)
    if row.role == "norm":
        return "no_decay"
    return "muon" if config.name == "muon" and row.part in ("attention", "mlp") else "decay"


def parameter_groups(named: Iterable[tuple[str, nn.Parameter]], config: OptimizerConfig) -> list[dict[str, Any]]:
    """For torch: Muon's group, if there is one, the decay and the no-decay group, each in the order of the model."""
    members: dict[Group, list[nn.Parameter]] = {"muon": [], "decay": [], "no_decay": []}
    for name, parameter in named:
        members[group_of(name, config)].append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": members["decay"], "weight_decay": config.weight_decay},
        {"params": members["no_decay"], "weight_decay": 0.0},
    ]
    if config.name == "muon":
        adamw = {"lr": config.learning_rate, "betas": config.betas, "eps": config.eps, "use_muon": False}
        muon = {"lr": config.muon_learning_rate, "momentum": config.muon_momentum, "ns_method": _NEWTON_SCHULZ}
        groups = [group | adamw for group in groups]
        groups.insert(0, {"params": members["muon"], "weight_decay": config.weight_decay, "use_muon": True, **muon})
    return groups


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """For DeepSpeed to wrap. AdamW is torch's fused one: one pass over a partition, on a CPU as on a GPU."""
    groups = parameter_groups(model.named_parameters(), config)
    if config.name == "muon":
        return _build_muon(groups)
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, eps=config.eps, fused=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, config: OptimizerConfig, *, factor: float) -> None:
    """`factor` of every group's peak; before each step, so that the schedule alone decides, whatever a checkpoint
    holds."""
    for group in optimizer.param_groups:
        peak = config.muon_learning_rate if group.get("use_muon") else config.learning_rate
        assert peak is not None
        group["lr"] = factor * peak


def _build_muon(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    from deepspeed.runtime.zero.muon.muon_optimizer import MuonWithAuxAdam

    for group in groups:
        for parameter in group["params"]:
            parameter.use_muon = group["use_muon"]  # where DeepSpeed looks for it
    optimizer: torch.optim.Optimizer = MuonWithAuxAdam(
        groups, adam_optimizer=torch.optim.AdamW, adam_optimizer_kwargs={"fused": True}
    )
    return optimizer
