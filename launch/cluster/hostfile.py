"""DeepSpeed hostfiles: one `HOST slots=N` a line, N the ranks that the host may run; `#` begins a comment.

Checked here so that a mistake is one line before anything starts, where DeepSpeed's launcher would end in a traceback,
or, for a file that is not there, would quietly train on this machine alone.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_LINE = re.compile(r"(?P<host>\S+)\s+slots=(?P<slots>\S+)")


class HostfileError(ValueError):
    """A hostfile that DeepSpeed could not use."""


@dataclass(frozen=True)
class Host:
    """A machine by the name that ssh reaches it under, and how many ranks it may run."""

    name: str
    slots: int


def read_hostfile(path: Path) -> tuple[Host, ...]:
    """Hosts in the order of the file, which is the order of the ranks. Raises HostfileError, a line a problem."""
    hosts, problems = inspect_hostfile(path)
    if problems:
        raise HostfileError("\n".join(problems))
    return hosts


def inspect_hostfile(path: Path) -> tuple[tuple[Host, ...], list[str]]:
    """The hosts of the lines that can be used, and a sentence for each line that cannot."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return (), [f"hostfile {path} does not exist; write one `HOST slots=N` a line"]
    except UnicodeDecodeError:
        return (), [f"hostfile {path} is not text; write one `HOST slots=N` a line"]
    hosts: list[Host] = []
    problems: list[str] = []
    first_line: dict[str, int] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        content = line.partition("#")[0].strip()
        if not content:
            continue
        host = _parse(content)
        if isinstance(host, str):
            problems.append(f"{path}:{number}: {host}")
        elif host.name in first_line:
            problems.append(
                f"{path}:{number}: {host.name} stands on line {first_line[host.name]} already; "
                "give it one line with all its slots"
            )
        else:
            first_line[host.name] = number
            hosts.append(host)
    if not hosts and not problems:
        problems.append(f"hostfile {path} names no host; write one `HOST slots=N` a line")
    return tuple(hosts), problems


def format_hostfile(hosts: Sequence[Host]) -> str:
    """The text that `read_hostfile` and DeepSpeed read back."""
    return "".join(f"{host.name} slots={host.slots}\n" for host in hosts)


def _parse(content: str) -> Host | str:
    """The host of a line, or what is wrong with it."""
    match = _LINE.fullmatch(content)
    if match is None:
        return f"got {content!r}, wanted `HOST slots=N`"
    slots = match["slots"]
    if not slots.isascii() or not slots.isdecimal() or int(slots) < 1:
        return f"slots={slots} of {match['host']}: wanted a whole number from 1 on, such as slots=8"
    return Host(match["host"], int(slots))
