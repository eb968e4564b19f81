"""The checkpoint service: for each run folder, ship the events, then verify, export, prove and log checkpoints.

Its state is what is on the disk: an export that exists is done, one that is quarantined has been judged, a journal says
how far a log was shipped. So it may be killed at any time and started again. Of the checkpoints newer than the newest
export it takes the newest that is whole, or with `every` all of them, the oldest first.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from pathlib import Path

from checkpoint.consolidate import DamagedCheckpointError
from checkpoint.events import events_file
from checkpoint.export import export_checkpoint
from checkpoint.export_folder import PROOF_FILE, Export, list_exports
from checkpoint.loss_curve import CURVE_FILE, draw_loss_curve
from checkpoint.manifest import (
    MANIFEST_FILE,
    RUN_FILE,
    CheckpointError,
    checkpoint_directory,
    list_steps,
    read_manifest,
    step_name,
)
from checkpoint.tracking import Tracker, TrackingError

logger = logging.getLogger(__name__)

DATABASE_FILE = "mlflow.db"
ARTIFACTS_FOLDER = "mlartifacts"
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
    checkpoint: Path | None = None
    exports: list[Export] = field(default_factory=list)
    loss_curve: Path | None = None
    is_shipped: bool = False
    problems: list[str] = field(default_factory=list)


class Service:
    """Looks after the runs below one folder."""

    def __init__(self, settings: ServiceSettings) -> None:
        self.settings = settings
        folder = settings.runs_directory.resolve()
        self.tracking_uri = settings.tracking_uri or f"sqlite:///{folder / DATABASE_FILE}"
        local = self.tracking_uri.startswith("sqlite:")
        self._artifact_location = (folder / ARTIFACTS_FOLDER).as_uri() if local else None
        self._tracker: Tracker | None = None
        # what is wrong with a checkpoint whose manifest is of that time: hashing terabytes once is enough
        self._damaged: dict[tuple[Path, int], str] = {}

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
        for stage in (self._ship_events, self._export, self._redraw, self._ship_files):
            try:
                stage(report)
            except (CheckpointError, TrackingError) as error:
                report.problems.extend(f"{run}: {line}" for line in str(error).splitlines())
            except OSError as error:
                what = f"{error.filename}: " if error.filename else ""
                report.problems.append(f"{run}: {what}{error.strerror or error}; the next pass tries again")
        return report

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
        known = list_exports(report.run)
        pending = [step for step in steps if step > max(known, default=-1)]
        for step in pending if self.settings.every else reversed(pending):
            export = self._export_step(report, step)
            if export is not None:
                known[step] = export
                if not self.settings.every:
                    break
        report.exports = [known[step] for step in sorted(known)]
        if report.exports and not report.exports[-1].passed:
            proof = report.exports[-1].proof
            report.problems.append(
                f"{report.run}: {step_name(proof.step)} failed its proof: {'; '.join(proof.reasons)}"
            )

    def _export_step(self, report: RunReport, step: int) -> Export | None:
        """None for a damaged checkpoint, whose problems go into the report."""
        checkpoint = checkpoint_directory(report.run, step)
        try:
            read_manifest(checkpoint)
        except CheckpointError as error:
            report.problems.append(f"{report.run}: {error}")
            return None
        key = (checkpoint, (checkpoint / MANIFEST_FILE).stat().st_mtime_ns)
        if key not in self._damaged:
            logger.info("%s: exporting %s", report.run, step_name(step))
            try:
                return export_checkpoint(report.run, step)
            except DamagedCheckpointError as error:
                self._damaged[key] = str(error)
        report.problems.extend(f"{report.run}: {line}" for line in self._damaged[key].splitlines())
        return None

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
        tags = {}
        if report.exports:
            newest = report.exports[-1]
            tags = {
                "smollm2.export": str(newest.directory),
                "smollm2.proof": f"{newest.proof.verdict} at step {newest.proof.step}",
            }
        self._connect().ship_files(report.run, files, tags=tags)


def find_runs(directory: Path) -> list[Path]:
    """The folder itself if it is a run's, else the run folders directly below it, by name."""
    if (directory / RUN_FILE).is_file():
        return [directory]
    if not directory.is_dir():
        raise CheckpointError(f"{directory} does not exist; name the folder that holds the run folders")
    return sorted(entry for entry in directory.iterdir() if (entry / RUN_FILE).is_file())
