"""Texts to token ids with Hugging Face `tokenizers`, EOS appended, in bounded memory.

Literals of special tokens in a text are text: no text can make an EOS. The ids of a document are those of encoding it
whole, though a long one is encoded in pieces: a piece ends before a space or newline that follows a non-space, where
no match of GPT-2's pattern can reach across and none looks back. That holds for byte-level BPE without a normalizer;
for any other tokenizer documents are encoded whole.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, pre_tokenizers

from pipeline.shards.format import MAX_VOCAB_SIZE, TOKEN_DTYPE, TokenizerRecord, digest_bytes
from pipeline.tokenizer.train import TokenizerError

TokenIds = NDArray[np.uint16]

PIECE_CHARACTERS = 1 << 17
BATCH_CHARACTERS = 1 << 19
_BOUNDARY = re.compile(r"\S(?=[ \n])")


class Encoder:
    """A tokenizer and its end-of-sequence id."""

    def __init__(self, content: bytes, *, eos_token: str, origin: str = "tokenizer.json") -> None:
        """`content` is that of a `tokenizer.json`; `origin` names it in messages.

        Raises TokenizerError if it is not one, has no `eos_token`, or has more entries than 16 bits can number.
        """
        try:
            self.tokenizer = Tokenizer.from_str(content.decode())
        except Exception as error:  # tokenizers raises bare Exception
            reason = " ".join(str(error).split())[:200]
            raise TokenizerError(f"{origin} is not a tokenizer.json of the tokenizers library: {reason}") from None
        vocabulary = self.tokenizer.get_vocab(with_added_tokens=True)
        vocab_size = max(vocabulary.values(), default=-1) + 1
        if not 1 <= vocab_size <= MAX_VOCAB_SIZE:
            raise TokenizerError(
                f"{origin} has {vocab_size:,} entries; ids are stored in 16 bits, wanted 1 to {MAX_VOCAB_SIZE:,}"
            )
        if eos_token not in vocabulary:
            raise TokenizerError(
                f"{origin} has no token {eos_token!r}; set tokenizer.eos_token to the one that ends documents"
            )
        self.eos_token = eos_token
        self.origin = origin
        self.record = TokenizerRecord(
            digest=digest_bytes(content), vocab_size=vocab_size, eos_token_id=vocabulary[eos_token]
        )
        self.tokenizer.encode_special_tokens = True
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()
        self._splits_exactly = _splits_exactly(json.loads(content))

    def encode(self, texts: Sequence[str]) -> list[TokenIds]:
        """The ids of each text, ending in EOS and holding it nowhere else.

        Raises TokenizerError if the tokenizer makes an EOS out of text.
        """
        pieces: list[str] = []
        ends: list[int] = []
        for text in texts:
            pieces.extend(_cut(text) if self._splits_exactly else (text,))
            ends.append(len(pieces))
        parts = [
            np.array(encoding.ids, dtype=TOKEN_DTYPE)
            for batch in _batches(pieces)
            for encoding in self.tokenizer.encode_batch_fast(batch, add_special_tokens=False)
        ]
        eos = np.array([self.record.eos_token_id], dtype=TOKEN_DTYPE)
        documents = [np.concatenate([*parts[start:end], eos]) for start, end in zip([0, *ends[:-1]], ends, strict=True)]
        for ids in documents:
            if np.count_nonzero(ids == eos[0]) != 1:
                raise TokenizerError(
                    f"{self.origin} makes {self.eos_token!r} out of text; "
                    'mark it as `"special": true` in added_tokens, so that it only ends documents'
                )
        return documents

    def missing_byte_tokens(self) -> int:
        """How many of the 256 bytes a byte-level BPE has no token for, and drops silently; 0 for other tokenizers."""
        if not self._splits_exactly:
            return 0
        vocabulary = self.tokenizer.get_vocab(with_added_tokens=False)
        return sum(character not in vocabulary for character in pre_tokenizers.ByteLevel.alphabet())


def read_tokenizer(path: Path) -> bytes:
    """The contents of a `tokenizer.json`. Raises TokenizerError if it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise TokenizerError(
            f"tokenizer.path={path}: {error.strerror}; name a tokenizer.json, or train one (tokenizer.train)"
        ) from None


def _cut(text: str) -> Iterator[str]:
    """Pieces of about PIECE_CHARACTERS that encode independently; text without spaces stays in one piece."""
    start = 0
    while len(text) - start > PIECE_CHARACTERS:
        boundary = _BOUNDARY.search(text, start + PIECE_CHARACTERS - 1)
        if boundary is None:
            break
        yield text[start : boundary.end()]
        start = boundary.end()
    yield text[start:]


def _batches(pieces: Sequence[str]) -> Iterator[list[str]]:
    """An encoding in the making takes some 150 bytes a character, so only so many are made at a time."""
    batch: list[str] = []
    characters = 0
    for piece in pieces:
        batch.append(piece)
        characters += len(piece)
        if characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _splits_exactly(tokenizer: dict[str, Any]) -> bool:
    """Whether this is byte-level BPE after GPT-2's pattern, with nothing else that looks across a word's end."""
    pre_tokenizer = tokenizer.get("pre_tokenizer") or {}
    steps = pre_tokenizer.get("pretokenizers", []) if pre_tokenizer.get("type") == "Sequence" else [pre_tokenizer]
    kinds = [step.get("type") for step in steps]
    if tokenizer.get("normalizer") is not None or tokenizer["model"].get("type") != "BPE":
        return False
    if kinds not in (["ByteLevel"], ["Digits", "ByteLevel"]):
        return False
    byte_level = steps[-1]
    plain_added_tokens = [token for token in tokenizer.get("added_tokens", []) if not token["special"]]
    return bool(byte_level["use_regex"]) and not byte_level["add_prefix_space"] and not plain_added_tokens
