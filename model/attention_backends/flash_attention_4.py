"""FlashAttention-4 from the package flash-attn-4, for Hopper and Blackwell GPUs. A beta by its makers' word.

Called through the package's own function. torch can also register it (`activate_flash_attention_impl`), but that
changes scaled_dot_product_attention for the whole process, and torch 2.13 unpacks two results where the package's
forward has returned five since 4.0.0b36 at the latest.
Packed documents go to the kernel as offsets, so that no mask is ever made.
"""

from __future__ import annotations

import torch

from model.attention_backends.flash_packages import attend_within_documents, bind_package
from model.attention_backends.selection import Attend, untraced
from model.documents import Documents

PACKAGE = "flash-attn-4"
INSTALL = "pip install --pre flash-attn-4"


def bind(documents: Documents, *, dtype: torch.dtype, head_dim: int) -> Attend:
    """The kernel untraced: the package compiles its kernels itself, in Python that torch.compile cannot follow."""
    return bind_package(PACKAGE, untraced(attend_within_documents), documents)
