"""What the service tells of itself: the models of the page, the JSON API and the metrics. No I/O."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Wholeness = Literal["whole", "damaged", "not checked"]
ExportState = Literal["proven", "quarantined", "changed", "none"]


class _Status(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Disk(_Status):
    """The disk of the runs; a share above the mark makes retention's rules give way."""

    used_bytes: int
    total_bytes: int
    high_water_fraction: float | None

    @property
    def used_fraction(self) -> float:
        return self.used_bytes / self.total_bytes

    @property
    def percent_above_mark(self) -> int:
        """0 at or below the mark; else how full the disk is, so that a change of it is noticed."""
        if self.high_water_fraction is None or self.used_fraction <= self.high_water_fraction:
            return 0
        return math.ceil(100 * self.used_fraction)


class Trouble(_Status):
    """Something that a person should know of. `is_final`: the service does not try again by itself."""

    what: str
    reason: str
    is_final: bool


class CheckpointStatus(_Status):
    """One checkpoint, with what became of it. `difference` is that of the proof, in nats."""

    step: int
    size_bytes: int | None = None
    tokens_consumed: int | None = None
    validation_loss: float | None = None
    verification: Wholeness = "not checked"
    export: ExportState = "none"
    difference: float | None = None
    reasons: tuple[str, ...] = ()
    measured: dict[str, float] = Field(default_factory=dict)
    """What an evaluation found, by metric."""
    published_to: tuple[str, ...] = ()
    is_pinned: bool = False


class RunStatus(_Status):
    """One run; `checkpoints` are the newest ones, the newest first."""

    name: str
    title: str
    kind: str
    state: str
    is_shipped: bool
    dataset: str | None = None
    checkpoint_count: int = 0
    checkpoints: tuple[CheckpointStatus, ...] = ()
    jobs: tuple[str, ...] = ()
    troubles: tuple[Trouble, ...] = ()


class JobCount(_Status):
    """How many jobs of a kind have ended in a way since the service started."""

    kind: str
    blame: str
    count: int


class ServiceStatus(_Status):
    """All of it. Times are Unix times; `looked_s` is 0 before the first look."""

    started_s: float
    looked_s: float
    runs: tuple[RunStatus, ...]
    queue: tuple[str, ...]
    disk: Disk
    ended_jobs: tuple[JobCount, ...] = ()

    @property
    def problems(self) -> list[str]:
        """A line each, what several steps of a run have in common once."""
        lines = [
            f"{run.name}: {trouble.what}: {line}"
            for run in self.runs
            for trouble in run.troubles
            for line in trouble.reason.splitlines()
        ]
        if self.disk.percent_above_mark:
            lines.append(
                f"the disk is {self.disk.used_fraction:.1%} full, above retention.disk_high_water_fraction="
                f"{self.disk.high_water_fraction}; free space, or keep less"
            )
        return list(dict.fromkeys(lines))
