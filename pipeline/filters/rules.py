"""The filters in the order in which they are asked; the first that objects names the reason.

A new filter is one module with a function like `length.rejection`, a section of `FiltersConfig` under the same name,
and one row here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pipeline.config import FiltersConfig
from pipeline.filters import length

# a field of FiltersConfig, and what is asked with it: a reason to drop the text, or None
RULES: tuple[tuple[str, Callable[[str, Any], str | None]], ...] = (("length", length.rejection),)


def rejection(text: str, filters: FiltersConfig) -> str | None:
    """The first reason to drop a text, or None to keep it."""
    for name, reject in RULES:
        reason = reject(text, getattr(filters, name))
        if reason is not None:
            return reason
    return None
