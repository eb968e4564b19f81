"""Where a run's exports lie, and what their proofs say. Light: loads neither torch nor transformers.

RUN/exports/step-00000100/               published: its proof passed
RUN/exports/.quarantine-step-00000100/   its proof failed
RUN/exports/.partial-step-00000100/      being built and proven; a crash leaves it to the next attempt
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from checkpoint.manifest import CheckpointError, export_directory, exports_directory, step_name
from checkpoint.records import folder_exists, list_folder

PROOF_FILE = "proof.json"
CARD_FILE = "README.md"  # words about the model, which are not proven and may be written anew


class ProofReport(BaseModel):
    """What the proof found, in nats; `reasons` is empty exactly when the verdict is "passed".

    `files` are the digests of what was proven, by name: what differs from them is not what was proven.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    verdict: Literal["passed", "failed"]
    reasons: tuple[str, ...]
    step: int
    expected: float
    got: float | None
    difference: float | None
    tolerance: float
    probe_tokens: int
    dtype: str
    transformers_version: str
    torch_version: str
    files: dict[str, str] = Field(default_factory=dict)


@dataclass(frozen=True)
class Export:
    """Where an export ended up, and its proof: below `exports` under its own name only if the proof passed."""

    directory: Path
    proof: ProofReport

    @property
    def passed(self) -> bool:
        return self.proof.verdict == "passed"


def quarantine_directory(run: Path, step: int) -> Path:
    return exports_directory(run) / f".quarantine-{step_name(step)}"


def find_export(run: Path, step: int) -> Export | None:
    """The export of a step that was made before, published or quarantined; None if there is none.

    Raises CheckpointError if it has no readable proof.
    """
    directory = find_export_directory(run, step)
    return None if directory is None else Export(directory, read_proof(directory))


def find_export_directory(run: Path, step: int) -> Path | None:
    """Where the export of a step is, whatever is in it; None if there is none."""
    places = (export_directory(run, step), quarantine_directory(run, step))
    return next((place for place in places if folder_exists(place)), None)


def describe_proof(export: Export) -> str:
    """The verdict with its numbers, or with the reasons why it failed."""
    proof = export.proof
    if not export.passed:
        return f"failed: {'; '.join(proof.reasons)}"
    return (
        f"passed: loss on the probe batch {proof.got:.4f} in transformers, {proof.expected:.4f} in the trainer, "
        f"difference {abs(proof.difference or 0.0):.6f} (at most {proof.tolerance})"
    )


def digest_export(export: Path) -> dict[str, str]:
    """The digests of an export's files by name, but for the proof's, which holds them, and the card's."""
    names = sorted(path.name for path in export.iterdir() if path.is_file() and not path.name.startswith("."))
    return {name: digest_file(export / name) for name in names if name not in (PROOF_FILE, CARD_FILE)}


def digest_file(path: Path) -> str:
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def read_proof(export: Path) -> ProofReport:
    """Raises CheckpointError if an export has no readable `proof.json`."""
    path = export / PROOF_FILE
    try:
        return ProofReport.model_validate_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{export} has no {PROOF_FILE}; `smollm2 checkpoint prove` makes one") from None
    except (UnicodeDecodeError, ValidationError) as error:
        reason = " ".join(str(error).split())[:150]
        raise CheckpointError(f"{path} is not a proof ({reason}); `smollm2 checkpoint prove` makes it again") from None


def list_exports(run: Path) -> tuple[dict[int, Export], dict[int, str]]:
    """Every export of a run by step, ascending, published or quarantined; and what is wrong with those without a
    readable proof. Raises OSError if the exports cannot be read."""
    names = [path.name.removeprefix(".quarantine-") for path in list_folder(exports_directory(run), "*step-*")]
    numbers = [name.removeprefix("step-") for name in names if name.startswith("step-")]
    exports: dict[int, Export] = {}
    problems: dict[int, str] = {}
    for step in sorted({int(number) for number in numbers if number.isdecimal()}):
        try:
            export = find_export(run, step)
        except CheckpointError as error:
            problems[step] = str(error)
        else:
            if export is not None:
                exports[step] = export
    return exports, problems
