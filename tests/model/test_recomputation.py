"""Gradients under each mode, what is computed again for them, and how often a compiled layer is built."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).resolve().parents[2]
MODES: dict[str, Any] = {
    "full": "full",
    "every_n_layers": {"mode": "every_n_layers", "every_n_layers": 2},
    "selective": "selective",
    "selective, every second full": {"mode": "selective", "every_n_layers": 2},
}


def backward_flops(model: Any, tokens: torch.Tensor) -> int:
    document_ids = (torch.arange(tokens.shape[1]) > 12).long().expand_as(tokens)
    loss = model(tokens, document_ids=document_ids, labels=tokens.roll(-1, 1))
    with FlopCounterMode(display=False) as counter:
        loss.backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("mode", MODES)
def test_gradients_equal_those_of_none_to_the_last_bit(
    make_model: Any, tokens: torch.Tensor, implementation: str, mode: str
) -> None:
    models = [
        make_model(attn_implementation=implementation, activation_checkpointing=settings)
        for settings in ("none", MODES[mode])
    ]
    for model in models:
        backward_flops(model, tokens)
    plain, recomputed = ({name: tensor.grad for name, tensor in model.named_parameters()} for model in models)
    # the same operations on the same numbers
    torch.testing.assert_close(recomputed, plain, rtol=0, atol=0)


def test_selective_computes_no_matrix_product_again(make_model: Any, tokens: torch.Tensor) -> None:
    plain, selective, full = (
        backward_flops(make_model(attn_implementation="sdpa", activation_checkpointing=mode), tokens)
        for mode in ("none", "selective", "full")
    )
    assert selective == plain
    # the layers' forward is a third of a step's products: half of their backward
    assert full > 1.2 * plain


def test_selective_computes_eagers_square_scores_again(make_model: Any, tokens: torch.Tensor) -> None:
    plain, selective = (
        backward_flops(make_model(attn_implementation="eager", activation_checkpointing=mode), tokens)
        for mode in ("none", "selective")
    )
    # scores and their product with the values, each 2 · batch · heads · seq² · head_dim, in two layers
    assert selective - plain == 2 * 2 * (2 * 2 * 6 * 33 * 33 * 8)


def test_deepspeed_mode_needs_its_function(make_model: Any) -> None:
    with pytest.raises(AssertionError, match="wants DeepSpeed's checkpoint function"):
        make_model(activation_checkpointing="deepspeed")


@pytest.fixture(scope="module")
def compiled() -> dict[str, Any]:
    """What `compiled_training.py` printed; a program, because jaxtyping's checks under pytest cannot be traced."""
    answer = subprocess.run(
        [sys.executable, str(Path(__file__).parent / "compiled_training.py")],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr[-2000:]
    result: dict[str, Any] = json.loads(answer.stdout.splitlines()[-1])
    return result


@pytest.mark.parametrize("case", ["none", "full", "every_n_layers", "selective", "none, inductor"])
class TestCompiled:
    def test_gradients_are_those_of_the_layer_as_written(self, compiled: dict[str, Any], case: str) -> None:
        # fp32 sums in another order
        assert compiled[case]["worst_difference"] < 5e-6

    def test_nothing_is_built_after_the_first_step_and_evaluation(self, compiled: dict[str, Any], case: str) -> None:
        first, *later = compiled[case]["builds"]
        assert first > 0
        assert later == [first] * len(later)


def test_selective_keeps_to_the_gradients_with_attention_by_documents(compiled: dict[str, Any]) -> None:
    assert compiled["selective, sdpa"]["worst_difference"] < 5e-6


@pytest.mark.parametrize("case", ["offsets", "selective, sdpa"])
def test_kernel_with_a_tensor_for_each_batchs_documents_is_built_twice(compiled: dict[str, Any], case: str) -> None:
    # once for the first number of documents, once for any number
    first, *later = compiled[case]["builds"]
    assert later == [2 * first] * len(later)
