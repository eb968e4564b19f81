"""One rank of `test_zero3.py`: builds the model sharded, fills it, and writes its loss and full gradients.

RANK=0 WORLD_SIZE=2 … python tests/model/zero3_rank.py JOB_FILE OUTPUT_FILE
"""

from __future__ import annotations

import sys

import deepspeed
import torch
from deepspeed.utils import safe_get_full_grad

from model.init import fill_parameter_
from model.transformer import SmolLM2


def main(job_file: str, output_file: str) -> None:
    job = torch.load(job_file, weights_only=False)
    # gloo's own collectives: the test is of the model, and does without twenty seconds of g++
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed("gloo")
    rank = torch.distributed.get_rank()
    settings = {
        "train_micro_batch_size_per_gpu": 1,
        # everything is sharded and gathered, however small
        "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0},
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-3, "torch_adam": True}},
    }
    with deepspeed.zero.Init(config_dict_or_path=settings):
        model = SmolLM2(job["config"], activation_checkpointing=job["activation_checkpointing"])
    for name, parameter in model.named_parameters():
        with deepspeed.zero.GatheredParameters(parameter, modifier_rank=0):
            if rank == 0:
                fill_parameter_(name, parameter, config=job["config"], seed=0)
    engine, *_ = deepspeed.initialize(model=model, config=settings, model_parameters=list(model.parameters()))
    row = slice(rank, rank + 1)
    loss = engine(job["tokens"][row], document_ids=job["document_ids"][row], labels=job["labels"][row])
    engine.backward(loss)
    gradients = {name: safe_get_full_grad(parameter).clone() for name, parameter in model.named_parameters()}
    with torch.no_grad():
        evaluation_loss = engine(job["tokens"][row], document_ids=job["document_ids"][row], labels=job["labels"][row])
    torch.save({"loss": loss.detach(), "evaluation_loss": evaluation_loss, "gradients": gradients}, output_file)


if __name__ == "__main__":
    main(*sys.argv[1:])
