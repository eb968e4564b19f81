"""Removes what dead processes left in a run: deletions cut short, and partial folders that nobody will finish.

A partial checkpoint is a trainer's: it goes only when no trainer is alive, nothing in it was written for an hour (the
lock may not be seen from here), and it is not the only copy of its step, which a resume takes up again.
"""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

from checkpoint.lock import exclusive_lock, run_is_alive
from checkpoint.manifest import MANIFEST_FILE, CheckpointError, checkpoints_directory, exports_directory
from checkpoint.prune import empty_trash
from checkpoint.run_record import LOCK_FILE

ORPHAN_AGE_S = 3600.0


def sweep(run: Path, *, min_age_s: float = ORPHAN_AGE_S) -> list[Path]:
    """The folders that were removed."""
    removed = []
    if checkpoints_directory(run).is_dir():
        removed += empty_trash(run)
        removed += _sweep_checkpoints(run, min_age_s)
    if exports_directory(run).is_dir():
        removed += _sweep_exports(run)
    return removed


def _sweep_checkpoints(run: Path, min_age_s: float) -> list[Path]:
    removed = []
    for partial in sorted(checkpoints_directory(run).glob(".partial-step-*")):
        is_only_copy = (partial / MANIFEST_FILE).is_file()
        if run_is_alive(run) or is_only_copy or time.time() - _newest_change_s(partial) < min_age_s:
            continue
        # a trainer that begins now makes a folder of its own under this name
        trash = partial.with_name(f".trash-{partial.name.removeprefix('.')}")
        partial.rename(trash)
        shutil.rmtree(trash)
        removed.append(partial)
    return removed


def _sweep_exports(run: Path) -> list[Path]:
    """Whoever exports holds the lock, so that a partial export without a holder is nobody's."""
    partials = sorted(exports_directory(run).glob(".partial-*"))
    if not partials:
        return []
    try:
        with exclusive_lock(exports_directory(run) / LOCK_FILE, busy=""):
            for partial in partials:
                shutil.rmtree(partial)
    except CheckpointError:
        return []
    return partials


def _newest_change_s(folder: Path) -> float:
    times_s = [folder.stat().st_mtime]
    for root, _, names in os.walk(folder):
        times_s += [Path(root, name).stat().st_mtime for name in names]
    return max(times_s)
