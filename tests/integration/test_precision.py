"""What `precision: bfloat16` means in the engine: weights and activations in bf16, all sums and the master in fp32."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from model.config import SmolLM2Config
from model.init import initialize
from model.transformer import SmolLM2

MICRO_BATCHES = 64
LEARNING_RATE = 1e-6
MODEL = {
    "vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 32, "initializer_range": 0.2,
}  # fmt: skip
TOKENS = torch.randint(0, 61, (1, 32), generator=torch.Generator().manual_seed(0))
LABELS = TOKENS.roll(-1, dims=1)
CONFIG: dict[str, Any] = {
    "run_dir": "unused",
    "name": "precision",
    "model": MODEL,
    "data": {"sources": [{"name": "unused", "path": "unused"}], "sequence_length": 32},
    "batch_tokens": 32 * MICRO_BATCHES,
    "micro_batch_size": 1,
    "precision": "bfloat16",
    "steps": 1,
    "optimizer": {"learning_rate": LEARNING_RATE, "weight_decay": 0, "gradient_clipping": 0},
    "schedule": {},
    "checkpoint": {"every_steps": 1},
    "validation": {"every_steps": 1, "sequences": 1},
}


@pytest.fixture(scope="module")
def step(run_one_rank: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One step of 64 times the same micro-batch."""
    job = {"config": CONFIG, "tokens": TOKENS, "labels": LABELS}
    return dict(run_one_rank("precision_rank.py", job, tmp_path_factory.mktemp("precision")))


@pytest.fixture
def plain() -> SmolLM2:
    """The same weights in bf16 without an engine, and their gradient of a 64th of the micro-batch's loss."""
    model = SmolLM2(SmolLM2Config.model_validate(MODEL))
    initialize(model, seed=0)
    model.to(torch.bfloat16)
    (model(TOKENS, labels=LABELS) / MICRO_BATCHES).backward()
    return model


def test_gradients_are_summed_in_fp32(step: dict[str, Any], plain: SmolLM2) -> None:
    for name, parameter in plain.named_parameters():
        assert parameter.grad is not None
        wanted = parameter.grad.float() * MICRO_BATCHES
        # 64 equal numbers summed in fp32 differ from their product by nothing; in bf16 by some hundredths
        assert step["gradients"][name].dtype == torch.float32
        assert float((step["gradients"][name] - wanted).norm() / wanted.norm()) < 1e-4, name


def test_the_optimizer_takes_the_sums_where_they_lie(step: dict[str, Any]) -> None:
    assert step["in_place"]
    assert all(step["in_place"])


def test_an_update_too_small_for_bf16_is_kept_in_the_master(step: dict[str, Any], plain: SmolLM2) -> None:
    for name, parameter in plain.named_parameters():
        moved = (step["masters"][name] - parameter.float())[step["gradients"][name].abs() > 1e-6]
        # AdamW's first update is the learning rate; fp32 holds weights of up to 1 to 6e-8
        torch.testing.assert_close(moved.abs(), torch.full_like(moved, LEARNING_RATE), rtol=0.1, atol=6e-8, msg=name)
        assert step["weights"][name].dtype == torch.bfloat16
        assert torch.equal(step["weights"][name], step["masters"][name].to(torch.bfloat16))


def test_the_loss_is_fp32(step: dict[str, Any]) -> None:
    assert step["loss"].dtype == torch.float32
