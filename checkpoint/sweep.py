"""Removes what dead processes left in a run: deletions cut short, and partial folders and files that nobody will
finish. A file that is being replaced (`write_durably`) is there for moments: one of an hour ago is nobody's.

A partial or a replaced checkpoint is a trainer's: it goes only when no trainer is alive, nothing in it was written for
an hour (the lock may not be seen from here), and it is not the only copy of its step, which a resume takes up again.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from checkpoint.lock import LockBusyError, exclusive_lock, run_is_alive
from checkpoint.manifest import MANIFEST_FILE, REPLACED, checkpoints_directory, exports_directory
from checkpoint.prune import TRASH, empty_trash
from checkpoint.records import file_exists, remove_folder
from checkpoint.run_record import LOCK_FILE

ORPHAN_AGE_S = 3600.0


def sweep(run: Path, *, min_age_s: float = ORPHAN_AGE_S) -> list[Path]:
    """The folders that were removed. Where somebody prunes or exports, his folders are left to him."""
    removed: list[Path] = []
    checkpoints, exports = checkpoints_directory(run), exports_directory(run)
    if any(path.is_dir() or path.is_symlink() for path in checkpoints.glob(".*")):
        with _lock_if_free(checkpoints) as is_free:
            if is_free:
                removed += empty_trash(run)
                removed += _sweep_checkpoints(run, min_age_s)
    if any(exports.glob(".partial-*")):
        with _lock_if_free(exports) as is_free:
            partials = sorted(exports.glob(".partial-*")) if is_free else []
            for partial in partials:
                remove_folder(partial)
            removed += partials
    return removed + _sweep_files(run, min_age_s)


def _sweep_files(run: Path, min_age_s: float) -> list[Path]:
    removed = []
    for folder in (run, run / "service", checkpoints_directory(run), exports_directory(run)):
        for path in sorted(folder.glob(".*.partial")):
            if path.is_file() and time.time() - path.stat().st_mtime >= min_age_s:
                path.unlink(missing_ok=True)
                removed.append(path)
    return removed


@contextmanager
def _lock_if_free(folder: Path) -> Iterator[bool]:
    """Whether nobody is at work in the folder, and nobody can begin to while the block runs."""
    with ExitStack() as stack:
        try:
            stack.enter_context(exclusive_lock(folder / LOCK_FILE, busy=""))
        except LockBusyError:
            yield False
            return
        yield True


def _sweep_checkpoints(run: Path, min_age_s: float) -> list[Path]:
    removed = []
    for orphan in sorted(checkpoints_directory(run).glob(".*-step-*")):
        prefix, _, name = orphan.name.partition("step-")
        step_exists = file_exists(orphan.with_name(f"step-{name}") / MANIFEST_FILE)
        is_only_copy = file_exists(orphan / MANIFEST_FILE) and not step_exists
        if prefix not in (".partial-", REPLACED) or is_only_copy or run_is_alive(run):
            continue
        if time.time() - _newest_change_s(orphan) >= min_age_s:
            # a trainer that begins now makes a folder of its own under this name
            trash = orphan.with_name(f"{TRASH}{orphan.name.removeprefix('.')}")
            orphan.rename(trash)
            remove_folder(trash)
            removed.append(orphan)
    return removed


def _newest_change_s(folder: Path) -> float:
    """Now, if it changes at this moment."""
    try:
        times_s = [folder.stat().st_mtime]
        for root, _, names in os.walk(folder):
            times_s += [Path(root, name).stat().st_mtime for name in names]
    except FileNotFoundError:
        return time.time()
    return max(times_s)
