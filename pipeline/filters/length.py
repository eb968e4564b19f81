"""Drops documents that are too short or too long to learn from. Lengths are in characters."""

from __future__ import annotations

from typing import Literal

from pipeline.filter_config import LengthConfig
from pipeline.filters.view import DocumentView

Reason = Literal["too_short", "too_long"]


def rejection(view: DocumentView, config: LengthConfig) -> Reason | None:
    """The reason to drop a document, or None to keep it. Space around the text does not count as length."""
    length = view.stripped_characters
    if length < config.min_characters:
        return "too_short"
    if config.max_characters is not None and length > config.max_characters:
        return "too_long"
    return None
