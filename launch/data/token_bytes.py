"""How many bytes of text each token id stands for, read from a tokenizer.json. No tokenizer is loaded.

Bits per byte compare models of different tokenizers, as nats per token do not. Special tokens stand for no text, so
that their loss is counted and has no bytes: it is the price of telling where documents end.
"""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


@lru_cache(maxsize=4)
def read_token_bytes(tokenizer_file: Path) -> NDArray[np.int64] | None:
    """Bytes by id, for a byte-level tokenizer; None for another kind, or where there is no such file.

    A byte-level tokenizer spells each byte as one character of its own alphabet (GPT-2, `bytes_to_unicode`), so that a
    token has as many bytes as characters.
    """
    try:
        tokenizer = json.loads(tokenizer_file.read_bytes())
    except (OSError, ValueError):
        return None
    if not isinstance(tokenizer, dict) or not _is_byte_level(tokenizer.get("decoder")):
        return None
    vocabulary: dict[str, int] = tokenizer["model"]["vocab"]
    added: list[dict[str, Any]] = tokenizer.get("added_tokens", [])
    size = 1 + max([*vocabulary.values(), *(token["id"] for token in added)])
    lengths = np.zeros(size, dtype=np.int64)
    for text, number in vocabulary.items():
        lengths[number] = len(text)
    for token in added:
        lengths[token["id"]] = 0 if token["special"] else len(token["content"].encode())
    lengths.flags.writeable = False
    return lengths


def _is_byte_level(decoder: Any) -> bool:
    if not isinstance(decoder, dict):
        return False
    parts = decoder.get("decoders", []) if decoder.get("type") == "Sequence" else [decoder]
    return any(part.get("type") == "ByteLevel" for part in parts)
