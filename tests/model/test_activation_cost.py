"""Bytes of activations against what torch's CPU allocator counts, and by hand.

The allocator is read through torch.profiler's memory events: every allocation and release, workspaces of kernels too.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from model import loss
from model.activation_checkpointing import ActivationCheckpointing
from model.activation_cost import CHUNK_LOGITS, ActivationBytes, AttentionKind, activation_bytes, attention_kind
from model.attention_backends import sdpa
from model.config import SmolLM2Config
from model.init import initialize
from model.loss import CHUNK_LOGITS as CHUNK_LOGITS_OF_THE_LOSS
from model.transformer import SmolLM2

CONFIG = SmolLM2Config(
    vocab_size=1024,
    hidden_size=96,
    intermediate_size=256,
    num_hidden_layers=4,
    num_attention_heads=6,
    num_key_value_heads=2,
    max_position_embeddings=256,
)
EVERY_SECOND = {"mode": "every_n_layers", "every_n_layers": 2}
SELECTIVE_AND_FULL = {"mode": "selective", "every_n_layers": 2}


def allocated_bytes(work: Callable[[], Any]) -> tuple[int, int]:
    """What `work` leaves allocated by its result, and the most at any time."""
    # what an earlier test left in cycles must not be released, and counted, in between
    gc.collect()
    gc.disable()
    try:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            result = work()
    finally:
        gc.enable()
    assert profiler.profiler is not None
    assert profiler.profiler.kineto_results is not None
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    del result
    return now, peak


@pytest.mark.parametrize(
    ("attention", "dtype", "mode"),
    [
        ("sdpa", torch.float32, "none"),
        ("sdpa", torch.float32, "full"),
        ("sdpa", torch.float32, "selective"),
        ("sdpa", torch.bfloat16, EVERY_SECOND),
        ("sdpa", torch.bfloat16, "selective"),
        ("sdpa", torch.float32, SELECTIVE_AND_FULL),
        ("eager", torch.float32, "selective"),
        ("eager", torch.float32, EVERY_SECOND),
        ("eager", torch.bfloat16, "none"),
        ("eager", torch.bfloat16, "full"),
    ],
)
def test_bytes_are_what_the_allocator_counts(attention: str, dtype: torch.dtype, mode: Any) -> None:
    compare_with_the_allocator(attention, dtype, mode, kind="eager" if attention == "eager" else "fused")


@pytest.mark.parametrize(("path", "kind"), [("masked", "masked"), ("causal_repeated", "repeated")])
@pytest.mark.parametrize("mode", ["none", "full", "selective"])
def test_bytes_of_ways_that_a_gpu_goes_are_what_the_allocator_counts(
    monkeypatch: pytest.MonkeyPatch, path: str, kind: Any, mode: Any
) -> None:
    monkeypatch.setattr(sdpa, "sdpa_path", lambda **batch: path)
    compare_with_the_allocator("sdpa", torch.float32, mode, kind=kind)


def compare_with_the_allocator(attention: str, dtype: torch.dtype, mode: Any, *, kind: AttentionKind) -> None:
    checkpointing = ActivationCheckpointing.model_validate(mode)
    model = SmolLM2(CONFIG, attn_implementation=attention, activation_checkpointing=checkpointing)
    initialize(model, seed=0)
    model.to(dtype)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    tokens = torch.randint(0, CONFIG.vocab_size, (2, 256), generator=torch.Generator().manual_seed(0))
    document_ids = (torch.arange(256) > 80).long().expand_as(tokens).contiguous()

    def loss() -> torch.Tensor:
        return model(tokens, document_ids=document_ids, labels=tokens.roll(-1, 1))

    counted = activation_bytes(
        CONFIG,
        checkpointing,
        batch_size=2,
        sequence_length=256,
        dtype_bytes=4 if dtype == torch.float32 else 2,
        attention=kind,
        device_type="cpu",
    )
    kept, _ = allocated_bytes(loss)
    _, peak = allocated_bytes(lambda: loss().backward())
    assert counted.kept == pytest.approx(kept, rel=0.01)
    # what a kernel allocates within itself is not counted
    assert counted.peak == pytest.approx(peak, rel=0.1)


def cost(mode: Any = "none", *, attention: Any = "fused", device_type: str = "cuda") -> ActivationBytes:
    return activation_bytes(
        CONFIG,
        ActivationCheckpointing.model_validate(mode),
        batch_size=2,
        sequence_length=256,
        dtype_bytes=2,
        attention=attention,
        device_type=device_type,
    )


def test_full_keeps_one_tensor_a_layer() -> None:
    tokens = 512
    head = 2 * 2 * tokens * 16 + (4 + 2) * tokens * 96 + 4 * tokens + 2 * (tokens + 1024) * 96
    assert cost("full").kept == 4 * 2 * tokens * 96 + head


def test_inputs_on_the_host_are_not_in_the_devices_memory() -> None:
    difference = cost("full").kept - cost({"mode": "deepspeed", "cpu_checkpointing": True}).kept
    assert difference == 4 * 2 * 512 * 96


def test_eager_attention_keeps_square_weights_and_fused_does_not() -> None:
    def growth(attention: str) -> float:
        short, long = (
            activation_bytes(
                CONFIG,
                ActivationCheckpointing(),
                batch_size=1,
                sequence_length=length,
                dtype_bytes=2,
                attention=attention,  # type: ignore[arg-type]
            ).kept
            for length in (4096, 8192)
        )
        return long / short

    assert growth("fused") == pytest.approx(2, rel=0.01)
    assert growth("eager") > 3.8


AMPERE, TURING = (8, 0), (7, 5)


@pytest.mark.parametrize(
    ("name", "device_type", "document_masking", "dtype_bytes", "head_dim", "capability", "kind"),
    [
        ("auto", "cuda", True, 2, 64, AMPERE, "fused"),
        ("auto", "cpu", True, 4, 64, None, "fused"),
        ("sdpa", "cuda", True, 4, 64, AMPERE, "masked"),
        ("sdpa", "cuda", True, 2, 64, AMPERE, "fused"),
        ("sdpa", "cuda", True, 2, 64, TURING, "masked"),
        ("sdpa", "cuda", True, 2, 256, AMPERE, "masked"),
        ("sdpa", "cuda", True, 2, 60, AMPERE, "masked"),
        ("sdpa", "cuda", False, 2, 256, TURING, "fused"),
        ("sdpa", "cuda", False, 4, 64, AMPERE, "repeated"),
        ("sdpa", "cpu", True, 2, 64, None, "fused"),
        ("eager", "cuda", True, 2, 64, AMPERE, "eager"),
        ("flash_attention_2", "cuda", True, 2, 64, AMPERE, "fused"),
    ],
)
def test_kind_of_attention(
    name: str, device_type: str, document_masking: bool, dtype_bytes: Any, head_dim: int, capability: Any, kind: str
) -> None:
    got = attention_kind(
        name,
        device_type=device_type,
        document_masking=document_masking,
        dtype_bytes=dtype_bytes,
        head_dim=head_dim,
        capability=capability,
    )
    assert got == kind


def test_compiled_layers_keep_what_the_partitioner_keeps() -> None:
    # apart: beartype, which checks shapes under pytest, cannot be compiled
    script = Path(__file__).with_name("compiled_activations.py")
    ended = subprocess.run(
        [sys.executable, str(script)],
        env=os.environ | {"PYTHONPATH": str(script.parents[2])},
        capture_output=True,
        text=True,
        check=True,
    )
    kept = json.loads(ended.stdout)
    for mode in ("none", "full", "selective"):
        counted = activation_bytes(
            CONFIG,
            ActivationCheckpointing(mode=mode),  # type: ignore[arg-type]
            batch_size=2,
            sequence_length=256,
            dtype_bytes=2,
            attention="fused",
            device_type="cpu",
            compiled=True,
        )
        assert counted.kept == pytest.approx(kept[mode], rel=0.01), mode


def test_ligers_logits_are_as_many_as_the_hidden_states() -> None:
    def loss_bytes(implementation: Any) -> int:
        counted = activation_bytes(
            CONFIG.model_copy(update={"vocab_size": 49_152, "hidden_size": 576, "num_attention_heads": 9}),
            ActivationCheckpointing(),
            batch_size=8,
            sequence_length=2048,
            dtype_bytes=2,
            attention="fused",
            loss_implementation=implementation,
        )
        return counted.loss

    # 16,384 tokens in 86 chunks: 191, so 256 of them, in bf16, where the chunked loss has 682 in fp32 and more
    matrix, chunked_tokens = 49_152 * 576, 682
    chunked = 4 * chunked_tokens * 49_152 + 2 * chunked_tokens * 49_152 + max(4 * chunked_tokens * 49_152, 4 * matrix)
    assert loss_bytes("chunked") - loss_bytes("liger") == chunked - (2 * 256 * 49_152 + 4 * matrix)


@pytest.mark.parametrize(("vocab_size", "chunk_tokens"), [(8192, 64), (512, 256)], ids=["matrix", "logits"])
def test_loss_of_a_gpu_holds_the_products_that_a_cpu_adds_in_place(
    monkeypatch: pytest.MonkeyPatch, watch_bytes: Callable[..., Any], vocab_size: int, chunk_tokens: int
) -> None:
    """On `meta`, which computes nothing, by the products that CUDA takes: of half-precision matrices, in fp32."""
    monkeypatch.setattr(loss, "_multiplicand", lambda matrix, compute_dtype: matrix)
    config = CONFIG.model_copy(update={"vocab_size": vocab_size})
    labels = torch.zeros(512, dtype=torch.long, device="meta")
    chunk_logits = chunk_tokens * vocab_size
    with watch_bytes() as watch:
        hidden, weight = (
            torch.empty(rows, CONFIG.hidden_size, dtype=torch.bfloat16, device="meta", requires_grad=True)
            for rows in (512, vocab_size)
        )
        loss.chunked_loss(hidden, weight, labels, chunk_logits=chunk_logits)
    counted = activation_bytes(
        config,
        ActivationCheckpointing(),
        batch_size=2,
        sequence_length=256,
        dtype_bytes=2,
        attention="fused",
        chunk_logits=chunk_logits,
    )
    # `loss` is on top of what is kept before it, and has the hidden states in it, but not the matrix
    before_loss = counted.kept - 2 * (512 + vocab_size) * CONFIG.hidden_size
    assert counted.loss - before_loss == pytest.approx(watch.peak - 2 * vocab_size * CONFIG.hidden_size, rel=0.02)


def test_chunk_is_that_of_the_loss() -> None:
    assert CHUNK_LOGITS == CHUNK_LOGITS_OF_THE_LOSS
