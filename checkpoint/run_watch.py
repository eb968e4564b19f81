"""What a run's folder holds, looked at again and again at a small cost.

A folder is listed again when its time of change is another one, or so young that a change could hide behind it; what
lies in a checkpoint is not read here at all. Of the newest export the files' times are compared with its proof's.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from checkpoint.evaluation import Evaluation, evaluations_directory, list_evaluations
from checkpoint.events import events_file
from checkpoint.export_folder import CARD_FILE, PROOF_FILE, Export, list_exports
from checkpoint.journal import other_logs
from checkpoint.lock import run_is_alive
from checkpoint.loss_curve import CURVE_FILE
from checkpoint.manifest import checkpoints_directory, export_directory, exports_directory, list_steps
from checkpoint.pins import list_pins, pins_directory
from checkpoint.publication import publication_file, read_published
from checkpoint.run_record import RUN_FILE, RunRecord, artifacts_directory, read_run
from checkpoint.verdicts import Verdict, read_verdicts, verdicts_file

_YOUNG_NS = 2_000_000_000  # times of change of some file systems come in whole seconds


@dataclass(frozen=True)
class RunFacts:
    """All that the service decides by. `changed` are steps whose export is younger than its proof, or has none."""

    run: Path
    record: RunRecord
    steps: tuple[int, ...] = ()
    exports: Mapping[int, Export] = field(default_factory=dict)
    unreadable: Mapping[int, str] = field(default_factory=dict)
    changed: frozenset[int] = frozenset()
    pins: frozenset[int] = frozenset()
    verdicts: Mapping[int, Verdict] = field(default_factory=dict)
    evaluations: Mapping[int, Evaluation] = field(default_factory=dict)
    published: Mapping[str, frozenset[int]] = field(default_factory=dict)
    """By destination."""
    is_alive: bool = False
    log: tuple[int, int] = (0, 0)
    """Size and time of change (ns) of rank 0's log."""
    other_log_bytes: tuple[int, ...] = ()
    """Sizes of the other ranks' logs."""
    curve_ns: int = 0
    artifacts: tuple[tuple[str, int], ...] = ()

    @property
    def shipped_state(self) -> tuple[object, object]:
        """What a shipment depends on, the logs and the rest: equal means that there is nothing new to ship."""
        proofs = tuple((step, export.directory.name, export.proof) for step, export in self.exports.items())
        evaluated = tuple((step, one.timestamp_ms) for step, one in self.evaluations.items())
        rest = self.is_alive, proofs, evaluated, self.curve_ns, self.artifacts
        return (self.log, self.other_log_bytes), rest

    @property
    def pruned_state(self) -> object:
        """What retention depends on, but for the disk."""
        verdicts = tuple((step, not verdict.problems) for step, verdict in self.verdicts.items())
        return self.steps, tuple((step, export.passed) for step, export in self.exports.items()), self.pins, verdicts


class RunWatch:
    """Looks at one run and remembers what it saw."""

    def __init__(self, run: Path) -> None:
        self._run = run
        self._seen: dict[Path, int] = {}
        self._record: RunRecord | None = None
        self._other_logs: tuple[Path, ...] = ()
        self._steps: tuple[int, ...] = ()
        self._exports: Mapping[int, Export] = {}
        self._unreadable: Mapping[int, str] = {}
        self._pins: frozenset[int] = frozenset()
        self._verdicts: Mapping[int, Verdict] = {}
        self._evaluations: Mapping[int, Evaluation] = {}
        self._published: Mapping[str, frozenset[int]] = {}

    def look(self) -> RunFacts:
        """Raises CheckpointError if the folder is not a run's (any more), OSError if it cannot be read."""
        run = self._run
        if self._has_changed(run / RUN_FILE) or self._record is None:
            self._record = read_run(run)
        if self._has_changed(checkpoints_directory(run)):
            self._steps = tuple(list_steps(run))
        if self._has_changed(exports_directory(run)) or self._unreadable:
            self._exports, self._unreadable = list_exports(run)
        if self._has_changed(pins_directory(run)):
            self._pins = list_pins(run)
        if self._has_changed(verdicts_file(run)):
            self._verdicts = read_verdicts(run)
        if self._has_changed(evaluations_directory(run)):
            self._evaluations = list_evaluations(run)
        if self._has_changed(publication_file(run)):
            self._published = read_published(run)
        if self._has_changed(events_file(run).parent):
            self._other_logs = tuple(other_logs(run))
        log = _stat(events_file(run))
        return RunFacts(
            run=run,
            record=self._record,
            steps=self._steps,
            exports=self._exports,
            unreadable=self._unreadable,
            changed=self._changed_exports(),
            pins=self._pins,
            verdicts=self._verdicts,
            evaluations=self._evaluations,
            published=self._published,
            is_alive=run_is_alive(run),
            log=(log.st_size, log.st_mtime_ns) if log else (0, 0),
            other_log_bytes=tuple(found.st_size for path in self._other_logs if (found := _stat(path))),
            curve_ns=_mtime_ns(run / CURVE_FILE),
            artifacts=_artifacts(run) if self._record.kind == "data" else (),
        )

    def forget(self) -> None:
        """Look at everything anew: a job has been at work."""
        self._seen.clear()

    def _has_changed(self, path: Path) -> bool:
        mtime_ns = _mtime_ns(path)
        is_known = self._seen.get(path) == mtime_ns
        if time.time_ns() - mtime_ns > _YOUNG_NS:
            self._seen[path] = mtime_ns
        return not is_known

    def _changed_exports(self) -> frozenset[int]:
        """The newest export if a file of it is younger than its proof, and all that have no readable proof, or one that
        does not fit where they lie: whoever proved them was killed before the rename."""
        changed = {step for step in self._unreadable if export_directory(self._run, step).is_dir()}
        changed |= {
            step
            for step, export in self._exports.items()
            if export.passed != (export.directory == export_directory(self._run, step))
        }
        passed = [step for step, export in self._exports.items() if export.passed]
        if passed and is_younger_than_proof(self._exports[passed[-1]].directory):
            changed.add(passed[-1])
        return frozenset(changed)


def is_younger_than_proof(export: Path) -> bool:
    """Whether any file that is proven was changed after the proof was written."""
    with os.scandir(export) as entries:
        times_ns = {entry.name: entry.stat().st_mtime_ns for entry in entries if entry.name != CARD_FILE}
    proven_ns = times_ns.get(PROOF_FILE, 0)
    return any(changed_ns > proven_ns for changed_ns in times_ns.values())


def _artifacts(run: Path) -> tuple[tuple[str, int], ...]:
    folder = artifacts_directory(run)
    return tuple(sorted((str(path), _mtime_ns(path)) for path in folder.rglob("[!.]*")))


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except FileNotFoundError:
        return None


def _mtime_ns(path: Path) -> int:
    found = _stat(path)
    return found.st_mtime_ns if found else 0
