"""Is the document in a wanted language? A fastText model says so, or the script and the most frequent words.

The heuristic is for well-filled texts of the languages that it lists; a model knows more of them, and short texts.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from pipeline.document import PipelineError
from pipeline.filter_config import LanguageConfig
from pipeline.filters.stop_words import STOP_WORDS
from pipeline.filters.view import DocumentView

MIN_MODEL_SCORE = 0.65
MIN_STOP_WORD_FRACTION = 0.08
MIN_KANA_FRACTION = 0.05

# first code point of a block, and the script of the letters from there on
_BLOCKS = (
    (0x0000, "Latin"),
    (0x0370, "Greek"),
    (0x0400, "Cyrillic"),
    (0x0530, "other"),
    (0x0590, "Hebrew"),
    (0x0600, "Arabic"),
    (0x0780, "other"),
    (0x0900, "Devanagari"),
    (0x0980, "other"),
    (0x0E00, "Thai"),
    (0x0E80, "other"),
    (0x1100, "Hangul"),
    (0x1200, "other"),
    (0x1E00, "Latin"),
    (0x1F00, "Greek"),
    (0x2000, "other"),
    (0x3040, "Kana"),
    (0x3100, "Han"),
    (0xA000, "other"),
    (0xAC00, "Hangul"),
    (0xD7B0, "other"),
    (0xF900, "Han"),
    (0xFB00, "other"),
    (0x20000, "Han"),
    (0x40000, "other"),
)
_STARTS = [start for start, _ in _BLOCKS]
_ONLY_LANGUAGE = {"Greek": "el", "Hebrew": "he", "Thai": "th", "Hangul": "ko"}


def rejection(view: DocumentView, config: LanguageConfig) -> Literal["other_language"] | None:
    if config.model_path is not None:
        min_score = MIN_MODEL_SCORE if config.min_score is None else config.min_score
        language = _by_model(view.text, config.model_path, min_score=min_score)
    else:
        min_score = MIN_STOP_WORD_FRACTION if config.min_score is None else config.min_score
        language = language_of(view, min_score=min_score)
    return None if language in config.languages else "other_language"


def language_of(view: DocumentView, *, min_score: float = MIN_STOP_WORD_FRACTION) -> str | None:
    """ISO 639-1, or None if unknown.

    A script that one language uses names it; else the language whose stop words are most of the words, `min_score` at
    least. Of equal ones the first in the list is it.
    """
    letters: Counter[str] = Counter()
    lowered: Counter[str] = Counter()
    for word, count in view.word_counts.items():
        letter = word[0] if word[0].isalpha() else next(filter(str.isalpha, word), None)
        if letter is None:
            continue
        letters[_BLOCKS[bisect_right(_STARTS, ord(letter)) - 1][1]] += count * len(word)
        lowered[word.lower()] += count
    if not letters:
        return None
    if letters["Kana"] and letters["Kana"] >= MIN_KANA_FRACTION * letters.total():
        return "ja"
    script = max(letters, key=letters.__getitem__)
    if script == "Han":
        return "zh"
    if script in _ONLY_LANGUAGE:
        return _ONLY_LANGUAGE[script]
    scores = {
        language: sum(lowered[word] for word in words) / lowered.total()
        for language, (written_in, words) in STOP_WORDS.items()
        if written_in == script
    }
    best = max(scores, key=scores.__getitem__, default=None)
    return best if best is not None and scores[best] >= min_score else None


def prepare(config: LanguageConfig) -> None:
    """Raises PipelineError if the config asks for a model that cannot be loaded."""
    if config.model_path is not None:
        load_model(config.model_path)


def _by_model(text: str, path: Path, *, min_score: float) -> str | None:
    # fastText reads a line
    labels, scores = load_model(path).predict(text.replace("\n", " "))
    return str(labels[0]).removeprefix("__label__") if len(labels) and scores[0] >= min_score else None


@lru_cache(maxsize=8)
def load_model(path: Path) -> Any:
    """Raises PipelineError if fastText is not installed, or the file is not a model of it."""
    try:
        import fasttext
    except ImportError:
        raise PipelineError(
            "a language filter with model_path needs fastText: pip install 'smollm2-pretraining[language]'"
        ) from None
    try:
        return fasttext.load_model(str(path))
    except (ValueError, OSError) as error:
        raise PipelineError(f"{path} cannot be loaded: {error}; wanted a model of fastText, .bin or .ftz") from None
