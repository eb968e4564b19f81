"""The filters of a config, asked in its order; the first that objects names the reason.

A filter is a module with `rejection(view, config)` (see `view.py`), a config class in `pipeline/filter_config.py`, and
its row here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from pipeline.filter_config import FilterConfig, look_into_text
from pipeline.filters import (
    banned_words,
    c4,
    code,
    fineweb,
    gopher_quality,
    gopher_repetition,
    language,
    length,
    pii,
    unicode,
    url,
)
from pipeline.filters.view import DocumentView
from pipeline.filters.words import words

RULES: dict[str, Callable[[DocumentView, Any], str | None]] = {
    "length": length.rejection,
    "gopher_quality": gopher_quality.rejection,
    "gopher_repetition": gopher_repetition.rejection,
    "c4": c4.rejection,
    "fineweb": fineweb.rejection,
    "language": language.rejection,
    "code": code.rejection,
    "pii": pii.rejection,
    "unicode": unicode.rejection,
    "url": url.rejection,
    "banned_words": banned_words.rejection,
}

_PREPARATIONS: dict[str, Callable[[Any], object]] = {
    "language": language.prepare,
    "url": url.wanted,
    "banned_words": lambda config: banned_words.phrases(config.path),
}


def prepare(filters: Sequence[FilterConfig]) -> None:
    """Load what filters read from files, so that a run fails at its start, not in its middle, and workers that are
    forked off this process have it. Raises PipelineError.

    Anew: the files may have changed since this process last read them.
    """
    for cached in (language.load_model, url.wanted, banned_words.phrases):
        cached.cache_clear()
    for config in filters:
        if config.type in _PREPARATIONS:
            _PREPARATIONS[config.type](config)
    if look_into_text(filters):
        words("")  # the first call makes its pattern, for 40 ms: once, not in each worker


def rejection(view: DocumentView, filters: Sequence[FilterConfig]) -> str | None:
    """The first reason to drop a document, or None to keep it with the text that the view then has."""
    for config in filters:
        reason = RULES[config.type](view, config)
        if reason is not None:
            return reason
    return None
