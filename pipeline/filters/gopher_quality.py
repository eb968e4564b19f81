"""The quality filter of Gopher: is this prose? (Rae et al. 2021, arXiv:2112.11446, Appendix A1.1, "Quality Filtering")

What the paper leaves open is counted so that decisions equal those of the filter's usual implementation: a document
has as many words as it has words with a letter or a digit, and their mean length is asked for; shares of words are of
all words, marks of punctuation included; stop words are told by case.
"""

from __future__ import annotations

from typing import Literal

from pipeline.filter_config import GopherQualityConfig
from pipeline.filters.view import DocumentView

Reason = Literal[
    "gopher_too_few_words",
    "gopher_too_many_words",
    "gopher_words_too_short",
    "gopher_words_too_long",
    "gopher_too_many_hashes",
    "gopher_too_many_ellipses",
    "gopher_too_many_bullet_lines",
    "gopher_too_many_ellipsis_lines",
    "gopher_too_few_alphabetic_words",
    "gopher_too_few_stop_words",
]

_BULLETS = ("\u2022", "-")
_ELLIPSES = ("...", "\u2026")


def rejection(view: DocumentView, config: GopherQualityConfig) -> Reason | None:
    return _by_words(view, config) or _by_lines(view, config)


def _by_words(view: DocumentView, config: GopherQualityConfig) -> Reason | None:
    words = alphabetic = characters = 0
    for word, count in view.word_counts.items():
        if word.isalpha() or any(map(str.isalpha, word)):
            alphabetic += count
        elif not any(map(str.isalnum, word)):
            continue
        words += count
        characters += count * len(word)
    if words < config.min_words:
        return "gopher_too_few_words"
    if words > config.max_words:
        return "gopher_too_many_words"
    total = max(len(view.words), 1)
    mean_length = characters / max(words, 1)
    if mean_length < config.min_mean_word_length:
        return "gopher_words_too_short"
    if mean_length > config.max_mean_word_length:
        return "gopher_words_too_long"
    if view.text.count("#") / total > config.max_hashes_per_word:
        return "gopher_too_many_hashes"
    if sum(map(view.text.count, _ELLIPSES)) / total > config.max_ellipses_per_word:
        return "gopher_too_many_ellipses"
    if alphabetic / total < config.min_alphabetic_word_fraction:
        return "gopher_too_few_alphabetic_words"
    if sum(word in view.word_counts for word in config.stop_words) < config.min_stop_words:
        return "gopher_too_few_stop_words"
    return None


def _by_lines(view: DocumentView, config: GopherQualityConfig) -> Reason | None:
    # a line end at the end of a text begins no line
    lines = view.text.splitlines() or [""]
    if sum(line.lstrip().startswith(_BULLETS) for line in lines) / len(lines) > config.max_bullet_line_fraction:
        return "gopher_too_many_bullet_lines"
    if sum(line.rstrip().endswith(_ELLIPSES) for line in lines) / len(lines) > config.max_ellipsis_line_fraction:
        return "gopher_too_many_ellipsis_lines"
    return None
