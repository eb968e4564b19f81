"""Pydantic models by number, in memory as compressed JSON: a tenth of what they are as objects.

A run of 10 TB has some hundred thousand records of units. Every look at a model makes it anew, so who sums them up
looks at each once (`totals.py`).
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from typing import TypeVar

from pydantic import BaseModel

Model = TypeVar("Model", bound=BaseModel)


class PackedModels(Mapping[int, Model]):
    """In the order in which they were added."""

    def __init__(self, kind: type[Model]) -> None:
        self._kind = kind
        self._packed: dict[int, bytes] = {}

    def add(self, number: int, model: Model) -> None:
        """Replaces what had the number."""
        self._packed[number] = zlib.compress(model.model_dump_json().encode(), level=1)

    def __getitem__(self, number: int) -> Model:
        return self._kind.model_validate_json(zlib.decompress(self._packed[number]))

    def __contains__(self, number: object) -> bool:
        return number in self._packed  # without unpacking it

    def __iter__(self) -> Iterator[int]:
        return iter(self._packed)

    def __len__(self) -> int:
        return len(self._packed)
