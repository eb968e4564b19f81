"""Which computation of the loss runs where; Liger's own numbers, on a GPU."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest
import torch

from model.loss import LossTerms, chunked_loss
from model.loss_selection import LossImplementationError, bind, check_loss_implementation
from model.transformer import SmolLM2


def test_chunked_needs_nothing_of_liger() -> None:
    assert bind("chunked", device_type="cpu") is chunked_loss
    assert not any(name.startswith("liger") for name in sys.modules)


def test_liger_is_refused_on_a_cpu() -> None:
    with pytest.raises(
        LossImplementationError, match=r"^loss_implementation=liger needs a CUDA device, got cpu; take chunked$"
    ):
        check_loss_implementation("liger", device_type="cpu")


def test_liger_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        LossImplementationError,
        match="needs the Python package liger-kernel, which is not installed; install the extra",
    ):
        check_loss_implementation("liger", device_type="cuda")


def test_liger_that_does_not_load_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setitem(sys.modules, "model.liger_loss", None)  # an import of it raises ImportError
    with pytest.raises(
        LossImplementationError,
        match=r"^loss_implementation=liger: liger-kernel is installed but does not load \(.*\); ",
    ):
        bind("liger", device_type="cuda")


def test_an_unknown_name_is_told_the_known_ones() -> None:
    with pytest.raises(LossImplementationError, match="'cut' is unknown; take one of chunked, liger"):
        bind("cut", device_type="cpu")


def test_a_model_looks_at_the_name_at_once(make_model: Any) -> None:
    with pytest.raises(LossImplementationError, match="'cut' is unknown"):
        SmolLM2(make_model().config, loss_implementation="cut")


def test_liger_trains_and_the_chunked_loss_evaluates(monkeypatch: pytest.MonkeyPatch) -> None:
    def liger_loss(*tensors: Any, **settings: Any) -> LossTerms:
        raise NotImplementedError

    fake = ModuleType("model.liger_loss")
    fake.liger_loss = liger_loss  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "model.liger_loss", fake)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    assert bind("liger", device_type="cuda") is liger_loss
    with torch.no_grad():
        assert bind("liger", device_type="cuda") is chunked_loss


@pytest.mark.gpu
@pytest.mark.parametrize("z_loss_coefficient", [0.0, 1e-2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_liger_computes_the_chunked_loss(dtype: torch.dtype, z_loss_coefficient: float) -> None:
    pytest.importorskip("liger_kernel", reason="the extra `gpu` is not installed")
    from model.liger_loss import liger_loss

    compare(liger_loss, dtype=dtype, z_loss_coefficient=z_loss_coefficient, device="cuda")


def compare(liger_loss: Any, *, dtype: torch.dtype, z_loss_coefficient: float, device: str) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(96, 64, generator=generator).to(device, dtype).requires_grad_()
    weight = (torch.randn(301, 64, generator=generator) / 8).to(device, dtype).requires_grad_()
    labels = torch.randint(0, 301, (96,), generator=generator).to(device)
    labels[[0, 5, 95]] = -100
    ours, theirs = (
        compute(hidden, weight, labels, z_loss_coefficient=z_loss_coefficient) for compute in (chunked_loss, liger_loss)
    )
    # Liger rounds a chunk's logits, of a few units, and its gradient to the parameters' dtype
    tolerance = 1e-5 if dtype == torch.float32 else 2**-7
    for got, wanted in zip(theirs, ours, strict=True):
        torch.testing.assert_close(got, wanted, rtol=tolerance, atol=0)
    gradients = (torch.autograd.grad(terms.total, (hidden, weight)) for terms in (theirs, ours))
    for got, wanted in zip(*gradients, strict=True):
        assert (got - wanted).norm() / wanted.norm() < tolerance
