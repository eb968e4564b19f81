"""FlashAttention-2 (arXiv:2307.08691) from the package flash_attn, the only file that imports it.

Packed documents go to the kernel as offsets, so that no mask is ever made.
"""

from __future__ import annotations

from flash_attn import flash_attn_func, flash_attn_varlen_func
from jaxtyping import Float, Int
from torch import Tensor

from model.attention_backends.selection import Attend
from model.documents import Documents


def bind(documents: Documents) -> Attend:
    """The fixed-length kernel for one document a row, otherwise the one for documents of any lengths."""
    if documents.one_document_a_row:
        return Attend(_causal)
    # the sequence length as the longest document: a bound that needs no wait for the device, and the same at each step
    return Attend(_within_documents, (documents.cumulative_lengths, documents.sequence_length))


def _within_documents(
    query: Float[Tensor, "batch seq heads head_dim"],
    key: Float[Tensor, "batch seq kv_heads head_dim"],
    value: Float[Tensor, "batch seq kv_heads head_dim"],
    offsets: Int[Tensor, " documents_plus_one"],
    longest: int,
) -> Float[Tensor, "batch seq heads head_dim"]:
    attended: Tensor = flash_attn_varlen_func(
        query.flatten(0, 1),
        key.flatten(0, 1),
        value.flatten(0, 1),
        cu_seqlens_q=offsets,
        cu_seqlens_k=offsets,
        max_seqlen_q=longest,
        max_seqlen_k=longest,
        causal=True,
    )
    return attended.view_as(query)


def _causal(
    query: Float[Tensor, "batch seq heads head_dim"],
    key: Float[Tensor, "batch seq kv_heads head_dim"],
    value: Float[Tensor, "batch seq kv_heads head_dim"],
) -> Float[Tensor, "batch seq heads head_dim"]:
    attended: Tensor = flash_attn_func(query, key, value, causal=True)
    return attended
