"""A process that performs jobs for the service, one JSON line in, one JSON line out.

The first line is the context, which may hold a database's password: a command line would show it to everybody.

It leads a process group of its own, so that a job and all that it started end together. When the service goes, by
whatever signal, its end of the pipe closes, and the group ends itself: no job outlives its service.
"""

from __future__ import annotations

import logging
import os
import queue
import signal
import sys
import threading

from checkpoint.jobs import Context, Job, Performer


def main() -> None:
    """Entry point of the process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the service's to heed
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    # libraries print: what they print must not be taken for an answer
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(lines,), daemon=True).start()
    performer = Performer(Context.model_validate_json(lines.get()))
    while True:
        outcome = performer.perform(Job.model_validate_json(lines.get()))
        answers.write(outcome.model_dump_json() + "\n")
        answers.flush()


def _receive(lines: queue.SimpleQueue[str]) -> None:
    """Jobs as they come, while one is under way too: that the service is gone must be seen at once."""
    with os.fdopen(0, encoding="utf-8") as pipe:
        for line in pipe:
            lines.put(line)
    os.killpg(os.getpgrp(), signal.SIGKILL)


if __name__ == "__main__":
    main()
