"""Mean cross-entropy from hidden states and the head's matrix, in chunks: the full logits are never held.

The gradients are made on the way forward, while a chunk's logits exist, and the backward only scales them. The price
is one gradient of the head's size kept between forward and backward; the gain is batch × seq × vocab logits never
stored or recomputed. Logits, losses and sums are fp32, whatever the parameters are.

Other computations of the same numbers are in `loss_selection.py`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

IGNORE_INDEX = -100
# 128 MiB of fp32 logits a chunk, 682 tokens of SmolLM2's vocabulary. On a CPU any chunk of 128 tokens or more costs the
# same within 5%; below, and on a GPU sooner, adding to the matrix's gradient costs more than the products
CHUNK_LOGITS = 1 << 25


class LossTerms(NamedTuple):
    """`total`, cross-entropy plus the z-loss, is what is trained; `cross_entropy`, without a gradient, is reported."""

    total: Float[Tensor, ""]
    cross_entropy: Float[Tensor, ""]


def chunked_loss(
    hidden: Float[Tensor, "tokens hidden"],
    weight: Float[Tensor, "vocab hidden"],
    labels: Int[Tensor, " tokens"],
    *,
    z_loss_coefficient: float = 0.0,
    chunk_logits: int = CHUNK_LOGITS,
) -> LossTerms:
    """Mean of −log softmax(hidden · weightᵀ)[label] over the labels that are not −100; 0 if all of them are.

    `total` has z_loss_coefficient × mean(log² Z) on top, Z = Σ exp(logits), over the same labels, which keeps the
    softmax's normaliser near 1 (PaLM, arXiv:2204.02311, §5, with 10⁻⁴). Losses are fp32 (fp64 for fp64 input).
    Gradients have the dtype of what they belong to, summed in fp32.
    """
    with_gradients = torch.is_grad_enabled()
    total, cross_entropy = _ChunkedLoss.apply(  # type: ignore[no-untyped-call]
        hidden,
        weight,
        labels,
        z_loss_coefficient,
        max(1, chunk_logits // weight.shape[0]),
        with_gradients and hidden.requires_grad,
        with_gradients and weight.requires_grad,
    )
    return LossTerms(total, cross_entropy)


class _ChunkedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        labels: Tensor,
        z_loss_coefficient: float,
        chunk_tokens: int,
        hidden_needs_gradient: bool,
        weight_needs_gradient: bool,
    ) -> tuple[Tensor, Tensor]:
        compute_dtype = torch.promote_types(hidden.dtype, torch.float32)
        counted = labels != IGNORE_INDEX
        scale = 1.0 / counted.sum().clamp(min=1).to(compute_dtype)
        cross_entropy = torch.zeros((), dtype=compute_dtype, device=hidden.device)
        log_normaliser_squares = torch.zeros_like(cross_entropy)
        grad_hidden = torch.empty_like(hidden) if hidden_needs_gradient else None
        grad_weight = torch.zeros_like(weight, dtype=compute_dtype) if weight_needs_gradient else None
        matrix = _multiplicand(weight, compute_dtype)
        # one buffer for all chunks: a new one each would be handed back to the system and cleared by it again
        shape = (min(chunk_tokens, hidden.shape[0]), weight.shape[0])
        buffer = hidden.new_empty(shape, dtype=compute_dtype) if matrix.dtype == compute_dtype else None
        for start in range(0, hidden.shape[0], chunk_tokens):
            chunk = slice(start, start + chunk_tokens)
            hidden_chunk = _multiplicand(hidden[chunk], compute_dtype)
            if buffer is not None:
                logits = torch.mm(hidden_chunk, matrix.t(), out=buffer[: hidden_chunk.shape[0]])
            else:
                logits = torch.mm(hidden_chunk, matrix.t(), out_dtype=compute_dtype)
            index = torch.where(counted[chunk], labels[chunk], 0)[:, None]
            label_logits = logits.gather(1, index)
            maximum = logits.amax(dim=-1, keepdim=True)
            exponentials = logits.sub_(maximum).exp_()
            normaliser = exponentials.sum(dim=-1, keepdim=True)
            log_normaliser = maximum + normaliser.log()
            cross_entropy += ((log_normaliser - label_logits) * counted[chunk, None]).sum()
            log_normaliser_squares += (log_normaliser.square() * counted[chunk, None]).sum()
            if grad_hidden is None and grad_weight is None:
                continue
            # d total / d logits = ((1 + 2 · coefficient · log Z) softmax − one-hot) / count, written over the logits
            token_scale = counted[chunk, None] * scale
            softmax_scale = (1.0 + 2.0 * z_loss_coefficient * log_normaliser) * token_scale
            grad_logits = exponentials.mul_(softmax_scale / normaliser).scatter_add_(1, index, -token_scale)
            grad_logits = grad_logits.to(matrix.dtype)
            if grad_hidden is not None:
                grad_hidden[chunk] = torch.mm(grad_logits, matrix)
            if grad_weight is not None:
                _add_product_(grad_weight, grad_logits.t(), hidden_chunk)
        ctx.save_for_backward(grad_hidden, None if grad_weight is None else grad_weight.to(weight.dtype))
        cross_entropy *= scale
        ctx.mark_non_differentiable(cross_entropy)
        return cross_entropy + z_loss_coefficient * scale * log_normaliser_squares, cross_entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_total: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_weight = (
            None if gradient is None else _scaled(gradient, grad_total) for gradient in ctx.saved_tensors
        )
        return grad_hidden, grad_weight, None, None, None, None, None


def _scaled(gradient: Tensor, factor: Tensor) -> Tensor:
    """The factor is 1 / accumulation steps, which bf16 would round: by 0.2% for three, in all gradients alike."""
    # a scalar tensor takes the other operand's dtype, one of a single element does not
    return torch.mul(gradient, factor.reshape(1), out=torch.empty_like(gradient))


def _multiplicand(matrix: Tensor, compute_dtype: torch.dtype) -> Tensor:
    """What a product is taken of: on CUDA the half-precision matrix itself, as tensor cores sum in fp32 anyway."""
    return matrix if matrix.is_cuda else matrix.to(compute_dtype)


def _add_product_(total: Tensor, left: Tensor, right: Tensor) -> None:
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    else:
        total += torch.mm(left, right, out_dtype=total.dtype)
