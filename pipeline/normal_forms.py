"""Unicode's normal forms in time linear in the text, whatever it holds.

`unicodedata.normalize` sorts marks by insertion: quadratic over a run of them, and a record may be nothing else. Runs
that are sorted already cost it nothing, so long ones are sorted before. The result is the same.
"""

from __future__ import annotations

import re
import unicodedata
from functools import cache
from typing import Literal, NamedTuple

import numpy as np

NormalForm = Literal["NFC", "NFKD"]

# all marks are between these; above are ideographs, tags and private use
_FIRST_MARK, _MARKS_END = 0x300, 0x20000

# a run that is not sorted before has fewer marks than this: cheap to sort by insertion
_LONG = 100


def normalized(text: str, *, form: NormalForm) -> str:
    """What `unicodedata.normalize(form, text)` returns."""
    if len(text) >= _LONG:
        marks = _marks(form)
        # a long run has one of these places in its first half: few of a text's characters are looked at
        places = range(0, len(text), _LONG // 2)
        if any(text[place] in marks.characters and marks.half_of_long.match(text, place) for place in places):
            text = marks.long_run.sub(_sorted_run, text.translate(marks.decompositions))
    return unicodedata.normalize(form, text)


class _Marks(NamedTuple):
    """Characters whose decomposition is of combining marks alone."""

    characters: frozenset[str]
    decompositions: dict[int, str]
    half_of_long: re.Pattern[str]
    long_run: re.Pattern[str]


@cache
def _marks(form: NormalForm) -> _Marks:
    decomposed: Literal["NFD", "NFKD"] = "NFD" if form == "NFC" else "NFKD"
    decompositions = {
        character: unicodedata.normalize(decomposed, character)
        for character in map(chr, range(_FIRST_MARK, _MARKS_END))
        if unicodedata.combining(character) or unicodedata.decomposition(character)
    }
    marks = {mark: parts for mark, parts in decompositions.items() if all(map(unicodedata.combining, parts))}
    one = f"[{''.join(marks)}]"
    return _Marks(
        characters=frozenset(marks),
        decompositions={ord(mark): parts for mark, parts in marks.items() if mark != parts},
        half_of_long=re.compile(f"{one}{{{_LONG // 2}}}"),
        long_run=re.compile(f"{one}{{{_LONG},}}"),
    )


def _sorted_run(run: re.Match[str]) -> str:
    """Its marks by combining class, in their order within a class (Unicode, §3.11, canonical ordering)."""
    codes = np.frombuffer(run[0].encode("utf-32-le"), dtype="<u4")
    different, places = np.unique(codes, return_inverse=True)
    classes = np.array([unicodedata.combining(chr(code)) for code in different], dtype=np.uint8)
    return codes[np.argsort(classes[places], kind="stable")].tobytes().decode("utf-32-le")
