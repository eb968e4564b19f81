from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import create_block_mask, create_mask
from torch.nn.attention.flex_attention import flex_attention as uncompiled

from model.attention_backends import flex_attention
from model.attention_backends.selection import Attend
from model.documents import Documents


def documents_of(*rows: list[int]) -> Documents:
    ids = torch.stack([torch.arange(len(row)).repeat_interleave(torch.tensor(row)) for row in rows])
    return Documents(torch.zeros_like(ids), ids)


@pytest.fixture
def without_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's plain evaluation of the same call, which takes fp64 and compiles no C++. On CPU it is a forward only."""
    monkeypatch.setattr(flex_attention, "_compiled_flex_attention", uncompiled)


@pytest.mark.usefixtures("without_compiler")
def test_it_equals_the_formula(against_formula: Any, make_documents: Any, layout: Any) -> None:
    documents = make_documents()
    attend = flex_attention.bind(documents, dtype=torch.float64, head_dim=layout[2])
    with torch.no_grad():
        against_formula(attend, documents, layout, dtype=torch.float64, tolerance=1e-10)


def test_its_mask_is_that_of_the_documents(make_documents: Any) -> None:
    documents = make_documents()
    mask = flex_attention.block_mask(documents)
    tokens = documents.sequence_length
    dense = create_mask(mask.mask_mod, documents.batch, 1, tokens, tokens, device="cpu")
    assert torch.equal(dense, documents.may_attend)


@settings(max_examples=60)
@given(cuts=st.lists(st.lists(st.integers(1, 599), max_size=6), min_size=2, max_size=2))
def test_its_blocks_are_those_of_create_block_mask(cuts: list[list[int]]) -> None:
    """torch evaluates every pair of tokens. 600 tokens: four blocks of 128 and one that the sequence ends in."""
    edges = [sorted({0, 600, *row}) for row in cuts]
    documents = documents_of(*([end - start for start, end in itertools.pairwise(row)] for row in edges))
    ours = flex_attention.block_mask(documents)
    torch_s = create_block_mask(ours.mask_mod, 2, None, 600, 600, device="cpu")
    assert ours.shape == torch_s.shape
    assert torch.equal(ours.to_dense(), torch_s.to_dense())
    # full blocks are never masked inside: torch's are, where the sequence ends, only those that it ends in
    whole = slice(None), slice(None), slice(0, 4)
    assert ours.full_kv_num_blocks is not None
    assert torch_s.full_kv_num_blocks is not None
    assert torch.equal(ours.full_kv_num_blocks[whole], torch_s.full_kv_num_blocks[whole])
    assert torch.equal(ours.kv_num_blocks[whole], torch_s.kv_num_blocks[whole])


def test_all_layers_share_one_block_mask(monkeypatch: Any, make_model: Any, tokens: torch.Tensor) -> None:
    seen = []

    def recording(*arguments: Any, block_mask: Any, **options: Any) -> Any:
        seen.append(block_mask)
        return uncompiled(*arguments, block_mask=block_mask, **options)

    monkeypatch.setattr(flex_attention, "_compiled_flex_attention", recording)
    with torch.no_grad():
        make_model(attn_implementation="flex_attention", num_hidden_layers=3)(tokens)
    assert len(seen) == 3
    assert all(mask is seen[0] for mask in seen)


def test_a_compiled_layer_is_built_once(run_program: Any) -> None:
    assert run_program("compiled_layer.py", "flex_attention") == [1] * 6


def test_compiled_for_a_cpu_it_equals_torch_s_attention_and_is_compiled_once(run_program: Any) -> None:
    """The only test that compiles C++: half a minute, and more on a busy machine."""
    batches = run_program("compiled_flex_attention.py")
    assert [batch["graphs"] for batch in batches] == [1] * 4
    assert max(batch["difference"] for batch in batches) < 2e-6  # fp32, sums in another order


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_on_a_gpu_it_equals_the_formula(
    against_formula: Any, make_documents: Any, layout: Any, dtype: torch.dtype
) -> None:
    documents = make_documents("cuda")
    attend = flex_attention.bind(documents, dtype=dtype, head_dim=layout[2])
    assert isinstance(attend, Attend)
    # bf16 keeps 8 bits and the kernel rounds the weights to it; its fp32 products are TF32's, of 10 bits
    against_formula(
        attend, documents, layout, dtype=dtype, tolerance={torch.bfloat16: 2e-2, torch.float32: 5e-3}[dtype]
    )
