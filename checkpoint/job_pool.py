"""Runs jobs in worker processes, one at a time in each of three lanes, within a time and a memory limit.

The light lane ships and draws, in a process that stays; the heavy lane verifies, exports, prunes and publishes, in a
process a job, so that what a job took is given back; the scrub's reads slowly, for as long as that
takes. Nothing here blocks: `poll` is called again and again.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from typing import IO, Protocol

from pydantic import BaseModel

from checkpoint.child_environment import child_environment
from checkpoint.jobs import HEAVY_KINDS, LIGHT_KINDS, Context, Job, Outcome, describe_os_error
from checkpoint.process_memory import private_bytes

_MEASURE_S = 0.5


class JobRunner(Protocol):
    """Where the service puts its jobs."""

    def submit(self, job: Job) -> None:
        """Put a job behind those of its lane."""

    def poll(self) -> list[tuple[Job, Outcome]]:
        """Go on with what waits; the jobs that have ended since the last call."""

    def unfinished(self) -> tuple[Job, ...]:
        """Jobs that run or wait, in this order."""

    def close(self) -> None:
        """End what runs and forget what waits."""


class JobPool:
    """`JobRunner` in processes of their own."""

    def __init__(self, context: Context) -> None:
        light, heavy = _Lane(context, stays=True), _Lane(context, stays=False)
        scrub = _Lane(context, stays=False, timeout_s=math.inf)
        self._lanes = (light, heavy, scrub)
        self._lane_of = dict.fromkeys(LIGHT_KINDS, light) | dict.fromkeys(HEAVY_KINDS, heavy) | {"scrub": scrub}

    def submit(self, job: Job) -> None:
        self._lane_of[job.kind].waiting.append(job)

    def poll(self) -> list[tuple[Job, Outcome]]:
        return [ended for lane in self._lanes for ended in lane.poll()]

    def unfinished(self) -> tuple[Job, ...]:
        running = [lane.running for lane in self._lanes if lane.running is not None]
        return (*running, *(job for lane in self._lanes for job in lane.waiting))

    def close(self) -> None:
        for lane in self._lanes:
            lane.waiting.clear()
            lane.running = None
            lane.end_worker()


class _Lane:
    """One worker at most, and the jobs that wait for it."""

    def __init__(self, context: Context, *, stays: bool, timeout_s: float | None = None) -> None:
        self.waiting: deque[Job] = deque()
        self.running: Job | None = None
        self._context, self._stays = context, stays
        self._timeout_s = context.config.jobs.timeout_s if timeout_s is None else timeout_s
        self._worker: subprocess.Popen[bytes] | None = None
        self._words: IO[bytes] | None = None
        self._answer = b""
        self._deadline_s = 0.0
        self._next_measurement_s = 0.0

    def poll(self) -> list[tuple[Job, Outcome]]:
        ended: list[tuple[Job, Outcome]] = []
        while True:
            outcome: Outcome | None = None
            if self.running is None:
                if not self.waiting:
                    return ended
                self.running = self.waiting.popleft()
                outcome = self._start(self.running)
            outcome = outcome or self._outcome()
            if outcome is None:
                return ended
            assert self.running is not None
            ended.append((self.running, outcome))
            self.running = None
            if not self._stays:
                self.end_worker()

    def _start(self, job: Job) -> Outcome | None:
        """None, or how it ended at once: no memory, no process or no file is left for a worker."""
        try:
            self._hand_over(job)
        except OSError as error:
            self.end_worker()
            return Outcome(blame="machine", reason=describe_os_error(error))
        return None

    def _hand_over(self, job: Job) -> None:
        lines: tuple[BaseModel, ...] = (job,)
        if self._worker is None or self._worker.poll() is not None:
            self.end_worker()
            lines = (self._context, job)
            self._words = tempfile.TemporaryFile()  # noqa: SIM115, closed by `end_worker`
            self._worker = subprocess.Popen(
                [sys.executable, "-m", "checkpoint.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._words,
                start_new_session=True,
                env=_environment(without=self._context.config.http.token_environment_variable),
            )
            assert self._worker.stdout is not None
            os.set_blocking(self._worker.stdout.fileno(), False)
        self._answer = b""
        self._deadline_s = time.monotonic() + self._timeout_s
        assert self._worker.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has died since, which `_outcome` finds
            self._worker.stdin.write(b"".join(line.model_dump_json().encode() + b"\n" for line in lines))
            self._worker.stdin.flush()

    def _outcome(self) -> Outcome | None:
        """That of the running job; None while it goes on."""
        assert self._worker is not None
        assert self._worker.stdout is not None
        exit_code = self._worker.poll()
        self._answer += self._worker.stdout.read() or b""
        if self._answer.endswith(b"\n"):
            return Outcome.model_validate_json(self._answer)
        limits = self._context.config.jobs
        if exit_code is not None:
            outcome = Outcome(blame="job", reason=f"its process ended ({_how(exit_code)}): {self._last_words()}")
        elif time.monotonic() > self._deadline_s:
            outcome = Outcome(
                blame="job", reason=f"it took more than {self._timeout_s:g} s and was ended; see jobs.timeout_s"
            )
        elif (taken := self._taken_bytes()) > limits.memory_limit_bytes:
            outcome = Outcome(
                blame="job",
                reason=f"it took {taken:,} bytes of memory and was ended; wanted at most jobs.memory_limit_bytes="
                f"{limits.memory_limit_bytes:,}",
            )
        else:
            return None
        self.end_worker()
        return outcome

    def _taken_bytes(self) -> int:
        """Measured now and then: it reads of every process of the machine."""
        assert self._worker is not None
        if time.monotonic() < self._next_measurement_s:
            return 0
        self._next_measurement_s = time.monotonic() + _MEASURE_S
        return private_bytes(self._worker.pid)

    def _last_words(self) -> str:
        assert self._words is not None
        self._words.seek(0)
        lines = self._words.read().decode(errors="replace").strip().splitlines()
        return lines[-1][:300] if lines else "without a word"

    def end_worker(self) -> None:
        worker, self._worker = self._worker, None
        pipes = [self._words]
        if worker is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(worker.pid, signal.SIGKILL)
            worker.wait()
            pipes += [worker.stdin, worker.stdout]
        for pipe in pipes:
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):  # of a job that it did not live to take
                    pipe.close()


def _how(exit_code: int) -> str:
    if exit_code >= 0:
        return f"exit code {exit_code}"
    return f"signal {signal.Signals(-exit_code).name}"


def _environment(*, without: str) -> dict[str, str]:
    """Without the page's token, which no job needs."""
    return {name: value for name, value in child_environment().items() if name != without}
