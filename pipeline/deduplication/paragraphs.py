"""Cuts a text into paragraphs, and leaves some of them out."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator

from pipeline.deduplication.config import ParagraphsConfig

_BLANK_LINES = re.compile(r"\n[^\S\n]*\n\s*")
_JOINTS = {"line": "\n", "blank_line": "\n\n"}


def paragraphs_of(text: str, config: ParagraphsConfig) -> Iterator[tuple[int, str]]:
    """Place and text of every paragraph that is long enough to be compared."""
    for place, paragraph in enumerate(_cut(text, config)):
        if len(paragraph.strip()) >= config.min_characters:
            yield place, paragraph


def without(text: str, places: Collection[int], config: ParagraphsConfig) -> str:
    """The text without the paragraphs at some places; the rest is joined as it was parted."""
    kept = [paragraph for place, paragraph in enumerate(_cut(text, config)) if place not in places]
    return _JOINTS[config.separator].join(kept)


def _cut(text: str, config: ParagraphsConfig) -> list[str]:
    return text.split("\n") if config.separator == "line" else _BLANK_LINES.split(text)
