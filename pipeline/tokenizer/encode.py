"""Texts to token ids, EOS appended, in bounded memory. The ids are those of Hugging Face `tokenizers`, whatever engine
makes them.

Literals of special tokens in a text are text: no text can make an EOS. The ids of a document are those of encoding it
whole, though with byte-level BPE a long one is encoded in pieces (`pieces.py`), and the reference remembers words
(`words.py`); with any other tokenizer documents are encoded whole.

A fast engine is not believed for ever: of every unit the first piece and each CHECK_EVERY-th after it, or
CHECK_CHARACTERS of a longer one, is encoded by the reference too, and the first difference raises
EngineDifferenceError, on which the unit is done again by the reference. Pieces that the guard stops go to the reference
at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any, get_args

import numpy as np
from tokenizers import Tokenizer

from pipeline.batches import batches
from pipeline.document import LongText, shorten
from pipeline.shards.format import MAX_VOCAB_SIZE, TOKEN_DTYPE, EncodingRecord, TokenizerRecord
from pipeline.tokenizer.definition import Definition, load_definition
from pipeline.tokenizer.engine import (
    Engine,
    EngineName,
    FlatIds,
    TokenIds,
    bytes_without_token,
    interleave,
    is_plain_byte_level_bpe,
    splintr_problem,
)
from pipeline.tokenizer.parity import Guard, choose_engine, ineligible
from pipeline.tokenizer.pieces import Cutter
from pipeline.tokenizer.train import TokenizerError
from pipeline.tokenizer.words import WordEngine

PIECE_CHARACTERS = 1 << 17
# an encoding in the making takes some 150 bytes a character, so only so many are made at a time
BATCH_CHARACTERS = 1 << 19
CHECK_EVERY = 1024
CHECK_CHARACTERS = 1 << 12


class EngineDifferenceError(Exception):
    """The fast engine gave other ids than the reference. The message names the version and shows the text."""


class Encoder:
    """A tokenizer, its end-of-sequence id, and the engine that makes its ids: the reference, until `use` is called."""

    def __init__(
        self,
        content: bytes,
        *,
        eos_token: str,
        origin: str = "tokenizer.json",
        path: Path | None = None,
        way_out: str = "",
    ) -> None:
        """`content` is that of a `tokenizer.json`; `origin` names it in messages. Where other processes are to read it
        from a file, as it is large, that lies at `path`, and `way_out` says what to do if it is another by then.

        Raises TokenizerError if it is not one, has no `eos_token`, has dropout, or has more entries than 16 bits can
        number.
        """
        self.eos_token = eos_token
        self.origin = origin
        self._definition = Definition(content, origin=origin, path=path, way_out=way_out)
        vocabulary = self._definition.vocabulary
        vocab_size = max(vocabulary.values(), default=-1) + 1
        if not 1 <= vocab_size <= MAX_VOCAB_SIZE:
            raise TokenizerError(
                f"{origin} has {vocab_size:,} entries; ids are stored in 16 bits, wanted 1 to {MAX_VOCAB_SIZE:,}"
            )
        if eos_token not in vocabulary:
            raise TokenizerError(
                f"{origin} has no token {eos_token!r}; set tokenizer.eos_token to the one that ends documents"
            )
        tree = self._definition.tree
        if dropout := tree["model"].get("dropout"):
            raise TokenizerError(
                f"{origin} has model.dropout={dropout:g}, so that a text has other ids each time; set it to null there"
            )
        self.record = TokenizerRecord(
            digest=self._definition.digest, vocab_size=vocab_size, eos_token_id=vocabulary[eos_token]
        )
        is_plain = is_plain_byte_level_bpe(tree)
        self._cutter = Cutter(tree) if is_plain else None
        self._missing_bytes = bytes_without_token(tree["model"]["vocab"]) if is_plain else b""
        self._guard = Guard(self._missing_bytes)
        self._special_ids: dict[str, int] = {}
        self._fast: Engine | None = None
        self.begin_unit()

    def __getstate__(self) -> dict[str, Any]:
        """For another process: no engine."""
        return {name: value for name, value in self.__dict__.items() if name != "_slow"} | {"_fast": None}

    @property
    def tokenizer(self) -> Tokenizer:
        """The library's own."""
        return self._definition.tokenizer

    @property
    def _reference(self) -> Engine:
        return self._definition.reference

    @cached_property
    def _slow(self) -> Engine:
        """The reference, in a faster way where there is one."""
        return WordEngine(self._reference) if self._cutter is not None else self._reference

    def choose(self, wanted: str, *, input_bytes: int) -> EngineName:
        """The engine that `tokenizer.engine=wanted` means for an input of this size, to be given to `use`, here or in
        another process. Raises TokenizerError if it cannot be used, or differs from the reference."""
        return choose_engine(self._definition, wanted=wanted, guard=self._guard, input_bytes=input_bytes)

    def use(self, engine: Engine | EngineName) -> None:
        """Encode with the engine of this name, or with this one."""
        if isinstance(engine, str):
            assert engine in get_args(EngineName), engine
            self._fast = self._definition.splintr if engine == "splintr" else None
            _ = self._reference  # now: workers are forked off this process
        else:
            self._fast = engine
        self.begin_unit()

    def begin_unit(self, *, after: EngineDifferenceError | None = None) -> None:
        """Count afresh. `after` a difference the unit is done by the reference."""
        self._distrusted = after is not None
        self._difference = None if after is None else str(after)
        self._pieces = self._checked = self._guarded = 0

    @property
    def _engine(self) -> Engine:
        return self._slow if self._fast is None or self._distrusted else self._fast

    def unit_record(self) -> EncodingRecord:
        """What the engine has done since `begin_unit`."""
        return EncodingRecord(
            engine=f"{self._engine.name} {self._engine.version}",
            pieces=self._pieces,
            pieces_checked=self._checked,
            pieces_by_reference=self._guarded,
            difference=self._difference,
        )

    def special_id(self, token: str) -> int:
        """The id of a special token. Raises TokenizerError if there is none."""
        if token not in self._special_ids:
            number = self._definition.vocabulary.get(token)
            if number is None:
                raise TokenizerError(
                    f"{self.origin} has no token {token!r}, which a source's special_tokens need; "
                    "remove special_tokens, or take a tokenizer that has it"
                )
            self._special_ids[token] = number  # goes to workers, which need load nothing for it
        return self._special_ids[token]

    def encode(self, texts: Sequence[str | LongText]) -> list[TokenIds]:
        """The ids of each text, ending in EOS and holding it nowhere else. Long texts may be empty afterwards.

        Raises TokenizerError if the tokenizer makes an EOS out of text, and EngineDifferenceError.
        """
        rows: list[TokenIds] = []
        for is_long, group in groupby(texts, key=lambda text: len(text) > PIECE_CHARACTERS):
            if is_long:
                rows += map(self._encode_alone, group)
            else:
                short = (text.whole() if isinstance(text, LongText) else text for text in group)
                for batch in batches(short, size=len, min_size=BATCH_CHARACTERS):
                    rows += self._encode_together(batch)
        return rows

    def _encode_together(self, texts: list[str]) -> list[TokenIds]:
        """Views of one array."""
        flat = self._encode_pieces(texts)
        with_eos = np.insert(flat.ids, flat.offsets[1:], TOKEN_DTYPE.type(self.record.eos_token_id))
        bounds = (flat.offsets + np.arange(len(flat.offsets))).tolist()
        return [with_eos[start:stop] for start, stop in pairwise(bounds)]

    def _encode_alone(self, text: str | LongText) -> TokenIds:
        ids = np.empty(0, TOKEN_DTYPE)
        count = 0
        # piece after piece: together they are a second copy of the text
        for piece in self._pieces_of(text):
            part = self._encode_pieces([piece]).ids
            if count + len(part) > len(ids):
                # of a large array the pages are moved, not copied
                ids.resize((count + len(part)) * 33 // 32, refcheck=False)
            ids[count : count + len(part)] = part
            count += len(part)
        ids.resize(count + 1, refcheck=False)
        ids[-1] = self.record.eos_token_id
        return ids

    def _pieces_of(self, text: str | LongText) -> Iterable[str]:
        if self._cutter is not None:
            return self._cutter.pieces(text, characters=PIECE_CHARACTERS)
        return (text.whole() if isinstance(text, LongText) else text,)

    def missing_byte_tokens(self) -> int:
        """How many of the 256 bytes a byte-level BPE has no token for, and drops silently; 0 for other tokenizers."""
        return len(self._missing_bytes)

    def _encode_pieces(self, pieces: list[str]) -> FlatIds:
        flat = self._encode_unchecked(pieces)
        if np.any(flat.ids == self.record.eos_token_id):
            raise TokenizerError(
                f"{self.origin} makes {self.eos_token!r} out of text; "
                'mark it as `"special": true` in added_tokens, so that it only ends documents'
            )
        return flat

    def _encode_unchecked(self, pieces: list[str]) -> FlatIds:
        first = self._pieces
        self._pieces += len(pieces)
        if self._engine is not self._fast:
            return self._engine.encode(pieces)
        stopped = self._guard.stopped(pieces)
        if any(stopped):
            self._guarded += sum(stopped)
            passed = [piece for piece, stop in zip(pieces, stopped, strict=True) if not stop]
            rest = [piece for piece, stop in zip(pieces, stopped, strict=True) if stop]
            flat = interleave(self._engine.encode(passed), self._reference.encode(rest), stopped)
        else:
            flat = self._engine.encode(pieces)
        sampled = range(-first % CHECK_EVERY, len(pieces), CHECK_EVERY)
        self._check(pieces, flat, [index for index in sampled if not stopped[index]], first=first)
        return flat

    def _check(self, pieces: list[str], flat: FlatIds, sampled: Sequence[int], *, first: int) -> None:
        """`first` is the number of the first of these pieces: it varies where in a long piece one looks."""
        for index in sampled:
            text, ids = pieces[index], flat.row(index)
            if len(text) > CHECK_CHARACTERS:
                start = (first + index) * CHECK_CHARACTERS % (len(text) - CHECK_CHARACTERS + 1)
                text = text[start : start + CHECK_CHARACTERS]
                ids = self._engine.encode([text]).ids
            self._checked += 1
            if ids.tobytes() != self._reference.encode([text]).ids.tobytes():
                raise EngineDifferenceError(
                    f"{self._engine.name} {self._engine.version} differs from {self._reference.name} "
                    f"{self._reference.version} on {shorten(ascii(text[:200]))}"
                )


def load_ahead(path: Path, *, wanted: str) -> None:
    """Load what an encoder of this file, which is still to come from another process, will most likely use."""
    definition = load_definition(path)
    if wanted != "tokenizers" and splintr_problem() is None and ineligible(definition.tree) is None:
        _ = definition.splintr
    _ = definition.reference


def read_tokenizer(path: Path) -> bytes:
    """The contents of a `tokenizer.json`. Raises TokenizerError if it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise TokenizerError(
            f"tokenizer.path={path}: {error.strerror}; name a tokenizer.json, fetch SmolLM2's "
            "(docs/data.md), or train one (tokenizer.train)"
        ) from None
