"""The memory of a worker: what it may be killed for, as Linux counts it, and when it gives back what it has freed.

Anonymous memory, not address space (RLIMIT_AS): Arrow and the allocators reserve far more of that than they touch, and
not resident memory: the kernel takes pages of mapped files back whenever it wants them.
"""

from __future__ import annotations

import contextlib
import ctypes
import re
import sys
from functools import cache
from pathlib import Path

_ANONYMOUS = re.compile(rb"^Rss(?:Anon|Shmem):\s+(\d+) kB$", re.MULTILINE)

_M_MMAP_THRESHOLD = -3  # of malloc.h
LARGE_BYTES = 1 << 20


@cache
def give_back_freed_memory() -> None:
    """From now on let the C library return every large block to the system as it is freed, which costs some time.

    Else glibc, once it has freed blocks of some size, keeps what comes back of that size or less for itself, up to
    32 MB each: the parts of a text of 100 MB would stay beside the ids that are made of them.
    """
    if can_be_measured():
        with contextlib.suppress(AttributeError, OSError):  # another C library
            ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, LARGE_BYTES)


def can_be_measured() -> bool:
    return sys.platform == "linux"


def anonymous_memory_bytes(pid: int) -> int:
    """Resident memory of a process that no file backs; 0 if it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return sum(1024 * int(match) for match in _ANONYMOUS.findall(status))
