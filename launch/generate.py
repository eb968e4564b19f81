"""Text from a Hugging Face directory of a SmolLM2, or from a run's newest export.

Contract: `generate` with temperature 0 gives the text of transformers' `generate(do_sample=False)` on the same
directory with `dtype=torch.float32`. Everything is computed in fp32, however the weights are stored: bf16 has 8 bits to
tell the best logit from the second, and two correct programs then soon take different tokens.

There is no key/value cache: each new token computes the whole sequence again, with the very forward that is trained.
That is slow for long texts and right for a sample of a few hundred tokens; serve an export with an inference engine.

Imports torch only when text is made, because `smollm2 launch --help` imports this module.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from checkpoint.events import RUN_FILE
from checkpoint.manifest import (
    MODEL_CONFIG_FILE,
    TOKENIZER_FILE,
    checkpoints_directory,
    export_directory,
    list_export_steps,
)

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from model.transformer import SmolLM2


class GenerateError(ValueError):
    """A model directory or a prompt that no text can be made from."""


def generate(
    model_directory: Path,
    prompt: str,
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    seed: int = 0,
) -> str:
    """The prompt and what follows it, up to `max_new_tokens` or the end-of-sequence token, which is not shown.

    `model_directory` may be a run's folder: then its newest export is read. Temperature 0 takes the most likely
    token; above 0 tokens are drawn, equal seeds giving equal texts on equal machines. An empty prompt begins a
    document. Raises GenerateError.
    """
    if max_new_tokens < 1:
        raise GenerateError(f"max_new_tokens={max_new_tokens}; ask for at least 1")
    if temperature < 0:
        raise GenerateError(f"temperature={temperature}; use 0 for the likeliest token, or more to draw")
    directory = find_model(model_directory)
    tokenizer = _load_tokenizer(directory)
    model = _load_model(directory)
    # between documents the model has seen the end of the one before
    token_ids = tokenizer.encode(prompt).ids or [model.config.eos_token_id]
    _check_prompt(token_ids, max_new_tokens, model)
    token_ids = _continue(model, token_ids, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed)
    return str(tokenizer.decode(token_ids, skip_special_tokens=True))


def find_model(path: Path) -> Path:
    """The directory itself, or the newest export of a run's folder. Raises GenerateError if there is none."""
    if not path.is_dir():
        raise GenerateError(f"{path}: no such folder; name a Hugging Face model directory or a run's folder")
    if (path / MODEL_CONFIG_FILE).is_file():
        return path
    steps = list_export_steps(path)
    if steps:
        return export_directory(path, steps[-1])
    if (path / RUN_FILE).is_file() or checkpoints_directory(path).is_dir():
        raise GenerateError(
            f"run {path} has no export yet; "
            f"once it has saved a checkpoint, `smollm2 checkpoint export {path}` makes one"
        )
    raise GenerateError(f"{path} is neither a Hugging Face model directory (no config.json) nor a run's folder")


def add_generate_verb(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """`smollm2 launch generate MODEL PROMPT`."""
    parser = verbs.add_parser(
        "generate",
        help="text from an exported model",
        description="Continue a prompt with an exported model, or with the newest export of a run's folder.",
        epilog='example: smollm2 launch generate runs/demo "def main(" --max-new-tokens 100',
    )
    parser.add_argument("model", type=Path, help="a Hugging Face directory, or a run's folder")
    parser.add_argument("prompt", help="the text to continue; empty for the beginning of a document")
    parser.add_argument("--max-new-tokens", type=int, default=64, metavar="N", help="(default 64)")
    parser.add_argument(
        "--temperature", type=float, default=0.0, metavar="T", help="0 takes the likeliest token (default); 1 draws"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the draws (default 0)")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
    print(
        generate(
            arguments.model,
            arguments.prompt,
            max_new_tokens=arguments.max_new_tokens,
            temperature=arguments.temperature,
            seed=arguments.seed,
        )
    )


def _continue(model: SmolLM2, token_ids: list[int], *, max_new_tokens: int, temperature: float, seed: int) -> list[int]:
    import torch

    device = next(model.parameters()).device
    random = torch.Generator(device).manual_seed(seed)
    token_ids = list(token_ids)
    with torch.inference_mode():
        for _ in range(max_new_tokens):
            logits = model(torch.tensor([token_ids], device=device))[0, -1]
            if temperature:
                probabilities = (logits / temperature).softmax(dim=-1)
                token_id = int(torch.multinomial(probabilities, 1, generator=random))
            else:
                token_id = int(logits.argmax())
            if token_id == model.config.eos_token_id:
                break
            token_ids.append(token_id)
    return token_ids


def _load_tokenizer(directory: Path) -> Tokenizer:
    from tokenizers import Tokenizer

    file = directory / TOKENIZER_FILE
    if not file.is_file():
        raise GenerateError(f"{directory} has no {TOKENIZER_FILE}; copy the one that the model was trained with")
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # tokenizers raises no narrower class
        raise GenerateError(f"{file} is not a tokenizer: {error}") from None


def _load_model(directory: Path) -> SmolLM2:
    import torch

    from model.hf import WeightsError, load_pretrained

    try:
        model = load_pretrained(directory, dtype=torch.float32)
    except WeightsError as error:
        raise GenerateError(str(error)) from None
    return model.to("cuda" if torch.cuda.is_available() else "cpu")


def _check_prompt(token_ids: list[int], max_new_tokens: int, model: SmolLM2) -> None:
    positions, vocab_size = model.config.max_position_embeddings, model.config.vocab_size
    if max(token_ids) >= vocab_size:
        raise GenerateError(
            f"the tokenizer gives id {max(token_ids)}, but the model has vocab_size={vocab_size}; "
            f"take the {TOKENIZER_FILE} that the model was trained with"
        )
    if len(token_ids) >= positions:
        raise GenerateError(
            f"the prompt has {len(token_ids)} tokens, the model has max_position_embeddings={positions}; shorten it"
        )
    if len(token_ids) + max_new_tokens > positions:
        raise GenerateError(
            f"a prompt of {len(token_ids)} tokens and max_new_tokens={max_new_tokens} exceed "
            f"max_position_embeddings={positions}; ask for at most {positions - len(token_ids)} new tokens"
        )
