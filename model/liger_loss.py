"""The loss by Liger's fused linear cross-entropy (arXiv:2410.10989, §3.2), for CUDA. Import only where it was chosen.

It works in chunks as `loss.py` does, with one Triton kernel for a chunk's softmax, loss and gradient. Two differences
in numbers: a chunk's logits are rounded to the parameters' dtype, and so is the z-loss of each token.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss
from torch import Tensor

from model.loss import IGNORE_INDEX, LossTerms


def liger_loss(
    hidden: Float[Tensor, "tokens hidden"],
    weight: Float[Tensor, "vocab hidden"],
    labels: Int[Tensor, " tokens"],
    *,
    z_loss_coefficient: float = 0.0,
) -> LossTerms:
    """As `loss.chunked_loss`. The gradient of the matrix is summed in fp32 here too."""
    with_z_loss = z_loss_coefficient > 0
    compute = LigerFusedLinearCrossEntropyLoss(
        ignore_index=IGNORE_INDEX,
        lse_square_scale=z_loss_coefficient,
        return_z_loss=with_z_loss,
        accum_dtype=torch.float32,
    )
    result = compute(weight, hidden, labels)
    if not with_z_loss:
        return LossTerms(result, result.detach())
    return LossTerms(result.loss, (result.loss - result.z_loss).detach())
