"""One rank of `test_published_weights.py`: the trainer's engine started from directories, and one step's gradients.

RANK=0 WORLD_SIZE=1 … python tests/integration/published_rank.py JOB_FILE OUTPUT_FILE
"""

from __future__ import annotations

import sys

import deepspeed
import torch
from deepspeed.utils import safe_get_full_grad

from launch.config import TrainConfig
from launch.trainer.engine import build_engine
from launch.trainer.ranks import RankEnvironment
from model.hf import PretrainedWeights


def main(job_file: str, output_file: str) -> None:
    job = torch.load(job_file)
    # gloo's own collectives: the test is of the weights, and does without twenty seconds of g++
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed("gloo")
    rows, length = job["tokens"].shape
    results = {}
    for name, directory in job["directories"].items():
        config = TrainConfig.model_validate(
            {
                "run_dir": "unused",
                "name": name,
                "init_from": directory,
                "model": PretrainedWeights(directory).config.model_dump(),
                "data": {"sources": [{"name": "unused", "path": "unused"}], "sequence_length": length},
                "batch_tokens": rows * length,
                "micro_batch_size": rows,
                "precision": "float32",
                "steps": 1,
                "optimizer": {"learning_rate": 1e-3},
                "schedule": {},
                "checkpoint": {"every_steps": 1},
                "validation": {"every_steps": 1, "sequences": 1},
            }
        )
        ranks = RankEnvironment(rank=0, world_size=1, local_rank=0, launcher_pid=None)
        engine = build_engine(config, ranks, fill_weights=True, say=print).deepspeed
        loss = engine(job["tokens"], labels=job["labels"])
        engine.backward(loss)
        gradients = {key: safe_get_full_grad(value).clone() for key, value in engine.module.named_parameters()}
        results[name] = {"loss": loss.detach(), "gradients": gradients}
    torch.save(results, output_file)


if __name__ == "__main__":
    main(*sys.argv[1:])
