"""Fertility: how many tokens a tokenizer makes of a byte and of a word of each source's text.

A word is what stands between white space, so tokens a word tell nothing of scripts that write none. No tokenizer adds
tokens of its own, and literals of special tokens are text. Works for every kind of tokenizer that `tokenizers` reads.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from pipeline.batches import batches
from pipeline.tokenizer.engine import encode_batch
from pipeline.tokenizer.train import TokenizerError

_BATCH_CHARACTERS = 1 << 20


@dataclass(frozen=True, slots=True)
class Fertility:
    """Sums over a sample of one source; `tokens` by the tokenizer's name."""

    documents: int
    text_bytes: int
    words: int
    tokens: dict[str, int]

    def tokens_per_byte(self, tokenizer: str) -> float:
        return self.tokens[tokenizer] / max(1, self.text_bytes)

    def tokens_per_word(self, tokenizer: str) -> float:
        return self.tokens[tokenizer] / max(1, self.words)


def load_tokenizer(path: Path, *, option: str) -> Tokenizer:
    """Raises TokenizerError, naming the option that `path` was given by, if it is no `tokenizer.json`."""
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise TokenizerError(f"{option}={path}: {reason}; name a tokenizer.json") from None
    try:
        tokenizer = Tokenizer.from_str(content)
    except Exception as error:  # tokenizers raises bare Exception
        reason = " ".join(str(error).split())[:200]
        raise TokenizerError(f"{option}={path} is not a tokenizer.json of the tokenizers library: {reason}") from None
    tokenizer.encode_special_tokens = True
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def measure(texts: Iterable[str], tokenizers: Mapping[str, Tokenizer]) -> Fertility:
    """The fertility of each tokenizer on the same texts. Reads them as a stream; tokenizers use all cores.

    Raises TokenizerError, naming the tokenizer, for a text that it cannot encode.
    """
    documents = text_bytes = words = 0
    tokens = dict.fromkeys(tokenizers, 0)
    for batch in batches(texts, size=len, min_size=_BATCH_CHARACTERS):
        documents += len(batch)
        text_bytes += sum(len(text.encode()) for text in batch)
        words += sum(len(text.split()) for text in batch)
        for name, tokenizer in tokenizers.items():
            encodings = encode_batch(tokenizer, batch, name=f"tokenizer {name}")
            tokens[name] += sum(map(len, encodings))
    return Fertility(documents=documents, text_bytes=text_bytes, words=words, tokens=tokens)
