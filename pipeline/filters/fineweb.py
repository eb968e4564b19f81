"""FineWeb's own filters: against lists, menus and text whose lines repeat (Penedo et al. 2024, arXiv:2406.17557, §3.6).

The fourth, newlines per word, is in the published code of FineWeb and not in the paper. Lines that are only white space
are none; the others are taken as they are, white space at their ends included.
"""

from __future__ import annotations

from typing import Literal

from pipeline.filter_config import FineWebConfig
from pipeline.filters.view import DocumentView

Reason = Literal[
    "fineweb_too_few_punctuated_lines",
    "fineweb_too_many_short_lines",
    "fineweb_duplicate_line_characters",
    "fineweb_too_many_newlines",
]

# full stops, exclamation and question marks of the scripts that text on the web is in
_TERMINAL_MARKS = tuple(
    ".!?\u3002\uff01\uff1f\uff0e\uff61\u061f\u06d4\u0964\u0965\u0589\u1362\u1367\u104b\u17d4\u203c\u2047\u2048\u2049"
)


def rejection(view: DocumentView, config: FineWebConfig) -> Reason | None:
    lines = view.filled_lines
    punctuated = sum(line.endswith(_TERMINAL_MARKS) for line in lines)
    if not lines or punctuated / len(lines) < config.min_punctuated_line_fraction:
        return "fineweb_too_few_punctuated_lines"
    short = sum(len(line) <= config.short_line_characters for line in lines)
    if short / len(lines) > config.max_short_line_fraction:
        return "fineweb_too_many_short_lines"
    duplicate_characters = sum(map(len, lines)) - sum(map(len, set(lines)))
    newlines = len(view.lines) - 1
    if duplicate_characters / (len(view.text) - newlines) > config.max_duplicate_line_character_fraction:
        return "fineweb_duplicate_line_characters"
    if newlines / max(len(view.words), 1) > config.max_newlines_per_word:
        return "fineweb_too_many_newlines"
    return None
