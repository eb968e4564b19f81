"""The prompts that a run continues at its evaluations, found unfit before anything heavy starts. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from launch.config import ContinuationConfig, TrainingError

if TYPE_CHECKING:
    from tokenizers import Tokenizer


@lru_cache(maxsize=4)
def load_tokenizer(file: Path) -> Tokenizer:
    """Raises TrainingError for a file that is no tokenizer."""
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # tokenizers raises no narrower class
        raise TrainingError(f"{file} is not a tokenizer ({error}); copy that of the datasets there") from None


def prompt_problems(settings: ContinuationConfig, *, tokenizer_file: Path | None, positions: int) -> Iterator[str]:
    """What would keep the prompts from being continued, a line each."""
    if tokenizer_file is None:
        yield "validation.samples needs a tokenizer.json beside the first source's manifest; copy it there"
        return
    try:
        tokenizer = load_tokenizer(tokenizer_file)
    except TrainingError as error:
        yield f"validation.samples: {error}"
        return
    for number, prompt in enumerate(settings.prompts):
        length = max(1, len(tokenizer.encode(prompt).ids))
        if length + settings.max_new_tokens > positions:
            yield (
                f"validation.samples.prompts.{number} has {length} tokens, which with max_new_tokens="
                f"{settings.max_new_tokens} exceed model.max_position_embeddings={positions}; shorten one of them"
            )
