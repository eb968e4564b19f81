"""A rank's signs of life: set by the training loop in nanoseconds, written to a file by its watchdog for the others.

    RUN/logs/heartbeats/rank-N.json   one `Sign` a rank, replaced every few seconds

All ranks run the same program, so `beats`, which counts the phases that a rank has entered, tells who is behind. No
torch, no network: the files lie where the run does.
"""

from __future__ import annotations

import json
import statistics
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from launch.supervision_config import WatchdogConfig

_STEPS_OF_MEDIAN = 64
_STEPS_BEFORE_MEDIAN = 3  # fewer say nothing


@dataclass(frozen=True)
class Sign:
    """What one rank's file says. `written` counts the writings: a rank whose number stands still is gone or stopped.

    `collective` and `where` are known once the rank is over its limit: which exchange between ranks it waits in, None
    if in none, and the line of this project's code.
    """

    rank: int
    host: str
    pid: int
    written: int
    beats: int
    step: int
    phase: str
    is_over_limit: bool = False
    collective: str | None = None
    where: str = ""


class Heartbeat:
    """The loop's side: `step`, `phase` and `pause` are all that it calls. Read by another thread at any time."""

    def __init__(self) -> None:
        self.beats, self.step_number, self.phase_name = 0, 0, "start"
        self._is_pause = True  # until the end of the first step
        self._began_s = self._step_began_s = time.monotonic()
        self._durations_s: deque[float] = deque(maxlen=_STEPS_OF_MEDIAN)

    def phase(self, name: str) -> None:
        """The rank goes on to another part of the step: progress, however long the step takes in all."""
        self.phase_name = name
        self._began_s = time.monotonic()
        self.beats += 1

    def step(self, number: int, *, is_warm_up: bool) -> None:
        """A step begins. The first ones of an attempt compile and warm up, and may take as long as a pause."""
        self.step_number = number
        self._begin(is_pause=is_warm_up)
        self._step_began_s = self._began_s

    def end_step(self) -> None:
        if not self._is_pause:
            self._durations_s.append(time.monotonic() - self._step_began_s)
        self._begin(is_pause=False)

    @contextmanager
    def pause(self, name: str) -> Iterator[None]:
        """What is slow by nature: an evaluation, a save."""
        self.phase(name)
        self._begin(is_pause=True)
        try:
            yield
        finally:
            self._begin(is_pause=False)

    def seconds_over(self, config: WatchdogConfig) -> float:
        """How long this rank is over its limit; negative: how long it has left."""
        median_s = None
        if len(self._durations_s) >= _STEPS_BEFORE_MEDIAN:
            median_s = statistics.median(tuple(self._durations_s))
        return time.monotonic() - self._began_s - limit_s(config, median_step_s=median_s, is_pause=self._is_pause)

    def forgive(self, seconds: float) -> None:
        """Time in which this process was not allowed to run."""
        self._began_s += seconds

    def _begin(self, *, is_pause: bool) -> None:
        # in this order the watchdog, which may look between two lines, never judges a pause by a step's limit
        self._began_s = time.monotonic()
        self._is_pause = is_pause
        self.beats += 1


def limit_s(config: WatchdogConfig, *, median_step_s: float | None, is_pause: bool) -> float:
    """Seconds without progress that are too many; where no median is known yet, those of the floor."""
    if is_pause:
        return config.pause_s
    return max(config.floor_s, config.factor * (median_step_s or 0.0))


def heartbeat_file(run_dir: Path, rank: int) -> Path:
    return run_dir / "logs" / "heartbeats" / f"rank-{rank}.json"


def write_sign(run_dir: Path, sign: Sign) -> None:
    """Replaced at once, and not made durable: it is of use to those who run now."""
    file = heartbeat_file(run_dir, sign.rank)
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(asdict(sign)), encoding="utf-8")
    partial.replace(file)


def read_sign(run_dir: Path, rank: int) -> Sign | None:
    """None where the rank has not written, or not what this release writes."""
    try:
        return Sign(**json.loads(heartbeat_file(run_dir, rank).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
