"""What the hashing of checkpoints found, so that terabytes are not read again: `RUN/service/verdicts.json`.

A verdict holds for the manifest that it was found with (its time of change). The service and `prune` write it, each in
its turn; it may be deleted at any time, and the checkpoints are then hashed again.
"""

from __future__ import annotations

import logging
import math
import time
from pathlib import Path

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from checkpoint.lock import wait_for_turn
from checkpoint.manifest import (
    MANIFEST_FILE,
    checkpoint_directory,
    raise_unless_read,
    verify_checkpoint,
    write_durably,
)
from checkpoint.reading import hold_checkpoint

logger = logging.getLogger(__name__)


class Verdict(BaseModel):
    """Of one checkpoint: what is wrong with it, a line a file, and when that was found (Unix time)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    manifest_mtime_ns: int
    checked_s: float
    problems: tuple[str, ...] = ()


_VERDICTS = TypeAdapter(dict[int, Verdict])


def verdicts_file(run: Path) -> Path:
    return run / "service" / "verdicts.json"


def read_verdicts(run: Path) -> dict[int, Verdict]:
    """By step; nothing where the file is missing or spoilt."""
    try:
        return _VERDICTS.validate_json(verdicts_file(run).read_bytes())
    except FileNotFoundError:
        return {}
    except ValidationError:
        logger.warning("%s cannot be read; the checkpoints are hashed again", verdicts_file(run))
        return {}


def valid_verdict(run: Path, step: int, verdicts: dict[int, Verdict]) -> Verdict | None:
    """The verdict of a step, if its manifest is still the one that it was found with."""
    verdict = verdicts.get(step)
    return verdict if verdict is not None and verdict.manifest_mtime_ns == manifest_mtime_ns(run, step) else None


def manifest_mtime_ns(run: Path, step: int) -> int:
    """0 if there is no manifest, or none that can be reached."""
    try:
        return (checkpoint_directory(run, step) / MANIFEST_FILE).stat().st_mtime_ns
    except OSError:
        return 0


def check(run: Path, step: int, *, bytes_per_second: float = math.inf) -> Verdict:
    """Hash a checkpoint, at most so fast, and remember the verdict.

    Raises CheckpointError if it is not there, and OSError, with nothing remembered, if it cannot be read.
    """
    checkpoint = checkpoint_directory(run, step)
    with hold_checkpoint(checkpoint):
        mtime_ns = manifest_mtime_ns(run, step)
        found = verify_checkpoint(checkpoint, bytes_per_second=bytes_per_second)
    raise_unless_read(found)
    problems = tuple(map(str, found))
    return remember(run, step, Verdict(manifest_mtime_ns=mtime_ns, checked_s=time.time(), problems=problems))


def remember(run: Path, step: int, verdict: Verdict) -> Verdict:
    """Write a verdict down, and forget those of steps that are gone."""
    path = verdicts_file(run)
    path.parent.mkdir(exist_ok=True)
    with wait_for_turn(path):
        known = {old: kept for old, kept in read_verdicts(run).items() if manifest_mtime_ns(run, old)}
        write_durably(path, _VERDICTS.dump_json({**known, step: verdict}))
    return verdict
