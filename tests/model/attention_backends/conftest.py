"""What the test of each kernel shares: head layouts, boundaries, the formula to compare with, packages not here.

A kernel's test file needs this and its own kernel, and no other (`test_removal.py`).
"""

from __future__ import annotations

import functools
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import strategies as st

from model.attention_backends.selection import Attend
from model.documents import Documents

ROOT = Path(__file__).resolve().parents[3]
# heads, key/value heads, head_dim: of configs/model/smollm2-seed.yaml, of smollm2-135m.yaml, and one key for all
LAYOUTS = {"seed": (3, 3, 192), "135m": (9, 3, 64), "multi-query": (4, 1, 16)}
# rows of 33 tokens: one-token documents at both ends and in between; a document as long as the sequence; padding (−1)
CASES = {
    "ragged": [[0] + [1] * 9 + [2] + [3] * 21 + [4], [7] * 33],
    "one-token": [list(range(33)), [0] * 32 + [1]],
    "padded": [[0] * 20 + [-1] * 13, [0] * 5 + [1] * 20 + [-1] * 8],
    "unmasked": None,
}


@pytest.fixture(params=LAYOUTS)
def layout(request: Any) -> tuple[int, int, int]:
    return LAYOUTS[request.param]


@pytest.fixture(params=CASES)
def make_documents(request: Any) -> Callable[..., Documents]:
    """The documents of a case, on a device."""
    rows = CASES[request.param]

    def make(device: str = "cpu") -> Documents:
        ids = None if rows is None else torch.tensor(rows, device=device)
        return Documents(torch.zeros(2, 33, dtype=torch.long, device=device), ids)

    return make


@pytest.fixture(scope="session")
def boundaries() -> st.SearchStrategy[Documents]:
    """One or two rows of 1 to 24 tokens, cut anywhere."""

    def documents_of(rows: list[list[bool]]) -> Documents:
        ids = torch.tensor(rows, dtype=torch.long).cumsum(dim=1)
        return Documents(torch.zeros_like(ids), ids)

    def rows_of(shape: tuple[int, int]) -> st.SearchStrategy[list[list[bool]]]:
        rows, tokens = shape
        row = st.lists(st.booleans(), min_size=tokens, max_size=tokens)
        return st.lists(row, min_size=rows, max_size=rows)

    return st.tuples(st.integers(1, 2), st.integers(1, 24)).flatmap(rows_of).map(documents_of)


@pytest.fixture(scope="session")
def against_formula() -> Callable[..., None]:
    """Compare an Attend with the formula: the output and the gradients of query, key and value, each by relative norm.

    Under torch.no_grad the output alone.
    """

    def compare(
        attend: Attend, documents: Documents, layout: tuple[int, int, int], *, dtype: torch.dtype, tolerance: float
    ) -> None:
        differences = relative_differences(attend, documents, layout, dtype=dtype)
        worst = {name: norm for name, norm in differences.items() if not norm <= tolerance}
        assert not worst, f"above {tolerance}: {worst}"

    return compare


def relative_differences(
    attend: Attend, documents: Documents, layout: tuple[int, int, int], *, dtype: torch.dtype
) -> dict[str, float]:
    heads, kv_heads, head_dim = layout
    generator = torch.Generator().manual_seed(0)
    shape = (documents.batch, documents.sequence_length)
    drawn = [
        torch.randn(*shape, count, head_dim, generator=generator, dtype=torch.float64)
        for count in (heads, kv_heads, kv_heads, heads)
    ]
    *inputs, upstream = (tensor.to(documents.device, dtype) for tensor in drawn)
    results = []
    reference = functools.partial(attend_by_formula, documents.may_attend)
    # in fp64 whatever the kernel's dtype, from inputs rounded to it
    for kernel, precision in ((attend, dtype), (reference, torch.float64)):
        leaves = [tensor.detach().to(precision).requires_grad_(torch.is_grad_enabled()) for tensor in inputs]
        attended = kernel(*leaves)
        assert attended.shape == leaves[0].shape
        gradients = ()
        if torch.is_grad_enabled():
            gradients = torch.autograd.grad(attended, leaves, upstream.to(precision))
        results.append([tensor.to(torch.float64) for tensor in (attended.detach(), *gradients)])
    names = ("output", "query's gradient", "key's gradient", "value's gradient")
    return {
        name: float((ours - theirs).norm() / theirs.norm().clamp(min=1e-3))
        for name, ours, theirs in zip(names, *results, strict=False)
    }


def attend_by_formula(
    may_attend: torch.Tensor, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
) -> torch.Tensor:
    """softmax(Q Kᵀ / sqrt(head_dim)) V of each head, from and to [batch, seq, heads, head_dim]."""
    heads = []
    for head in range(query.shape[2]):
        shared = head * key.shape[2] // query.shape[2]
        scores = query[:, :, head] @ key[:, :, shared].mT / math.sqrt(query.shape[3])
        weights = scores.masked_fill(~may_attend[:, 0], -torch.inf).softmax(dim=-1)
        heads.append(weights @ value[:, :, shared])
    return torch.stack(heads, dim=2)


class FakeFlash:
    """Stands for a package's flash_attn_varlen_func: the documents one by one, from nothing but its arguments."""

    def __init__(self, *, returns_log_sum_exp: bool) -> None:
        self.returns_log_sum_exp = returns_log_sum_exp
        self.calls: list[dict[str, Any]] = []

    def __call__(self, query: Any, key: Any, value: Any, **options: Any) -> Any:
        self.calls.append(options)
        assert set(options) == {"cu_seqlens_q", "cu_seqlens_k", "max_seqlen_q", "max_seqlen_k", "causal"}
        assert options["causal"] is True
        assert options["cu_seqlens_q"] is options["cu_seqlens_k"]
        attended = attend_by_offsets(query, key, value, options["cu_seqlens_q"], options["max_seqlen_q"])
        return (attended, torch.zeros(query.shape[1], query.shape[0])) if self.returns_log_sum_exp else attended


def attend_by_offsets(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, offsets: torch.Tensor, longest: int
) -> torch.Tensor:
    """[tokens, heads, head_dim] as the packages take it; every promise that the offsets make is checked."""
    assert query.dim() == key.dim() == value.dim() == 3
    assert offsets.dtype == torch.int32
    assert offsets.is_contiguous()
    assert offsets[0] == 0
    assert offsets[-1] == query.shape[0] == key.shape[0] == value.shape[0]
    lengths = offsets.diff().tolist()
    assert min(lengths) >= 1
    assert max(lengths) <= longest
    groups = query.shape[1] // key.shape[1]
    pieces = []
    for begin, length in zip(offsets.tolist(), lengths, strict=False):
        here = slice(begin, begin + length)
        causal = torch.ones(length, length, dtype=torch.bool).triu(diagonal=1)
        for head in range(query.shape[1]):
            scores = query[here, head] @ key[here, head // groups].T * query.shape[2] ** -0.5
            pieces.append(scores.masked_fill(causal, -torch.inf).softmax(dim=-1) @ value[here, head // groups])
    by_document = [torch.stack(pieces[at : at + query.shape[1]], 1) for at in range(0, len(pieces), query.shape[1])]
    return torch.cat(by_document)


@pytest.fixture
def by_offsets() -> Callable[..., torch.Tensor]:
    return attend_by_offsets


@pytest.fixture
def fake_flash(monkeypatch: pytest.MonkeyPatch) -> Callable[..., FakeFlash]:
    """Puts a fake of a package's module into sys.modules, its parents included."""

    def install(module: str, *, returns_log_sum_exp: bool = False) -> FakeFlash:
        fake = FakeFlash(returns_log_sum_exp=returns_log_sum_exp)
        names = module.split(".")
        for depth in range(1, len(names) + 1):
            name = ".".join(names[:depth])
            monkeypatch.setitem(sys.modules, name, ModuleType(name))
        sys.modules[module].flash_attn_varlen_func = fake  # type: ignore[attr-defined]
        return fake

    return install


@pytest.fixture
def run_program() -> Callable[..., Any]:
    """What a program beside this file prints as JSON. torch.compile cannot trace the checks that pytest adds."""

    def run(name: str, *arguments: str) -> Any:
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, str(Path(__file__).with_name(name)), *arguments]
        ran = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert ran.returncode == 0, ran.stderr[-2000:]
        return json.loads(ran.stdout)

    return run


@pytest.fixture
def packed_and_alone(make_model: Any, tokens: torch.Tensor) -> Callable[[str], tuple[torch.Tensor, torch.Tensor]]:
    """Logits of a whole model over two packed rows, and of each document by itself."""
    lengths = ((10, 5, 17, 1), (33,))

    def run(kernel: str) -> tuple[torch.Tensor, torch.Tensor]:
        model = make_model(attn_implementation=kernel)
        ids = torch.stack([torch.arange(len(row)).repeat_interleave(torch.tensor(row)) for row in lengths])
        packed = model(tokens, document_ids=ids).flatten(0, 1)
        pieces = [piece[None] for row, cuts in zip(tokens, lengths, strict=True) for piece in row.split(cuts)]
        assert (packed - model(tokens).flatten(0, 1)).abs().max() > 0.1  # the boundaries matter
        return packed, torch.cat([model(piece)[0] for piece in pieces])

    return run
