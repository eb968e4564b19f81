"""Every way to compute the model on a CPU gives the outputs and the gradients of the plainest one.

Rows come from the tables themselves: a kernel that is added to `KERNELS`, or a mode of activation checkpointing, is
tested here without an edit. The reference is eager attention without checkpointing in float64.
"""

from __future__ import annotations

import functools
import itertools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from model.activation_checkpointing import ActivationCheckpointing, Mode
from model.attention_backends.selection import KERNELS, AttentionBackendError
from model.config import SmolLM2Config
from model.init import initialize
from model.transformer import SmolLM2

# SmolLM2-135M's 9 heads on 3, the seed's 3 full heads, and one key/value head for all
LAYOUTS = {"gqa": (9, 3), "mha": (3, 3), "mqa": (9, 1)}
# Products and sums are float64. Softmax of the reference, norms and rotary angles are fp32 by design: 24 bits, 6e-8, a
# few times in each of two layers, and some of it cancels in a gradient.
MAX_OUTPUT_DIFFERENCE, MAX_GRADIENT_DIFFERENCE = 1e-6, 5e-6
MODES: tuple[Mode, ...] = get_args(Mode)
# what a mode wants beside its name
SETTINGS: dict[Mode, dict[str, Any]] = {"every_n_layers": {"every_n_layers": 2}}


def results(
    layout: str, *, tied: bool, backend: str, mode: Mode, compile_backend: str | None = None
) -> dict[str, torch.Tensor]:
    """Logits, the loss and every parameter's gradient, by name, of two rows of packed documents."""
    heads, key_value_heads = LAYOUTS[layout]
    config = SmolLM2Config(
        vocab_size=131,
        hidden_size=144,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=heads,
        num_key_value_heads=key_value_heads,
        max_position_embeddings=64,
        initializer_range=0.2,  # attention is far from uniform, so that a wrong mask or angle shows
        tie_word_embeddings=tied,
    )
    model = SmolLM2(
        config,
        attn_implementation=backend,
        activation_checkpointing=ActivationCheckpointing(mode=mode, **SETTINGS.get(mode, {})),
        compile_backend=compile_backend,
        # stands for DeepSpeed's function, which is reentrant too and is tested in test_zero3.py
        deepspeed_checkpoint=functools.partial(checkpoint, use_reentrant=True),
    )
    initialize(model, seed=0)
    model.to(torch.float64)
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, config.vocab_size, (2, 49), generator=generator)
    documents = torch.stack([torch.arange(49) // 20, torch.zeros(49, dtype=torch.long)])
    with torch.no_grad():
        logits = model(tokens, document_ids=documents)
    loss = model(tokens, document_ids=documents, labels=tokens.roll(-1, dims=1))
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert all(gradient is not None for gradient in gradients.values())
    return {"logits": logits, "loss": loss.detach(), **gradients}


def backends() -> list[str]:
    """Those of the table that train on a CPU in float64."""
    names = []
    for name in KERNELS:
        try:
            results("gqa", tied=True, backend=name, mode="none")
        except AttentionBackendError:
            continue
        names.append(name)
    return names


BACKENDS = backends()
# all but the reference's own
WAYS = [way for way in itertools.product(BACKENDS, MODES) if way != ("eager", "none")]


@functools.cache
def reference(layout: str, tied: bool) -> dict[str, torch.Tensor]:
    return results(layout, tied=tied, backend="eager", mode="none")


def compare(layout: str, *, tied: bool, **way: Any) -> None:
    wanted, got = reference(layout, tied), results(layout, tied=tied, **way)
    assert got.keys() == wanted.keys()
    for name, tensor in wanted.items():
        difference = float((got[name] - tensor).norm() / tensor.norm())
        limit = MAX_OUTPUT_DIFFERENCE if name in ("logits", "loss") else MAX_GRADIENT_DIFFERENCE
        assert difference < limit, f"{name}: {difference:.1e}"


def test_the_tables_were_found() -> None:
    assert {"eager", "sdpa"} <= set(BACKENDS)
    assert {"none", "full"} <= set(MODES)


@pytest.mark.parametrize(("backend", "mode"), WAYS)
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_outputs_and_gradients_are_the_references(layout: str, tied: bool, backend: str, mode: Mode) -> None:
    compare(layout, tied=tied, backend=backend, mode=mode)


@pytest.mark.campaign  # compiling takes minutes
@pytest.mark.parametrize(("backend", "mode"), [("eager", "none"), *WAYS])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_compiled_layers_give_the_references(layout: str, backend: str, mode: Mode) -> None:
    # a process of its own: pytest's checks of shapes are not for the compiler to trace
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, layout, backend, mode]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-2000:]


if __name__ == "__main__":
    layout, backend, mode = sys.argv[1:]
    assert mode in MODES
    compare(layout, tied=True, backend=backend, mode=mode, compile_backend="inductor")
