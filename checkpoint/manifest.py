"""The checkpoint contract between the trainer, which saves, and the service, which consolidates and exports.

    RUN/.lock, config.yaml, run.json      as in `run_record.py`, which `events.py` offers
    RUN/tokenizer.json                    a copy of the datasets' tokenizer, so that a run can be moved
    RUN/checkpoints/step-00000100/        only ever complete: appears by one atomic rename
        manifest.json                     this file's `CheckpointManifest`
        zero/…                            DeepSpeed's own files, unchanged (tag "zero")
    RUN/checkpoints/.partial-step-00000100/   being written; a crash leaves it, the next save of that step replaces it
    RUN/checkpoints/latest                the name of the newest complete one, replaced atomically
    RUN/exports/step-00000100/            the service's: a Hugging Face directory whose proof passed

A save: every rank writes its own files below the partial folder, makes them durable and digests them; rank 0 gathers
the records and calls `publish_checkpoint`. A resume takes `newest_verified`.

A door: other rooms import from here what this file offers and what lies behind it, `records.py` (small durable files),
`file_records.py` and `digests.py` (files as a manifest knows them) and `reading.py` (who reads a checkpoint holds it).
All of it imports the standard library, pydantic and xxhash only: a trainer and a service that lists folders load
nothing heavy. xxhash, because the digests of a save are computed while its bytes pass.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import Field

from checkpoint.digests import RangeHasher, digest_ranges, digest_text
from checkpoint.file_records import (
    MANIFEST_FILE,
    FileRecord,
    Problem,
    file_record,
    find_problems,
    raise_unless_read,
)
from checkpoint.reading import hold_checkpoint
from checkpoint.records import (
    FORMAT_VERSION,
    CheckpointError,
    Record,
    file_exists,
    list_folder,
    read_record,
    remove_folder,
    sync_directory,
    write_durably,
)

__all__ = [
    "FORMAT_VERSION", "MANIFEST_FILE", "MIN_PROBE_TOKENS", "MODEL_CONFIG_FILE", "TOKENIZER_FILE", "ZERO_TAG",
    "CheckpointError", "CheckpointManifest", "FileRecord", "Probe", "Problem", "RangeHasher", "Record", "ReshardedFrom",
    "checkpoint_directory", "checkpoints_directory", "describe_files", "encode_manifest", "export_directory",
    "exports_directory", "file_record", "hold_checkpoint", "list_export_steps", "list_steps", "newest_verified",
    "partial_directory", "publish_checkpoint", "raise_unless_read", "read_manifest", "recover_interrupted_replacement",
    "step_name", "sync_directory", "verify_checkpoint", "write_durably",
]  # fmt: skip

TOKENIZER_FILE = "tokenizer.json"
MODEL_CONFIG_FILE = "config.json"  # what every export holds
ZERO_TAG = "zero"
MIN_PROBE_TOKENS = 1024
REPLACED = ".replaced-"


class Probe(Record):
    """What an export must reproduce: rows of token ids [rows, sequence] and their mean loss in the trainer.

    The loss is the mean over every position but the last of each row of the negative log-likelihood, in nats, of the
    next id of that row, attending over the whole row (no document boundaries), as transformers computes it.
    """

    token_ids: tuple[tuple[int, ...], ...]
    mean_negative_log_likelihood: float


class ReshardedFrom(Record):
    """The checkpoint, of another number of ranks, that one was made from."""

    world_size: int = Field(ge=1)
    manifest_digest: str


class CheckpointManifest(Record):
    """All that is to be known of a checkpoint without opening its tensors.

    `tokens_by_source` sums to `tokens_consumed`: what the run has read of each dataset by its name, of those that it no
    longer reads too.
    """

    format_version: int = FORMAT_VERSION
    run_key: str
    step: int = Field(ge=0)
    tokens_consumed: int = Field(ge=0)
    samples_consumed: int = Field(ge=0)
    tokens_by_source: dict[str, int] = Field(default_factory=dict)
    world_size: int = Field(ge=1)
    zero_stage: int = Field(ge=0, le=3)
    dtype: str
    config_digest: str
    dataset_digests: dict[str, str]
    tokenizer_digest: str
    model: dict[str, Any]
    validation_loss: float | None = None
    probe: Probe | None = None
    resharded_from: ReshardedFrom | None = None
    files: tuple[FileRecord, ...]
    seal: str = ""  # digest of all the rest, set by `encode_manifest`


def checkpoints_directory(run: Path) -> Path:
    return run / "checkpoints"


def checkpoint_directory(run: Path, step: int) -> Path:
    """`RUN/checkpoints/step-00000100`."""
    return checkpoints_directory(run) / step_name(step)


def partial_directory(run: Path, step: int) -> Path:
    """Where the ranks write before the checkpoint exists."""
    return checkpoints_directory(run) / f".partial-{step_name(step)}"


def step_name(step: int) -> str:
    """`step-00000100`; names sort as their steps do."""
    return f"step-{step:08d}"


def list_steps(run: Path) -> list[int]:
    """Steps that have a complete checkpoint, ascending. Raises OSError if that cannot be read."""
    return _list_steps_with(checkpoints_directory(run), MANIFEST_FILE)


def exports_directory(run: Path) -> Path:
    return run / "exports"


def export_directory(run: Path, step: int) -> Path:
    """`RUN/exports/step-00000100`."""
    return exports_directory(run) / step_name(step)


def list_export_steps(run: Path) -> list[int]:
    """Steps that have a published export, ascending. Raises OSError if that cannot be read."""
    return _list_steps_with(exports_directory(run), MODEL_CONFIG_FILE)


def read_manifest(checkpoint: Path) -> CheckpointManifest:
    """Raises CheckpointError if there is no manifest, or one of another format or of another step than its folder."""
    path = checkpoint / MANIFEST_FILE
    what = "is incomplete (no manifest.json)" if checkpoint.is_dir() else "does not exist"
    missing = f"checkpoint {checkpoint} {what}; `smollm2 checkpoint list RUN` shows those that do"
    spoilt = "is not a checkpoint manifest ({}); take another step"
    manifest = read_record(path, CheckpointManifest, missing=missing, spoilt=spoilt)
    if checkpoint.name.startswith("step-") and checkpoint.name != step_name(manifest.step):
        raise CheckpointError(f"{path} is that of {step_name(manifest.step)}; take another step")
    for record in manifest.files:
        pure = PurePosixPath(record.path)
        if pure.is_absolute() or ".." in pure.parts or "\\" in record.path or "\0" in record.path:
            raise CheckpointError(f"{path}: file path {record.path!r} leads out of the checkpoint; do not trust it")
    if manifest.seal != _seal(manifest):
        raise CheckpointError(f"{path} was changed after it was written (its seal does not fit); take another step")
    return manifest


def describe_files(checkpoint: Path, paths: Iterable[Path]) -> list[FileRecord]:
    """Make files durable (fsync of each and of its folder) and record their sizes and digests."""
    records, folders = [], set()
    for path in sorted(paths):
        with path.open("rb") as file:
            os.fsync(file.fileno())
        records.append(file_record(checkpoint, path, path.stat().st_size, tuple(digest_ranges(path))))
        folders.add(path.parent)
    for folder in folders:
        sync_directory(folder)
    return records


def encode_manifest(manifest: CheckpointManifest) -> bytes:
    """A manifest as it is written, sealed, so that a hand that edits it is noticed."""
    return (manifest.model_copy(update={"seal": _seal(manifest)}).model_dump_json() + "\n").encode()


def publish_checkpoint(run: Path, manifest: CheckpointManifest) -> Path:
    """Write the manifest into the partial folder, rename it into place, move `latest`. Rank 0 only.

    A complete checkpoint of the same step is replaced (a resume that passed over a damaged one saves it again). A crash
    between the two renames leaves neither under its name; `recover_interrupted_replacement` ends the replacement.
    """
    partial, final = partial_directory(run, manifest.step), checkpoint_directory(run, manifest.step)
    write_durably(partial / MANIFEST_FILE, encode_manifest(manifest))
    replaced = final.with_name(f"{REPLACED}{final.name}")
    remove_folder(replaced, ignore_errors=True)
    if os.path.lexists(final):  # a link whose target is away is in the way too
        final.rename(replaced)
    partial.rename(final)
    sync_directory(final.parent)
    remove_folder(replaced, ignore_errors=True)
    write_durably(checkpoints_directory(run) / "latest", f"{final.name}\n".encode())
    return final


def recover_interrupted_replacement(run: Path) -> None:
    """Give a step that a crash left without a checkpoint the new one, else the old. For who holds the run's lock."""
    for replaced in list_folder(checkpoints_directory(run), f"{REPLACED}step-*"):
        final = replaced.with_name(replaced.name.removeprefix(REPLACED))
        new = final.with_name(f".partial-{final.name}")
        if not final.exists():
            (new if file_exists(new / MANIFEST_FILE) else replaced).rename(final)
            sync_directory(final.parent)


def verify_checkpoint(checkpoint: Path, *, bytes_per_second: float = math.inf) -> list[Problem]:
    """Read and hash every file of the manifest again, at most so fast; an empty list means whole. DeepSpeed finds its
    files by their names, so that one which the manifest does not name is a problem too. Raises OSError if manifest or
    folder cannot be read; what cannot be read of the files is a problem with an `error`."""
    try:
        manifest = read_manifest(checkpoint)
    except CheckpointError as error:
        return [Problem(MANIFEST_FILE, str(error))]
    owned = list_folder(checkpoint / ZERO_TAG, "*")
    return find_problems(checkpoint, manifest.files, owned=owned, bytes_per_second=bytes_per_second)


def newest_verified(run: Path) -> tuple[int | None, Sequence[Problem]]:
    """The newest step whose checkpoint is whole, and what was wrong with those passed over; None if there is no
    checkpoint.

    Raises CheckpointError if there are some and none is whole, for a run is not to begin anew by itself; OSError if
    that is because they cannot be read.
    """
    passed_over: list[Problem] = []
    for step in reversed(list_steps(run)):
        try:
            problems = verify_checkpoint(checkpoint_directory(run, step))
        except OSError as error:
            problems = [Problem(MANIFEST_FILE, f"cannot be read: {error.strerror or error}", error)]
        if not problems:
            return step, passed_over
        passed_over.extend(replace(problem, path=f"{step_name(step)}/{problem.path}") for problem in problems)
    raise_unless_read(passed_over)
    if passed_over:
        raise CheckpointError(
            f"no checkpoint in {checkpoints_directory(run)} is whole (the newest: {passed_over[0]}); mend one, or move "
            "them away to begin anew"
        )
    return None, []


def _list_steps_with(folder: Path, file_name: str) -> list[int]:
    numbers = (entry.name.removeprefix("step-") for entry in list_folder(folder, "step-*"))
    found = (number for number in numbers if number.isdecimal() and file_exists(folder / f"step-{number}" / file_name))
    return sorted(map(int, found))


def _seal(manifest: CheckpointManifest) -> str:
    return digest_text(manifest.model_dump_json(exclude={"seal"}))
