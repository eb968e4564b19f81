"""What cannot compute here is the user's to mend, in one line that names the way out."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest

from launch.config import TrainConfig, TrainingError
from launch.trainer import kernels
from launch.trainer.kernels import try_kernels
from model.attention_backends.selection import AttentionBackendError


def test_auto_is_resolved(train_config: Callable[..., TrainConfig]) -> None:
    assert try_kernels(train_config(), device_type="cpu") == "sdpa"


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (
            {"attn_implementation": "flex_attention"},
            "attn_implementation=flex_attention has no backward on cpu; take sdpa",
        ),
        (
            {"attn_implementation": "flash_attention_2"},
            "attn_implementation=flash_attention_2 needs a device of type cuda, got cpu; take sdpa",
        ),
        ({"loss_implementation": "liger"}, "loss_implementation=liger needs a CUDA device, got cpu; take chunked"),
        (
            {"compile": "deepcompile", "precision": "float32"},
            "compile=deepcompile needs a CUDA device, this is a cpu (its collectives are CUDA code); take "
            "compile=layers, or none",
        ),
    ],
)
def test_what_needs_another_device_says_so(
    train_config: Callable[..., TrainConfig], settings: dict[str, Any], line: str
) -> None:
    with pytest.raises(TrainingError) as caught:
        try_kernels(train_config(**settings), device_type="cpu")
    assert str(caught.value) == line


def test_a_loss_whose_package_does_not_load_is_said(
    train_config: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setitem(sys.modules, "model.liger_loss", None)
    config = train_config(loss_implementation="liger", attn_implementation="eager")
    with pytest.raises(TrainingError, match="liger-kernel is installed but does not load"):
        try_kernels(config, device_type="cuda")


def test_attention_whose_package_does_not_load_is_said(
    train_config: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    def bind(*parts: Any, **settings: Any) -> None:
        raise AttentionBackendError("the package flash-attn is installed but does not load")

    monkeypatch.setattr(kernels, "bind", bind)
    with pytest.raises(TrainingError, match="the package flash-attn is installed but does not load"):
        try_kernels(train_config(), device_type="cpu")


def test_the_step_that_a_run_goes_on_from_counts(
    train_config: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(kernels, "check_compile", lambda config, **settings: asked.append(settings))
    try_kernels(train_config(), device_type="cpu", first_step=40)
    assert asked == [{"device_type": "cpu", "attention": "sdpa", "first_step": 40}]
