"""The one place where DeepSpeed's JSON is made, from a `TrainConfig` and the number of ranks. No torch.

What is left out is left at DeepSpeed's default on purpose: the optimizer and the learning rate are ours
(`optimizer.py`, `schedules.py`), and so are logging and the names of checkpoints.
Keys as in https://www.deepspeed.ai/docs/config-json/.
"""

from __future__ import annotations

from typing import Any

from launch.config import Precision, TrainConfig

_DTYPE_NAMES: dict[Precision, str] = {"bfloat16": "bf16", "float32": "fp32"}
_NEVER = 1 << 62


def deepspeed_config(config: TrainConfig, *, world_size: int) -> dict[str, Any]:
    """The whole configuration of the engine. Raises TrainingError if the batch does not divide."""
    accumulation = config.accumulation_steps(world_size=world_size)
    return {
        "train_batch_size": config.samples_per_step,
        "train_micro_batch_size_per_gpu": config.micro_batch_size,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": config.optimizer.gradient_clipping,
        # fp32 master weights come with ZeRO's bf16; sums over micro-batches and over ranks are what would lose bits
        "bf16": {"enabled": config.precision == "bfloat16"},
        "data_types": {"grad_accum_dtype": "fp32"},
        "communication_data_type": _DTYPE_NAMES[config.zero.reduce_dtype],
        "zero_optimization": {
            "stage": config.zero.stage,
            "contiguous_gradients": True,
            "overlap_comm": config.zero.overlap_comm,
            # DeepSpeed's Muon wants whole gradients; on one rank the scatter is a copy of them, 5% of a small step
            "reduce_scatter": config.optimizer.name != "muon" and world_size > 1,
            # torch's own linear keeps gathered weights until the backward pass; on one rank they are the partition
            # itself, and DeepSpeed's, which is written in Python, costs 3% to 8% of a step
            "memory_efficient_linear": world_size > 1,
            "reduce_bucket_size": config.zero.reduce_bucket_size,
            "stage3_prefetch_bucket_size": config.zero.prefetch_bucket_size,
            "stage3_param_persistence_threshold": config.zero.param_persistence_threshold,
            "stage3_max_live_parameters": config.zero.max_live_parameters,
        },
        "compile": {"deepcompile": config.compile == "deepcompile"},
        # a checkpoint named by one rank only would be a defect of ours: better to stop
        "checkpoint": {"tag_validation": "Fail"},
        "steps_per_print": _NEVER,
    }
