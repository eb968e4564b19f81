"""The binding, with a stand-in for the package that computes from its arguments alone; on a GPU the package itself."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from hypothesis import given, settings

from model.attention_backends import flash_attention_2
from model.attention_backends.selection import AttentionBackendError, is_installed
from model.documents import Documents

MODULE = "flash_attn"
TOLERANCE = 1e-10  # fp64, sums in another order, of gradients that may be zero


def test_it_equals_the_formula(fake_flash: Any, against_formula: Any, make_documents: Any, layout: Any) -> None:
    fake = fake_flash(MODULE)
    documents = make_documents()
    attend = flash_attention_2.bind(documents, dtype=torch.bfloat16, head_dim=layout[2])
    against_formula(attend, documents, layout, dtype=torch.float64, tolerance=TOLERANCE)
    assert len(fake.calls) == 1


def test_it_equals_the_formula_on_any_boundaries(fake_flash: Any, against_formula: Any, boundaries: Any) -> None:
    fake_flash(MODULE)

    @settings(max_examples=30)
    @given(documents=boundaries)
    def check(documents: Any) -> None:
        attend = flash_attention_2.bind(documents, dtype=torch.bfloat16, head_dim=8)
        against_formula(attend, documents, (4, 2, 8), dtype=torch.float64, tolerance=TOLERANCE)

    check()


def test_all_layers_share_one_set_of_offsets(fake_flash: Any, make_documents: Any) -> None:
    fake = fake_flash(MODULE)
    documents = make_documents()
    attend = flash_attention_2.bind(documents, dtype=torch.bfloat16, head_dim=8)
    for _ in range(3):
        attend(*torch.ones(3, 2, 33, 2, 8))
    assert all(call["cu_seqlens_q"] is documents.cumulative_lengths for call in fake.calls)
    # a bound that is the same for every batch and needs no wait for the device
    assert {call["max_seqlen_q"] for call in fake.calls} == {33}


def test_a_package_that_was_built_for_another_torch_is_named(monkeypatch: Any) -> None:
    # what Python raises for None in sys.modules stands for an undefined symbol of the extension
    monkeypatch.setitem(sys.modules, MODULE, None)
    documents = Documents(torch.zeros(1, 3, dtype=torch.long), None)
    with pytest.raises(AttentionBackendError) as caught:
        flash_attention_2.bind(documents, dtype=torch.bfloat16, head_dim=8)
    assert str(caught.value).startswith(
        f"the package flash-attn is installed but does not load under torch {torch.__version__} ("
    )
    assert str(caught.value).endswith("); install one that was built for it, or take attn_implementation=sdpa")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.skipif(not is_installed("flash-attn"), reason="the package flash-attn is not installed")
def test_on_a_gpu_it_equals_the_formula(against_formula: Any, make_documents: Any, layout: Any) -> None:
    documents = make_documents("cuda")
    attend = flash_attention_2.bind(documents, dtype=torch.bfloat16, head_dim=layout[2])
    # bf16 keeps 8 bits, and the kernel rounds the weights to it
    against_formula(attend, documents, layout, dtype=torch.bfloat16, tolerance=2e-2)
