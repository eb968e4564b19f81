"""Writes the rank files of a ZeRO-3 checkpoint that nobody trained, a rank at a time: small memory, any size.

The files are what DeepSpeed's tools read: fp32 master weights and two moments in flat groups, `param_shapes`, the tied
head among `shared_params`. Values are noise, since what they are costs nobody anything.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from pathlib import Path

import torch
from deepspeed.runtime.zero.config import ZeroStageEnum

from model.config import SmolLM2Config
from model.parameters import parameter_shapes

_BLOCK = 1 << 24


def write_synthetic_checkpoint(zero_directory: Path, config: SmolLM2Config, *, world_size: int) -> int:
    """Returns the number of parameters. Memory: one rank's three flat groups."""
    zero_directory.mkdir(parents=True)
    shapes = OrderedDict((name, torch.Size(shape)) for name, shape in parameter_shapes(config).items())
    share = sum(math.ceil(shape.numel() / world_size) for shape in shapes.values())
    shared = {"lm_head.weight": "embed_tokens.weight"} if config.tie_word_embeddings else {}
    noise = torch.randn(_BLOCK)
    for rank in range(world_size):
        model_states = {
            "module": {}, "buffer_names": [], "param_shapes": [shapes], "frozen_param_shapes": None,
            "frozen_param_fragments": None, "shared_params": shared, "ds_version": "0.19.8",
        }  # fmt: skip
        torch.save(model_states, zero_directory / f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt")
        weights, first_moment, second_moment = (noise.repeat(math.ceil(share / _BLOCK))[:share] for _ in range(3))
        state = {"step": torch.tensor(1.0), "exp_avg": first_moment.clone(), "exp_avg_sq": second_moment.clone()}
        optimizer = {
            "zero_stage": ZeroStageEnum.weights, "partition_count": world_size,
            "optimizer_state_dict": {"state": {0: state}, "param_groups": [{"lr": 1e-3, "params": [0]}]},
            "fp32_flat_groups": [weights.clone()],
        }  # fmt: skip
        path = zero_directory / f"bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"
        torch.save({"optimizer_state_dict": optimizer, "ds_config": {}, "ds_version": "0.19.8"}, path)
    return sum(shape.numel() for shape in shapes.values())
