"""How often torch.compile builds a layer over batches whose documents differ, as JSON: counts after each batch.

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
    layer = torch.compile(DecoderLayer(config), backend=counter)
    hidden, angles = torch.ones(1, SEQUENCE_LENGTH, 48), torch.ones(1, SEQUENCE_LENGTH, 1, 8)
    input_ids = torch.zeros(1, SEQUENCE_LENGTH, dtype=torch.long)
    counts = []
    for lengths in BATCHES:
        document_ids = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))[None]
        attend = selection.bind(kernel, Documents(input_ids, document_ids), dtype=hidden.dtype)
        layer(hidden, angles, angles, attend).sum().backward()
        counts.append(counter.frame_count)
    print(json.dumps(counts))


if __name__ == "__main__":
    main(sys.argv[1])
