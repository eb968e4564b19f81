"""PyTorch's scaled_dot_product_attention, which picks a fused kernel for the device by itself.

It knows no documents. A packed batch goes document by document on a CPU; on a GPU to torch's own kernel for sequences
of many lengths, or with a mask where that kernel does not run (float32, a head_dim it does not take, an older GPU).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache, partial
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from model.attention_backends.by_document import attend_by_document
from model.attention_backends.sdpa_path import sdpa_path
from model.attention_backends.selection import HALF_PRECISION, Attend
from model.documents import Documents


def bind(documents: Documents, *, dtype: torch.dtype, head_dim: int) -> Attend:
    """Causal without a mask for one document a row; for packed documents what their device can do."""
    device_type = documents.device.type
    packed_on_gpu = device_type == "cuda" and not documents.one_document_a_row
    path = sdpa_path(
        device_type=device_type,
        one_document_a_row=documents.one_document_a_row,
        is_half_precision=dtype in HALF_PRECISION,
        head_dim=head_dim,
        capability=torch.cuda.get_device_capability() if packed_on_gpu else None,
    )
    if path == "by_document":
        return Attend(attend_by_document, (documents.cumulative_lengths,))
    if path == "varlen":
        return within_documents(documents.cumulative_lengths, documents.sequence_length)
    if path == "masked":
        return with_mask(documents, dtype=dtype)
    return Attend(_causal if path == "causal" else _causal_repeated)


def within_documents(offsets: Int[Tensor, " documents_plus_one"], sequence_length: int) -> Attend:
    """torch's kernel for sequences of many lengths."""
    # the sequence length stands for the longest document: a bound that needs no wait for the device
    return Attend(_within_documents, (_varlen(), offsets, sequence_length))


def with_mask(documents: Documents, *, dtype: torch.dtype) -> Attend:
    """torch's kernels with a mask to add to the scores: of a mask of booleans, torch makes one in every layer anew, and
    keeps each for the backward."""
    may_attend = documents.may_attend
    mask = torch.zeros_like(may_attend, dtype=dtype).masked_fill_(~may_attend, -torch.inf)
    return Attend(_masked, (mask,))


@cache
def _varlen() -> Callable[..., Tensor]:
    """varlen_attn, causal and with grouped heads, as this version of torch spells it: its arguments have changed."""
    # here, because it imports torch's compiler, over a second for those who have no GPU
    from torch.nn.attention import varlen

    known = inspect.signature(varlen.varlen_attn).parameters
    spelled: dict[str, Any] = {"window_size": (-1, 0)} if "window_size" in known else {"is_causal": True}
    if "enable_gqa" in known:  # before it there was no check: the kernel itself has always taken grouped heads
        spelled["enable_gqa"] = True
    return cast(Callable[..., Tensor], partial(varlen.varlen_attn, **spelled))


def _within_documents(
    query: Float[Tensor, "batch seq heads head_dim"],
    key: Float[Tensor, "batch seq kv_heads head_dim"],
    value: Float[Tensor, "batch seq kv_heads head_dim"],
    varlen_attn: Callable[..., Tensor],
    offsets: Int[Tensor, " documents_plus_one"],
    longest: int,
) -> Float[Tensor, "batch seq heads head_dim"]:
    tokens = (query.flatten(0, 1), key.flatten(0, 1), value.flatten(0, 1))
    return varlen_attn(*tokens, offsets, offsets, longest, longest).view(query.shape)


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


def _causal_repeated(
    query: Float[Tensor, "batch seq heads head_dim"],
    key: Float[Tensor, "batch seq kv_heads head_dim"],
    value: Float[Tensor, "batch seq kv_heads head_dim"],
) -> Float[Tensor, "batch seq heads head_dim"]:
    return _causal(query, _for_each_query(query, key), _for_each_query(query, value))


def _masked(
    query: Float[Tensor, "batch seq heads head_dim"],
    key: Float[Tensor, "batch seq kv_heads head_dim"],
    value: Float[Tensor, "batch seq kv_heads head_dim"],
    mask: Float[Tensor, "batch 1 seq seq"],
) -> Float[Tensor, "batch seq heads head_dim"]:
    # repeated rather than enable_gqa: with a mask, CUDA's fused kernels take equal head counts only
    attended = F.scaled_dot_product_attention(
        query.transpose(1, 2),
        _for_each_query(query, key).transpose(1, 2),
        _for_each_query(query, value).transpose(1, 2),
        attn_mask=mask,
    )
    return attended.transpose(1, 2)


def _for_each_query(query: Tensor, shared: Tensor) -> Tensor:
    """Keys or values repeated to the number of query heads."""
    return shared.repeat_interleave(query.shape[2] // shared.shape[2], dim=2)
