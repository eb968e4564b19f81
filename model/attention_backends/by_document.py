"""Causal attention on a CPU document by document, forward and backward, as one operator of torch.

Work grows with the sum of the documents' squared lengths, where a mask always pays for the sequence squared. Inside is
the kernel that scaled_dot_product_attention has for a CPU. An operator and not a loop over that function, because
torch.compile would build a loop anew for each number of documents. Its gradient cannot be differentiated again.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

_FORWARD = "smollm2::scaled_dot_product_by_document"
_BACKWARD = "smollm2::scaled_dot_product_by_document_backward"


def attend_by_document(
    query: Float[Tensor, "batch seq heads head_dim"],
    key: Float[Tensor, "batch seq kv_heads head_dim"],
    value: Float[Tensor, "batch seq kv_heads head_dim"],
    offsets: Int[Tensor, " documents_plus_one"],
) -> Float[Tensor, "batch seq heads head_dim"]:
    """offsets: of the documents in the flattened batch, 0 first and batch × seq last."""
    tokens = (tensor.flatten(0, 1).contiguous() for tensor in (query, key, value))
    attended: Tensor = _forward(*tokens, offsets)[0]
    return attended.view(query.shape)


@torch.library.custom_op(
    _FORWARD, mutates_args=(), schema="(Tensor query, Tensor key, Tensor value, Tensor offsets) -> (Tensor, Tensor)"
)
def _forward(query: Tensor, key: Tensor, value: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    """[tokens, heads, head_dim] each; the second result is the log-sum-exp of every softmax, for the backward."""
    attended, log_sum_exp = torch.empty_like(query), query.new_empty(query.shape[:2], dtype=_precision(query))
    for document in _slices(offsets):
        out_1hsd, log_sum_exp_1hs = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            _1hsd(query[document]), _1hsd(key[document]), _1hsd(value[document]), is_causal=True
        )
        attended[document] = out_1hsd[0].transpose(0, 1)
        log_sum_exp[document] = log_sum_exp_1hs[0].transpose(0, 1)
    return attended, log_sum_exp


@_forward.register_fake
def _empty_results(query: Tensor, key: Tensor, value: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(query), query.new_empty(query.shape[:2], dtype=_precision(query))


@torch.library.custom_op(
    _BACKWARD,
    mutates_args=(),
    schema="(Tensor gradient, Tensor query, Tensor key, Tensor value, Tensor attended, Tensor log_sum_exp, "
    "Tensor offsets) -> (Tensor, Tensor, Tensor)",
)
def _backward(
    gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, attended: Tensor, log_sum_exp: Tensor, offsets: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    gradients = (torch.empty_like(query), torch.empty_like(key), torch.empty_like(value))
    gradient = gradient.contiguous()
    for document in _slices(offsets):
        pieces = (_1hsd(tensor[document]) for tensor in (gradient, query, key, value, attended))
        of_document = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            *pieces, log_sum_exp[document].transpose(0, 1)[None], 0.0, True
        )
        for whole, piece_1hsd in zip(gradients, of_document, strict=True):
            whole[document] = piece_1hsd[0].transpose(0, 1)
    return gradients


@_backward.register_fake
def _empty_gradients(
    gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, attended: Tensor, log_sum_exp: Tensor, offsets: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


def _keep(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    query, key, value, offsets = inputs
    ctx.save_for_backward(query, key, value, *output, offsets)


def _differentiate(ctx: Any, gradient: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    return (*_backward(gradient, *ctx.saved_tensors), None)


_forward.register_autograd(_differentiate, setup_context=_keep)


def _precision(query: Tensor) -> torch.dtype:
    """The kernel's own inside: fp32, or fp64 for fp64."""
    return torch.promote_types(query.dtype, torch.float32)


def _slices(offsets: Tensor) -> Iterator[slice]:
    return (slice(begin, end) for begin, end in pairwise(offsets.tolist()))


def _1hsd(piece_shd: Tensor) -> Tensor:
    return piece_shd.transpose(0, 1)[None]
