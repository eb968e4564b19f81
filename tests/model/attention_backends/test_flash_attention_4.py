"""The binding, with a stand-in for the package that computes from its arguments alone; on a GPU the package itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings

from model.attention_backends import flash_attention_4
from model.attention_backends.selection import is_installed

MODULE = "flash_attn.cute"
TOLERANCE = 1e-10  # fp64, sums in another order, of gradients that may be zero


def test_it_equals_the_formula(fake_flash: Any, against_formula: Any, make_documents: Any, layout: Any) -> None:
    fake = fake_flash(MODULE, returns_log_sum_exp=True)
    documents = make_documents()
    attend = flash_attention_4.bind(documents, dtype=torch.bfloat16, head_dim=layout[2])
    against_formula(attend, documents, layout, dtype=torch.float64, tolerance=TOLERANCE)
    assert len(fake.calls) == 1


def test_it_equals_the_formula_on_any_boundaries(fake_flash: Any, against_formula: Any, boundaries: Any) -> None:
    fake_flash(MODULE, returns_log_sum_exp=True)

    @settings(max_examples=30)
    @given(documents=boundaries)
    def check(documents: Any) -> None:
        attend = flash_attention_4.bind(documents, dtype=torch.bfloat16, head_dim=8)
        against_formula(attend, documents, (4, 2, 8), dtype=torch.float64, tolerance=TOLERANCE)

    check()


def test_all_layers_share_one_set_of_offsets(fake_flash: Any, make_documents: Any) -> None:
    fake = fake_flash(MODULE, returns_log_sum_exp=True)
    documents = make_documents()
    attend = flash_attention_4.bind(documents, dtype=torch.bfloat16, head_dim=8)
    for _ in range(3):
        attend(*torch.ones(3, 2, 33, 2, 8))
    assert all(call["cu_seqlens_q"] is documents.cumulative_lengths for call in fake.calls)
    # a bound that is the same for every batch and needs no wait for the device
    assert {call["max_seqlen_q"] for call in fake.calls} == {33}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.skipif(not is_installed("flash-attn-4"), reason="the package flash-attn-4 is not installed")
def test_on_a_gpu_it_equals_the_formula(against_formula: Any, make_documents: Any, layout: Any) -> None:
    documents = make_documents("cuda")
    attend = flash_attention_4.bind(documents, dtype=torch.bfloat16, head_dim=layout[2])
    # bf16 keeps 8 bits, and the kernel rounds the weights to it
    against_formula(attend, documents, layout, dtype=torch.bfloat16, tolerance=2e-2)
