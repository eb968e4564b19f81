"""Pinned checkpoints, which are never pruned: an empty file `RUN/pins/step-00000100` each.

A file a pin, so that two people may pin at once; beside the checkpoint and not in it, so that a step that is saved
again stays pinned.
"""

from __future__ import annotations

from pathlib import Path

from checkpoint.manifest import CheckpointError, checkpoint_directory, hold_checkpoint, step_name, sync_directory
from checkpoint.records import list_folder


def pins_directory(run: Path) -> Path:
    return run / "pins"


def list_pins(run: Path) -> frozenset[int]:
    """The pinned steps. Raises OSError if they cannot be read."""
    names = (path.name.removeprefix("step-") for path in list_folder(pins_directory(run), "step-*"))
    return frozenset(int(name) for name in names if name.isdecimal())


def pin(run: Path, step: int) -> None:
    """Raises CheckpointError if there is no checkpoint of the step."""
    if not checkpoint_directory(run, step).is_dir():
        raise CheckpointError(f"{run} has no checkpoint of step {step}; `smollm2 checkpoint list {run}` shows them")
    # held, so that no pruning is between its look at the pins and its rename
    with hold_checkpoint(checkpoint_directory(run, step)):
        pins_directory(run).mkdir(exist_ok=True)
        (pins_directory(run) / step_name(step)).touch()
        sync_directory(pins_directory(run))


def unpin(run: Path, step: int) -> None:
    """Raises CheckpointError if the step is not pinned."""
    try:
        (pins_directory(run) / step_name(step)).unlink()
    except FileNotFoundError:
        pinned = ", ".join(map(str, sorted(list_pins(run)))) or "nothing"
        raise CheckpointError(f"step {step} of {run} is not pinned; pinned: {pinned}") from None
    sync_directory(pins_directory(run))
