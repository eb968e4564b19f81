"""Whether a fast engine may stand in for the reference: it must give the same ids on hard cases before it encodes, and
on a sample of every unit while it does (`encode.py`).

Every code point was put through splintr 0.22.0 and `tokenizers` 0.23 in ten surroundings, and 600,000 random strings of
hard characters besides (`tests/pipeline/tokenizer/test_parity.py` repeats a part of it). They differed in one class
only: strings with a byte that the vocabulary has no token for. Both drop such a byte, but only the reference then
merges its neighbours across the gap. SmolLM2's published vocabulary lacks 21 bytes: control characters 04, 06, 13, 14,
16 and 1D; F1 and F2, which begin the characters of U+40000 to U+BFFFF; and 13 that UTF-8 never uses. A text with one of
them goes to the reference (`Guard`); a vocabulary that lacks none needs no guard.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Any

import tokenizers

from pipeline.document import shorten
from pipeline.tokenizer.definition import Definition
from pipeline.tokenizer.engine import (
    Engine,
    EngineName,
    SplintrEngine,
    is_plain_byte_level_bpe,
    splintr_problem,
    splintr_version,
    without_special_tokens,
)
from pipeline.tokenizer.train import TokenizerError
from pipeline.tokenizer.verdict import Verdict

log = logging.getLogger(__name__)

LONG_CHARACTERS = 1_000_000
_PER_CALL = 4096
# what was found of another call of splintr says nothing of this
_SPLINTR_CALL = "encode_flat"

# of BPE in tokenizers: each changes the merging, and none is part of the shape that was compared
_UNUSUAL = ("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback", "ignore_merges")


_BYTES_OF_UTF8 = frozenset(range(0xF5)) - {0xC0, 0xC1}


class Guard:
    """Finds the texts that only the reference encodes as the reference does."""

    def __init__(self, unsafe_bytes: bytes) -> None:
        self._unsafe_bytes = bytes(set(unsafe_bytes) & _BYTES_OF_UTF8)
        self._safe_bytes = bytes(set(range(256)) - set(unsafe_bytes))

    def stops(self, text: str) -> bool:
        """Whether a byte of the text's UTF-8 is unsafe."""
        return self.stopped([text])[0]

    def stopped(self, texts: Sequence[str]) -> list[bool]:
        """Of each text whether it is stopped."""
        if self._unsafe_bytes:
            encoded = [text.encode() for text in texts]
            together = b"".join(encoded)
            # of most batches no text is: a byte is found in all of them in a fiftieth of the time that each takes alone
            if any(byte in together for byte in self._unsafe_bytes):
                return [bool(content.translate(None, self._safe_bytes)) for content in encoded]
        return [False] * len(texts)


def ineligible(tokenizer: dict[str, Any]) -> str | None:
    """Why this `tokenizer.json` is for the reference alone, or None."""
    if not is_plain_byte_level_bpe(tokenizer):
        return "the tokenizer is not byte-level BPE after GPT-2's pattern without a normalizer"
    unusual = [key for key in _UNUSUAL if tokenizer["model"].get(key)]
    return f"the tokenizer's model sets {unusual[0]}" if unusual else None


def hard_cases(special_tokens: Sequence[str], *, long_characters: int = LONG_CHARACTERS) -> list[str]:
    """Texts on which tokenizers of one definition have been seen to differ."""
    # every byte that UTF-8 uses, and all of Unicode thinly
    points = (*range(0x180), *range(0x180, 0x800, 0x20), *range(0x800, 0x110000, 2003))
    characters = [chr(point) for point in points if not _is_surrogate(point)]
    cases = [form.format(character) for character in characters for form in ("{0}", "a{0}b 1{0}", " {0}{0} ")]
    cases += [
        f"{left}{token}{right}" for token in special_tokens for left, right in (("", ""), ("a", "b"), (" ", "\n"))
    ]
    cases.append("".join(special_tokens))
    cases += [
        space * count + end for space in " \n\t\r\u3000\xa0" for count in (1, 2, 3, 7, 130) for end in ("", "x", "1")
    ]
    cases += ["  \n  \n\n x", "x \n", "\r\n\r\n  y", "a\u2028b\u2029c\x85d", "\x1c\x1d\x1e\x1f x", "0123456789" * 30]
    cases += ["3.14e-10 ²³ ½ Ⅷ ٠١٢ १२३", "don't DON'T we'll I'd they're 's 've'm", "'''sss", "x\u2019s"]
    cases += ["東京特許許可局、日本語。한국어 문장。中文字符", "العربية עברית हिन्दी ไทย தமிழ்"]
    cases += [
        "👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 🇩🇪 ☺️ 🏴\U000e0067\U000e0062\U000e007f",
        "e\u0301" * 50,
        "Z\u0351\u036b\u0343 a\u0300\u0316\u0489",
        "\ufeffx\ufffe\uffff",
    ]
    # a lone surrogate is no text: JSON readers refuse it, or put U+FFFD in its place, or leave the escape as it is
    cases += ["\ufffd\ufffd x\ufffd", "\\ud83d \\udc00 \\ud800x"]
    return [*cases, "a" * long_characters]


def first_difference(reference: Engine, fast: Engine, guard: Guard, texts: Iterable[str]) -> str | None:
    """The beginning of the first text whose ids differ, or None. Texts that the guard stops are not compared."""
    for batch in _batches(text for text in texts if not guard.stops(text)):
        ours, theirs = fast.encode(batch), reference.encode(batch)
        if len(ours.offsets) != len(batch) + 1 or len(theirs.offsets) != len(batch) + 1:
            return shorten(ascii(batch[0][:200]))
        for index, text in enumerate(batch):
            if ours.row(index).tobytes() != theirs.row(index).tobytes():
                return shorten(ascii(text[:200]))
    return None


def choose_engine(definition: Definition, *, wanted: str, guard: Guard, input_bytes: int) -> EngineName:
    """The engine that `tokenizer.engine` asks for; `auto`: splintr if it may stand in. Says once what it took, and why.

    A word of one letter is compared at the length of the input, which no word in it exceeds, up to LONG_CHARACTERS.
    What was found equal once is remembered for this tokenizer, these versions and these cases (`verdict.py`).

    Raises TokenizerError if the fast engine is asked for by name and cannot be used.
    """
    if wanted == "tokenizers":
        return "tokenizers"
    problem = splintr_problem() or ineligible(definition.tree)
    if problem is None:
        problem = _difference(definition, guard, input_bytes=input_bytes)
    if problem is None:
        return "splintr"
    if wanted == "auto":
        log.info("tokenizer: encoding with tokenizers, some ten times slower than splintr: %s", problem)
        return "tokenizers"
    raise TokenizerError(f"tokenizer.engine={wanted}: {problem}; or set tokenizer.engine=auto")


def _difference(definition: Definition, guard: Guard, *, input_bytes: int) -> str | None:
    # to the next power of two, so that inputs of about one size share a verdict
    long_characters = min(LONG_CHARACTERS, 1 << input_bytes.bit_length())
    special_tokens = [token["content"] for token in definition.tree.get("added_tokens", [])]
    cases = hard_cases(special_tokens, long_characters=long_characters)
    engines = (f"splintr {splintr_version()}", f"tokenizers {tokenizers.__version__}")
    verdict = Verdict(definition.digest, *engines, _SPLINTR_CALL, *cases)
    remembered = verdict.is_known()
    if not remembered:
        try:
            fast = SplintrEngine(without_special_tokens(definition.tree))
        except TokenizerError as error:
            return str(error)
        difference = first_difference(definition.reference, fast, guard, cases)
        if difference is not None:
            return f"{engines[0]} differs from {engines[1]} on {difference}"
        verdict.remember()
    count = f"{len(cases):,}"
    log.info(
        "tokenizer: encoding with %s, equal to %s on %s hard cases%s", *engines, count, " before" if remembered else ""
    )
    return None


def _is_surrogate(point: int) -> bool:
    return 0xD800 <= point < 0xE000


def _batches(texts: Iterable[str]) -> Iterable[list[str]]:
    batch: list[str] = []
    for text in texts:
        batch.append(text)
        if len(batch) == _PER_CALL:
            yield batch
            batch = []
    if batch:
        yield batch
