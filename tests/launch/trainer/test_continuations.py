"""Continuations against one token at a time, with a plain model in the engine's place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

from launch.config import ContinuationConfig, TrainConfig
from launch.trainer.continuations import continuations
from launch.trainer.engine import Engine
from launch.trainer.optimizer import build_optimizer
from model.init import initialize
from model.transformer import SmolLM2

PROMPTS = ("t5 t9 t200", "t7", "")


class Wrapped(torch.nn.Module):
    """As DeepSpeed's engine holds a model: by the name `module`."""

    def __init__(self, model: SmolLM2) -> None:
        super().__init__()
        self.module = model
        self.forward = model.forward


@pytest.fixture
def engine(train_config: Callable[..., TrainConfig]) -> Engine:
    config = train_config()
    model = SmolLM2(config.model)
    initialize(model, seed=3)
    return Engine(Wrapped(model), build_optimizer(model, config.optimizer), torch.device("cpu"), "cpu", 0)


@pytest.fixture
def tokenizer_file(tmp_path: Path, make_dataset: Callable[..., Path]) -> Path:
    return make_dataset(tmp_path / "data", [[1] * 9]) / "tokenizer.json"


def one_by_one(engine: Engine, file: Path, prompt: str, new_tokens: int) -> str:
    tokenizer = Tokenizer.from_file(str(file))
    ids = tokenizer.encode(prompt).ids or [0]
    for _ in range(new_tokens):
        with torch.no_grad():
            token = int(engine.deepspeed(torch.tensor([ids]))[0, -1].argmax())
        if token == 0:
            break
        ids.append(token)
    return str(tokenizer.decode(ids))


def test_greedy_continuations_are_the_likeliest_tokens(engine: Engine, tokenizer_file: Path) -> None:
    settings = ContinuationConfig(prompts=PROMPTS, max_new_tokens=12)
    text = continuations(engine, settings, tokenizer_file=tokenizer_file, seed=0)
    expected = [one_by_one(engine, tokenizer_file, prompt, 12) for prompt in PROMPTS]
    assert text == "\n\n".join(expected) + "\n"
    assert engine.deepspeed.training


def test_draws_are_those_of_the_seed(engine: Engine, tokenizer_file: Path) -> None:
    settings = ContinuationConfig(prompts=PROMPTS, max_new_tokens=12, temperature=1.0)
    texts = [continuations(engine, settings, tokenizer_file=tokenizer_file, seed=seed) for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_text_ends_where_the_document_does(engine: Engine, tokenizer_file: Path) -> None:
    # the end of a document is by far the likeliest token after any
    with torch.no_grad():
        engine.deepspeed.module.embed_tokens.weight.zero_()
        engine.deepspeed.module.embed_tokens.weight[0] = 1.0
        engine.deepspeed.module.norm.weight.fill_(1.0)
    settings = ContinuationConfig(prompts=("",), max_new_tokens=5)
    assert continuations(engine, settings, tokenizer_file=tokenizer_file, seed=0).strip() == ""
