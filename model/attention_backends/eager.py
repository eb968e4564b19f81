"""Attention as in the paper (arXiv:1706.03762, eq. 1): to read, and the reference of other kernels' models.

Holds batch × heads × seq × seq weights, so it is for reading and testing.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from model.attention_backends.selection import Attend
from model.documents import Documents


def bind(documents: Documents, *, dtype: torch.dtype, head_dim: int) -> Attend:
    """softmax(Q Kᵀ / sqrt(head_dim)) V, with −∞ where a query may not look."""
    return Attend(_attend, (~documents.may_attend,))


def _attend(
    query: Float[Tensor, "batch seq heads head_dim"],
    key: Float[Tensor, "batch seq kv_heads head_dim"],
    value: Float[Tensor, "batch seq kv_heads head_dim"],
    forbidden: Bool[Tensor, "batch 1 seq seq"],
) -> Float[Tensor, "batch seq heads head_dim"]:
    queries_per_key = query.shape[2] // key.shape[2]
    query_bhsd = query.transpose(1, 2)
    key_bhsd = key.repeat_interleave(queries_per_key, dim=2).transpose(1, 2)
    value_bhsd = value.repeat_interleave(queries_per_key, dim=2).transpose(1, 2)
    scores = query_bhsd @ key_bhsd.transpose(2, 3) * query.shape[-1] ** -0.5
    # fp32: a sum over thousands of keys would lose bf16's eight bits
    weights = scores.masked_fill(forbidden, -torch.inf).softmax(dim=-1, dtype=torch.float32)
    attended: Tensor = weights.to(value.dtype) @ value_bhsd
    return attended.transpose(1, 2)
