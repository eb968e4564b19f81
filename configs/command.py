"""The `smollm2` command: finds the room, and turns a room's errors into one line and an exit code.

`smollm2 ROOM VERB …` is `python -m ROOM VERB …`. A room's `cli.py` builds an argparse parser whose verbs set
`run=function(arguments) -> int | None`, and hands it to `run_room` with the exceptions that are the user's to mend.

Exit codes: 0 done; 1 the command ran and says no (a bad shard, a failed proof); 2 bad input; 128 and its number for a
signal, such as 130 for Ctrl-C.
"""

from __future__ import annotations

import argparse
import difflib
import errno
import importlib.metadata
import logging
import os
import re
import runpy
import signal
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from configs.load import ConfigError

ROOMS = {
    "pipeline": "corpora to tokenized Arrow shards",
    "model": "what a model costs",
    "launch": "train, and write text with what was trained",
    "checkpoint": "verify, consolidate, export, prove, prune, publish, serve",
}


def main() -> None:
    """Entry point of the console command."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage())
        sys.exit(0 if arguments else 2)
    room = arguments[0]
    if room == "--version":
        print(f"smollm2 {importlib.metadata.version('smollm2-pretraining')}")
        sys.exit(0)
    if room not in ROOMS:
        print(f"smollm2: {_unknown('room', room, list(ROOMS))}", file=sys.stderr)
        sys.exit(2)
    sys.argv = [f"smollm2 {room}", *arguments[1:]]
    # alter_sys: processes that multiprocessing starts import the main module again, unless it is a package's own
    runpy.run_module(room, run_name="__main__", alter_sys=True)


class CommandParser(argparse.ArgumentParser):
    """argparse whose complaints are one line each, with the nearest name for a misspelt one. Verbs inherit it."""

    # the supertype overloads it for kinds of namespaces that no room has
    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """argparse takes no more `key=value` after an option (`VERB RUN --option key=value`); this does."""
        parsed, rest = super().parse_known_args(args, namespace)
        if isinstance(getattr(parsed, "overrides", None), list):
            late = [text for text in rest if "=" in text and not text.startswith("-")]
            parsed.overrides = [*parsed.overrides, *late]
            rest = [text for text in rest if text not in late]
        return parsed, rest

    def error(self, message: str) -> NoReturn:
        # `overrides` may be left out, but argparse lists it with what may not
        message = message.removesuffix(", key=value")
        unknown = re.search(r"argument (\S+): invalid choice: '(.*?)' \(choose from (.+)\)", message)
        if unknown:
            name, got, choices = unknown.groups()
            message = _unknown(name.lower(), got, re.findall(r"[\w-]+", choices))
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def run_room(
    parser: argparse.ArgumentParser,
    *,
    user_errors: tuple[type[Exception], ...],
    arguments: Sequence[str] | None = None,
) -> int:
    """Parse, run the chosen verb, and return the exit code; a user's mistake is printed as one line.

    Exceptions outside `user_errors`, ConfigError and OSError are defects of ours and keep their traceback.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    expected: tuple[type[Exception], ...] = (ConfigError, *user_errors)
    try:
        parsed = parser.parse_args(arguments)
        return int(parsed.run(parsed) or 0)
    except expected as error:
        message = str(error)
    except BrokenPipeError:
        # the reader (head, less) has seen enough; keep Python from complaining at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        message = _describe_os_error(error)
    except KeyboardInterrupt as interrupt:
        _say(f"{parser.prog}: interrupted; run the same command to go on")
        # a room that lets another signal than Ctrl-C's interrupt it gives its number
        return 128 + int(interrupt.args[0] if interrupt.args else signal.SIGINT)
    for line in message.splitlines():
        _say(f"{parser.prog}: {line}")
    return 2


def _say(line: str) -> None:
    try:
        print(line, file=sys.stderr)
    except OSError:
        # the terminal was closed; keep Python from failing on it once more at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


def _describe_os_error(error: OSError) -> str:
    where = f"{error.filename}: " if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{where}no space left on the disk; free some and run the same command to go on"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{where}{error.strerror}; choose a path that this user may write to, or change its permissions"
    return f"{where}{error.strerror or error}"


def _unknown(what: str, got: str, choices: list[str]) -> str:
    nearest = difflib.get_close_matches(got, choices, n=1, cutoff=0.5)
    hint = f"did you mean {nearest[0]}?" if nearest else f"there are {', '.join(choices)}"
    return f"no {what} {got!r}; {hint}"


def _usage() -> str:
    rooms = "\n".join(f"  {room:<11} {purpose}" for room, purpose in ROOMS.items())
    return (
        f"usage: smollm2 ROOM VERB ...\n\nrooms:\n{rooms}\n\n"
        "smollm2 ROOM --help says what a room can do. For example:\n"
        "  smollm2 pipeline run configs/data/demo.yaml\n"
        "  smollm2 launch train configs/train/demo.yaml optimizer.learning_rate=1e-3"
    )


if __name__ == "__main__":
    main()
