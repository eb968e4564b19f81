"""A disk that fills while two ranks write a checkpoint: a real small disk that holds the whole run, log included."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from checkpoint.manifest import checkpoint_directory, list_steps, verify_checkpoint

# 2,032,896 parameters: large beside what else a run writes, and saved in a fraction of a second
SIZE = ("model.hidden_size=256", "model.intermediate_size=1024", "checkpoint.every_steps=2", "validation.every_steps=2")
SCHEDULE = ("schedule.warmup_steps=0", "schedule.decay_steps=0")
BYTES_NEEDED = 12 * 2_032_896  # what the trainer asks for before it writes
# A checkpoint takes 80 KB more than that, and the start of an attempt some 20 KB for its logs: half way between.
SPARE_BYTES = 48 * 1024


def fill(disk: Path, *, leave_bytes: int) -> Path:
    """A file that takes the rest."""
    filler = disk / "filler"
    descriptor = os.open(filler, os.O_WRONLY | os.O_CREAT)
    os.posix_fallocate(descriptor, 0, shutil.disk_usage(disk).free - leave_bytes)
    os.close(descriptor)
    return filler


def test_disk_that_fills_while_saving_costs_only_the_steps_since_the_last_checkpoint(
    start_training: Any, train_on_ranks: Any, mount_tmpfs: Callable[[str], Path]
) -> None:
    disk = mount_tmpfs("size=80m")
    run = disk / "run"
    begun = train_on_ranks(2, run, *SIZE, *SCHEDULE, "steps=2")
    assert begun.code == 0, begun.err

    filler = fill(disk, leave_bytes=BYTES_NEEDED + SPARE_BYTES)
    failed = start_training(run, *SIZE, *SCHEDULE, "steps=4").end()
    assert failed.code == 2, failed.err
    assert "Traceback" not in failed.err
    causes = [line for line in failed.err.splitlines() if "the checkpoint of step 4 could not be written" in line]
    assert 1 <= len(causes) <= 2, failed.err  # a rank that found it alone tells it itself
    assert f"see that {run} has space left and run again: it goes on from the checkpoint of step 2" in causes[0]
    assert list_steps(run) == [2]
    assert verify_checkpoint(checkpoint_directory(run, 2)) == []

    filler.unlink()
    mended = train_on_ranks(2, run, *SIZE, *SCHEDULE, "steps=4")
    assert mended.code == 0, mended.err
    assert "resuming from step-00000002" in mended.out
    assert list_steps(run) == [2, 4]
    assert verify_checkpoint(checkpoint_directory(run, 4)) == []
    assert sorted(mended.metric("train/loss")) == [1, 2, 3, 4]
    assert mended.states()[-1] == "finished"
