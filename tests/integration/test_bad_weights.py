"""Weights that a run cannot start from, as its user sees them: one line, exit code 2, no traceback."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from model.config import SmolLM2Config
from model.hf import save_pretrained
from model.init import initialize
from model.transformer import SmolLM2

CONFIG = SmolLM2Config(
    vocab_size=256, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=64,
)  # fmt: skip


def test_weights_with_nan_stop_both_ranks_before_the_first_step(start_training: Any, tmp_path: Path) -> None:
    model = SmolLM2(CONFIG)
    initialize(model, seed=0)
    with torch.no_grad():
        model.layers[1].mlp.down_proj.weight[3, 4] = torch.nan
    save_pretrained(model, tmp_path / "weights")
    ended = start_training(tmp_path / "run", f"init_from={tmp_path / 'weights'}").end()
    assert ended.code == 2
    assert ended.err.splitlines() == [
        f"launch train: {tmp_path / 'weights'}: model.layers.1.mlp.down_proj.weight holds 1 of 2,048 values that are "
        "NaN or infinite; fetch it again, or take another checkpoint"
    ]
    assert ended.states() == ["failed"]
