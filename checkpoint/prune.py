"""Deletes the checkpoints of a run that `retention.py` decides against: a rename first, the removal after.

A kill between the two leaves a hidden `.trash-step-…`, which the next pruning and the service's sweeper remove. The
choice of what is whole comes from remembered verdicts, and from hashing where nothing is remembered, from the newest
checkpoint down to the first that is whole.

A checkpoint that was moved to another disk and linked back loses its link and frees nothing: what it leads to stays.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from checkpoint.config import RetentionConfig, ServiceConfig
from checkpoint.export_folder import list_exports
from checkpoint.failures import Failures
from checkpoint.lock import exclusive_lock
from checkpoint.manifest import (
    CheckpointError,
    checkpoint_directory,
    checkpoints_directory,
    list_steps,
    read_manifest,
    step_name,
    sync_directory,
)
from checkpoint.pins import list_pins
from checkpoint.reading import claim_checkpoint
from checkpoint.records import folder_exists, list_folder, remove_folder
from checkpoint.retention import Candidate, Decision, decide
from checkpoint.run_record import LOCK_FILE
from checkpoint.verdicts import check, manifest_mtime_ns, read_verdicts, valid_verdict
from checkpoint.wanted import wanted_exports

TRASH = ".trash-"


@dataclass(frozen=True)
class Pruned:
    """What was decided, and which of the decisions were carried out."""

    decisions: tuple[Decision, ...]
    deleted: tuple[int, ...]

    @property
    def freed_bytes(self) -> int:
        return sum(decision.size_bytes for decision in self.decisions if decision.step in self.deleted)


def prune(run: Path, config: ServiceConfig) -> Pruned:
    """Decide and delete. Raises CheckpointError if another process prunes the run, OSError if what protects a
    checkpoint cannot be read."""
    lock = checkpoints_directory(run) / LOCK_FILE
    with exclusive_lock(lock, busy=f"another pruning of {run} is under way; wait for its end"):
        empty_trash(run)
        judged = {step: manifest_mtime_ns(run, step) for step in list_steps(run)}
        decisions = plan(run, config)
        # the oldest first: a kill in between leaves what is worth more
        gone = tuple(
            one.step
            for one in decisions
            # one that was saved again while others were hashed is not the one that was judged
            if not one.is_kept
            and judged.get(one.step) == manifest_mtime_ns(run, one.step)
            and delete_checkpoint(run, one.step)
        )
    return Pruned(decisions, gone)


def plan(run: Path, config: ServiceConfig) -> tuple[Decision, ...]:
    """What `prune` would decide now; nothing is deleted, but checkpoints may be hashed."""
    assert config.retention is not None
    steps = list_steps(run)
    wholeness = _wholeness(run, steps)
    pins, wanted, latest = list_pins(run), unproven_exports(run, steps, wholeness, config), _latest(run)
    candidates = [
        _candidate(
            run,
            step,
            is_whole=wholeness.get(step),
            is_pinned=step in pins,
            is_wanted_unproven=step in wanted,
            is_named_latest=step_name(step) == latest,
        )
        for step in steps
    ]
    decisions = decide(candidates, config.retention, bytes_to_free=_bytes_above_mark(run, config.retention))
    return tuple(
        replace(one, reasons=(*one.reasons, "a link: what it leads to stays"))
        if not one.is_kept and checkpoint_directory(run, one.step).is_symlink()
        else one
        for one in decisions
    )


def unproven_exports(
    run: Path, steps: Sequence[int], wholeness: dict[int, bool], config: ServiceConfig
) -> frozenset[int]:
    """Steps that are to be exported, and those whose export failed its proof: what they hold is still needed."""
    exports, unreadable = list_exports(run)
    possible = [step for step in steps if wholeness.get(step) is not False]
    owed = Failures(run, config.jobs).owed_exports()
    wanted = wanted_exports(possible, known={*exports, *unreadable}, exports=config.exports, owed=owed)
    failed = {step for step, export in exports.items() if not export.passed}
    return frozenset({*wanted, *failed, *unreadable})


def delete_checkpoint(run: Path, step: int) -> bool:
    """Whether it was deleted: not if somebody reads it or has pinned it by now."""
    checkpoint = checkpoint_directory(run, step)
    trash = checkpoint.with_name(f"{TRASH}{checkpoint.name}")
    with claim_checkpoint(checkpoint) as is_free:
        if not is_free or step in list_pins(run):
            return False
        checkpoint.rename(trash)
        sync_directory(trash.parent)
    remove_folder(trash)
    return True


def empty_trash(run: Path) -> list[Path]:
    """Remove what an interrupted deletion left; the folders that were found."""
    found = list_folder(checkpoints_directory(run), f"{TRASH}*")
    for folder in found:
        remove_folder(folder)
    return found


def checkpoints_disk(run: Path) -> Path:
    """The folder on whose disk a run's checkpoints lie, or will: theirs may be a link, or a mount of its own."""
    checkpoints = checkpoints_directory(run)
    return checkpoints if folder_exists(checkpoints) else run


def _wholeness(run: Path, steps: Sequence[int]) -> dict[int, bool]:
    """Of every step that is known to be whole or not. The newest whole one is looked for until it is found.

    Nothing is known of one that cannot be read now.
    """
    verdicts = read_verdicts(run)
    known = {
        step: not verdict.problems for step in steps if (verdict := valid_verdict(run, step, verdicts)) is not None
    }
    for step in reversed(steps):
        if step not in known:
            with contextlib.suppress(OSError):
                known[step] = not check(run, step).problems
        if known.get(step):
            break
    return known


def _latest(run: Path) -> str:
    """The name in `latest`; "" where there is none."""
    try:
        return (checkpoints_directory(run) / "latest").read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return ""


def _candidate(
    run: Path,
    step: int,
    *,
    is_whole: bool | None,
    is_pinned: bool,
    is_wanted_unproven: bool,
    is_named_latest: bool,
) -> Candidate:
    checkpoint = checkpoint_directory(run, step)
    with claim_checkpoint(checkpoint) as is_free:
        is_being_read = not is_free
    try:
        manifest = read_manifest(checkpoint)
    except CheckpointError:
        # a spoilt manifest: nothing is known of it but that it is not whole
        return Candidate(
            step,
            is_whole=False,
            is_pinned=is_pinned,
            is_being_read=is_being_read,
            is_named_latest=is_named_latest,
        )
    return Candidate(
        step,
        size_bytes=0 if checkpoint.is_symlink() else sum(record.size_bytes for record in manifest.files),
        validation_loss=manifest.validation_loss,
        is_whole=is_whole,
        is_pinned=is_pinned,
        is_wanted_unproven=is_wanted_unproven,
        is_being_read=is_being_read,
        is_named_latest=is_named_latest,
    )


def _bytes_above_mark(run: Path, config: RetentionConfig) -> int:
    usage = shutil.disk_usage(checkpoints_disk(run))
    return max(0, usage.used - int(config.disk_high_water_fraction * (usage.used + usage.free)))
