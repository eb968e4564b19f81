"""PyTorch's flex_attention (arXiv:2412.05496), compiled, with a mask of blocks that all layers share.

On CPU it has a forward only. Blocks that no document of the query reaches are skipped, so work grows with the
documents' squared lengths. The first call compiles: seconds on a GPU, up to a minute and a half on a slow CPU.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from model.attention_backends.selection import Attend
from model.documents import Documents

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import FlexKernelOptions

BLOCK_SIZE = 128
# one kernel for all lengths: that for fewer than 128 tokens takes groups of 1, 2, 4, … heads, not SmolLM2's of 3
KERNEL_OPTIONS: FlexKernelOptions = {"FORCE_USE_FLEX_ATTENTION": True}
_compiled_flex_attention = torch.compile(flex_attention)


def bind(documents: Documents, *, dtype: torch.dtype, head_dim: int) -> Attend:
    """The blocks once a batch; other documents are other numbers in the same shapes, so nothing is compiled again."""
    return Attend(_attend, (block_mask(documents),))


def block_mask(documents: Documents) -> BlockMask:
    """Which blocks of 128 keys each block of 128 queries looks at, and which of them without a mask inside.

    Documents follow one another, so two numbers a block tell all: its first document and its last. Made from these
    it costs blocks², where torch's create_block_mask evaluates seq² pairs.
    """
    document = documents.starts.cumsum(dim=1)
    blocks = -(-documents.sequence_length // BLOCK_SIZE)
    columns = torch.arange(blocks, device=documents.device) * BLOCK_SIZE
    first = document[:, columns]
    last = document[:, (columns + BLOCK_SIZE - 1).clamp(max=documents.sequence_length - 1)]
    before = torch.ones(blocks, blocks, dtype=torch.bool, device=documents.device).tril(diagonal=-1)
    touches = before & (last[:, None, :] == first[:, :, None])
    # the last document of the keys is the first of the queries: full if it is also the only one of both
    full = touches & (first[:, None, :] == last[:, :, None])
    diagonal = torch.eye(blocks, dtype=torch.bool, device=documents.device)
    partial = (touches & ~full) | diagonal

    return BlockMask.from_kv_blocks(
        *_counted(partial),
        *_counted(full),
        BLOCK_SIZE=BLOCK_SIZE,
        mask_mod=lambda batch, head, query, key: (document[batch, query] == document[batch, key]) & (query >= key),
        seq_lengths=(documents.sequence_length, documents.sequence_length),
    )


def _counted(
    blocks: Bool[Tensor, "batch query_blocks key_blocks"],
) -> tuple[Int[Tensor, "batch 1 query_blocks"], Int[Tensor, "batch 1 query_blocks key_blocks"]]:
    """How many key blocks each query block has, and their numbers, those first."""
    chosen = blocks[:, None].to(torch.int32)
    order = chosen.argsort(dim=-1, descending=True, stable=True)
    return chosen.sum(dim=-1, dtype=torch.int32), order.to(torch.int32)


def _attend(
    query: Float[Tensor, "batch seq heads head_dim"],
    key: Float[Tensor, "batch seq kv_heads head_dim"],
    value: Float[Tensor, "batch seq kv_heads head_dim"],
    mask: BlockMask,
) -> Float[Tensor, "batch seq heads head_dim"]:
    attended: Tensor = _compiled_flex_attention(
        query.transpose(1, 2),
        key.transpose(1, 2),
        value.transpose(1, 2),
        block_mask=mask,
        enable_gqa=query.shape[2] != key.shape[2],
        kernel_options=KERNEL_OPTIONS,
    )
    return attended.transpose(1, 2)
