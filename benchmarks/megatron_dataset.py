"""Megatron's GPTDataset (megatron-core) as its training builds it, for the benchmarks that put it beside ours."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np


def open_gpt_dataset(prefix: Path, samples: int, *, sequence_length: int) -> Any:
    """Over all documents of PREFIX.bin and PREFIX.idx, shuffled, for so many samples."""
    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
    from megatron.core.datasets.utils import Split

    tokenizer: Any = SimpleNamespace(eod=0, unique_identifiers={"name": "-"}, pad=1, vocab_size=49_152)
    config = GPTDatasetConfig(
        random_seed=0,
        sequence_length=sequence_length,
        split="1,0,0",
        blend=([str(prefix)], None),
        tokenizer=tokenizer,
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
    )
    documents = GPTDataset.build_low_level_dataset(str(prefix), config)
    every = np.arange(len(documents.document_indices) - 1, dtype=np.int32)
    return GPTDataset(documents, str(prefix), every, samples, Split.train, config)
