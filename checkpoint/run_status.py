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
        self._manifests: dict[tuple[int, int], CheckpointManifest | None] = {}
        self._journal: tuple[int, Journal | None] = (0, None)

    def read(
        self, facts: RunFacts | None, *, jobs: tuple[Job, ...], troubles: tuple[Trouble, ...], is_shipped: bool
    ) -> RunStatus:
        """`facts` None: the folder could not be read yet."""
        record = facts.record if facts else None
        shown = self._shown_steps(facts) if facts else []
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

    def size_bytes(self, step: int) -> int:
        """Of a checkpoint's files; 0 if its manifest cannot be read."""
        manifest = self._manifest(step)
        return 0 if manifest is None else sum(record.size_bytes for record in manifest.files)

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
            size_bytes=self.size_bytes(step) if manifest else None,
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
        key = step, manifest_mtime_ns(self._run, step)
        if key not in self._manifests:
            try:
                manifest = read_manifest(checkpoint_directory(self._run, step))
                # the probe's tokens are most of it
                self._manifests[key] = manifest.model_copy(update={"probe": None})
            except (CheckpointError, OSError):
                self._manifests[key] = None
        return self._manifests[key]

    def _state(self, facts: RunFacts | None) -> str:
        if facts is None:
            return "unknown"
        if facts.is_alive:
            return "running"
        try:
            changed_ns = journal_file(self._run).stat().st_mtime_ns
        except OSError:
            return "unknown"
        if changed_ns != self._journal[0]:
            self._journal = changed_ns, read_journal(self._run)
        journal = self._journal[1]
        return journal.status.lower() if journal is not None else "unknown"
