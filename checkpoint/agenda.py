"""What is to be done in a run, as a function of what its folder holds and of what was tried. Starts nothing.

A run's jobs go one step at a time: first the log is shipped and drawn, then the newest thing that is missing is made.
A failure keeps its own job waiting, and no other, but where a job needs what the failed one would have made.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from checkpoint.config import ServiceConfig
from checkpoint.failures import Failures
from checkpoint.jobs import Job
from checkpoint.run_watch import RunFacts
from checkpoint.verdicts import valid_verdict
from checkpoint.wanted import wanted_exports


@dataclass
class Memory:
    """What the service has done in a run since it started; losing it costs work, not correctness."""

    shipped: tuple[object, object] | None = None
    shipped_s: float = 0.0
    """When that shipment began (monotonic)."""
    drawn: object = None
    pruned: object = None


def light_jobs(facts: RunFacts, memory: Memory, config: ServiceConfig) -> list[Job]:
    """Shipping and drawing: seconds each."""
    jobs = []
    is_stale = facts.log[1] > facts.curve_ns and facts.log != memory.drawn
    if facts.record.kind == "training" and is_stale and time.time() - facts.curve_ns / 1e9 >= config.redraw_seconds:
        jobs.append(Job(kind="curve", run=facts.run))
    if facts.shipped_state != memory.shipped and not _has_only_grown_since(facts, memory, config):
        jobs.append(Job(kind="ship", run=facts.run))
    return jobs


def _has_only_grown_since(facts: RunFacts, memory: Memory, config: ServiceConfig) -> bool:
    """Whether a run that goes on has nothing new but lines, and was shipped a moment ago: it always has new lines."""
    if memory.shipped is None or not facts.is_alive:
        return False
    is_early = time.monotonic() - memory.shipped_s < config.poll_seconds
    return is_early and facts.shipped_state[1] == memory.shipped[1]


def heavy_job(
    facts: RunFacts, memory: Memory, failures: Failures, config: ServiceConfig, *, percent_above_mark: int = 0
) -> Job | None:
    """The one job to do next that reads or writes whole checkpoints; None if all is done that can be."""
    if facts.record.kind == "data":
        return None
    candidates = (
        *_exports(facts, failures, config),
        *(Job(kind="prove", run=facts.run, step=step) for step in sorted(facts.changed)),
        *_verification(facts),
        *_pruning(facts, memory, config, percent_above_mark=percent_above_mark),
        *_evaluations(facts, config),
        *_publications(facts, failures, config),
    )
    return next((job for job in candidates if failures.may_run(job)), None)


def export_job(facts: RunFacts, step: int) -> Job:
    return Job(kind="export", run=facts.run, step=step)


def _exports(facts: RunFacts, failures: Failures, config: ServiceConfig) -> list[Job]:
    """A step that is itself to blame makes way for others until it is tried again; a full disk would stop them too."""
    possible = []
    for step in facts.steps:
        failure = failures.of(export_job(facts, step))
        if failure is None or failure.blame == "machine" or failures.may_run(failure.job):
            possible.append(step)
    known, owed = {*facts.exports, *facts.unreadable}, failures.owed_exports()
    jobs = [
        export_job(facts, step) for step in wanted_exports(possible, known=known, exports=config.exports, owed=owed)
    ]
    waiting = [job for job in jobs if not failures.may_run(job)]
    return jobs[: jobs.index(waiting[0])] if waiting else jobs


def _verification(facts: RunFacts) -> list[Job]:
    """The newest checkpoint, whose wholeness retention asks for, if no export has hashed it."""
    if not facts.steps or valid_verdict(facts.run, facts.steps[-1], dict(facts.verdicts)) is not None:
        return []
    return [Job(kind="verify", run=facts.run, step=facts.steps[-1])]


def _pruning(facts: RunFacts, memory: Memory, config: ServiceConfig, *, percent_above_mark: int) -> list[Job]:
    if config.retention is None or len(facts.steps) < 2 or (facts.pruned_state, percent_above_mark) == memory.pruned:
        return []
    return [Job(kind="prune", run=facts.run)]


def _evaluations(facts: RunFacts, config: ServiceConfig) -> list[Job]:
    """Proven exports that were not measured as the config asks for, the newest first; those whose checkpoint is gone
    stay as they are."""
    return [
        Job(kind="evaluate", run=facts.run, step=step)
        for step in reversed(_proven(facts))
        if config.evaluation is not None and step in facts.steps and not _is_evaluated(facts, step, config)
    ]


def _publications(facts: RunFacts, failures: Failures, config: ServiceConfig) -> list[Job]:
    """Every proven export to every destination, the oldest first, so that `latest` moves forward.

    What was measured is to be on its card, so that it waits for that, unless it cannot be measured.
    """
    waits = {job.step for job in _evaluations(facts, config) if not _is_quarantined(failures, job)}
    return [
        Job(kind="publish", run=facts.run, step=step, destination=url)
        for url in config.publish_to
        for step in _proven(facts)
        if step not in facts.published.get(url, ()) and step not in waits
    ]


def _proven(facts: RunFacts) -> list[int]:
    return [step for step, export in sorted(facts.exports.items()) if export.passed and step not in facts.changed]


def _is_evaluated(facts: RunFacts, step: int, config: ServiceConfig) -> bool:
    evaluation = facts.evaluations.get(step)
    return evaluation is not None and evaluation.config == config.evaluation


def _is_quarantined(failures: Failures, job: Job) -> bool:
    failure = failures.of(job)
    return failure is not None and failure.is_quarantined
