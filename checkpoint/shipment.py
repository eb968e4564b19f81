"""What a run sends to MLflow beside its logs: proofs, evaluations, loss curve, artefacts, the registered model."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from checkpoint.config import BestConfig
from checkpoint.evaluation import list_evaluations
from checkpoint.export_folder import PROOF_FILE, list_exports
from checkpoint.loss_curve import CURVE_FILE
from checkpoint.manifest import CheckpointError, checkpoint_directory, read_manifest, step_name
from checkpoint.run_record import artifacts_directory
from checkpoint.tracking import Tracker


def ship_run(tracker: Tracker, run: Path, *, best: BestConfig) -> None:
    """Send all that is new. Raises TrackingError, with what was confirmed written down."""
    tracker.ship_events(run)
    by_step = list_exports(run)[0]
    exports = list(by_step.values())
    files = {
        f"exports/{step_name(export.proof.step)}/{PROOF_FILE}": export.directory / PROOF_FILE for export in exports
    }
    curve, folder = run / CURVE_FILE, artifacts_directory(run)
    if curve.is_file():
        files[CURVE_FILE] = curve
    files |= {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("[!.]*")) if path.is_file()}
    tags = {}
    if exports:
        newest = exports[-1]
        tags = {
            "smollm2.export": str(newest.directory),
            "smollm2.proof": f"{newest.proof.verdict} at step {newest.proof.step}",
        }
    tracker.ship_files(run, files, tags=tags)
    evaluations = list_evaluations(run)
    tracker.ship_evaluations(run, evaluations.values())
    if best.metric == BestConfig().metric:
        scores = _validation_losses(run, by_step)
    else:
        scores = {step: one.metrics[best.metric] for step, one in evaluations.items() if best.metric in one.metrics}
    tracker.ship_exports(run, by_step, scores=scores, best=best)


def _validation_losses(run: Path, steps: Iterable[int]) -> dict[int, float]:
    """Of the checkpoints that were measured and are still there."""
    losses = {}
    for step in steps:
        try:
            loss = read_manifest(checkpoint_directory(run, step)).validation_loss
        except CheckpointError:
            continue
        if loss is not None:
            losses[step] = loss
    return losses
