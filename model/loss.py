"""Mean cross-entropy from hidden states and the head's matrix, in chunks: the full logits are never held.

The gradients are made on the way forward, while a chunk's logits exist, and the backward only scales them. The price
is one gradient of the head's size kept between forward and backward; the gain is batch × seq × vocab logits never
stored or recomputed. Logits, losses and sums are fp32, whatever the parameters are.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

IGNORE_INDEX = -100
# 128 MiB of fp32 logits a chunk, 682 tokens of SmolLM2's vocabulary: matrices still large enough to multiply well
CHUNK_LOGITS = 1 << 25


def chunked_cross_entropy(
    hidden: Float[Tensor, "tokens hidden"],
    weight: Float[Tensor, "vocab hidden"],
    labels: Int[Tensor, " tokens"],
    *,
    chunk_logits: int = CHUNK_LOGITS,
) -> Float[Tensor, ""]:
    """Mean of −log softmax(hidden · weightᵀ)[label] over the labels that are not −100; 0 if all of them are.

    The result is fp32 (fp64 for fp64 input). Gradients have the dtype of what they belong to, summed in fp32.
    """
    with_gradients = torch.is_grad_enabled()
    result: Tensor = _ChunkedCrossEntropy.apply(  # type: ignore[no-untyped-call]
        hidden,
        weight,
        labels,
        max(1, chunk_logits // weight.shape[0]),
        with_gradients and hidden.requires_grad,
        with_gradients and weight.requires_grad,
    )
    return result


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        labels: Tensor,
        chunk_tokens: int,
        hidden_needs_gradient: bool,
        weight_needs_gradient: bool,
    ) -> Tensor:
        compute_dtype = torch.promote_types(hidden.dtype, torch.float32)
        counted = labels != IGNORE_INDEX
        scale = 1.0 / counted.sum().clamp(min=1).to(compute_dtype)
        total = torch.zeros((), dtype=compute_dtype, device=hidden.device)
        grad_hidden = torch.empty_like(hidden) if hidden_needs_gradient else None
        grad_weight = torch.zeros_like(weight, dtype=compute_dtype) if weight_needs_gradient else None
        matrix = _multiplicand(weight, compute_dtype)
        for start in range(0, hidden.shape[0], chunk_tokens):
            chunk = slice(start, start + chunk_tokens)
            hidden_chunk = _multiplicand(hidden[chunk], compute_dtype)
            logits = _multiply(hidden_chunk, matrix.t(), compute_dtype)
            log_normaliser = logits.logsumexp(dim=-1, keepdim=True)
            index = torch.where(counted[chunk], labels[chunk], 0)[:, None]
            losses = (log_normaliser - logits.gather(1, index)) * counted[chunk, None]
            total += losses.sum()
            if grad_hidden is None and grad_weight is None:
                continue
            # d loss / d logits = (softmax − one-hot) / count, written over the logits
            grad_logits = logits.sub_(log_normaliser).exp_()
            grad_logits.scatter_add_(1, index, grad_logits.new_full((1, 1), -1.0).expand_as(index))
            grad_logits = grad_logits.mul_(counted[chunk, None] * scale).to(matrix.dtype)
            if grad_hidden is not None:
                grad_hidden[chunk] = torch.mm(grad_logits, matrix)
            if grad_weight is not None:
                grad_weight += _multiply(grad_logits.t(), hidden_chunk, compute_dtype)
        ctx.save_for_backward(grad_hidden, None if grad_weight is None else grad_weight.to(weight.dtype))
        return total * scale

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_weight = (
            None if gradient is None else gradient * grad_loss.to(gradient.dtype) for gradient in ctx.saved_tensors
        )
        return grad_hidden, grad_weight, None, None, None, None


def _multiplicand(matrix: Tensor, compute_dtype: torch.dtype) -> Tensor:
    """What a product is taken of: on CUDA the half-precision matrix itself, as tensor cores sum in fp32 anyway."""
    return matrix if matrix.is_cuda else matrix.to(compute_dtype)


def _multiply(left: Tensor, right: Tensor, out_dtype: torch.dtype) -> Tensor:
    if left.dtype == out_dtype:
        return torch.mm(left, right)
    return torch.mm(left, right, out_dtype=out_dtype)
