"""The parts of a block that are not attention: projections, RMSNorm, SwiGLU.

Parameters are born as NaN. They get their values from `init.py` or from a checkpoint, one by one because under ZeRO-3
no process holds them all; one that was forgotten shows at the first loss instead of training from noise.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from model.config import SmolLM2Config


class Projection(nn.Linear):
    """A matrix without bias, [out_features, in_features] as in Hugging Face."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, bias=False)

    def reset_parameters(self) -> None:
        nn.init.constant_(self.weight, torch.nan)


class Embedding(nn.Embedding):
    """One row for each token id."""

    def reset_parameters(self) -> None:
        nn.init.constant_(self.weight, torch.nan)


class RMSNorm(nn.Module):
    """x / sqrt(mean(x²) + eps) × weight (arXiv:1910.07467, eq. 4)."""

    def __init__(self, hidden_size: int, *, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((hidden_size,), torch.nan))
        self.eps = eps

    def forward(self, hidden: Float[Tensor, "batch seq hidden"]) -> Float[Tensor, "batch seq hidden"]:
        # the square and the root in fp32, the weight after the rounding: the order of transformers
        hidden_fp32 = hidden.to(torch.float32)
        inverse_rms = torch.rsqrt(hidden_fp32.square().mean(dim=-1, keepdim=True) + self.eps)
        return self.weight * (hidden_fp32 * inverse_rms).to(hidden.dtype)


class SwiGLU(nn.Module):
    """down(silu(gate(x)) × up(x)) (arXiv:2002.05202, eq. 6)."""

    def __init__(self, config: SmolLM2Config) -> None:
        super().__init__()
        self.gate_proj = Projection(config.hidden_size, config.intermediate_size)
        self.up_proj = Projection(config.hidden_size, config.intermediate_size)
        self.down_proj = Projection(config.intermediate_size, config.hidden_size)

    def forward(self, hidden: Float[Tensor, "batch seq hidden"]) -> Float[Tensor, "batch seq hidden"]:
        projected: Tensor = self.down_proj(F.silu(self.gate_proj(hidden)) * self.up_proj(hidden))
        return projected
