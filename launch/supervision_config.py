"""Settings of what watches over a run: guards, watchdog, profiler. None changes a healthy run."""

from __future__ import annotations

import re
from typing import Self

from pydantic import Field, field_validator, model_validator

from launch.settings import Settings


class SpikeConfig(Settings):
    """A loss that stands out of the last `window_steps` losses: by `min_z` robust standard deviations and by
    `min_rise` nats."""

    window_steps: int = Field(default=64, ge=8)
    min_z: float = Field(default=8.0, gt=0)
    min_rise: float = Field(default=0.2, ge=0)  # a loss that hardly moves would make a spike of every ripple


class RewindConfig(Settings):
    """After a spike: back to the last checkpoint, and on with the data after the spike's step and `margin_steps` more.

    At most `max_rewinds` times in a run; later spikes are told and trained through.
    """

    max_rewinds: int = Field(default=3, ge=1)
    margin_steps: int = Field(default=0, ge=0)


class GuardsConfig(Settings):
    """What is checked while training (`launch/trainer/guards.py`); `rewind: null` leaves a spike an event."""

    max_skipped_in_a_row: int = Field(default=10, ge=1)  # the step that makes it so many ends the run
    spike: SpikeConfig = SpikeConfig()
    rewind: RewindConfig | None = None
    replicas_every_steps: int = Field(default=100, ge=1)


class WatchdogConfig(Settings):
    """How long a rank may go without a sign of progress before the run is ended as hung (`launch/trainer/watchdog.py`).

    A sign is each part of a step: reading a batch, its forward and backward pass, the exchange, the update. One may
    take `factor` times the median step, and never less than `floor_s`; what is slow by nature, those up to the end of
    the first step, an evaluation and a save, `pause_s`.
    """

    enabled: bool = True
    floor_s: float = Field(default=120.0, gt=0)
    factor: float = Field(default=10.0, ge=1)
    pause_s: float = Field(default=1800.0, gt=0)
    straggler_ratio: float = Field(default=1.5, gt=1)  # of the ranks' median own time
    straggler_steps: int = Field(default=50, ge=2)  # over which it is a mean

    @model_validator(mode="after")
    def _pause_is_longer(self) -> Self:
        if self.pause_s < self.floor_s:
            raise ValueError(f"pause_s={self.pause_s} is below floor_s={self.floor_s}; a save takes longer than a step")
        return self


class ProfileConfig(Settings):
    """`steps: 10-12` writes a trace of those steps, a file a rank, to RUN/profile."""

    steps: str | None = None

    @field_validator("steps", mode="before")
    @classmethod
    def _is_a_range(cls, steps: object) -> object:
        if steps is None:
            return None
        text = str(steps)
        found = re.fullmatch(r"(\d+)(?:-(\d+))?", text)
        if found is None or not 1 <= int(found[1]) <= int(found[2] or found[1]):
            raise ValueError(f"got {text!r}, wanted the first and the last step to record, such as 10-12")
        return text

    @property
    def first_and_last(self) -> tuple[int, int] | None:
        """Steps, counted from 1."""
        if self.steps is None:
            return None
        first, _, last = self.steps.partition("-")
        return int(first), int(last or first)
