"""Words, until pipeline/filters/words.py is there."""

from __future__ import annotations

import re

_WORD = re.compile(r"\w+|[^\w\s]+")


def words(text: str) -> list[str]:
    return _WORD.findall(text)
