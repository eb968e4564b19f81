"""Each kernel against the documents one by one, which no mask can get wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from model.attention_backends import eager, sdpa
from model.documents import Documents

# rows of 33 tokens; one document alone in the second row, a document of one token at an end of the first
LENGTHS = ((10, 5, 17, 1), (33,))
KERNELS = ("eager", "sdpa")
ROOT = Path(__file__).resolve().parents[3]


def ids_of(lengths: tuple[tuple[int, ...], ...]) -> torch.Tensor:
    return torch.stack([torch.arange(len(row)).repeat_interleave(torch.tensor(row)) for row in lengths])


def alone(tokens: torch.Tensor) -> list[torch.Tensor]:
    return [piece[None] for row, lengths in zip(tokens, LENGTHS, strict=True) for piece in row.split(lengths)]


@pytest.mark.parametrize("kv_heads", [6, 2, 1])
@pytest.mark.parametrize("kernel", KERNELS)
def test_packed_logits_equal_the_documents_one_by_one(make_model: Any, tokens: Any, kernel: str, kv_heads: int) -> None:
    model = make_model(attn_implementation=kernel, num_key_value_heads=kv_heads)
    packed = model(tokens, document_ids=ids_of(LENGTHS)).flatten(0, 1)
    one_by_one = torch.cat([model(piece)[0] for piece in alone(tokens)])
    torch.testing.assert_close(packed, one_by_one, rtol=0, atol=5e-6)  # fp32, sums in another order
    assert (packed - model(tokens).flatten(0, 1)).abs().max() > 0.1  # and the mask matters


@pytest.mark.parametrize("kernel", KERNELS)
def test_packed_gradients_equal_the_documents_one_by_one(make_model: Any, tokens: Any, kernel: str) -> None:
    labels = tokens.roll(-1, dims=1)
    packed, one_by_one = make_model(attn_implementation=kernel), make_model(attn_implementation=kernel)
    packed(tokens, document_ids=ids_of(LENGTHS), labels=labels).backward()
    for piece, wanted in zip(alone(tokens), alone(labels), strict=True):
        (one_by_one(piece, labels=wanted) * piece.numel() / tokens.numel()).backward()
    for (name, ours), (_, theirs) in zip(packed.named_parameters(), one_by_one.named_parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=0, atol=5e-6, msg=name)


def heads(*, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, 9, 6, 4), (2, 9, 3, 4), (2, 9, 3, 4))
    query, key, value = (torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes)
    return query, key, value


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(st.integers(0, 2), min_size=9, max_size=9), min_size=2, max_size=2))
def test_kernels_agree_on_any_boundaries(rows: list[list[int]]) -> None:
    documents = Documents(torch.zeros(2, 9, dtype=torch.long), torch.tensor(rows))
    reference = eager.bind(documents)(*heads())
    # the softmax of the reference is fp32
    torch.testing.assert_close(sdpa.bind(documents)(*heads()), reference, rtol=0, atol=1e-6)
    torch.testing.assert_close(sdpa._masked(*heads(), documents.may_attend), reference, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_compiled_layer_serves_every_batch(kernel: str) -> None:
    """The second batch may build it once more, for any number of documents; after that nothing is built."""
    program = Path(__file__).with_name("compiled_layer.py")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    ran = subprocess.run([sys.executable, program, kernel], capture_output=True, text=True, check=True, env=environment)
    counts = json.loads(ran.stdout)
    assert counts[1:] == [counts[1]] * 5


def test_eager_is_the_paper_s_formula() -> None:
    query, key, value = heads()
    attended = eager.bind(Documents(torch.zeros(2, 9, dtype=torch.long), None))(query, key, value)
    # row 1, position 2, query head 5, which shares key/value head 2 with query head 4
    weights = torch.softmax(key[1, :3, 2] @ query[1, 2, 5] / 2.0, dim=0)
    torch.testing.assert_close(attended[1, 2, 5], weights @ value[1, :3, 2], rtol=0, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("one_document_a_row", [True, False])
def test_flash_attention_2_equals_eager(one_document_a_row: bool) -> None:
    pytest.importorskip("flash_attn", reason="the package flash_attn is not installed")
    from model.attention_backends import flash_attention_2

    ids = None if one_document_a_row else torch.tensor([[0, 0, 0, 1, 1, 1, 1, 2, 2], [0] * 9], device="cuda")
    documents = Documents(torch.zeros(2, 9, dtype=torch.long, device="cuda"), ids)
    inputs = [tensor.cuda().repeat(1, 1, 1, 8) for tensor in heads(dtype=torch.bfloat16)]
    for tensor in inputs:
        tensor.requires_grad_()
    results = []
    for kernel in (eager, flash_attention_2):
        attended = kernel.bind(documents)(*inputs)
        results.append([attended, *torch.autograd.grad(attended.square().sum(), inputs)])
    for reference, flash in zip(*results, strict=True):
        # bf16 keeps 8 bits, and each of the two rounds several times
        torch.testing.assert_close(flash, reference, rtol=0.03, atol=0.03)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_sdpa_with_a_mask_equals_eager_on_cuda() -> None:
    ids = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 2, 2], [0] * 9], device="cuda")
    documents = Documents(torch.zeros(2, 9, dtype=torch.long, device="cuda"), ids)
    inputs = [tensor.cuda() for tensor in heads(dtype=torch.float32)]
    torch.testing.assert_close(sdpa.bind(documents)(*inputs), eager.bind(documents)(*inputs), rtol=0, atol=1e-5)
