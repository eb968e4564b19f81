"""Looks at what each step has shown, tells what is wrong with it, and says what the loop has to do about it.

The decisions are pure functions of numbers that are equal on all ranks (`guards.py`, `stragglers.py`); here they meet
the event log and the screen. An incident is one event and one line.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from checkpoint.events import EventWriter
from launch.config import TrainConfig
from launch.data.loader import PackedSamples
from launch.trainer.console import Console
from launch.trainer.engine import Engine
from launch.trainer.exchange import StepReports
from launch.trainer.guards import NotFinite, SkippedSteps, SpikeDetector
from launch.trainer.ranks import RankEnvironment
from launch.trainer.replicas import check_replicas
from launch.trainer.rewinds import Rewind, write_rewinds
from launch.trainer.stragglers import StragglerWatch
from launch.trainer.suspects import suspects_of


class Oversight:
    """Of one attempt. Called by all ranks together; rank 0 tells."""

    def __init__(
        self,
        config: TrainConfig,
        ranks: RankEnvironment,
        *,
        engine: Engine,
        samples: PackedSamples,
        console: Console,
        events: EventWriter | None,
    ) -> None:
        self._config, self._ranks, self._engine, self._samples = config, ranks, engine, samples
        self._console, self._events = console, events
        self._skipped = SkippedSteps(config.guards.max_skipped_in_a_row)
        self._spikes = SpikeDetector(config.guards.spike)
        self._stragglers = StragglerWatch(config.watchdog, world_size=ranks.world_size)

    def left_out(self, found: NotFinite, *, step: int, batch_number: int, last_checkpoint: int | None) -> None:
        """A step that no rank has taken. Raises DivergedError if it was one too many in a row."""
        named = "rank 0 names them"  # not every rank of hundreds has to read the shards again
        if self._ranks.is_first:
            size = self._ranks.world_size
            suspects = suspects_of(
                self._samples, self._config, batch_number=batch_number, ranks=found.ranks, world_size=size
            )
            named = suspects.text
            text = f"{found.what}, so no rank took the step; in it: {named}"
            self._incident("not_finite", step, text, ranks=list(found.ranks), **asdict(suspects))
        self._skipped.left_out(found, step=step, suspects=named, last_checkpoint=last_checkpoint)

    def took_step(self, step: int, reports: StepReports, *, batch_number: int) -> bool:
        """A step like any other. Returns whether a loss spike begins with it. Raises ReplicaError."""
        self._skipped.took_step()
        straggler = self._stragglers.look(reports.own_times_s)
        if straggler is not None:
            self._incident("straggler", step, straggler.text, rank=straggler.rank, ratio=straggler.ratio)
        if self._ranks.world_size > 1 and step % self._config.guards.replicas_every_steps == 0:
            check_replicas(self._engine, step=step, ranks=self._ranks, batch_number=batch_number)
        spike = self._spikes.look(reports.cross_entropy)
        if spike is not None:
            text = f"loss spike: {spike.loss:.4f}, where {spike.median:.4f} is usual (z {spike.z:.1f})"
            self._incident("spike", step, text, batch_number=batch_number, **asdict(spike))
        return spike is not None

    def rewinding(self, rewind: Rewind, all_rewinds: tuple[Rewind, ...]) -> None:
        """Written down before it is done, so that whoever is killed meanwhile starts as if it were."""
        if self._ranks.is_first:
            write_rewinds(self._config.run_dir, all_rewinds)
        text = f"back to step {rewind.checkpoint_step}, and on past the next {rewind.skipped_steps} batches"
        self._incident("rewind", rewind.spike_step, text, **asdict(rewind))

    def _incident(self, what: str, step: int, text: str, **particulars: Any) -> None:
        if self._events is not None:
            self._events.write("incident", step=step, what=what, text=text, **particulars)
        self._console.line(f"step {step}/{self._config.steps}  {text}")
