"""Which jobs of a run failed, how often, and when each is tried again: `RUN/service/failures.json`.

The file may be deleted at any time: what failed is then tried again. A job of a checkpoint whose manifest has changed
since begins anew.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from checkpoint.config import JobLimits
from checkpoint.jobs import Blame, Job, Outcome
from checkpoint.manifest import write_durably
from checkpoint.verdicts import manifest_mtime_ns

# to ask a server that was away costs seconds, and when it is back nobody wants to wait for an hour
_LONGEST_SHIP_PAUSE_S = 300.0


class Failure(BaseModel):
    """Of one job. `retry_s` (Unix time) is None for one that is not tried again by itself: it is quarantined.

    `is_requested`: a person asked for the job, which may be one that nothing else would bring about.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    job: Job
    reason: str
    blame: Blame
    attempts: int
    pause_s: float
    retry_s: float | None
    manifest_mtime_ns: int
    failed_s: float = 0.0
    is_requested: bool = False

    @property
    def is_quarantined(self) -> bool:
        return self.retry_s is None


_FAILURES = TypeAdapter(list[Failure])


class Failures:
    """Those of one run."""

    def __init__(self, run: Path, limits: JobLimits) -> None:
        self._file, self._run, self._limits = run / "service" / "failures.json", run, limits
        self._failures = {failure.job: failure for failure in self._read()}

    def all(self) -> tuple[Failure, ...]:
        return tuple(self._failures.values())

    def of(self, job: Job) -> Failure | None:
        """The job's last failure, unless its checkpoint was replaced since."""
        failure = self._failures.get(job)
        if failure is None or failure.manifest_mtime_ns != self._mark(job):
            return None
        return failure

    def may_run(self, job: Job) -> bool:
        failure = self.of(job)
        if failure is None or failure.retry_s is None:
            return failure is None
        # a clock that was set back makes nobody wait for longer than the pause
        return not 0 < failure.retry_s - time.time() <= failure.pause_s + 1

    def record(self, job: Job, outcome: Outcome, *, is_requested: bool = False) -> Failure | None:
        """Take down how a job ended; the failure, if it failed."""
        if outcome.blame == "nobody":
            self.forget(job)
            return None
        last = self.of(job)
        limits = self._limits
        longest_s = limits.longest_pause_s if job.kind != "ship" else min(limits.longest_pause_s, _LONGEST_SHIP_PAUSE_S)
        pause_s = min(limits.first_pause_s if last is None else 2 * last.pause_s, longest_s)
        # a full disk or a server that is away says nothing of the job: it is not counted
        attempts = (last.attempts if last else 0) + (outcome.blame != "machine")
        # nothing else brings a run's rows to MLflow, so shipping is never given up
        given_up = job.kind != "ship" and (outcome.blame == "damage" or attempts >= limits.attempts)
        failure = Failure(
            job=job,
            reason=outcome.reason,
            blame=outcome.blame,
            attempts=attempts,
            pause_s=pause_s,
            retry_s=None if given_up else time.time() + pause_s,
            manifest_mtime_ns=self._mark(job),
            failed_s=time.time(),
            is_requested=is_requested or (job in self._failures and self._failures[job].is_requested),
        )
        self._failures[job] = failure
        self._write()
        return failure

    def owed_exports(self) -> frozenset[int]:
        """Steps whose export failed and is tried again."""
        exports = [failure for failure in self._failures.values() if failure.job.kind == "export"]
        return frozenset(one.job.step for one in exports if one.job.step is not None and not one.is_quarantined)

    def forget(self, job: Job) -> None:
        if self._failures.pop(job, None) is not None:
            self._write()

    def forget_where(self, is_over: Callable[[Failure], bool]) -> None:
        """Forget those of which it is true."""
        kept = {job: failure for job, failure in self._failures.items() if not is_over(failure)}
        if len(kept) < len(self._failures):
            self._failures = kept
            self._write()

    def _mark(self, job: Job) -> int:
        return 0 if job.step is None else manifest_mtime_ns(self._run, job.step)

    def _read(self) -> list[Failure]:
        try:
            return _FAILURES.validate_json(self._file.read_bytes())
        except (OSError, ValidationError):
            return []

    def _write(self) -> None:
        self._file.parent.mkdir(exist_ok=True)
        write_durably(self._file, _FAILURES.dump_json(list(self._failures.values()), indent=1))
