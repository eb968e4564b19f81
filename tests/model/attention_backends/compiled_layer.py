"""How often torch.compile has built a layer after each of six batches of other documents, as JSON.

Kernels by name; `varlen` is sdpa's for a GPU, which without one can be traced but not computed.
A program, not a test: under pytest every function carries jaxtyping's checks, which torch.compile cannot trace.
"""

from __future__ import annotations

import json
import sys

import torch
from torch._dynamo.testing import CompileCounter

from model.attention_backends import selection
from model.config import SmolLM2Config
from model.documents import Documents
from model.transformer import DecoderLayer

SEQUENCE_LENGTH = 16
BATCHES = ((16,), (8, 8), (2, 9, 5), (1,) * 16, (4, 12), (15, 1))


def main(kernel: str) -> None:
    config = SmolLM2Config(
        vocab_size=8,
        hidden_size=48,
        intermediate_size=40,
        num_hidden_layers=1,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=SEQUENCE_LENGTH,
    )
    counter = CompileCounter()
    device = "meta" if kernel == "varlen" else "cpu"
    layer = torch.compile(DecoderLayer(config).to(device), backend=counter, fullgraph=True)
    hidden = torch.ones(1, SEQUENCE_LENGTH, 48, device=device)
    angles = torch.ones(1, SEQUENCE_LENGTH, 1, 8, device=device)
    input_ids = torch.zeros(1, SEQUENCE_LENGTH, dtype=torch.long)
    counts = []
    for lengths in BATCHES:
        document_ids = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))[None]
        documents = Documents(input_ids, document_ids)
        if kernel == "varlen":
            from model.attention_backends import sdpa  # here: the other kernels' tests do without its file

            attend = sdpa.within_documents(documents.cumulative_lengths.to(device), SEQUENCE_LENGTH)
        else:
            attend = selection.bind(kernel, documents, dtype=hidden.dtype, head_dim=8)
        attended = layer(hidden, angles, angles, attend)
        if torch.is_grad_enabled():
            attended.sum().backward()
        counts.append(counter.frame_count)
    print(json.dumps(counts))


if __name__ == "__main__":
    # flex_attention has no backward on CPU
    with torch.set_grad_enabled(sys.argv[1] != "flex_attention"):
        main(sys.argv[1])
