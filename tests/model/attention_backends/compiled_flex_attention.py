"""flex_attention as it runs: compiled. After each of four batches of other documents, as JSON: graphs, and distance.

A program, not a test: under pytest every function carries jaxtyping's checks, which torch.compile cannot trace.
"""

from __future__ import annotations

import json

import torch
from torch._dynamo.utils import counters
from torch.nn.functional import scaled_dot_product_attention

from model.attention_backends import flex_attention
from model.documents import Documents

BATCHES = ((300,), (150, 150), (1, 127, 128, 44), (1,) * 300)


def main() -> None:
    query, key, value = (torch.randn(1, 300, heads, 16) for heads in (6, 2, 2))
    batches = []
    for lengths in BATCHES:
        ids = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))[None]
        documents = Documents(torch.zeros_like(ids), ids)
        ours = flex_attention.bind(documents, dtype=query.dtype, head_dim=16)(query, key, value)
        by_head = (tensor.transpose(1, 2).double() for tensor in (query, key, value))
        reference = scaled_dot_product_attention(*by_head, attn_mask=documents.may_attend, enable_gqa=True)
        reference = reference.transpose(1, 2)
        difference = float((ours - reference).norm() / reference.norm())
        batches.append({"graphs": counters["stats"]["unique_graphs"], "difference": difference})
    print(json.dumps(batches))


if __name__ == "__main__":
    torch.manual_seed(0)
    with torch.no_grad():
        main()
