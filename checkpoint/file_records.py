"""Files as a manifest knows them: paths, sizes and digests, and how a folder differs from them.

Behind the door `manifest.py`. Imports the standard library, pydantic and xxhash only.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from checkpoint.digests import RANGE_BYTES, combine, count_ranges, digest_ranges_of
from checkpoint.records import Record, file_exists

MANIFEST_FILE = "manifest.json"


class FileRecord(Record):
    """One file: its path below the checkpoint folder with `/`, its size, its digest and those of its ranges."""

    path: str
    size_bytes: int = Field(ge=0)
    digest: str
    range_digests: tuple[str, ...]


@dataclass(frozen=True)
class Problem:
    """One way in which a checkpoint differs from its manifest. `error` is why, of what could not be read."""

    path: str
    reason: str
    error: OSError | None = None

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


def file_record(checkpoint: Path, path: Path, size_bytes: int, range_digests: tuple[str, ...]) -> FileRecord:
    """The record of a file below a checkpoint whose ranges are digested."""
    relative = path.relative_to(checkpoint).as_posix()
    return FileRecord(path=relative, size_bytes=size_bytes, digest=combine(range_digests), range_digests=range_digests)


def find_problems(
    checkpoint: Path, records: Sequence[FileRecord], *, owned: Iterable[Path], bytes_per_second: float = math.inf
) -> list[Problem]:
    """Read and hash files again, in parallel, and name those that differ, each with its first range that does.

    `owned` are paths that may hold nothing but the records' files; `bytes_per_second` bounds the reading.
    """
    problems: dict[str, str | None] = {}
    errors: dict[str, OSError] = {}
    for record in records:
        try:
            problems[record.path] = _find_problem(checkpoint, record)
        except OSError as error:
            problems[record.path] = f"cannot be read: {error.strerror or error}"
            errors[record.path] = error
    readable = [record for record in records if problems[record.path] is None]
    ranges = [(checkpoint / record.path, index) for record in readable for index in range(len(record.range_digests))]
    got = digest_ranges_of(ranges, bytes_per_second=bytes_per_second)
    for record in readable:
        ours = [next(got) for _ in record.range_digests]
        differing = [index for index, wanted in enumerate(record.range_digests) if ours[index] != wanted]
        # what can be read and is another content says more than what cannot be read
        differing.sort(key=lambda index: isinstance(ours[index], OSError))
        if differing:
            got_instead = ours[differing[0]]
            problems[record.path] = _contents_changed(record, differing[0], got_instead)
            if isinstance(got_instead, OSError):
                errors[record.path] = got_instead
    found = (path.relative_to(checkpoint).as_posix() for path in owned)
    strangers = sorted(set(found) - problems.keys())
    return [
        *(Problem(path, reason, errors.get(path)) for path, reason in problems.items() if reason is not None),
        *(Problem(path, "not in the manifest; remove it") for path in strangers),
    ]


def raise_unless_read(problems: Sequence[Problem]) -> None:
    """Raises the first OSError where nothing is wrong but that files could not be read: a file server that is away for
    a while says nothing of what a checkpoint holds."""
    if problems and all(problem.error is not None for problem in problems):
        path, error = problems[0].path, problems[0].error
        assert error is not None
        raise OSError(error.errno, error.strerror, path)


def _find_problem(checkpoint: Path, record: FileRecord) -> str | None:
    """What shows without reading the file. Raises OSError if it cannot be looked at."""
    path = checkpoint / record.path
    # `Path.resolve` raises RuntimeError for a link to itself, up to Python 3.12
    if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(checkpoint)):
        return "a link that leads out of the checkpoint; do not trust it"
    if not file_exists(path):
        return "missing"
    size_bytes = path.stat().st_size
    if size_bytes != record.size_bytes:
        return f"{size_bytes:,} bytes, wanted {record.size_bytes:,}"
    if count_ranges(size_bytes) != len(record.range_digests) or combine(record.range_digests) != record.digest:
        return "the digests of its ranges are not those of the file"
    return None


def _contents_changed(record: FileRecord, index: int, got: str | OSError) -> str:
    first, last = index * RANGE_BYTES, min((index + 1) * RANGE_BYTES, record.size_bytes) - 1
    if isinstance(got, OSError):
        return f"bytes {first:,} to {last:,} cannot be read: {got.strerror}"
    return f"contents changed in bytes {first:,} to {last:,} ({got[:12]}…, wanted {record.range_digests[index][:12]}…)"
