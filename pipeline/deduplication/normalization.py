"""What of a text counts when texts are compared. A change here is a change of every deduplicated dataset."""

from __future__ import annotations

import unicodedata

_ASCII_WHITE_SPACE = b" \t\n\r\v\f"


def comparable_bytes(text: str) -> bytes:
    """Equal for texts that differ in ASCII white space and Unicode composition (NFC) only.

    White space is left out, not collapsed: collapsing costs eight times as much, and whole texts that differ in the
    places of their spaces alone are hardly ever two texts.
    """
    if not text.isascii():
        text = unicodedata.normalize("NFC", text)
    return text.encode().translate(None, _ASCII_WHITE_SPACE)


def comparable_word(word: str) -> str:
    """A word in lower case, decomposed (NFKD), without accents and punctuation, each decimal digit a 0.

    Empty for a word that holds no letter and no digit.
    """
    if word.isascii() and word.isalpha():
        return word.lower()
    return "".join(
        "0" if character.isdecimal() else character
        for character in unicodedata.normalize("NFKD", word.casefold())
        # spacing marks (Mc) are vowels of Indic scripts; accents and their like are Mn
        if (category := unicodedata.category(character))[0] in "LN" or category == "Mc"
    )
