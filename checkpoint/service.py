"""The checkpoint service: for each run folder, ship the events, then verify, export, prove and log checkpoints.

A data run's folder holds no checkpoints: its events and its artefacts are shipped.

Its state is what is on the disk: an export that exists is done, one that is quarantined has been judged, a journal says
how far a log was shipped. So it may be killed at any time and started again. Of the checkpoints newer than the newest
export it takes the newest that can be exported, or with `every` all of them, the oldest first. A step that cannot is
tried again after pauses that grow, a damaged one not before its manifest changes.
"""

from __future__ import annotations

import errno
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from checkpoint.consolidate import DamagedCheckpointError
from checkpoint.events import events_file
from checkpoint.export import export_checkpoint
from checkpoint.export_folder import PROOF_FILE, Export, list_exports
from checkpoint.lock import exclusive_lock
from checkpoint.loss_curve import CURVE_FILE, draw_loss_curve
from checkpoint.manifest import (
    MANIFEST_FILE,
    CheckpointError,
    checkpoint_directory,
    list_steps,
    step_name,
)
from checkpoint.prove import ProofError
from checkpoint.run_record import LOCK_FILE, RUN_FILE, RunKind, artifacts_directory, read_run
from checkpoint.tracking import Tracker, TrackingError

logger = logging.getLogger(__name__)

DATABASE_FILE = "mlflow.db"
ARTIFACTS_FOLDER = "mlartifacts"
FIRST_PAUSE_S, LONGEST_PAUSE_S = 60.0, 3600.0  # between attempts to export a step that fails
REDRAW_SECONDS = 300.0  # a log of millions of steps takes seconds to read


@dataclass(frozen=True)
class ServiceSettings:
    """Where the runs are, where MLflow is (None: a database beside the runs), how often to look, what to export."""

    runs_directory: Path
    tracking_uri: str | None = None
    poll_seconds: float = 30.0
    every: bool = False
    redraw_seconds: float = REDRAW_SECONDS


@dataclass
class RunReport:
    """What a pass found and did in one run. `problems` are lines for the user; empty means all is well."""

    run: Path
    kind: RunKind = "training"
    dataset: Path | None = None
    checkpoint: Path | None = None
    exports: list[Export] = field(default_factory=list)
    loss_curve: Path | None = None
    is_shipped: bool = False
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Failure:
    """Why a step was not exported, and when to try again; `is_local` if this machine is to blame, not the step."""

    reason: str
    pause_s: float
    retry_s: float
    is_local: bool


class Service:
    """Looks after the runs below one folder."""

    def __init__(self, settings: ServiceSettings) -> None:
        self.settings = settings
        folder = settings.runs_directory.resolve()
        self.tracking_uri = settings.tracking_uri or f"sqlite:///{folder / DATABASE_FILE}"
        local = self.tracking_uri.startswith("sqlite:")
        self._artifact_location = (folder / ARTIFACTS_FOLDER).as_uri() if local else None
        self._tracker: Tracker | None = None
        # by checkpoint and time of its manifest: a step that fails costs minutes, and terabytes are hashed once
        self._failures: dict[tuple[Path, int], _Failure] = {}

    def run_pass(self) -> list[RunReport]:
        """Look at every run once. A run's trouble is in its report and does not keep the others waiting."""
        return [self._look_after(run) for run in find_runs(self.settings.runs_directory)]

    def run_forever(self) -> None:
        """Passes until SIGTERM or SIGINT. Trouble is told when it is new, not at every pass."""
        said: dict[Path, list[str]] = {}
        while True:
            for report in self.run_pass():
                for problem in report.problems:
                    if problem not in said.get(report.run, []):
                        logger.warning("%s", problem)
                said[report.run] = report.problems
            time.sleep(self.settings.poll_seconds)

    def _look_after(self, run: Path) -> RunReport:
        report = RunReport(run)
        self._attempt(self._look_after_alone, report)
        return report

    def _look_after_alone(self, report: RunReport) -> None:
        lock = report.run / "service" / LOCK_FILE
        with exclusive_lock(lock, busy="another service looks after this run, so this one leaves it; end one of them"):
            self._attempt(self._identify, report)
            # a data run has neither checkpoints nor losses
            of_checkpoints = () if report.kind == "data" else (self._export, self._redraw)
            for stage in (self._ship_events, *of_checkpoints, self._ship_files):
                self._attempt(stage, report)

    def _attempt(self, stage: Callable[[RunReport], None], report: RunReport) -> None:
        try:
            stage(report)
        except (CheckpointError, TrackingError) as error:
            _tell(report, str(error))
        except OSError as error:
            _tell(report, _describe(error))

    def _identify(self, report: RunReport) -> None:
        record = read_run(report.run)
        report.kind = record.kind
        report.dataset = Path(record.dataset) if record.dataset is not None else None

    def _ship_events(self, report: RunReport) -> None:
        self._connect().ship_events(report.run)
        report.is_shipped = True

    def _connect(self) -> Tracker:
        if self._tracker is None:
            self._tracker = Tracker(self.tracking_uri, artifact_location=self._artifact_location)
        return self._tracker

    def _export(self, report: RunReport) -> None:
        steps = list_steps(report.run)
        if steps:
            report.checkpoint = checkpoint_directory(report.run, steps[-1])
        known, unproven = list_exports(report.run)
        report.exports = list(known.values())
        for reason in unproven.values():
            _tell(report, reason)
        pending = [step for step in steps if step > max([*known, *unproven], default=-1)]
        for step in pending if self.settings.every else reversed(pending):
            outcome = self._export_step(report.run, step)
            if isinstance(outcome, Export):
                report.exports.append(outcome)
                if not self.settings.every:
                    break
            else:
                _tell(report, outcome.reason)
                if outcome.is_local:
                    break
        if report.exports and not report.exports[-1].passed:
            proof = report.exports[-1].proof
            _tell(report, f"{step_name(proof.step)} failed its proof: {'; '.join(proof.reasons)}")

    def _export_step(self, run: Path, step: int) -> Export | _Failure:
        """Export, unless it failed lately: then the failure of that time."""
        checkpoint = checkpoint_directory(run, step)
        key = (checkpoint, (checkpoint / MANIFEST_FILE).stat().st_mtime_ns)
        last = self._failures.get(key)
        if last is not None and time.monotonic() < last.retry_s:
            return last
        pause_s = FIRST_PAUSE_S if last is None else min(2 * last.pause_s, LONGEST_PAUSE_S)
        logger.info("%s: exporting %s", run, step_name(step))
        try:
            export = export_checkpoint(run, step)
        except DamagedCheckpointError as error:
            reason, pause_s, is_local = str(error), math.inf, False
        except CheckpointError as error:
            reason, is_local = str(error), isinstance(error, ProofError)
        except OSError as error:
            reason, is_local = _describe(error), True
        else:
            self._failures.pop(key, None)
            return export
        self._failures[key] = _Failure(reason, pause_s, time.monotonic() + pause_s, is_local)
        return self._failures[key]

    def _redraw(self, report: RunReport) -> None:
        curve, log = report.run / CURVE_FILE, events_file(report.run)
        drawn_s = curve.stat().st_mtime if curve.is_file() else 0.0
        is_stale = log.is_file() and log.stat().st_mtime > drawn_s
        if is_stale and time.time() - drawn_s >= self.settings.redraw_seconds:
            draw_loss_curve(report.run)
        report.loss_curve = curve if curve.is_file() else None

    def _ship_files(self, report: RunReport) -> None:
        if not report.is_shipped:
            return  # a server that did not take the events would only be waited for once more
        files = {
            f"exports/{step_name(export.proof.step)}/{PROOF_FILE}": export.directory / PROOF_FILE
            for export in report.exports
        }
        if report.loss_curve is not None:
            files[CURVE_FILE] = report.loss_curve
        folder = artifacts_directory(report.run)
        files |= {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("[!.]*")) if path.is_file()}
        tags = {}
        if report.exports:
            newest = report.exports[-1]
            tags = {
                "smollm2.export": str(newest.directory),
                "smollm2.proof": f"{newest.proof.verdict} at step {newest.proof.step}",
            }
        self._connect().ship_files(report.run, files, tags=tags)


def _tell(report: RunReport, text: str) -> None:
    """Add a problem a line to the report; what several steps have in common once."""
    lines = (f"{report.run}: {line}" for line in text.splitlines())
    report.problems.extend(line for line in lines if line not in report.problems)


def _describe(error: OSError) -> str:
    what = f"{error.filename}: " if error.filename else ""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    fix = "free space, and the service goes on by itself" if full else "the service tries again"
    return f"{what}{error.strerror or error}; {fix}"


def find_runs(directory: Path) -> list[Path]:
    """The folder itself if it is a run's, else the run folders directly below it, by name."""
    if (directory / RUN_FILE).is_file():
        return [directory]
    if not directory.is_dir():
        raise CheckpointError(f"{directory} does not exist; name the folder that holds the run folders")
    return sorted(entry for entry in directory.iterdir() if (entry / RUN_FILE).is_file())
