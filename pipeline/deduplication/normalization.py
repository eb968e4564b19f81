"""What of a text counts when texts are compared. A change here is a change of every deduplicated dataset.

The words are not those of the filters: for n-grams a text is stripped of case, punctuation and accents first, as
FineWeb does (arXiv:2406.17557, §3.4), and what is left is cut at white space. That takes a tenth of the time of a
split by rules, and less than it would take to normalize words that are split already.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator

import numpy as np
import xxhash

from pipeline.normal_forms import normalized

_WHITE_SPACE_AND_CONTROL = bytes(range(ord(" ") + 1))

# texts are rid of them so many characters at once: the places of what stays, 8 bytes each, fit a core's cache
_AT_ONCE = 1 << 16

# for bytes of UTF-8: what is not ASCII stays, and is looked at word by word
_WORD_BYTES = bytes(
    byte if byte >= 0x80 else ord("0") if chr(byte).isdigit() else ord(chr(byte).lower()) if chr(byte).isalnum() else 32
    for byte in range(256)
)
_APOSTROPHES = "\u2018\u2019\u02bc"
# scripts that put no space between words: Han, Kana, Thai, Lao, Burmese, Khmer; each of their letters is a word
_UNSPACED = re.compile("([\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\U00020000-\U0003ffff])")


def comparable_bytes(text: str) -> bytes:
    """Equal for texts that differ in ASCII white space, control characters and Unicode composition (NFC) only.

    White space is left out, not collapsed: collapsing costs eight times as much, and whole texts that differ in the
    places of their spaces alone are hardly ever two texts.
    """
    return _composed(text).translate(None, _WHITE_SPACE_AND_CONTROL)


def comparable_digests(texts: Iterable[str]) -> Iterator[bytes]:
    """xxh3-128 of the `comparable_bytes` of each text, 16 bytes each. Takes texts as it goes, 64 Ki characters ahead.

    Short texts are encoded together, and compacted together by NumPy, which has no branch a byte: those of
    `bytes.translate` are mispredicted at every word, and take a quarter longer.
    """
    for group in _groups(texts):
        yield from _digests(group)


def _groups(texts: Iterable[str]) -> Iterator[list[str]]:
    """Of `_AT_ONCE` characters at most, or of one text."""
    group: list[str] = []
    characters = 0
    for text in texts:
        characters += len(text)
        if group and characters > _AT_ONCE:
            yield group
            group, characters = [], len(text)
        group.append(text)
    if group:
        yield group


def _digests(group: list[str]) -> Iterator[bytes]:
    """xxh3-128 of each text without its white space and control characters."""
    whole = "".join(group)
    if whole.isascii():
        data, sizes = whole.encode(), [*map(len, group)]
    else:
        parts = [*map(_composed, group)]
        data, sizes = b"".join(parts), [*map(len, parts)]
    if len(group) == 1 and len(data) > _AT_ONCE:
        yield xxhash.xxh3_128_digest(data.translate(None, _WHITE_SPACE_AND_CONTROL))
        return
    joined = np.frombuffer(data, np.uint8)
    kept = (joined > ord(" ")).nonzero()[0]
    compact = joined.take(kept, mode="wrap").data  # every index is in range: `wrap` only spares their check
    start = 0
    for stop in np.searchsorted(kept, np.cumsum(sizes)).tolist():
        yield xxhash.xxh3_128_digest(compact[start:stop])
        start = stop


def _composed(text: str) -> bytes:
    """In NFC and UTF-8."""
    return (text if text.isascii() else normalized(text, form="NFC")).encode()


def comparable_words(text: str) -> list[bytes]:
    """Words in lower case, decomposed (NFKD), without accents and other marks, every decimal digit a 0, in UTF-8.

    Apostrophes are left out (`dont`), all other punctuation parts words.
    """
    pieces = text.encode().translate(_WORD_BYTES, b"'").split()
    if text.isascii():
        return pieces
    words: list[bytes] = []
    for piece in pieces:
        if piece.isascii():
            words.append(piece)
        else:
            words += _words_of(piece.decode())
    return words


def _words_of(piece: str) -> list[bytes]:
    """Of a piece without ASCII punctuation and space."""
    characters = []
    for character in normalized(piece.casefold(), form="NFKD"):
        if character.isdecimal():
            characters.append("0")
        elif character.isalnum():
            characters.append(character)
        elif character not in _APOSTROPHES and not unicodedata.category(character).startswith("M"):
            characters.append(" ")
    return _UNSPACED.sub(r" \1 ", "".join(characters)).encode().split()
