"""The only rank of `test_guards_of_stages.py`: a small model under each ZeRO stage, whose gradient is spoilt once.

RANK=0 WORLD_SIZE=1 … python tests/integration/guards_rank.py JOB_FILE OUTPUT_FILE
"""

from __future__ import annotations

import sys
from typing import Any

import deepspeed
import torch
from torch import nn

from launch.trainer.finite_state import _masters, first_not_finite
from launch.trainer.gradients import leave_step_out, local_gradient_square


def main(job_file: str, output_file: str) -> None:
    job = torch.load(job_file)
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed("gloo")
    torch.save({(stage, name): run(stage, name) for stage, name in job["cases"]}, output_file)


def run(stage: int, name: str) -> dict[str, Any]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    settings = {
        "train_batch_size": 4,
        "train_micro_batch_size_per_gpu": 2,
        "gradient_accumulation_steps": 2,
        "bf16": {"enabled": True},
        "data_types": {"grad_accum_dtype": "fp32"},
        "zero_optimization": {"stage": stage},
    }
    optimizer: torch.optim.Optimizer
    if name == "muon":
        from deepspeed.runtime.zero.muon.muon_optimizer import MuonWithAuxAdam

        for parameter in model.parameters():
            parameter.use_muon = parameter.ndim == 2
        groups = [
            {"params": [p for p in model.parameters() if p.use_muon], "use_muon": True, "lr": 0.01, "momentum": 0.9},
            {"params": [p for p in model.parameters() if not p.use_muon], "use_muon": False, "lr": 0.01},
        ]
        optimizer = MuonWithAuxAdam(groups)
        settings["zero_optimization"]["reduce_scatter"] = False
    else:
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings)
    found: dict[str, Any] = {}
    step(engine, factor=1.0)
    found["before"] = state(engine)
    # the second micro-batch's gradient is no number
    found["square"] = step(engine, factor=float("nan"), leave_out=True)
    found["after"] = state(engine)
    found["counts"] = (engine.global_steps, engine.skipped_steps, engine.was_step_applied())
    found["next_square"] = step(engine, factor=1.0)
    found["next"] = state(engine)
    found["next_norm"] = float(engine.get_global_grad_norm())
    found["finite"] = first_not_finite(engine)
    masters = _masters(engine.optimizer)
    with torch.no_grad():
        masters[0][13] = torch.inf
    found["weight"] = first_not_finite(engine)
    with torch.no_grad():
        masters[0][13] = 0.0
        moments = engine.optimizer.optimizer.state[masters[0]]
        key = next(key for key, value in moments.items() if torch.is_tensor(value) and value.shape == masters[0].shape)
        moments[key][0] = torch.nan
    found["moment"] = first_not_finite(engine)
    return found


def step(engine: Any, *, factor: float, leave_out: bool = False) -> float:
    square = 0.0
    for micro in range(2):
        inputs = torch.arange(8, dtype=torch.bfloat16).reshape(2, 4) / 8
        loss = engine(inputs).float().square().mean() * (factor if micro else 1.0)
        engine.backward(loss)
        if micro:
            square = float(local_gradient_square(engine))
        if micro and leave_out:
            leave_step_out(engine)
        else:
            engine.step()
    return square


def state(engine: Any) -> list[torch.Tensor]:
    """Every tensor that a step may change, in a fixed order."""
    optimizer = engine.optimizer
    masters = _masters(optimizer)
    moments = [
        value
        for weights in masters
        for _, value in sorted(optimizer.optimizer.state[weights].items())
        if torch.is_tensor(value)
    ]
    return [tensor.detach().clone() for tensor in (*masters, *moments)]


if __name__ == "__main__":
    main(*sys.argv[1:])
