"""Digests of files by ranges: what a manifest holds of each file, and where a file first differs from it.

A file is cut into ranges of `RANGE_BYTES`; each range has an XXH3-128 digest, and the file's digest is the XXH3-128 of
its ranges' digests. XXH3-128 is ten times as fast as SHA-256 and not cryptographic: it answers decay and mistakes. Two
different contents have the same digest with probability 2^-128; over 10^12 ranges (64 exabytes) some pair collides
with 10^24 / 2^129, under 10^-14. Who can write to the folder can write the manifest too, so that no digest inside it
would answer malice.

Behind the door `manifest.py`. Imports the standard library and xxhash only.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import xxhash

RANGE_BYTES = 64 * 1024 * 1024
_PIECE_BYTES = 1024 * 1024  # of a range at a time, so that it is hashed while it is in the processor's cache
_MAX_THREADS = 16  # a file system at its best; each has one piece in memory


class RangeHasher:
    """Digests of a content that comes in pieces of any size."""

    def __init__(self) -> None:
        self.size_bytes = 0
        self._finished: list[str] = []
        self._hash = xxhash.xxh3_128()

    def update(self, content: bytes | memoryview) -> None:
        view = memoryview(content).cast("B")
        while view:
            room = RANGE_BYTES - self.size_bytes % RANGE_BYTES
            self._hash.update(view[:room])
            self.size_bytes += len(view[:room])
            view = view[room:]
            if self.size_bytes % RANGE_BYTES == 0:
                self._finished.append(self._hash.hexdigest())
                self._hash = xxhash.xxh3_128()

    def digests(self) -> tuple[str, ...]:
        """One for each range begun: none for no content."""
        open_range = (self._hash.hexdigest(),) if self.size_bytes % RANGE_BYTES else ()
        return (*self._finished, *open_range)


def combine(range_digests: Sequence[str]) -> str:
    """The digest of a file by those of its ranges: `xxh3-128:…`."""
    return f"xxh3-128:{xxhash.xxh3_128_hexdigest(bytes.fromhex(''.join(range_digests)))}"


def digest_text(text: str) -> str:
    """Of a text as UTF-8."""
    return f"xxh3-128:{xxhash.xxh3_128_hexdigest(text.encode())}"


def count_ranges(size_bytes: int) -> int:
    """Ranges of a file."""
    return math.ceil(size_bytes / RANGE_BYTES)


def digest_ranges(path: Path) -> Iterator[str]:
    """The digests of a file's ranges as it lies, in order, computed in parallel. Raises OSError."""
    for digest in digest_ranges_of([(path, index) for index in range(count_ranges(path.stat().st_size))]):
        if isinstance(digest, OSError):
            raise digest
        yield digest


def digest_ranges_of(
    ranges: Iterable[tuple[Path, int]], *, bytes_per_second: float = math.inf
) -> Iterator[str | OSError]:
    """The digests of numbered ranges of several files, in the order given; of one that cannot be read, why.

    No more than `bytes_per_second` are read in any time longer than a piece takes.
    """
    pace = _Pace(bytes_per_second)
    # threads: the hash and the read let go of the interpreter's lock
    with ThreadPoolExecutor(min(_MAX_THREADS, len(os.sched_getaffinity(0)))) as threads:
        yield from threads.map(lambda place: _digest_range(place, pace), ranges)


class _Pace:
    """Gives each piece that a thread is to read the moment when it may."""

    def __init__(self, bytes_per_second: float) -> None:
        self._bytes_per_second, self._free_s = bytes_per_second, 0.0
        self._lock = threading.Lock()

    def wait(self, size_bytes: int) -> None:
        with self._lock:
            now_s = time.monotonic()
            begin_s = max(now_s, self._free_s)
            self._free_s = begin_s + size_bytes / self._bytes_per_second
        if begin_s > now_s:
            time.sleep(begin_s - now_s)


def _digest_range(place: tuple[Path, int], pace: _Pace) -> str | OSError:
    path, index = place
    digest, buffer = xxhash.xxh3_128(), memoryview(bytearray(_PIECE_BYTES))
    try:
        with path.open("rb", buffering=0) as file:
            file.seek(index * RANGE_BYTES)
            left = RANGE_BYTES
            while left and (count := file.readinto(buffer[:left])):
                digest.update(buffer[:count])
                left -= count
                pace.wait(count)
    except OSError as error:
        return error
    return digest.hexdigest()
