"""The model under the engine it is made for: two ranks of DeepSpeed ZeRO-3, every parameter sharded."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
WORLD_SIZE = 2
TOKENS_PER_CHUNK = 2  # of 33
GATHERS = 4


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def run_ranks(job: dict[str, Any], folder: Path) -> list[dict[str, Any]]:
    torch.save(job, folder / "job.pt")
    port = str(free_port())
    processes = []
    for rank in range(WORLD_SIZE):
        environment = os.environ | {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(WORLD_SIZE),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
            "DS_ACCELERATOR": "cpu",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
        }
        command = [sys.executable, str(Path(__file__).parent / "zero3_rank.py"), str(folder / "job.pt")]
        log = (folder / f"{rank}.log").open("w")
        processes.append(
            subprocess.Popen(
                [*command, str(folder / f"{rank}.pt")], env=environment, stdout=log, stderr=subprocess.STDOUT
            )
        )
    try:
        for rank, process in enumerate(processes):
            assert process.wait(timeout=200) == 0, (folder / f"{rank}.log").read_text()[-2000:]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return [torch.load(folder / f"{rank}.pt") for rank in range(WORLD_SIZE)]


@pytest.mark.parametrize(("tied", "activation_checkpointing"), [(True, "full"), (False, "none")])
def test_loss_and_gradients_equal_the_unsharded_model(
    make_model: Any, tokens: Any, tmp_path: Path, tied: bool, activation_checkpointing: str
) -> None:
    model = make_model(tie_word_embeddings=tied)
    batch = {
        "tokens": tokens,
        "document_ids": (torch.arange(33) > 12).long().expand_as(tokens).contiguous(),
        "labels": tokens.roll(-1, 1),
    }
    job = {
        **batch,
        "config": model.config,
        "activation_checkpointing": activation_checkpointing,
        "chunk_logits": TOKENS_PER_CHUNK * model.config.vocab_size,
    }
    ranks = run_ranks(job, tmp_path)

    loss = model(tokens, document_ids=batch["document_ids"], labels=batch["labels"])
    loss.backward()
    # fp32 sums in another order
    mean_loss = torch.stack([rank["loss"] for rank in ranks]).mean()
    torch.testing.assert_close(mean_loss, loss.detach(), rtol=0, atol=2e-6)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(ranks[0]["gradients"][name], parameter.grad, rtol=0, atol=2e-6, msg=name)
    # the embedding in its own forward and in the head's, and once for the backward of each: not for each of 17 chunks
    assert [rank["gathers"] for rank in ranks] == [GATHERS] * WORLD_SIZE
    for rank in ranks:
        torch.testing.assert_close(rank["evaluation_loss"], rank["loss"], rtol=0, atol=2e-6)
