"""FlashAttention-3 (arXiv:2407.08608) from the package flash-attn-3, for Hopper GPUs. A beta by its makers' word.

Packed documents go to the kernel as offsets, so that no mask is ever made.
"""

from __future__ import annotations

import torch

from model.attention_backends.flash_packages import attend_within_documents, bind_package
from model.attention_backends.selection import Attend, untraced
from model.documents import Documents

PACKAGE = "flash-attn-3"
INSTALL = "pip install flash-attn-3 --index-url https://download.pytorch.org/whl/cu130"  # it is not on PyPI


def bind(documents: Documents, *, dtype: torch.dtype, head_dim: int) -> Attend:
    """The kernel untraced: not every build registers its operators for torch.compile."""
    return bind_package(PACKAGE, untraced(attend_within_documents), documents)
