"""What the model in training writes after a few prompts: text events, for a reader and not for a figure.

Every rank computes all of it, with the same shapes and the same number of forward passes, as a sharded model needs:
rows are as wide as the longest prompt and what may follow it, and those that have ended are computed on. Attention is
causal, so what fills a row up changes nothing in front of it. There is no key/value cache: keep prompts few and short.
"""

from __future__ import annotations

from pathlib import Path

import torch

from launch.config import ContinuationConfig
from launch.trainer.engine import Engine
from launch.trainer.evaluate import inference
from launch.trainer.prompts import load_tokenizer


def continuations(engine: Engine, settings: ContinuationConfig, *, tokenizer_file: Path, seed: int) -> str:
    """Each prompt with what follows it, up to `max_new_tokens` or the end of the document.

    Temperature 0 takes the likeliest token; above 0 tokens are drawn, with equal draws at every step of the run.
    """
    tokenizer = load_tokenizer(tokenizer_file)
    eos = engine.deepspeed.module.config.eos_token_id
    # between documents the model has seen the end of the one before
    prompts = [tokenizer.encode(prompt).ids or [eos] for prompt in settings.prompts]
    ends = torch.tensor([len(prompt) for prompt in prompts])
    rows = torch.full((len(prompts), int(ends.max()) + settings.max_new_tokens), eos)
    for row, prompt in zip(rows, prompts, strict=True):
        row[: len(prompt)] = torch.tensor(prompt)
    every = torch.arange(len(prompts))
    random = torch.Generator().manual_seed(seed)
    with inference(engine):
        for _ in range(settings.max_new_tokens):
            logits = engine.deepspeed(rows.to(engine.device))
            last = logits[every.to(engine.device), (ends - 1).to(engine.device)].float().cpu()
            rows[every, ends] = _choose(last, settings.temperature, random)
            ends += 1
    texts = [
        _until_end(row[: int(end)].tolist(), len(prompt), eos)
        for row, end, prompt in zip(rows, ends, prompts, strict=True)
    ]
    return "\n\n".join(tokenizer.decode(text, skip_special_tokens=True) for text in texts) + "\n"


def _choose(logits: torch.Tensor, temperature: float, random: torch.Generator) -> torch.Tensor:
    """Token ids [rows] of logits [rows, vocab]."""
    if not temperature:
        return logits.argmax(dim=-1)
    return torch.multinomial((logits / temperature).softmax(dim=-1), 1, generator=random).squeeze(1)


def _until_end(token_ids: list[int], prompt_length: int, eos_token_id: int) -> list[int]:
    """The prompt and what follows it, without the end of the document and what was computed behind it."""
    written = token_ids[prompt_length:]
    end = written.index(eos_token_id) if eos_token_id in written else len(written)
    return token_ids[: prompt_length + end]
