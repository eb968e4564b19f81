"""Bytes that compiled layers keep between the passes, by what autograd is asked to save: one JSON object, by mode.

The partitioner is inductor's, without building kernels. The model is that of `test_activation_cost.py`.
"""

from __future__ import annotations

import json
from typing import Any

import torch

from model.config import SmolLM2Config
from model.init import initialize
from model.transformer import SmolLM2

CONFIG = SmolLM2Config(
    vocab_size=1024,
    hidden_size=96,
    intermediate_size=256,
    num_hidden_layers=4,
    num_attention_heads=6,
    num_key_value_heads=2,
    max_position_embeddings=256,
)


def kept_bytes(mode: Any) -> int:
    """Of all storages but the parameters'."""
    torch._dynamo.reset()
    model = SmolLM2(
        CONFIG,
        attn_implementation="sdpa",
        activation_checkpointing=mode,
        compile_backend="aot_eager_decomp_partition",
    )
    initialize(model, seed=0)
    model.to(torch.bfloat16)
    tokens = torch.randint(0, CONFIG.vocab_size, (2, 256), generator=torch.Generator().manual_seed(0))
    batch = {
        "document_ids": (torch.arange(256) > 80).long().expand_as(tokens).contiguous(),
        "labels": tokens.roll(-1, 1),
    }
    model(tokens, **batch)  # builds
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model(tokens, **batch)
    assert loss.requires_grad
    return sum(kept.values())


if __name__ == "__main__":
    print(json.dumps({mode: kept_bytes(mode) for mode in ("none", "full", "selective")}))
