"""The only rank of `test_precision.py`: one bfloat16 step of many equal micro-batches through the trainer's engine.

RANK=0 WORLD_SIZE=1 … python tests/integration/precision_rank.py JOB_FILE OUTPUT_FILE
"""

from __future__ import annotations

import sys

import deepspeed
import torch
from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_grad

from launch.config import TrainConfig
from launch.trainer.engine import build_engine
from launch.trainer.ranks import RankEnvironment


def main(job_file: str, output_file: str) -> None:
    job = torch.load(job_file)
    # gloo's own collectives: the test is of dtypes, and does without twenty seconds of g++
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed("gloo")
    config = TrainConfig.model_validate(job["config"])
    ranks = RankEnvironment(rank=0, world_size=1, local_rank=0, launcher_pid=None)
    engine = build_engine(config, ranks, fill_weights=True, say=print).deepspeed
    accumulated = engine.optimizer.grad_partitions_flat_buffer.untyped_storage().data_ptr()
    in_place: list[bool] = []

    def look(optimizer: torch.optim.Optimizer, *arguments: object) -> None:
        flat = [share.grad for group in optimizer.param_groups for share in group["params"] if share.grad is not None]
        in_place.extend(gradient.untyped_storage().data_ptr() == accumulated for gradient in flat)

    engine.optimizer.optimizer.register_step_pre_hook(look)
    for _ in range(config.accumulation_steps(world_size=1)):
        loss = engine(job["tokens"], labels=job["labels"])
        engine.backward(loss)
        if engine.is_gradient_accumulation_boundary():
            gradients = {name: safe_get_full_grad(value).clone() for name, value in engine.module.named_parameters()}
        engine.step()
    masters = {name: safe_get_full_fp32_param(value).clone() for name, value in engine.module.named_parameters()}
    weights = {}
    for name, parameter in engine.module.named_parameters():
        with deepspeed.zero.GatheredParameters(parameter):
            weights[name] = parameter.detach().clone()
    result = {"loss": loss.detach(), "gradients": gradients, "masters": masters, "weights": weights}
    torch.save(result | {"in_place": in_place}, output_file)


if __name__ == "__main__":
    main(*sys.argv[1:])
