"""A piece of input: what a source can be cut into. A unit of work is made of consecutive pieces of one source."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.document import SourceError


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a file or table that can be read alone.

    `version` changes when the file does. `start` and `stop` are bytes of a JSONL file, row groups of a Parquet file,
    rows of a Hugging Face dataset. `size_bytes` is what is read, for grouping and for the progress; it may be an
    estimate.
    """

    path: str
    version: str
    start: int
    stop: int
    size_bytes: int


def find_files(globs: Sequence[str], *, source: str) -> list[Path]:
    """The files of all globs, each once, in the order of their sorted paths.

    Raises SourceError for a glob that matches no file.
    """
    found: set[str] = set()
    for pattern in globs:
        # not Path.glob: it takes no absolute patterns
        matches = [path for path in glob.glob(pattern, recursive=True) if Path(path).is_file()]  # noqa: PTH207
        if not matches:
            raise SourceError(f"source {source!r}: no file matches {pattern} (from {Path.cwd()})")
        found.update(matches)
    return [Path(path) for path in sorted(found)]


def whole_file(path: Path) -> Piece:
    """A file as one piece."""
    status = path.stat()
    return Piece(path=str(path), version=file_version(status), start=0, stop=status.st_size, size_bytes=status.st_size)


def readable(path: Path) -> str:
    """The path as text that can be stored: Linux file names are bytes, and need not be UTF-8."""
    return os.fsencode(path).decode("utf-8", errors="backslashreplace")


def file_version(status: os.stat_result) -> str:
    """Differs when the file has been written since, as far as its size and time of change can tell."""
    return f"{status.st_size} bytes, changed at {status.st_mtime_ns} ns"
