"""What the kernels of the FlashAttention packages share: packed documents as offsets, and the way to the function.

The only file that names the packages' modules. None is imported before a kernel that needs it is bound.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from model.attention_backends.selection import Attend, AttentionBackendError
from model.documents import Documents

MODULES = {
    "flash-attn": "flash_attn",
    "flash-attn-3": "flash_attn_interface",
    "flash-attn-4": "flash_attn.cute",
}


def bind_package(package: str, kernel: Callable[..., Tensor], documents: Documents) -> Attend:
    """`kernel`, which is `attend_within_documents` or a wrapper of it, with a package's function and the offsets.

    Raises AttentionBackendError for a package that does not load, as one built for another torch does not.
    """
    try:
        function = importlib.import_module(MODULES[package]).flash_attn_varlen_func
    except (ImportError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise AttentionBackendError(
            f"the package {package} is installed but does not load under torch {torch.__version__} ({reason}); "
            "install one that was built for it, or take attn_implementation=sdpa"
        ) from error
    # The sequence length stands for the longest document: the kernels take any bound (blocks beyond a document's end
    # return at once), this one needs no wait for the device, and it is the same at every step.
    return Attend(kernel, (function, documents.cumulative_lengths, documents.sequence_length))


def attend_within_documents(
    query: Float[Tensor, "batch seq heads head_dim"],
    key: Float[Tensor, "batch seq kv_heads head_dim"],
    value: Float[Tensor, "batch seq kv_heads head_dim"],
    function: Callable[..., Any],
    offsets: Int[Tensor, " documents_plus_one"],
    longest: int,
) -> Float[Tensor, "batch seq heads head_dim"]:
    """All documents of the batch in one call, without a mask."""
    result = function(
        query.flatten(0, 1),
        key.flatten(0, 1),
        value.flatten(0, 1),
        cu_seqlens_q=offsets,
        cu_seqlens_k=offsets,
        max_seqlen_q=longest,
        max_seqlen_k=longest,
        causal=True,
    )
    # 4, and 3 in some of its builds, return the log-sum-exp as well
    attended: Tensor = result[0] if isinstance(result, tuple) else result
    return attended.view(query.shape)
