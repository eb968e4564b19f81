from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from model.layers import RMSNorm, SwiGLU


def norm_of(*, size: int, eps: float) -> RMSNorm:
    norm = RMSNorm(size, eps=eps)
    torch.nn.init.ones_(norm.weight)
    return norm


def test_rms_norm_by_hand() -> None:
    # mean of squares (9 + 16) / 2 = 12.5, plus 3.5 = 16, root 4
    normed = norm_of(size=2, eps=3.5)(torch.tensor([[[3.0, 4.0]]]))
    torch.testing.assert_close(normed, torch.tensor([[[0.75, 1.0]]]))


def test_bf16_rms_norm_is_transformers_bit_for_bit() -> None:
    hidden = (10 * torch.randn(4, 8, 64, generator=torch.Generator().manual_seed(0))).to(torch.bfloat16)
    ours, theirs = norm_of(size=64, eps=1e-5).to(torch.bfloat16), LlamaRMSNorm(64, eps=1e-5).to(torch.bfloat16)
    with torch.no_grad():
        ours.weight.uniform_(0.5, 2.0, generator=torch.Generator().manual_seed(1))
        theirs.weight.copy_(ours.weight)
    assert torch.equal(ours(hidden), theirs(hidden))


def test_swiglu_by_hand(make_model: Any) -> None:
    config = make_model().config.model_copy(update={"hidden_size": 1, "intermediate_size": 1})
    mlp = SwiGLU(config)
    for projection, value in ((mlp.gate_proj, 2.0), (mlp.up_proj, 3.0), (mlp.down_proj, 5.0)):
        torch.nn.init.constant_(projection.weight, value)
    # gate 2, silu(2) = 2 / (1 + e^-2); up 3; down 5
    assert mlp(torch.ones(1, 1, 1)).item() == pytest.approx(5 * 3 * 2 / (1 + math.exp(-2)))
