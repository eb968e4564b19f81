"""What the service's jobs do, each over what is on the disk. A worker process (`worker.py`) performs them.

A job may be killed at any point and done again: each of them is whole or absent on the disk. An `Outcome` tells the
service who is to blame, which decides when the job is tried again.
"""

from __future__ import annotations

import errno
import math
import shutil
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from checkpoint.config import ServiceConfig
from checkpoint.evaluation import evaluation_file, list_evaluations
from checkpoint.export_folder import CARD_FILE
from checkpoint.manifest import CheckpointError, checkpoint_directory, export_directory, step_name
from checkpoint.reading import hold_checkpoint
from checkpoint.verdicts import Verdict, check, manifest_mtime_ns, remember

JobKind = Literal["ship", "curve", "verify", "export", "prove", "evaluate", "prune", "publish", "scrub"]
LIGHT_KINDS: tuple[JobKind, ...] = ("ship", "curve")  # seconds, in a process that stays: mlflow takes long to import
# one at a time in a run
HEAVY_KINDS: tuple[JobKind, ...] = ("verify", "export", "prove", "evaluate", "prune", "publish")
Blame = Literal["nobody", "damage", "job", "machine"]


class Job(BaseModel):
    """One thing to do in one run. `destination` is that of a publication."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: JobKind
    run: Path
    step: int | None = None
    destination: str | None = None

    @property
    def what(self) -> str:
        """Of its run: `export step-00000100`."""
        step = "" if self.step is None else f" {step_name(self.step)}"
        return f"{self.kind}{step}" + (f" to {self.destination}" if self.destination else "")

    def __str__(self) -> str:
        return f"{self.run.name}: {self.what}"


class Outcome(BaseModel):
    """How a job ended, and the reason, a line a problem, if somebody is to blame.

    "damage": the checkpoint's files are not those of its manifest, and trying again is of no use before it changes.
    "job": it fails for a reason of its own. "machine": a full disk, a server that is away; it says nothing of the job.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    blame: Blame = "nobody"
    reason: str = ""
    result: dict[str, Any] = Field(default_factory=dict)


class Context(BaseModel):
    """What every job of a service knows."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    config: ServiceConfig
    tracking_uri: str
    artifact_location: str | None = None


class Performer:
    """Performs jobs one after the other, and keeps the connection to MLflow between them."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._tracker: Any = None
        self._kinds: dict[JobKind, Callable[[Job], dict[str, Any]]] = {
            "ship": self._ship,
            "curve": _curve,
            "verify": _verify,
            "export": self._export,
            "prove": _prove,
            "evaluate": self._evaluate,
            "prune": self._prune,
            "publish": _publish,
            "scrub": self._scrub,
        }

    def perform(self, job: Job) -> Outcome:
        """Never raises for what users, disks and servers do; what is left is a defect of ours."""
        try:
            return Outcome(result=self._kinds[job.kind](job))
        except CheckpointError as error:
            return Outcome(blame=_blame(error), reason=str(error))
        except OSError as error:
            # a bad sector stays where it is, and is not to keep the jobs of other steps waiting
            blame: Blame = "job" if error.errno == errno.EIO else "machine"
            return Outcome(blame=blame, reason=describe_os_error(error))

    def _ship(self, job: Job) -> dict[str, Any]:
        from checkpoint.shipment import ship_run
        from checkpoint.tracking import Tracker

        if self._tracker is None:
            self._tracker = Tracker(self._context.tracking_uri, artifact_location=self._context.artifact_location)
        ship_run(self._tracker, job.run, best=self._context.config.best)
        return {}

    def _export(self, job: Job) -> dict[str, Any]:
        """Hashes the checkpoint as well: what that finds is remembered, so that no other job does it again."""
        from checkpoint.consolidate import DamagedCheckpointError
        from checkpoint.export import export_checkpoint

        assert job.step is not None
        mtime_ns = manifest_mtime_ns(job.run, job.step)
        try:
            with hold_checkpoint(checkpoint_directory(job.run, job.step)):
                export = export_checkpoint(job.run, job.step, license_name=self._context.config.license)
        except DamagedCheckpointError as error:
            problems = tuple(str(error).splitlines())
            remember(job.run, job.step, Verdict(manifest_mtime_ns=mtime_ns, checked_s=time.time(), problems=problems))
            raise
        remember(job.run, job.step, Verdict(manifest_mtime_ns=mtime_ns, checked_s=time.time()))
        return {"verdict": export.proof.verdict}

    def _evaluate(self, job: Job) -> dict[str, Any]:
        """Measures, and renews the card; where that alone was not reached, it is all that is done."""
        from checkpoint.evaluate import evaluate_export
        from checkpoint.export import renew_model_card

        assert job.step is not None
        config = self._context.config
        assert config.evaluation is not None
        with hold_checkpoint(checkpoint_directory(job.run, job.step)):  # its manifest is what the card is made of
            evaluation = list_evaluations(job.run).get(job.step)
            if evaluation is None or evaluation.config != config.evaluation or not card_is_older(job.run, job.step):
                evaluation = evaluate_export(job.run, job.step, config.evaluation)
            renew_model_card(job.run, job.step, license_name=config.license)
        return dict(evaluation.metrics)

    def _scrub(self, job: Job) -> dict[str, Any]:
        """An old checkpoint once more, at a rate that leaves the disk to those who wait for it."""
        return _verify(job, bytes_per_second=self._context.config.scrub_bytes_per_second or math.inf)

    def _prune(self, job: Job) -> dict[str, Any]:
        """Holds what is yet to be measured, as who measures will: what is held is not deleted."""
        from checkpoint.agenda import Memory, owed_evaluations
        from checkpoint.failures import Failures
        from checkpoint.prune import prune
        from checkpoint.run_watch import RunWatch

        config = self._context.config
        with ExitStack() as held:
            if config.evaluation is not None and not _is_above_mark(job.run, config):
                failures = Failures(job.run, config.jobs)
                for step in owed_evaluations(RunWatch(job.run).look(), Memory(), failures, config):
                    held.enter_context(hold_checkpoint(checkpoint_directory(job.run, step)))
            pruned = prune(job.run, config)
        return {"deleted": list(pruned.deleted), "freed_bytes": pruned.freed_bytes}


def card_is_older(run: Path, step: int) -> bool:
    """Whether an export's card was written before what was measured of it: who measured got no further."""
    card, evaluation = export_directory(run, step) / CARD_FILE, evaluation_file(run, step)
    try:
        return card.stat().st_mtime_ns < evaluation.stat().st_mtime_ns
    except FileNotFoundError:
        return True


def _is_above_mark(run: Path, config: ServiceConfig) -> bool:
    from checkpoint.prune import checkpoints_disk

    assert config.retention is not None
    usage = shutil.disk_usage(checkpoints_disk(run))
    return usage.used > config.retention.disk_high_water_fraction * (usage.used + usage.free)


def _curve(job: Job) -> dict[str, Any]:
    from checkpoint.loss_curve import draw_loss_curve
    from checkpoint.web.curve import write_points

    draw_loss_curve(job.run)
    write_points(job.run)
    return {}


def _verify(job: Job, *, bytes_per_second: float = math.inf) -> dict[str, Any]:
    from checkpoint.consolidate import DamagedCheckpointError

    assert job.step is not None
    verdict = check(job.run, job.step, bytes_per_second=bytes_per_second)
    if verdict.problems:
        raise DamagedCheckpointError("\n".join(f"{step_name(job.step)}/{problem}" for problem in verdict.problems))
    return {}


def _prove(job: Job) -> dict[str, Any]:
    from checkpoint.export import prove_export

    assert job.step is not None
    return {"verdict": prove_export(job.run, job.step).proof.verdict}


def _publish(job: Job) -> dict[str, Any]:
    from checkpoint.publish import publish_export

    assert job.step is not None
    assert job.destination is not None
    return {"latest": publish_export(job.run, job.step, job.destination).latest}


def _blame(error: CheckpointError) -> Blame:
    from checkpoint.lock import LockBusyError
    from checkpoint.mlflow_connection import TrackingError
    from checkpoint.prove import ProofError
    from checkpoint.publication import UnreachableError

    if isinstance(error, ProofError | TrackingError | UnreachableError | LockBusyError):
        return "machine"
    # it loads torch, which a job that ships does without
    from checkpoint.consolidate import DamagedCheckpointError

    return "damage" if isinstance(error, DamagedCheckpointError) else "job"


def describe_os_error(error: OSError) -> str:
    """One line with the way out."""
    what = f"{error.filename}: " if error.filename else ""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    fix = "free space, and the service goes on by itself" if full else "the service tries again"
    return f"{what}{error.strerror or error}; {fix}"
