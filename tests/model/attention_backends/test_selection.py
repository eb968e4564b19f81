from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

import model
from model.attention_backends.selection import NAMES, AttentionBackendError, resolve
from model.transformer import SmolLM2


def pretend_installed(monkeypatch: pytest.MonkeyPatch, installed: bool) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if installed else None)


def test_names_are_those_of_transformers_and_auto() -> None:
    assert set(NAMES) == {
        "auto",
        "eager",
        "sdpa",
        "flex_attention",
        "flash_attention_2",
        "flash_attention_3",
        "flash_attention_4",
    }


@pytest.mark.parametrize(
    ("device_type", "dtype", "installed", "wanted"),
    [
        ("cuda", torch.bfloat16, True, "flash_attention_2"),
        ("cuda", torch.bfloat16, False, "sdpa"),
        ("cuda", torch.float32, True, "sdpa"),
        ("cpu", torch.bfloat16, True, "sdpa"),
    ],
)
def test_auto_chooses(monkeypatch: Any, device_type: str, dtype: torch.dtype, installed: bool, wanted: str) -> None:
    pretend_installed(monkeypatch, installed)
    assert resolve("auto", device_type=device_type, dtype=dtype) == wanted


@pytest.mark.parametrize("name", ["eager", "sdpa"])
def test_an_explicit_choice_stays(name: str) -> None:
    assert resolve(name, device_type="cuda", dtype=torch.bfloat16) == name


@pytest.mark.parametrize("name", ["flex_attention", "flash_attention_3", "flash_attention_4"])
def test_a_kernel_not_written_yet_is_refused_at_construction(make_model: Any, name: str) -> None:
    with pytest.raises(
        AttentionBackendError, match=rf"^attn_implementation={name} is not implemented; take .* or sdpa$"
    ):
        make_model(attn_implementation=name)


def test_a_missing_package_is_named(monkeypatch: Any, make_model: Any) -> None:
    pretend_installed(monkeypatch, False)
    with pytest.raises(
        AttentionBackendError, match=r"needs the Python package flash_attn, which is not installed; .* take sdpa"
    ):
        make_model(attn_implementation="flash_attention_2")


def test_flash_attention_without_cuda_names_what_it_needs(monkeypatch: Any) -> None:
    pretend_installed(monkeypatch, True)
    with pytest.raises(AttentionBackendError, match="needs bfloat16 on a CUDA device, got float32 on cpu; take sdpa"):
        resolve("flash_attention_2", device_type="cpu", dtype=torch.float32)


def test_an_unknown_name_lists_the_known(make_model: Any) -> None:
    with pytest.raises(AttentionBackendError, match="'flash' is unknown; take one of auto, eager, sdpa"):
        SmolLM2(make_model().config, attn_implementation="flash")


def test_flash_attn_is_imported_in_one_file() -> None:
    room = Path(model.__path__[0])
    importing = [file.name for file in room.rglob("*.py") if "from flash_attn" in file.read_text()]
    assert importing == ["flash_attention_2.py"]
