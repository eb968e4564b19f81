from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import model
from model.attention_backends import selection
from model.attention_backends.selection import KERNELS, NAMES, AttentionBackendError, resolve
from model.transformer import SmolLM2

ROOT = Path(__file__).resolve().parents[3]
FLASH = [name for name in KERNELS if name.startswith("flash")]


def pretend(monkeypatch: pytest.MonkeyPatch, *, installed: bool = True, capability: tuple[int, int] = (9, 0)) -> None:
    monkeypatch.setattr(selection, "is_installed", lambda package: installed)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)


def message_of(name: str, *, device_type: str = "cuda", dtype: torch.dtype = torch.bfloat16, head_dim: int = 64) -> str:
    with pytest.raises(AttentionBackendError) as caught:
        resolve(name, device_type=device_type, dtype=dtype, head_dim=head_dim)
    message = str(caught.value)
    assert "\n" not in message
    return message


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


def test_every_line_of_the_table_has_its_file() -> None:
    folder = Path(model.__path__[0]) / "attention_backends"
    assert {name for name in KERNELS if (folder / f"{name}.py").is_file()} == set(KERNELS)


@pytest.mark.parametrize(
    ("device_type", "dtype", "head_dim", "installed", "capability", "wanted"),
    [
        ("cuda", torch.bfloat16, 64, True, (9, 0), "flash_attention_2"),
        ("cuda", torch.float16, 192, True, (8, 0), "flash_attention_2"),
        ("cuda", torch.bfloat16, 64, False, (9, 0), "sdpa"),
        ("cuda", torch.float32, 64, True, (9, 0), "sdpa"),
        ("cuda", torch.bfloat16, 60, True, (9, 0), "sdpa"),
        ("cuda", torch.bfloat16, 64, True, (7, 5), "sdpa"),
        ("cpu", torch.bfloat16, 64, True, (9, 0), "sdpa"),
    ],
)
def test_auto_takes_the_first_that_runs(
    monkeypatch: Any, device_type: str, dtype: Any, head_dim: int, installed: bool, capability: Any, wanted: str
) -> None:
    pretend(monkeypatch, installed=installed, capability=capability)
    assert resolve("auto", device_type=device_type, dtype=dtype, head_dim=head_dim) == wanted


@pytest.mark.parametrize("name", [name for name in NAMES if name != "auto"])
def test_an_explicit_choice_stays(monkeypatch: Any, name: str) -> None:
    pretend(monkeypatch)
    assert resolve(name, device_type="cuda", dtype=torch.bfloat16, head_dim=64) == name


@pytest.mark.parametrize("name", FLASH)
def test_flash_attention_on_a_cpu_is_refused(monkeypatch: Any, name: str) -> None:
    pretend(monkeypatch)
    assert message_of(name, device_type="cpu").startswith(
        f"attn_implementation={name} needs a device of type cuda, got cpu; take "
    )


@pytest.mark.parametrize("name", FLASH)
def test_flash_attention_in_full_precision_is_refused(monkeypatch: Any, name: str) -> None:
    pretend(monkeypatch)
    assert "needs bfloat16 or float16, got float32; take" in message_of(name, dtype=torch.float32)


@pytest.mark.parametrize("name", FLASH)
def test_a_head_size_between_multiples_of_eight_is_refused(monkeypatch: Any, name: str) -> None:
    pretend(monkeypatch)
    assert "needs a head_dim that is a multiple of 8, got 60; take" in message_of(name, head_dim=60)


@pytest.mark.parametrize(
    ("name", "capability", "head_dim", "words"),
    [
        (
            "flash_attention_2",
            (7, 5),
            64,
            "needs a GPU of compute capability 8.x or 9.x or 10.x or 11.x or 12.x, got 7.5; take sdpa",
        ),
        (
            "flash_attention_2",
            (9, 0),
            264,
            "needs a head_dim of at most 256 on compute capability 9.0, got 264; take sdpa",
        ),
        (
            "flash_attention_3",
            (8, 0),
            64,
            "needs a GPU of compute capability 9.x, got 8.0; take flash_attention_2 or sdpa",
        ),
        (
            "flash_attention_4",
            (8, 9),
            64,
            "needs a GPU of compute capability 9.x or 10.x or 11.x, got 8.9; take flash_attention_2 or sdpa",
        ),
        (
            "flash_attention_4",
            (10, 0),
            192,
            "needs a head_dim of at most 128 on compute capability 10.0, got 192; take flash_attention_2 or sdpa",
        ),
    ],
)
def test_what_the_gpu_cannot_do_is_refused(
    monkeypatch: Any, name: str, capability: tuple[int, int], head_dim: int, words: str
) -> None:
    pretend(monkeypatch, capability=capability)
    assert message_of(name, head_dim=head_dim) == f"attn_implementation={name} {words}"


@pytest.mark.parametrize("name", ["flash_attention_3", "flash_attention_4"])
def test_an_amd_gpu_does_not_pass_for_hopper(monkeypatch: Any, name: str) -> None:
    pretend(monkeypatch, capability=(9, 4))  # what ROCm says of an MI300
    monkeypatch.setattr(torch.version, "hip", "6.4.2")
    assert "needs a GPU of NVIDIA's, got one of AMD's (ROCm); take flash_attention_2 or sdpa" in message_of(name)


@pytest.mark.parametrize("name", FLASH)
def test_heads_of_192_run_on_hopper(monkeypatch: Any, name: str) -> None:
    pretend(monkeypatch)
    assert resolve(name, device_type="cuda", dtype=torch.bfloat16, head_dim=192) == name


def test_flex_attention_does_not_train_on_a_cpu() -> None:
    assert message_of("flex_attention", device_type="cpu", dtype=torch.float32) == (
        "attn_implementation=flex_attention has no backward on cpu; take sdpa"
    )
    with torch.no_grad():
        assert resolve("flex_attention", device_type="cpu", dtype=torch.float32, head_dim=64) == "flex_attention"


def test_flex_attention_of_tiny_heads_on_a_gpu_is_refused() -> None:
    assert message_of("flex_attention", head_dim=8) == (
        "attn_implementation=flex_attention needs a head_dim of at least 16 on cuda, got 8; take sdpa"
    )


def test_flex_attention_in_double_precision_is_refused() -> None:
    with torch.no_grad():
        assert "needs float32 or bfloat16 or float16, got float64; take sdpa" in message_of(
            "flex_attention", device_type="cpu", dtype=torch.float64
        )


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            "flash_attention_2",
            r"needs the package flash-attn, which is not installed; "
            r"install it with `pip install -c constraints.txt -e '.[gpu]'`, or take sdpa",
        ),
        (
            "flash_attention_3",
            "needs the package flash-attn-3, which is not installed; install it with `pip install flash-attn-3 "
            "--index-url https://download.pytorch.org/whl/cu130`, or take flash_attention_2 or sdpa",
        ),
        (
            "flash_attention_4",
            "needs the package flash-attn-4, which is not installed; install it with `pip install --pre "
            "flash-attn-4`, or take flash_attention_2 or sdpa",
        ),
    ],
)
def test_a_missing_package_is_refused_when_the_model_is_made(
    monkeypatch: Any, make_model: Any, name: str, words: str
) -> None:
    pretend(monkeypatch, installed=False)
    with pytest.raises(AttentionBackendError) as caught:
        make_model(attn_implementation=name)
    assert str(caught.value) == f"attn_implementation={name} {words}"
    assert message_of(name) == str(caught.value)


def test_an_unknown_name_lists_the_known(make_model: Any) -> None:
    with pytest.raises(AttentionBackendError, match="'flash' is unknown; take one of auto, eager, sdpa"):
        SmolLM2(make_model().config, attn_implementation="flash")
    assert "'flash' is unknown; take one of auto, eager, sdpa" in message_of("flash")


def test_one_file_names_the_modules_of_the_packages() -> None:
    room = Path(model.__path__[0])
    assert [file.name for file in room.rglob("*.py") if "flash_attn" in file.read_text()] == ["flash_packages.py"]


def test_nothing_is_imported_for_kernels_that_nobody_chose() -> None:
    """A model with auto on a CPU: no kernel's package, no other kernel's file, no compiler."""
    program = """
import sys, torch
from model.config import SmolLM2Config
from model.init import initialize
from model.transformer import SmolLM2
config = SmolLM2Config(vocab_size=8, hidden_size=16, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
                       num_key_value_heads=1, max_position_embeddings=8)
model = SmolLM2(config)
initialize(model, seed=0)
model(torch.zeros(1, 4, dtype=torch.long), labels=torch.zeros(1, 4, dtype=torch.long)).backward()
imported = set(sys.modules)
print(sorted(name for name in imported if name.startswith(("flash_attn", "triton", "torch._dynamo"))))
print(sorted(name.split(".")[2] for name in imported if name.startswith("model.attention_backends.")))
"""
    environment = {"PYTHONPATH": str(ROOT), "PATH": "", "CUDA_VISIBLE_DEVICES": ""}
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True)
    assert ran.stdout.splitlines() == ["[]", "['by_document', 'sdpa', 'sdpa_path', 'selection']"]
