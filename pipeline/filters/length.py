"""Drops documents that are too short or too long to learn from. Lengths are in characters."""

from __future__ import annotations

from typing import Literal

from pipeline.config import LengthFilterConfig

LengthReason = Literal["too_short", "too_long"]


def rejection(text: str, config: LengthFilterConfig) -> LengthReason | None:
    """The reason to drop a text, or None to keep it. Space around the text does not count as length."""
    length = len(text.strip())
    if length < config.min_characters:
        return "too_short"
    if config.max_characters is not None and length > config.max_characters:
        return "too_long"
    return None
