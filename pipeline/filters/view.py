"""A document as filters see it: its text, and lines, paragraphs, words and sentences, each made once when asked for.

A filter is a function `rejection(view, config)` in a module named as its config's `type`. It returns the name of a
reason to drop the document, or None to keep it; it may assign `view.text`, and whoever asks after it sees the new text.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cached_property

from pipeline.document import LongText, parts_of
from pipeline.filters.words import words

# A mark that ends a sentence, with the quotes and brackets that it closes, before white space. Not the dots of an
# ellipsis, and not the dot of an abbreviation or an initial (`e.g.`, `J. Smith`).
# A run of `!` and `?` is looked at from its beginning only and never given back: else long runs take quadratic time.
_SENTENCE_END = re.compile(
    r"(?:(?<!\.)(?<!\b\w)\.(?!\.)|(?<![!?])[!?])[!?]*+[\"')\]\u2019\u201d]*+(?=\s)|[\u3002\uff01\uff1f]"
)


class DocumentView:
    """One document on its way through the filters."""

    def __init__(self, text: str | LongText, *, url: str = "") -> None:
        self._text = text
        self.url = url
        self.is_changed = False

    @property
    def text(self) -> str:
        """All of it; a text in parts is joined when this is first asked for."""
        if isinstance(self._text, LongText):
            self._text = self._text.whole()
        return self._text

    @text.setter
    def text(self, text: str) -> None:
        if text == self.text:
            return
        self._text = text
        self.is_changed = True
        for part in _PARTS:
            self.__dict__.pop(part, None)

    @property
    def stripped_characters(self) -> int:
        """How many there are without the white space around the text. Joins and copies no large text."""
        if isinstance(self._text, str) and len(self._text) <= _SHORT:
            return len(self._text.strip())
        parts = parts_of(self._text)
        before = _count_spaces(part[at : at + _LOOK] for part in parts for at in range(0, len(part), _LOOK))
        count = len(self._text)
        if before == count:
            return 0
        backwards = (
            part[max(0, stop - _LOOK) : stop][::-1] for part in reversed(parts) for stop in range(len(part), 0, -_LOOK)
        )
        return count - before - _count_spaces(backwards)

    @cached_property
    def lines(self) -> Sequence[str]:
        """Between newlines, empty ones too, nothing stripped."""
        return self.text.split("\n")

    @cached_property
    def filled_lines(self) -> Sequence[str]:
        """The lines that are more than white space, nothing stripped."""
        return [line for line in self.lines if line and not line.isspace()]

    @cached_property
    def paragraphs(self) -> Sequence[str]:
        """Between empty lines, none of them empty, without the white space around the text."""
        pieces = self.text.strip().split("\n\n")
        return [paragraph for piece in pieces if (paragraph := piece.lstrip("\n"))]

    @cached_property
    def words(self) -> Sequence[str]:
        """As `pipeline.filters.words.words` cuts them, marks included."""
        return words(self.text)

    @cached_property
    def word_counts(self) -> Counter[str]:
        """How often each word occurs."""
        return Counter(self.words)

    @cached_property
    def sentences(self) -> Sequence[str]:
        """Without the white space around them; a sentence ends with `.`, `!`, `?` or a line."""
        return [sentence for line in self.lines for sentence in sentences_of_line(line)]


_PARTS = tuple(name for name, value in vars(DocumentView).items() if isinstance(value, cached_property))


# characters that may be copied, and those looked at together where there are more
_SHORT = 1 << 17
_LOOK = 1 << 10


def _count_spaces(slices: Iterable[str]) -> int:
    """How much white space the slices begin with together."""
    count = 0
    for characters in slices:
        rest = len(characters.lstrip())
        count += len(characters) - rest
        if rest:
            break
    return count


def sentences_of_line(line: str) -> list[str]:
    """A line cut behind the marks that end a sentence; what follows the last is a sentence too."""
    ends = [0, *(match.end() for match in _SENTENCE_END.finditer(line)), len(line)]
    pieces = (line[start:end].strip() for start, end in itertools.pairwise(ends))
    return [piece for piece in pieces if piece]
