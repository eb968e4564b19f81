"""What a rank shows and what it keeps to itself.

From `open_console` on, everything that is written to stdout and stderr by whatever library, in C too, goes to
`RUN/logs/rank-N.log`. Our own lines go to the real stdout, by rank 0 only, and to the log; errors go to the real
stderr. No torch: this runs before torch and DeepSpeed, the noisy ones, are imported.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import time
import traceback
from pathlib import Path

from launch.config import LocalError, TrainingError

_USERS_TO_MEND = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS)
# gloo's words; GLHF ("good luck, have fun") ends all that it says of a failed connection, also of a node that is gone
_LOST_PEER = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Socket closed", "GLHF")


class Console:
    """The two real outputs of a rank, kept while the standard ones lead to the log."""

    def __init__(self, *, rank: int, log: Path, stdout: int, stderr: int) -> None:
        self._rank, self._log, self._stdout, self._stderr = rank, log, stdout, stderr

    def line(self, text: str) -> None:
        """Say a line to the user; rank 0 only, the others keep it in their logs."""
        _keep(text)
        if self._rank == 0:
            _write(self._stdout, text)

    def user_error(self, error: Exception) -> None:
        """One line for each line of the message, by rank 0 only where the other ranks found the same."""
        _keep(str(error))
        if self._rank == 0 or isinstance(error, LocalError):
            for line in str(error).splitlines():
                _write(self._stderr, f"launch train: {line}")

    def alarm(self, text: str) -> None:
        """One line on the real stderr, from any rank and any thread."""
        _keep(text)
        _write(self._stderr, f"launch train: {text}")

    def os_error(self, error: OSError) -> int:
        """A disk or folder that the user has to mend, or a defect. Returns the exit code."""
        if error.errno not in _USERS_TO_MEND:
            self.defect(error)
            return 1
        where = f"{error.filename}: " if error.filename else ""
        self.user_error(LocalError(f"{where}{error.strerror}; mend that and run the same command to go on"))
        return 2

    def defect(self, error: BaseException) -> None:
        """The traceback into the log; on the screen its last line and where the rest is.

        A rank that fails because another one is gone leaves the word to that one and to rank 0.
        """
        _keep("".join(traceback.format_exception(error)))
        if self._rank == 0 or not is_lost_peer(error):
            _write(self._stderr, f"launch train: rank {self._rank}: {summary(error)}; the log is {self._log}")


def summary(error: BaseException) -> str:
    """What happened, in one line."""
    line = traceback.format_exception_only(error)[-1].strip().splitlines()[0][:300]
    return f"another rank is gone ({line})" if is_lost_peer(error) else line


def is_lost_peer(error: BaseException) -> bool:
    """Whether a collective failed because a process at its other end ended."""
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _LOST_PEER)


def open_console(run_dir: Path, *, rank: int) -> Console:
    """Lead this process's standard outputs to its log. Raises TrainingError if the run folder takes no log."""
    log = run_dir / "logs" / f"rank-{rank}.log"
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    except OSError as error:
        raise unwritable(run_dir, error) from None
    sys.stdout.flush()
    sys.stderr.flush()
    console = Console(rank=rank, log=log, stdout=os.dup(1), stderr=os.dup(2))
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    print(f"--- attempt of {time.strftime('%Y-%m-%d %H:%M:%S')}, process {os.getpid()} ---", flush=True)
    return console


def unwritable(run_dir: Path, error: OSError) -> TrainingError:
    """The one line for a run folder that cannot be written."""
    return TrainingError(
        f"run_dir={run_dir} cannot be written: {error.filename}: {error.strerror}; "
        "choose a folder that this user may write to, with space left"
    )


def _keep(text: str) -> None:
    # the log may lie on the very disk that is full, and the user has to be told all the same
    with contextlib.suppress(OSError):
        print(text, flush=True)


def _write(descriptor: int, text: str) -> None:
    # a reader that has gone away (head, a closed terminal) must not end the training
    with contextlib.suppress(OSError):
        os.write(descriptor, f"{text}\n".encode())
