"""Literals of special tokens as text, for models that hold those tokens among their own pieces.

`encode_special_tokens` keeps the library from looking for special tokens before the model sees the text. A Unigram or
WordLevel model then finds them by itself, as pieces of its vocabulary: `</s>`, which is HTML's tag for struck text as
well, would end the document. BPE does not, for no merges lead to them, unless `ignore_merges` has it look up words.
"""

from __future__ import annotations

from typing import Any

# what a piece is renamed to where its place gives its id: two characters that Unicode reserves for no text
_UNUSED = "\ufdd0\ufdef"


def without_special_pieces(tokenizer: dict[str, Any]) -> dict[str, Any] | None:
    """The `tokenizer.json` to encode with, whose other ids are the same; None if the given one will do."""
    model = tokenizer["model"]
    added_tokens = tokenizer.get("added_tokens", [])
    vocabulary: Any = model["vocab"]
    pieces = set(vocabulary) if isinstance(vocabulary, dict) else {piece for piece, _ in vocabulary}
    special = {token["content"] for token in added_tokens if token["special"]} - {model.get("unk_token")}
    finds_words = model.get("type") in ("WordLevel", "WordPiece", "Unigram") or model.get("ignore_merges")
    if not finds_words or not special & pieces:
        return None
    if isinstance(vocabulary, dict):
        vocabulary = {piece: number for piece, number in vocabulary.items() if piece not in special}
    else:
        vocabulary = [
            [f"{_UNUSED}{index}" if piece in special and index != model.get("unk_id") else piece, score]
            for index, (piece, score) in enumerate(vocabulary)
        ]
    return tokenizer | {
        "model": model | {"vocab": vocabulary},
        "added_tokens": [token for token in added_tokens if not token["special"]],
        "post_processor": None,
    }
