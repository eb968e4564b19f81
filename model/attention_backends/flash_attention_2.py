"""FlashAttention-2 (arXiv:2307.08691) from the package flash-attn, for Ampere and newer GPUs.

Packed documents go to the kernel as offsets, so that no mask is ever made.
"""

from __future__ import annotations

import torch

from model.attention_backends.flash_packages import attend_within_documents, bind_package
from model.attention_backends.selection import Attend
from model.documents import Documents

PACKAGE = "flash-attn"
INSTALL = "pip install -c constraints.txt -e '.[gpu]'"


def bind(documents: Documents, *, dtype: torch.dtype, head_dim: int) -> Attend:
    """The package's operators are registered with torch, so torch.compile goes through them."""
    return bind_package(PACKAGE, attend_within_documents, documents)
