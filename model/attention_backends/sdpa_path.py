"""Which way `sdpa.py` goes for a batch, decided here alone, for the kernel and for what it keeps. No torch.

causal           a fused causal kernel that shares keys among query heads
causal_repeated  the same with keys and values repeated for each query head
by_document      on a CPU, document by document
varlen           torch's kernel for sequences of many lengths
masked           a fused kernel with a mask of seq², keys and values repeated
"""

from __future__ import annotations

from typing import Literal

SdpaPath = Literal["causal", "causal_repeated", "by_document", "varlen", "masked"]

# above 192 the backward of torch's kernel does not run on every GPU
MAX_VARLEN_HEAD_DIM = 192
MIN_VARLEN_CAPABILITY = (8, 0)


def sdpa_path(
    *,
    device_type: str,
    one_document_a_row: bool,
    is_half_precision: bool,
    head_dim: int,
    capability: tuple[int, int] | None,
) -> SdpaPath:
    """`capability` is the GPU's compute capability; None where there is none to ask."""
    if one_document_a_row:
        # for grouped heads CUDA has a fused kernel in half precision only, and otherwise one that holds seq² weights
        return "causal" if device_type != "cuda" or is_half_precision else "causal_repeated"
    if device_type == "cpu":
        return "by_document"
    takes_varlen = (
        device_type == "cuda"
        and is_half_precision
        and head_dim % 8 == 0
        and head_dim <= MAX_VARLEN_HEAD_DIM
        and capability is not None
        and capability >= MIN_VARLEN_CAPABILITY
    )
    return "varlen" if takes_varlen else "masked"
