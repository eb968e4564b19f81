"""Rotary position embeddings (RoFormer, arXiv:2104.09864, §3.4.2) in Hugging Face's half-split layout.

Element i of a head is paired with element i + head_dim / 2, not with its neighbour as in the paper: the two differ by
a permutation of the rows of q_proj and k_proj, and published weights are in this order. Angles are a pure function of
positions: there is no buffer that an engine could cast to bf16.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor


def rotary_angles(
    position_ids: Int[Tensor, "batch seq"], *, head_dim: int, theta: float, dtype: torch.dtype
) -> tuple[Float[Tensor, "batch seq 1 head_dim"], Float[Tensor, "batch seq 1 head_dim"]]:
    """Cosine and sine of position × theta^(−2i / head_dim), each angle standing in both halves.

    Computed in fp32, because bf16 cannot tell positions above 256 apart, and rounded to `dtype` at the end as
    transformers does, so that bf16 logits agree with it.
    """
    pairs = torch.arange(0, head_dim, 2, dtype=torch.float32, device=position_ids.device)
    inverse_frequencies = 1.0 / theta ** (pairs / head_dim)
    angles = position_ids[..., None].to(torch.float32) * inverse_frequencies
    both_halves = torch.cat((angles, angles), dim=-1)[:, :, None, :]
    return both_halves.cos().to(dtype), both_halves.sin().to(dtype)


def rotate(
    heads: Float[Tensor, "batch seq heads head_dim"],
    cosine: Float[Tensor, "batch seq 1 head_dim"],
    sine: Float[Tensor, "batch seq 1 head_dim"],
) -> Float[Tensor, "batch seq heads head_dim"]:
    """Turn each pair (x, y) by its angle: (x cos − y sin, y cos + x sin)."""
    first, second = heads.chunk(2, dim=-1)
    return heads * cosine + torch.cat((-second, first), dim=-1) * sine
