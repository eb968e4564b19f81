from __future__ import annotations

import functools
import subprocess
import sys
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention import varlen

from model.attention_backends import by_document, sdpa
from model.attention_backends.selection import Attend
from model.documents import Documents

# sums in another order, over some hundred terms, and gradients that may be zero
TOLERANCES = {torch.float64: 1e-10, torch.float32: 2e-6}


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_it_equals_the_formula(against_formula: Any, make_documents: Any, layout: Any, dtype: torch.dtype) -> None:
    documents = make_documents()
    attend = sdpa.bind(documents, dtype=dtype, head_dim=layout[2])
    against_formula(attend, documents, layout, dtype=dtype, tolerance=TOLERANCES[dtype])


def test_with_a_mask_it_equals_the_formula(against_formula: Any, make_documents: Any, layout: Any) -> None:
    documents = make_documents()
    attend = sdpa.with_mask(documents, dtype=torch.float64)
    against_formula(attend, documents, layout, dtype=torch.float64, tolerance=1e-10)


def test_with_repeated_keys_it_equals_the_formula(against_formula: Any, layout: Any) -> None:
    documents = Documents(torch.zeros(2, 33, dtype=torch.long), None)
    against_formula(Attend(sdpa._causal_repeated), documents, layout, dtype=torch.float64, tolerance=1e-10)


@pytest.mark.parametrize(
    ("device", "dtype", "kernel"),
    [
        ("cpu", torch.float32, sdpa._causal),
        ("cuda", torch.bfloat16, sdpa._causal),
        ("cuda", torch.float32, sdpa._causal_repeated),
    ],
)
def test_keys_are_repeated_where_no_fused_kernel_shares_them(device: str, dtype: torch.dtype, kernel: Any) -> None:
    documents = Documents(torch.zeros(1, 3, dtype=torch.long), None)
    documents.device = torch.device(device)
    assert sdpa.bind(documents, dtype=dtype, head_dim=64).kernel is kernel


@settings(max_examples=60)
@given(data=st.data())
def test_it_equals_the_formula_on_any_boundaries(against_formula: Any, boundaries: Any, data: st.DataObject) -> None:
    documents = data.draw(boundaries)
    attend = sdpa.bind(documents, dtype=torch.float64, head_dim=8)
    against_formula(attend, documents, (4, 2, 8), dtype=torch.float64, tolerance=1e-10)
    masked = sdpa.with_mask(documents, dtype=torch.float64)
    against_formula(masked, documents, (4, 2, 8), dtype=torch.float64, tolerance=1e-10)


def test_a_model_gives_each_document_its_own_logits(packed_and_alone: Any) -> None:
    packed, alone = packed_and_alone("sdpa")
    torch.testing.assert_close(packed, alone, rtol=0, atol=5e-6)  # fp32, sums in another order


@pytest.mark.parametrize("kernel", ["sdpa", "varlen"])
def test_a_compiled_layer_is_built_whole_and_then_for_any_number_of_documents(run_program: Any, kernel: str) -> None:
    """Six batches: the first builds it for its own number, the second for every number."""
    assert run_program("compiled_layer.py", kernel) == [1, 2, 2, 2, 2, 2]


def test_the_operator_is_as_torch_asks() -> None:
    """torch's own check: shapes without data, registration of the gradient, no change of an input."""
    heads = [torch.randn(9, count, 8, requires_grad=True) for count in (4, 2, 2)]
    offsets = torch.tensor([0, 1, 6, 9], dtype=torch.int32)
    torch.library.opcheck(
        by_document._forward,
        (*heads, offsets),
        test_utils=("test_schema", "test_autograd_registration", "test_faketensor"),
    )


# the signatures of varlen_attn, by the version of torch that they are from
def torch_2_12(
    query: Any, key: Any, value: Any, cu_seq_q: Any, cu_seq_k: Any, max_q: int, max_k: int, *, return_aux: Any = None,
    scale: Any = None, window_size: Any = (-1, -1), enable_gqa: bool = False, seqused_k: Any = None,
) -> Any:  # fmt: skip
    assert enable_gqa or query.shape[1] == key.shape[1]
    return (query, key, value, cu_seq_q, max_q), window_size == (-1, 0)


def torch_2_11(
    query: Any, key: Any, value: Any, cu_seq_q: Any, cu_seq_k: Any, max_q: int, max_k: int, *, return_aux: Any = None,
    scale: Any = None, window_size: Any = (-1, -1),
) -> Any:  # fmt: skip
    return (query, key, value, cu_seq_q, max_q), window_size == (-1, 0)


def torch_2_10(
    query: Any, key: Any, value: Any, cu_seq_q: Any, cu_seq_k: Any, max_q: int, max_k: int, is_causal: bool = False,
    return_aux: Any = None,
) -> Any:  # fmt: skip
    return (query, key, value, cu_seq_q, max_q), is_causal


@pytest.mark.parametrize("version", [torch_2_12, torch_2_11, torch_2_10])
def test_torch_s_varlen_attn_gets_offsets_and_causality(
    monkeypatch: Any, against_formula: Any, by_offsets: Any, make_documents: Any, layout: Any, version: Any
) -> None:
    """The kernel needs a GPU: here its signature is torch's, and the result is computed from its arguments alone."""

    @functools.wraps(version)
    def varlen_attn(*arguments: Any, **options: Any) -> torch.Tensor:
        tensors, causal = version(*arguments, **options)
        assert causal
        attended: torch.Tensor = by_offsets(*tensors)
        return attended

    monkeypatch.setattr(varlen, "varlen_attn", varlen_attn)
    documents = make_documents()
    sdpa._varlen.cache_clear()
    attend = sdpa.within_documents(documents.cumulative_lengths, documents.sequence_length)
    sdpa._varlen.cache_clear()
    against_formula(attend, documents, layout, dtype=torch.float64, tolerance=1e-10)


@pytest.mark.parametrize(
    ("dtype", "head_dim", "capability", "kernel"),
    [
        (torch.bfloat16, 64, (8, 0), sdpa._within_documents),
        (torch.float16, 192, (9, 0), sdpa._within_documents),
        (torch.float32, 64, (9, 0), sdpa._masked),
        (torch.bfloat16, 200, (9, 0), sdpa._masked),
        (torch.bfloat16, 20, (9, 0), sdpa._masked),
        (torch.bfloat16, 64, (7, 5), sdpa._masked),
    ],
)
def test_on_a_gpu_the_mask_stands_in_only_where_the_kernel_does_not_run(
    monkeypatch: Any, dtype: torch.dtype, head_dim: int, capability: tuple[int, int], kernel: Any
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    ids = torch.tensor([[0, 0, 1]])
    documents = Documents(ids, ids)
    assert documents.cumulative_lengths.tolist() == [0, 2, 3]
    documents.device = torch.device("cuda")
    assert sdpa.bind(documents, dtype=dtype, head_dim=head_dim).kernel is kernel


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_on_a_gpu_it_equals_the_formula(
    against_formula: Any, make_documents: Any, layout: Any, dtype: torch.dtype
) -> None:
    documents = make_documents("cuda")
    attend = sdpa.bind(documents, dtype=dtype, head_dim=layout[2])
    # bf16 keeps 8 bits and the kernel rounds the weights to it; fp32 products may use TF32-like splits of 10 bits
    against_formula(
        attend, documents, layout, dtype=dtype, tolerance={torch.bfloat16: 2e-2, torch.float32: 2e-3}[dtype]
    )


def test_it_is_there_without_any_other_package() -> None:
    program = (
        "import sys, torch\n"
        "from model.attention_backends import selection\n"
        "from model.documents import Documents\n"
        "ids = torch.tensor([[0, 0, 1]])\n"
        "attend = selection.bind('sdpa', Documents(ids, ids), dtype=torch.float32, head_dim=8)\n"
        "attend(*torch.ones(3, 1, 3, 2, 8))\n"
        "print(sorted(name for name in sys.modules if 'flash_attn' in name or 'triton' == name))\n"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
