"""A start from the weights of a published directory of Llama type: transformers' own loss and gradients.

The directories are written by transformers' `save_pretrained` with random weights and the features of real ones. They
are loaded plainly, and by `init_from` into the trainer's engine: ZeRO-3, one rank, one step.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch.nn import functional as F

from model.hf import load_pretrained
from model.parameters import to_huggingface_name

SIZES = {"vocab_size": 199, "intermediate_size": 160, "num_hidden_layers": 2, "max_position_embeddings": 128}
DIRECTORIES: dict[str, dict[str, Any]] = {
    "9 heads on 3, tied": {
        "hidden_size": 144, "num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True,
    },
    "9 heads on 3, untied": {
        "hidden_size": 144, "num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": False,
    },
    "3 heads of 192": {
        "hidden_size": 576, "num_attention_heads": 3, "num_key_value_heads": 3, "tie_word_embeddings": True,
    },
}  # fmt: skip
TOKENS = torch.randint(0, SIZES["vocab_size"], (2, 96), generator=torch.Generator().manual_seed(1))
LABELS = TOKENS.roll(-1, dims=1)


def write_directory(folder: Path, features: dict[str, Any]) -> Path:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        **SIZES,
        **features,
        rope_parameters={"rope_type": "default", "rope_theta": 100_000.0},
        rms_norm_eps=1e-5,
        initializer_range=0.1,
        bos_token_id=0,
        eos_token_id=0,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("published")
    return {
        name: write_directory(folder / str(number), features)
        for number, (name, features) in enumerate(DIRECTORIES.items())
    }


@pytest.fixture(scope="module")
def engine_results(
    run_one_rank: Any, directories: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    paths = {name: str(path) for name, path in directories.items()}
    job = {"tokens": TOKENS, "labels": LABELS, "directories": paths}
    return run_one_rank("published_rank.py", job, tmp_path_factory.mktemp("engine"))


def plain_results(directory: Path) -> dict[str, Any]:
    model = load_pretrained(directory)
    loss = model(TOKENS, labels=LABELS)
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    return {"loss": loss.detach(), "gradients": gradients}


@pytest.mark.parametrize("start", ["plain", "engine"])
@pytest.mark.parametrize("name", DIRECTORIES)
def test_loss_and_gradients_are_transformers(
    directories: dict[str, Path], engine_results: dict[str, Any], name: str, start: str
) -> None:
    theirs = transformers.LlamaForCausalLM.from_pretrained(directories[name], dtype=torch.float32)
    loss = F.cross_entropy(theirs(TOKENS).logits.flatten(0, 1), LABELS.flatten())
    loss.backward()
    ours = engine_results[name] if start == "engine" else plain_results(directories[name])
    assert abs(float(ours["loss"] - loss.detach())) < 1e-4
    wanted = dict(theirs.named_parameters())
    assert {to_huggingface_name(key) for key in ours["gradients"]} == wanted.keys()
    for key, gradient in ours["gradients"].items():
        reference = wanted[to_huggingface_name(key)].grad
        assert reference is not None
        # fp32 sums in another order
        assert float((gradient - reference).norm() / reference.norm()) < 1e-3, key
