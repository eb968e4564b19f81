"""The model under the engine it is made for: two ranks of DeepSpeed ZeRO-3, every parameter sharded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from model.config import SmolLM2Config

WORLD_SIZE = 2
TOKENS_PER_CHUNK = 2  # of 33
GATHERS = 4


@dataclass(frozen=True)
class Case:
    """whole_layers: ZeRO-3 gathers a decoder layer at once, as the trainer has it; otherwise each matrix by itself."""

    mode: str | dict[str, Any] = "none"
    tied: bool = True
    whole_layers: bool = True
    compile_backend: str | None = None
    attn_implementation: str = "sdpa"


CASES = {
    "none, matrix by matrix": Case(tied=False, whole_layers=False),
    "full, matrix by matrix": Case("full", whole_layers=False),
    "none": Case(tied=False),
    "full": Case("full"),
    "every second layer": Case({"mode": "every_n_layers", "every_n_layers": 2}),
    "selective": Case("selective"),
    "selective, every second full": Case({"mode": "selective", "every_n_layers": 2}),
    "deepspeed": Case("deepspeed"),
    "deepspeed, partitioned": Case({"mode": "deepspeed", "partition_activations": True}),
    "deepspeed, partitioned, on the host": Case(
        {"mode": "deepspeed", "partition_activations": True, "cpu_checkpointing": True}
    ),
    # aot_eager traces, cuts and recomputes the graphs that inductor gets; tests/integration trains with inductor itself
    "compiled": Case(compile_backend="aot_eager", attn_implementation="eager"),
    "compiled, full": Case("full", compile_backend="aot_eager"),
    "compiled, selective, every second full": Case(
        {"mode": "selective", "every_n_layers": 2}, compile_backend="aot_eager", attn_implementation="eager"
    ),
    "compiled, selective": Case("selective", compile_backend="aot_eager", attn_implementation="eager"),
    "compiled, deepspeed": Case("deepspeed", compile_backend="aot_eager"),
}


@pytest.fixture(scope="module")
def batch(sizes: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Two rows of 33 tokens, of two documents each."""
    tokens = torch.randint(0, sizes["vocab_size"], (2, 33), generator=torch.Generator().manual_seed(1))
    document_ids = (torch.arange(33) > 12).long().expand_as(tokens).contiguous()
    return {"tokens": tokens, "document_ids": document_ids, "labels": tokens.roll(-1, 1)}


@pytest.fixture(scope="module")
def measured(
    sizes: dict[str, Any],
    batch: dict[str, torch.Tensor],
    run_ranks: Callable[..., Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> list[list[dict[str, Any]]]:
    """By rank and case. One start of the ranks for all cases: it is what takes the time."""
    cases = [
        {
            "config": SmolLM2Config.model_validate({**sizes, "tie_word_embeddings": case.tied}),
            "whole_layers": case.whole_layers,
            "activation_checkpointing": case.mode,
            "compile_backend": case.compile_backend,
            "attn_implementation": case.attn_implementation,
        }
        for case in CASES.values()
    ]
    job = {**batch, "cases": cases, "chunk_logits": TOKENS_PER_CHUNK * sizes["vocab_size"]}
    folder, script = tmp_path_factory.mktemp("zero3"), Path(__file__).with_name("zero3_rank.py")
    torch.save(job, folder / "job.pt")
    run_ranks(WORLD_SIZE, script, folder / "job.pt", folder / "{rank}.pt")
    return [torch.load(folder / f"{rank}.pt") for rank in range(WORLD_SIZE)]


@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradients_equal_the_unsharded_model(
    make_model: Any, batch: dict[str, torch.Tensor], measured: list[list[dict[str, Any]]], case: str
) -> None:
    ranks = [results[list(CASES).index(case)] for results in measured]
    model = make_model(tie_word_embeddings=CASES[case].tied)
    loss = model(batch["tokens"], document_ids=batch["document_ids"], labels=batch["labels"])
    loss.backward()
    # fp32 sums in another order
    mean_loss = torch.stack([rank["loss"] for rank in ranks]).mean()
    torch.testing.assert_close(mean_loss, loss.detach(), rtol=0, atol=2e-6)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(ranks[0]["gradients"][name], parameter.grad, rtol=0, atol=2e-6, msg=name)
    # the embedding in its own forward and in the head's, and once for the backward of each: not for each of 17 chunks
    if not CASES[case].whole_layers:
        assert [rank["gathers"] for rank in ranks] == [GATHERS] * WORLD_SIZE
    for rank in ranks:
        torch.testing.assert_close(rank["evaluation_loss"], rank["loss"], rtol=0, atol=2e-6)
