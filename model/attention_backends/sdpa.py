"""PyTorch's scaled_dot_product_attention, which picks a fused kernel for the device by itself."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from model.attention_backends.selection import Attend
from model.documents import Documents


def bind(documents: Documents) -> Attend:
    """Causal without a mask for one document a row; document by document on CPU; with a mask elsewhere."""
    if documents.one_document_a_row:
        return Attend(_causal)
    if documents.device.type == "cpu":
        return Attend(_document_by_document, (documents.lengths,))
    return Attend(_masked, (documents.may_attend,))


def _causal(
    query: Float[Tensor, "batch seq heads head_dim"],
    key: Float[Tensor, "batch seq kv_heads head_dim"],
    value: Float[Tensor, "batch seq kv_heads head_dim"],
) -> Float[Tensor, "batch seq heads head_dim"]:
    attended = F.scaled_dot_product_attention(
        query.transpose(1, 2),
        key.transpose(1, 2),
        value.transpose(1, 2),
        is_causal=True,
        enable_gqa=query.shape[2] != key.shape[2],
    )
    return attended.transpose(1, 2)


# the number of documents differs from batch to batch: traced, the loop would be compiled anew for each
@torch.compiler.disable  # type: ignore[untyped-decorator]  # torch leaves it without types
def _document_by_document(
    query: Float[Tensor, "batch seq heads head_dim"],
    key: Float[Tensor, "batch seq kv_heads head_dim"],
    value: Float[Tensor, "batch seq kv_heads head_dim"],
    lengths: list[int],
) -> Float[Tensor, "batch seq heads head_dim"]:
    """Work grows with the sum of the documents' squared lengths, where a mask always pays for seq squared."""
    # [1, batch × seq, …], cut along the tokens
    pieces = (torch.split(tensor.flatten(0, 1)[None], lengths, dim=1) for tensor in (query, key, value))
    attended = [_causal(*document) for document in zip(*pieces, strict=True)]
    return torch.cat(attended, dim=1).reshape(query.shape)


def _masked(
    query: Float[Tensor, "batch seq heads head_dim"],
    key: Float[Tensor, "batch seq kv_heads head_dim"],
    value: Float[Tensor, "batch seq kv_heads head_dim"],
    may_attend: Bool[Tensor, "batch 1 seq seq"],
) -> Float[Tensor, "batch seq heads head_dim"]:
    # repeated rather than enable_gqa: with a mask, CUDA's fused kernels take equal head counts only
    queries_per_key = query.shape[2] // key.shape[2]
    attended = F.scaled_dot_product_attention(
        query.transpose(1, 2),
        key.repeat_interleave(queries_per_key, dim=2).transpose(1, 2),
        value.repeat_interleave(queries_per_key, dim=2).transpose(1, 2),
        attn_mask=may_attend,
    )
    return attended.transpose(1, 2)
