"""Long texts cut where no pre-token goes across, so that the ids of the whole are those of the pieces in turn.

That holds for byte-level BPE after GPT-2's pattern, without a normalizer or a prefix space (`is_plain_byte_level_bpe`):

    's|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+

Letters, digits, marks (all that is none of these) and white space are its four classes. Two neighbours of different
classes are in one match only where the first is a space, or an apostrophe before a letter of a contraction. Only white
space looks ahead, and nothing looks back. So a text may be cut between two classes if the first character is neither
white space nor an apostrophe. Before the pattern, `Digits` cuts on both sides of a digit, or of several in a row.

Libraries know Unicode in different versions: but for white space after what is none, only characters are told apart
here that have been in their class since Unicode 6. A run of one class is one word, however long, and is not cut.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from pipeline.document import LongText

# ASCII, Latin-1, Cyrillic, Hebrew, Arabic, Devanagari, Thai, Hiragana, Katakana, Han, Hangul: all \p{L}
LETTERS = (
    "A-Za-zÀ-ÖØ-öø-ÿ\u0400-\u0481\u048a-\u0513\u05d0-\u05ea\u0621-\u063a\u0641-\u064a\u0904-\u0939\u0e01-\u0e30"
    "\u3041-\u3096\u30a1-\u30fa\u4e00-\u9fbb\uac00-\ud7a3"
)
DIGITS = "0-9"
# as above, vowel signs of Arabic, Devanagari and Thai among them, and emoji; no apostrophe
MARKS = (
    "!-&(-/:-@\\[-`{-~\u064b-\u0652\u093e-\u094c\u0e31\u0e34-\u0e3a\u0e47-\u0e4e\u2010-\u2027\u2030-\u205e"
    "\u3001-\u3003\u3008-\u3011\uff01-\uff0f\uff1a-\uff20\U0001f300-\U0001f320\U0001f601-\U0001f610"
)
_BETWEEN_CLASSES = "|".join(
    (
        r"\S(?=[ \t\n\r])",
        rf"[{LETTERS}](?=[{DIGITS}{MARKS}'])",
        rf"[{DIGITS}](?=[{LETTERS}{MARKS}'])",
        rf"[{MARKS}](?=[{LETTERS}{DIGITS}])",
    )
)
# compiled before workers are forked off
_BOUNDARY = re.compile(_BETWEEN_CLASSES)
_BOUNDARY_OR_BETWEEN_DIGITS = re.compile(rf"{_BETWEEN_CLASSES}|[{DIGITS}](?=[{DIGITS}])")


class Cutter:
    """Cuts texts for one tokenizer."""

    def __init__(self, tokenizer: dict[str, Any]) -> None:
        """`tokenizer` is a parsed `tokenizer.json` that `is_plain_byte_level_bpe` holds of."""
        steps = tokenizer["pre_tokenizer"].get("pretokenizers", [])
        digits_are_alone = any(step["type"] == "Digits" and step["individual_digits"] for step in steps)
        self._boundary = _BOUNDARY_OR_BETWEEN_DIGITS if digits_are_alone else _BOUNDARY

    def pieces(self, text: str | LongText, *, characters: int) -> Iterator[str]:
        """Pieces that end at the first boundary from so many characters on, also where that is in another part.

        A text in parts gives them up.
        """
        rest = ""
        searched = 0  # there is no boundary before: of a long word no part is looked at twice
        for part in text.take() if isinstance(text, LongText) else [text]:
            rest += part
            start = 0
            while len(rest) - start > characters:
                boundary = self._boundary.search(rest, max(start + characters - 1, searched - 1))
                if boundary is None:
                    break
                yield rest[start : boundary.end()]
                start = boundary.end()
            searched = len(rest) - start
            rest = rest[start:]
        yield rest
