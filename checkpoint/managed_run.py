"""One run as the service has it in hand: its facts, its jobs, its failures, and the lock that keeps others out."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from checkpoint.agenda import Memory, heavy_job, is_over, light_jobs, owed_evaluations, unmeasurable
from checkpoint.config import ServiceConfig
from checkpoint.failures import Failures
from checkpoint.jobs import HEAVY_KINDS, Job, Outcome, describe_os_error
from checkpoint.lock import exclusive_lock
from checkpoint.manifest import CheckpointError
from checkpoint.run_record import LOCK_FILE
from checkpoint.run_status import StatusReader
from checkpoint.run_watch import RunFacts, RunWatch
from checkpoint.status import RunStatus, Trouble
from checkpoint.sweep import sweep

logger = logging.getLogger(__name__)


@dataclass(frozen=True, order=True)
class ScrubTurn:
    """A checkpoint and when it was hashed last (Unix time, 0: never); what sorts first is hashed next."""

    checked_s: float
    run: Path
    step: int


class ManagedRun:
    """What the service knows of one run and does in it. The run's lock is held while a job of it waits or runs."""

    def __init__(self, run: Path, config: ServiceConfig) -> None:
        self.run, self.failures = run, Failures(run, config.jobs)
        self.reader = StatusReader(run)
        self.jobs: dict[Job, object] = {}
        self.submissions: Counter[Job] = Counter()
        self._due: set[Job] = set()
        self._requested: set[Job] = set()
        self.status: RunStatus
        self._config = config
        self._watch, self._memory = RunWatch(run), Memory()
        self._facts: RunFacts | None = None
        self._percent_above_mark = 0
        self._lock = ExitStack()
        self._is_locked = False
        self._trouble: str | None = None
        self._told: tuple[RunFacts | None, tuple[Job, ...], tuple[Trouble, ...], bool] | None = None
        self.refresh_status()

    def look(self, *, percent_above_mark: int, sweeping: bool) -> list[Job]:
        """The jobs that are due and not under way. What cannot be looked at is told in `status` and has none."""
        due: list[Job] = []
        self._trouble, self._percent_above_mark = None, percent_above_mark
        try:
            if sweeping:
                self._sweep()
            facts = self._facts = self._watch.look()
            self._go_over_failures(facts)
            due = [job for job in light_jobs(facts, self._memory, self._config) if self.failures.may_run(job)]
            if not any(job.kind in HEAVY_KINDS for job in self.jobs):
                heavy = heavy_job(
                    facts, self._memory, self.failures, self._config, percent_above_mark=percent_above_mark
                )
                due += [heavy] if heavy is not None else []
        except CheckpointError as error:
            self._trouble = str(error)
        except OSError as error:
            self._trouble = describe_os_error(error)
            self._watch.forget()  # a folder that could not be listed is not one that was seen
        self.refresh_status()
        self._due = {job for job in due if job not in self.jobs}
        return [job for job in due if job in self._due]

    def _sweep(self) -> None:
        """What cannot be removed is told, and left to the next sweep: the look goes on."""
        try:
            sweep(self.run)
        except (CheckpointError, OSError) as error:
            reason = describe_os_error(error) if isinstance(error, OSError) else str(error)
            logger.warning("%s: what dead processes left could not be removed: %s", self.run.name, reason)

    def _go_over_failures(self, facts: RunFacts) -> None:
        """Forget what is to be told no longer, and take down what can be measured no more, before it is published."""
        self.failures.forget_where(lambda failure: is_over(failure, facts, self._memory, self._config))
        reason = "its checkpoint went before it was measured, and it is published without; keep more checkpoints"
        for job in unmeasurable(facts, self._config):
            if self.failures.of(job) is None:
                self.failures.record(job, Outcome(blame="damage", reason=reason))

    def begin(self, job: Job) -> bool:
        """Take a job in hand; False, with the trouble told, if another service has the run.

        A heavy one that the last look did not find due is one that a person asked for.
        """
        busy = "another service looks after this run, so this one leaves it; end one of them"
        try:
            if not self._is_locked:
                self._lock.enter_context(exclusive_lock(self.run / "service" / LOCK_FILE, busy=busy))
                self._is_locked = True
        except (CheckpointError, OSError) as error:
            self._trouble = describe_os_error(error) if isinstance(error, OSError) else str(error)
            self.refresh_status()
            return False
        if job.kind in HEAVY_KINDS and job not in self._due:
            self._requested.add(job)
        self._due.discard(job)
        self.submissions[job] += 1
        self.jobs[job] = self._state_of(job)
        return True

    def end(self, job: Job, outcome: Outcome) -> None:
        """Take down how a job ended."""
        state = self.jobs.pop(job)
        try:
            self.failures.record(job, outcome, is_requested=job in self._requested)
        except OSError as error:
            self._trouble = describe_os_error(error)  # a full disk: the job is tried again, which is all that is lost
        self._requested.discard(job)
        if outcome.blame == "nobody":
            self._remember(job, state)
        self._watch.forget()
        if not self.jobs:
            self.release()

    def release(self) -> None:
        """Let another service have the run."""
        self._lock.close()
        self._is_locked = False

    def refresh_status(self) -> None:
        """Make `status` anew, if anything is."""
        is_shipped = self._facts is not None and self._memory.shipped == self._facts.shipped_state
        told = self._facts, tuple(self.jobs), tuple(self._troubles()), is_shipped
        if told != self._told:
            facts, jobs, troubles, _ = self._told = told
            self.status = self.reader.read(facts, jobs=jobs, troubles=troubles, is_shipped=is_shipped)

    def scrub_turns(self) -> list[ScrubTurn]:
        """Every checkpoint that is not known to be damaged and may be tried, with the time of its last hashing."""
        if self._facts is None or self._facts.record.kind == "data":
            return []
        verdicts = self._facts.verdicts
        scrubs = (failure.job for failure in self.failures.all() if failure.job.kind == "scrub")
        waiting = {job.step for job in scrubs if not self.failures.may_run(job)}
        return [
            ScrubTurn(verdicts[step].checked_s if step in verdicts else 0.0, self.run, step)
            for step in self._facts.steps
            if step not in waiting and not (step in verdicts and verdicts[step].problems)
        ]

    def _state_of(self, job: Job) -> object:
        """What a job's success will hold for."""
        facts = self._facts
        if facts is None:
            return None
        if job.kind == "ship":
            return facts.shipped_state, time.monotonic()
        if job.kind == "prune":
            percent = self._percent_above_mark
            owed = () if percent else owed_evaluations(facts, self._memory, self.failures, self._config)
            return (facts.pruned_state, percent), frozenset(owed)
        return facts.log if job.kind == "curve" else None

    def _remember(self, job: Job, state: object) -> None:
        if job.kind == "ship":
            self._memory.shipped, self._memory.shipped_s = cast("tuple[tuple[object, object], float]", state)
        elif job.kind == "curve":
            self._memory.drawn = state
        elif job.kind == "prune":
            self._memory.pruned, self._memory.spared = cast("tuple[object, frozenset[int]]", state)

    def _troubles(self) -> Iterator[Trouble]:
        if self._trouble is not None:
            yield Trouble(what="the run", reason=self._trouble, is_final=False)
        for failure in self.failures.all():
            if self.failures.of(failure.job) is not None:
                yield Trouble(what=failure.job.what, reason=failure.reason, is_final=failure.is_quarantined)
        if self._facts is None:
            return
        for step, export in self._facts.exports.items():
            if not export.passed:
                reason = f"failed its proof: {'; '.join(export.proof.reasons)}"
                yield Trouble(what=f"export step-{step:08d}", reason=reason, is_final=True)
        for step, reason in self._facts.unreadable.items():
            yield Trouble(what=f"export step-{step:08d}", reason=reason, is_final=False)
