"""What is to be done in a run, as a function of what its folder holds and of what was tried. Starts nothing.

A run's jobs go one step at a time: first the log is shipped and drawn, then the newest thing that is missing is made.
A failure keeps its own job waiting, and no other, but where a job needs what the failed one would have made. When it is
told no longer is said here too (`is_over`).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from checkpoint.config import ServiceConfig
from checkpoint.failures import Failure, Failures
from checkpoint.jobs import Job, card_is_older
from checkpoint.run_watch import RunFacts, is_younger_than_proof
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
    spared: frozenset[int] = frozenset()
    """Steps that it left because an evaluation of them was owed."""
    on_card: set[tuple[int, int]] = field(default_factory=set)
    """Steps and times (ms) of evaluations that are known to be on their cards."""


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
    owed = owed_evaluations(facts, memory, failures, config)
    candidates = (
        *_exports(facts, failures, config),
        *(Job(kind="prove", run=facts.run, step=step) for step in sorted(facts.changed)),
        *_verification(facts),
        *_pruning(facts, memory, config, percent_above_mark=percent_above_mark),
        *(_evaluation_job(facts, step) for step in owed),
        *_publications(facts, config, owed),
        *_pruning_of_spared(facts, memory, config, owed),
        # what a person asked for comes again, though nothing here would ask for it
        *(failure.job for failure in failures.all() if failure.is_requested),
    )
    return next((job for job in candidates if failures.may_run(job)), None)


def export_job(facts: RunFacts, step: int) -> Job:
    return Job(kind="export", run=facts.run, step=step)


def owed_evaluations(facts: RunFacts, memory: Memory, failures: Failures, config: ServiceConfig) -> tuple[int, ...]:
    """Proven exports that are yet to be measured as the config asks for, the newest first.

    Those whose checkpoint is gone stay as they are, and those that cannot be measured (quarantined) too.
    """
    if config.evaluation is None:
        return ()
    steps = set(facts.steps)
    missing = [step for step in _proven(facts) if step in steps and not _is_evaluated(facts, memory, step, config)]
    return tuple(step for step in reversed(missing) if not _is_quarantined(failures, _evaluation_job(facts, step)))


def unmeasurable(facts: RunFacts, config: ServiceConfig) -> list[Job]:
    """Evaluations of what is to be published, and whose checkpoint went before anything was measured."""
    if config.evaluation is None:
        return []
    return [
        _evaluation_job(facts, step)
        for step in _proven(facts)
        if step not in facts.evaluations
        and any(step not in facts.published.get(url, ()) for url in config.publish_to)
        and step not in facts.steps
    ]


def is_over(failure: Failure, facts: RunFacts, memory: Memory, config: ServiceConfig) -> bool:
    """Whether a failure is to be told no longer: its goal was reached since, by whatever hand, or is none any more.

    What is quarantined, and what a person asked for, stays until its goal is reached or the config drops it.
    """
    job = failure.job
    if job.step is not None and job.step not in {*facts.steps, *facts.exports, *facts.unreadable}:
        return True
    if not _is_configured(job, config) or _is_reached(failure, facts, memory, config):
        return True
    is_asked_for = failure.is_requested and job.step in facts.steps
    return not failure.is_quarantined and not is_asked_for and not _is_wanted(job, facts, config)


def _is_configured(job: Job, config: ServiceConfig) -> bool:
    if job.kind == "evaluate":
        return config.evaluation is not None
    if job.kind == "prune":
        return config.retention is not None
    return job.kind != "publish" or job.destination in config.publish_to


def _is_reached(failure: Failure, facts: RunFacts, memory: Memory, config: ServiceConfig) -> bool:
    job, step = failure.job, -1 if failure.job.step is None else failure.job.step
    export = facts.exports.get(step)
    if job.kind == "export" and export is not None and export.passed:
        return True
    if job.kind == "prove":
        return export is not None and step not in facts.changed and not is_younger_than_proof(export.directory)
    if job.kind == "evaluate":
        if not _is_evaluated(facts, memory, step, config):
            return False
        # who asked for it may have had one before
        return not failure.is_requested or facts.evaluations[step].timestamp_ms > 1000 * failure.failed_s
    if job.kind == "publish":
        return step in facts.published.get(job.destination or "", ())
    verdict = facts.verdicts.get(step)
    return (
        (job.kind in ("verify", "scrub") or failure.blame == "damage")
        and verdict is not None
        and not verdict.problems
        and verdict.manifest_mtime_ns == failure.manifest_mtime_ns
        and verdict.checked_s > failure.failed_s
    )


def _is_wanted(job: Job, facts: RunFacts, config: ServiceConfig) -> bool:
    """Whether the agenda comes back to a job that failed."""
    if job.step is None:
        return True
    if job.kind not in ("prove", "publish") and job.step not in facts.steps:
        return False
    if job.kind == "export":
        known = {*facts.exports, *facts.unreadable}
        return bool(wanted_exports([job.step], known=known, exports=config.exports, owed=[job.step]))
    if job.kind == "prove":
        return job.step in facts.changed
    if job.kind == "verify":
        return job.step == facts.steps[-1]
    if job.kind == "scrub":
        return config.scrub_bytes_per_second is not None
    return job.step in _proven(facts)


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


def _pruning_of_spared(facts: RunFacts, memory: Memory, config: ServiceConfig, owed: Sequence[int]) -> list[Job]:
    """Once more, when what the last pruning spared is owed no evaluation any more."""
    if config.retention is None or memory.spared <= set(owed):
        return []
    return [Job(kind="prune", run=facts.run)]


def _evaluation_job(facts: RunFacts, step: int) -> Job:
    return Job(kind="evaluate", run=facts.run, step=step)


def _publications(facts: RunFacts, config: ServiceConfig, owed: Sequence[int]) -> list[Job]:
    """Every proven export to every destination, the oldest first, so that `latest` moves forward.

    What was measured is to be on its card, so that it waits for that, unless it cannot be measured.
    """
    return [
        Job(kind="publish", run=facts.run, step=step, destination=url)
        for url in config.publish_to
        for step in _proven(facts)
        if step not in facts.published.get(url, ()) and step not in owed
    ]


def _proven(facts: RunFacts) -> list[int]:
    return [step for step, export in sorted(facts.exports.items()) if export.passed and step not in facts.changed]


def _is_evaluated(facts: RunFacts, memory: Memory, step: int, config: ServiceConfig) -> bool:
    """Whether the numbers are there and on the card, which whoever was killed in between did not reach."""
    evaluation = facts.evaluations.get(step)
    if evaluation is None or evaluation.config != config.evaluation:
        return False
    known = step, evaluation.timestamp_ms
    if known not in memory.on_card and not card_is_older(facts.run, step):
        memory.on_card.add(known)  # so that each is looked at once
    return known in memory.on_card


def _is_quarantined(failures: Failures, job: Job) -> bool:
    failure = failures.of(job)
    return failure is not None and failure.is_quarantined
