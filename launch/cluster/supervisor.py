"""`launch train --max-restarts N`: starts a run again after a failure that is nobody's to mend, and gives up in time.

Each start goes on from the newest checkpoint that verifies, as every start does. Not started again: a run that has
finished, one that a signal ended, and one that tells its user what to mend (exit code 2). Given up: after N restarts,
and after MAX_STALLED attempts in a row that came no further than the run had come before.

Every attempt is an event. That nothing of an attempt is left when it has ended is `process.py`'s to see to.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from checkpoint.events import TRAIN_LOSS, EventWriter, events_file, read_events
from checkpoint.manifest import list_steps
from launch.cluster.output import ERROR_PREFIX, describe_exit, show
from launch.cluster.process import USER_MISTAKE
from launch.cluster.stopping import StopWish, size_of
from launch.signals import STOP_SIGNALS

MAX_STALLED = 3
FIRST_DELAY_S = 10.0
MAX_DELAY_S = 600.0


@dataclass(frozen=True)
class Attempt:
    """How one ended; `first_step` and `last_step` are of the steps that it trained, 0 if none."""

    attempt: int
    exit_code: int
    reason: str
    first_step: int
    last_step: int


def supervise(start: Callable[[StopWish], int], *, run_dir: Path, max_restarts: int) -> int:
    """Returns the last attempt's exit code. `start` runs one attempt, which heeds the wish to stop that it is given and
    tells it of the signals that it gets, and returns its exit code; what it raises ends the supervision."""
    furthest_step, stalled = max(list_steps(run_dir), default=0), 0
    with StopWish() as wish:
        for number in range(1, max_restarts + 2):
            told_bytes = size_of(events_file(run_dir))
            code = start(wish)
            ended = _look_at(run_dir, number, code, offset=told_bytes)
            _tell(run_dir, ended)
            if not may_restart(code) or wish.received is not None:
                return code
            stalled = 0 if ended.last_step > furthest_step else stalled + 1
            furthest_step = max(furthest_step, ended.last_step)
            if stalled == MAX_STALLED:
                _say(f"given up: {stalled} attempts in a row came no further than step {furthest_step}")
                return code
            if number > max_restarts:
                _say(f"given up after {max_restarts} restart{'s' if max_restarts > 1 else ''}")
                return code
            delay_s = delay_before_restart_s(stalled)
            _say(f"attempt {number} ended after step {ended.last_step} ({ended.reason}); the next in {delay_s:.0f} s")
            if wish.wait(delay_s):
                return 128 + int(wish.received or 0)
    raise AssertionError("the last attempt returns")


def may_restart(exit_code: int) -> bool:
    """Whether another attempt may end better."""
    return exit_code not in (0, USER_MISTAKE, *(128 + number for number in STOP_SIGNALS))


def delay_before_restart_s(stalled: int) -> float:
    """Twice as long after each attempt in a row that made no progress: what is broken may need time."""
    return min(MAX_DELAY_S, FIRST_DELAY_S * float(2**stalled))


def _look_at(run_dir: Path, number: int, code: int, *, offset: int) -> Attempt:
    """By the events that were written since the log had `offset` bytes."""
    steps, said = [], None
    for event, _ in read_events(events_file(run_dir), offset=offset):
        if TRAIN_LOSS in event.fields:
            steps.append(event.step)
        elif event.kind == "state":
            said = event.fields.get("reason")
    reason = describe_exit(code) if said is None else f"{describe_exit(code)}: {said}"
    return Attempt(number, code, reason, min(steps, default=0), max(steps, default=0))


def _tell(run_dir: Path, attempt: Attempt) -> None:
    # no rank is left that would write at the same time
    with EventWriter(events_file(run_dir)) as events:
        events.write("attempt", step=attempt.last_step, **asdict(attempt))
        events.sync()


def _say(text: str) -> None:
    show(f"{ERROR_PREFIX}{text}", sys.stderr)
