"""Which lines of the launcher's output a person wants to see, and what to say of a run that failed.

The ranks keep their libraries' noise in logs of their own and write to stdout what is to be seen, and to stderr what
went wrong, as lines that begin with ERROR_PREFIX (`launch/trainer/console.py`). Everything else is DeepSpeed's
launcher, Python and the shells. Pure functions but `show`.
"""

from __future__ import annotations

import contextlib
import re
import signal
from collections.abc import Iterable
from typing import TextIO

ERROR_PREFIX = "launch train: "
MAX_ERROR_LINES = 20

_HOST = r"(?:\S+: )?"  # pdsh puts the host before each line
_LOGGER = re.compile(rf"{_HOST}\[\d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d,\d+\] \[[A-Z]+\] \[")
_WARNING = re.compile(rf"{_HOST}(?:\S+:\d+: \w*Warning: |[WI]\d{{4}} )")
_SUCCESS = re.compile(r"\[INFO\] \[launch\.py:\S+ Process \d+ exits successfully")
_RETURNED = re.compile(r"\[ERROR\] \[launch\.py:\S+ .* exits with return code = (-?\d+)$")
_TRACEBACK = re.compile(rf"{_HOST}Traceback \(most recent call last\):")
_CHAIN = re.compile(rf"{_HOST}(?:During handling of|The above exception was)")
_EXCEPTION = re.compile(rf"{_HOST}[A-Za-z_][\w.]*(?:Error|Exception|Interrupt|Exit)\b")


def is_logger_line(line: str) -> bool:
    """DeepSpeed's own log, as `[2026-01-31 12:00:00,000] [INFO] [runner.py:630:main] …`."""
    return _LOGGER.match(line) is not None


def is_success(line: str) -> bool:
    """DeepSpeed's word that a rank has ended well."""
    # anywhere in it: a rank's unfinished line may stand before
    return _SUCCESS.search(line) is not None


def returned_code(line: str) -> int | None:
    """A node's exit code, where DeepSpeed's launcher there tells it: that of the first of its ranks to fail."""
    found = _RETURNED.search(line)
    return None if found is None else int(found[1]) % 256  # -9 as the node passes it on, 247


def is_users(line: str) -> bool:
    """A rank's one clear line, to be shown at once."""
    return re.match(_HOST + re.escape(ERROR_PREFIX), line) is not None


def error_lines(lines: Iterable[str]) -> list[str]:
    """The last distinct lines that tell what failed: of a traceback the exception, without warnings and logs."""
    kept: dict[str, None] = {}
    in_traceback = False
    for line in lines:
        if _TRACEBACK.match(line) or _CHAIN.match(line):
            in_traceback = True
        elif in_traceback and not _EXCEPTION.match(line):
            continue
        elif line.strip() and not line.startswith("  ") and not is_logger_line(line) and not _WARNING.match(line):
            in_traceback = False
            kept.pop(line, None)
            kept[line] = None
    return list(kept)[-MAX_ERROR_LINES:]


def describe_exit(code: int) -> str:
    """`exit code 1`, and for a process that a signal ended its name and the usual reason."""
    number = ending_signal(code)
    if number is None:
        return f"exit code {code}"
    reason = "; often the machine ran out of memory" if number == signal.SIGKILL else ""
    return f"exit code {code}: a process was ended by {number.name}{reason}"


def ending_signal(code: int) -> signal.Signals | None:
    """The signal that ended a process, by its exit code."""
    # DeepSpeed passes on a rank's -9 as 247, a shell would as 137
    number = code - 128 if 128 < code < 160 else 256 - code if 224 < code < 256 else 0
    try:
        return signal.Signals(number)
    except ValueError:
        return None


def show(line: str, screen: TextIO) -> None:
    """Print at once, or not at all where the reader has gone away (head, a closed terminal): training must not end."""
    with contextlib.suppress(OSError, ValueError):
        print(line, file=screen, flush=True)
