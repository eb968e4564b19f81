"""Drops documents that use words or phrases of a list (such as C4's bad words, which its authors publish)."""

from __future__ import annotations

from collections import defaultdict
from functools import lru_cache
from pathlib import Path
from typing import Literal

from pipeline.filter_config import BannedWordsConfig
from pipeline.filters.listing import read_list
from pipeline.filters.view import DocumentView
from pipeline.filters.words import words

Phrases = dict[str, list[tuple[str, ...]]]


def rejection(view: DocumentView, config: BannedWordsConfig) -> Literal["banned_words"] | None:
    """Entries and text are cut into words by the same rule, so that a phrase is found whatever white space parts it."""
    by_first_word = phrases(config.path)
    if not any(word.lower() in by_first_word for word in view.word_counts):
        return None
    lowered = [word.lower() for word in view.words]
    occurrences = 0
    for position, word in enumerate(lowered):
        for phrase in by_first_word.get(word, ()):
            occurrences += tuple(lowered[position : position + len(phrase)]) == phrase
            if occurrences > config.max_occurrences:
                return "banned_words"
    return None


@lru_cache(maxsize=8)
def phrases(path: Path) -> Phrases:
    """The entries by their first word, each once."""
    by_first_word: Phrases = defaultdict(list)
    for phrase in dict.fromkeys(tuple(words(entry.lower())) for entry in read_list(path)):
        by_first_word[phrase[0]].append(phrase)
    return dict(by_first_word)
