"""How much memory a process and all that it started take, from Linux's /proc.

Counts anonymous memory: what is mapped from files (weights of a model, shared libraries) can be taken back by the
kernel at any time, and would be counted once for each process that maps it.
"""

from __future__ import annotations

import re
from pathlib import Path

_ANONYMOUS = re.compile(rb"^RssAnon:\s+(\d+) kB$", re.MULTILINE)
_PARENT = re.compile(rb"^PPid:\s+(\d+)$", re.MULTILINE)


def private_bytes(leader: int) -> int:
    """Of the process `leader` and its descendants together; 0 if it is gone."""
    taken: dict[int, int] = {}
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            status = (entry / "status").read_bytes()
        except OSError:
            continue  # it has ended
        parent, anonymous = _PARENT.search(status), _ANONYMOUS.search(status)
        parents[int(entry.name)] = int(parent[1]) if parent else 0
        taken[int(entry.name)] = 1024 * int(anonymous[1]) if anonymous else 0
    return sum(size for process, size in taken.items() if _descends(process, leader, parents))


def _descends(process: int, leader: int, parents: dict[int, int]) -> bool:
    while process not in (0, leader):
        process = parents.get(process, 0)
    return process == leader
