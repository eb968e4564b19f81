"""The run-folder contract: what makes a folder a run's, of whatever kind, and who is at work in it.

    RUN/.lock            locked (flock) for the life of rank 0 of a trainer, or of a data run's driver
    RUN/config.yaml      the resolved config
    RUN/run.json         this file's `RunRecord`, written once, when the run folder is made
    RUN/events/          as in `events.py`
    RUN/artifacts/       files that the service stores with the run; hidden ones are passed over

What else a training run has is in `manifest.py`. Behind the door `events.py`. Imports the standard library and pydantic
only.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Literal

from pydantic import Field

from checkpoint.records import FORMAT_VERSION, CheckpointError, Record, read_record, write_durably

RUN_FILE = "run.json"
LOCK_FILE = ".lock"
CONFIG_FILE = "config.yaml"
_SPOILT = "is not a run record ({}); copy it back from a copy of the folder"

RunKind = Literal["training", "data"]


class RunRecordError(CheckpointError):
    """A folder that is not a run's, or is that of another release."""


class RunRecord(Record):
    """The identity of a run: what stays the same over all its attempts.

    `dataset` is the folder that a data run makes, an absolute path. The digests are those of what a training run reads;
    a data run has none.
    """

    format_version: int = FORMAT_VERSION
    kind: RunKind = "training"
    run_key: str
    name: str
    created_ms: int
    code_revision: str
    dataset: str | None = None
    dataset_digests: dict[str, str] = Field(default_factory=dict)
    tokenizer_digest: str = ""
    versions: dict[str, str]


def artifacts_directory(run: Path) -> Path:
    return run / "artifacts"


def read_run(run: Path) -> RunRecord:
    """Raises RunRecordError."""
    missing = f"{run} is not a run folder (no {RUN_FILE}); `smollm2 launch train` makes one"
    try:
        return read_record(run / RUN_FILE, RunRecord, missing=missing, spoilt=_SPOILT)
    except CheckpointError as error:
        raise RunRecordError(str(error)) from None


def write_run(run: Path, record: RunRecord) -> None:
    write_durably(run / RUN_FILE, (record.model_dump_json(indent=1) + "\n").encode())


def code_revision() -> str:
    """The commit of this code, `-dirty` if it was changed since; "unknown" outside a clone."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        answer = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return answer.stdout.strip() or "unknown"
