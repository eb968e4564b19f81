"""A training config of a tiny model, as a user would have written it, for tests without an engine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from launch.config import TrainConfig


@pytest.fixture
def train_config(tmp_path: Path) -> Callable[..., TrainConfig]:
    """`train_config(batch_tokens=512, zero={"reduce_dtype": "bfloat16"}, …)`: changes to top-level settings."""

    def build(**changes: Any) -> TrainConfig:
        settings: dict[str, Any] = {
            "run_dir": tmp_path / "run",
            "name": "tiny",
            "model": {
                "vocab_size": 256,
                "hidden_size": 32,
                "intermediate_size": 64,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "max_position_embeddings": 64,
            },
            "data": {"sources": [{"name": "chain", "path": tmp_path / "data"}], "sequence_length": 64},
            "batch_tokens": 1024,
            "micro_batch_size": 4,
            "steps": 100,
            "optimizer": {"learning_rate": 1e-3},
            "schedule": {"name": "wsd", "warmup_steps": 10, "decay_steps": 20},
            "checkpoint": {"every_steps": 50},
            "validation": {"every_steps": 50, "sequences": 8},
        }
        return TrainConfig.model_validate({**settings, **changes})

    return build
