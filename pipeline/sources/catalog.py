"""Which reader reads which kind of source: `type: jsonl` is the module `pipeline/sources/jsonl.py`, and so on.

A new source is one module with the two functions of `Reader`, and one config class in `pipeline/source_config.py`.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any, Protocol, cast

from pipeline.document import Record
from pipeline.source_config import SourceConfig
from pipeline.sources.piece import Piece


class Reader(Protocol):
    """What a source's module offers; `config` is of its own config class."""

    def find_pieces(self, config: Any, *, unit_size_bytes: int) -> Iterator[Piece]:
        """The input in a fixed order, cut no finer than units of `unit_size_bytes` need; SourceError if none."""

    def read_piece(self, config: Any, piece: Piece) -> Iterator[Record]:
        """Every record of a piece, in order; SourceError for a file that is damaged as a whole."""


def reader_of(config: SourceConfig) -> Reader:
    """Imported when asked for, so that nobody pays for a library that his sources do not use."""
    return cast(Reader, importlib.import_module(f"pipeline.sources.{config.type}"))
