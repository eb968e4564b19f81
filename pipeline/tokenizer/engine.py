"""What turns texts into ids, behind one interface: `tokenizers`, whose ids are the definition, and splintr.

An engine is handed texts and returns one flat array, with no Python integer in between. It does not append EOS, cut
long texts or know what a document is: that is `encode.Encoder`. Whether a fast engine may be used at all is decided in
`parity.py`.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import orjson
import tokenizers
from numpy.typing import NDArray

from pipeline.shards.format import TOKEN_DTYPE
from pipeline.tokenizer.train import TokenizerError

EngineName = Literal["tokenizers", "splintr"]
TokenIds = NDArray[np.uint16]


@dataclass(frozen=True, slots=True)
class FlatIds:
    """The ids of several texts: those of text k are `ids[offsets[k] : offsets[k + 1]]`."""

    ids: TokenIds
    offsets: NDArray[np.int64]

    def row(self, index: int) -> TokenIds:
        return self.ids[self.offsets[index] : self.offsets[index + 1]]


def interleave(fast: FlatIds, reference: FlatIds, from_reference: Sequence[bool]) -> FlatIds:
    """The rows of both, in the order in which `from_reference` takes them."""
    rows = [[fast.row(index) for index in range(len(fast.offsets) - 1)]]
    rows.append([reference.row(index) for index in range(len(reference.offsets) - 1)])
    sources = [iter(side) for side in rows]
    merged = [next(sources[side]) for side in from_reference]
    offsets = np.zeros(len(merged) + 1, dtype=np.int64)
    np.cumsum([len(row) for row in merged], out=offsets[1:])
    return FlatIds(np.concatenate(merged), offsets)


class Engine(Protocol):
    """Literals of special tokens are text to every engine."""

    name: EngineName
    version: str

    def encode(self, texts: Sequence[str]) -> FlatIds: ...


class TokenizersEngine:
    """The reference: the `tokenizers` library."""

    name: EngineName = "tokenizers"

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        """`tokenizer` is set to pad and truncate nothing, and to take literals of special tokens as text."""
        self.version: str = tokenizers.__version__
        self._tokenizer = tokenizer
        tokenizer.encode_special_tokens = True
        tokenizer.no_padding()
        tokenizer.no_truncation()

    def encode(self, texts: Sequence[str]) -> FlatIds:
        encodings = encode_batch(self._tokenizer, texts, name="the tokenizer")
        rows = [np.array(encoding.ids, dtype=TOKEN_DTYPE) for encoding in encodings]
        offsets = np.zeros(len(rows) + 1, dtype=np.int64)
        np.cumsum([len(row) for row in rows], out=offsets[1:])
        return FlatIds(np.concatenate([*rows, np.empty(0, TOKEN_DTYPE)]), offsets)


def encode_batch(tokenizer: tokenizers.Tokenizer, texts: Sequence[str], *, name: str) -> list[tokenizers.Encoding]:
    """Raises TokenizerError, which calls the tokenizer by `name`, if it cannot encode a text."""
    try:
        return tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
    except Exception as error:  # tokenizers raises bare Exception, as for an unknown word without an unk_token
        reason = " ".join(str(error).split())[:200]
        raise TokenizerError(
            f"{name} cannot encode this corpus: {reason}; "
            "give it an unknown token (unk_token or unk_id of its model), or take another tokenizer"
        ) from None


class SplintrEngine:
    """splintr's call for one text, some 15 times as fast as the reference.

    Not its call for a batch: that works in a thread of its own, for which it waits where each core has a worker. Either
    call matches special tokens in text and has no switch for it, so the engine is built without any.
    """

    name: EngineName = "splintr"

    def __init__(self, content: bytes) -> None:
        """`content` is of `without_special_tokens`. Raises TokenizerError if splintr is missing or refuses it."""
        import_problem = splintr_problem()
        if import_problem is not None:
            raise TokenizerError(import_problem)
        import splintr

        try:
            self._tokenizer = splintr.from_json_bytes(content)
            # now, and not in each worker that is forked off us, what it puts off until a first text
            self._tokenizer.encode_flat("a")
        except Exception as error:  # what it raises for a file that it cannot read is not documented
            raise TokenizerError(f"splintr cannot read the tokenizer: {' '.join(str(error).split())[:200]}") from None
        self.version = splintr_version()

    def encode(self, texts: Sequence[str]) -> FlatIds:
        encoded = [self._tokenizer.encode_flat(text) for text in texts]
        offsets = np.zeros(len(encoded) + 1, dtype=np.int64)
        np.cumsum([len(ids) for ids in encoded], out=offsets[1:])
        ids = np.frombuffer(b"".join(encoded), dtype="<u4")
        return FlatIds(ids.astype(TOKEN_DTYPE), offsets // ids.itemsize)


def without_special_tokens(tree: dict[str, Any]) -> bytes:
    """A parsed `tokenizer.json` as one without special tokens: neither in `added_tokens` nor in the vocabulary, whose
    other ids stay as they are."""
    vocabulary = dict(tree["model"]["vocab"])
    for token in tree.get("added_tokens", []):
        vocabulary.pop(token["content"], None)
    model = tree["model"] | {"vocab": vocabulary}
    bare = tree | {"model": model, "added_tokens": [], "post_processor": None, "padding": None, "truncation": None}
    return orjson.dumps(bare)


def splintr_problem() -> str | None:
    """Why splintr cannot be used here, or None."""
    try:
        import splintr  # noqa: F401
    except ImportError as error:
        return f"splintr is not installed ({error}); install it with: pip install splintr-rs"
    return None


def splintr_version() -> str:
    return importlib.metadata.version("splintr-rs")


def is_plain_byte_level_bpe(tokenizer: dict[str, Any]) -> bool:
    """Whether this `tokenizer.json` is byte-level BPE after GPT-2's pattern, with nothing else that looks across a
    word's end: a fast engine may encode it, and a long text may be cut between words."""
    pre_tokenizer = tokenizer.get("pre_tokenizer") or {}
    steps = pre_tokenizer.get("pretokenizers", []) if pre_tokenizer.get("type") == "Sequence" else [pre_tokenizer]
    kinds = [step.get("type") for step in steps]
    if tokenizer.get("normalizer") is not None or tokenizer["model"].get("type") != "BPE":
        return False
    if kinds not in (["ByteLevel"], ["Digits", "ByteLevel"]):
        return False
    byte_level = steps[-1]
    plain_added_tokens = [token for token in tokenizer.get("added_tokens", []) if not token["special"]]
    # files of tokenizers before 0.12 have no use_regex; the library takes it for true
    return bool(byte_level.get("use_regex", True)) and not byte_level["add_prefix_space"] and not plain_added_tokens


def vocabulary_of(tokenizer: dict[str, Any]) -> dict[str, int] | None:
    """All entries of this `tokenizer.json` and their ids, if the file alone tells them: every added token is an entry
    of its model already. None where the library has to be asked."""
    model_entries = tokenizer["model"].get("vocab")
    if not isinstance(model_entries, dict):
        return None
    added_tokens = tokenizer.get("added_tokens", [])
    return model_entries if all(model_entries.get(token["content"]) == token["id"] for token in added_tokens) else None


def bytes_without_token(vocabulary: dict[str, int]) -> bytes:
    """The bytes that a byte-level BPE has no token for, and drops silently."""
    return bytes(byte for byte, character in enumerate(_BYTE_CHARACTERS) if character not in vocabulary)


def _byte_characters() -> list[str]:
    """How byte-level BPE spells each byte: printable Latin-1 as itself, the others from U+0100 on (GPT-2)."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    characters: list[str] = []
    others = 0
    for byte in range(256):
        characters.append(chr(byte) if byte in printable else chr(0x100 + others))
        others += byte not in printable
    return characters


_BYTE_CHARACTERS = _byte_characters()
