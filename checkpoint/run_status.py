"""A run's status out of its facts, with what the newest checkpoints' manifests say, each of which is read once."""

from __future__ import annotations

from pathlib import Path

from checkpoint.jobs import Job
from checkpoint.journal import Journal, journal_file, read_journal
from checkpoint.manifest import CheckpointError, CheckpointManifest, checkpoint_directory, read_manifest
from checkpoint.run_watch import RunFacts
from checkpoint.status import CheckpointStatus, ExportState, RunStatus, Trouble, Wholeness
from checkpoint.verdicts import manifest_mtime_ns

SHOWN_CHECKPOINTS = 20  # of a run, the newest; beside them all pinned, damaged and quarantined ones


class StatusReader:
    """Keeps what it has read of one run."""

    def __init__(self, run: Path) -> None:
        self._run = run
        self._manifests: dict[int, tuple[int, CheckpointManifest | None]] = {}
        self._journal: tuple[int, Journal | None] = (0, None)

    def read(
        self, facts: RunFacts | None, *, jobs: tuple[Job, ...], troubles: tuple[Trouble, ...], is_shipped: bool
    ) -> RunStatus:
        """`facts` None: the folder could not be read yet."""
        record = facts.record if facts else None
        shown = self._shown_steps(facts) if facts else []
        self._manifests = {step: self._manifests[step] for step in shown if step in self._manifests}
        return RunStatus(
            name=self._run.name,
            title=record.name if record else self._run.name,
            kind=record.kind if record else "training",
            state=self._state(facts),
            is_shipped=is_shipped,
            dataset=record.dataset if record else None,
            checkpoint_count=len(facts.steps) if facts else 0,
            checkpoints=tuple(self._checkpoint(facts, step) for step in shown) if facts else (),
            jobs=tuple(str(job) for job in jobs),
            troubles=troubles,
        )

    def _shown_steps(self, facts: RunFacts) -> list[int]:
        remarkable = {step for step, verdict in facts.verdicts.items() if verdict.problems}
        remarkable |= {*facts.pins, *(step for step, export in facts.exports.items() if not export.passed)}
        known = {*facts.steps[-SHOWN_CHECKPOINTS:], *(remarkable & set(facts.steps))}
        # an export outlives its checkpoint
        return sorted(known | set(sorted(facts.exports)[-SHOWN_CHECKPOINTS:]), reverse=True)

    def _checkpoint(self, facts: RunFacts, step: int) -> CheckpointStatus:
        manifest = self._manifest(step)
        verdict, export = facts.verdicts.get(step), facts.exports.get(step)
        verification: Wholeness = "not checked"
        reasons: tuple[str, ...] = ()
        if verdict is not None and verdict.manifest_mtime_ns == manifest_mtime_ns(self._run, step):
            verification, reasons = "damaged" if verdict.problems else "whole", verdict.problems
        state: ExportState = "none"
        if step in facts.changed:
            state = "changed"
        elif export is not None:
            state = "proven" if export.passed else "quarantined"
            reasons += export.proof.reasons
        return CheckpointStatus(
            step=step,
            size_bytes=sum(record.size_bytes for record in manifest.files) if manifest else None,
            tokens_consumed=manifest.tokens_consumed if manifest else None,
            validation_loss=manifest.validation_loss if manifest else None,
            verification=verification,
            export=state,
            difference=export.proof.difference if export else None,
            reasons=reasons,
            measured=facts.evaluations[step].metrics if step in facts.evaluations else {},
            published_to=tuple(url for url, steps in facts.published.items() if step in steps),
            is_pinned=step in facts.pins,
        )

    def _manifest(self, step: int) -> CheckpointManifest | None:
        mtime_ns = manifest_mtime_ns(self._run, step)
        if step not in self._manifests or self._manifests[step][0] != mtime_ns:
            try:
                manifest = read_manifest(checkpoint_directory(self._run, step))
            except CheckpointError:
                self._manifests[step] = mtime_ns, None
            except OSError:
                return None  # it may be read another time
            else:
                # the probe's tokens are most of it
                self._manifests[step] = mtime_ns, manifest.model_copy(update={"probe": None})
        return self._manifests[step][1]

    def _state(self, facts: RunFacts | None) -> str:
        if facts is None:
            return "unknown"
        if facts.is_alive:
            return "running"
        try:
            changed_ns = journal_file(self._run).stat().st_mtime_ns
            if changed_ns != self._journal[0]:
                self._journal = changed_ns, read_journal(self._run)
        except OSError:
            return "unknown"
        journal = self._journal[1]
        return journal.status.lower() if journal is not None and journal.status else "unknown"
