"""The memory that a process may be killed for, as Linux counts it.

Anonymous memory, not address space (RLIMIT_AS): Arrow and the allocators reserve far more of that than they touch, and
not resident memory: the kernel takes pages of mapped files back whenever it wants them.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

_ANONYMOUS = re.compile(rb"^Rss(?:Anon|Shmem):\s+(\d+) kB$", re.MULTILINE)


def can_be_measured() -> bool:
    return sys.platform == "linux"


def anonymous_memory_bytes(pid: int) -> int:
    """Resident memory of a process that no file backs; 0 if it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return sum(1024 * int(match) for match in _ANONYMOUS.findall(status))
