"""When a run's saves begin, are waited for and told: the loop's side of `state.py`. All ranks together."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from launch.config import TrainConfig
from launch.data.loader import PackedSamples
from launch.trainer.engine import Engine
from launch.trainer.evaluate import measure_probe
from launch.trainer.finite_state import check_probe, check_state
from launch.trainer.heartbeat import Heartbeat
from launch.trainer.ranks import RankEnvironment
from launch.trainer.state import Checkpoints
from launch.trainer.telling import Teller


class Saves:
    """One at a time; `before_update` comes before each step of the optimizer, `look` at the end of each step."""

    def __init__(
        self,
        config: TrainConfig,
        ranks: RankEnvironment,
        *,
        engine: Engine,
        validation: PackedSamples,
        checkpoints: Checkpoints,
        teller: Teller,
        heartbeat: Heartbeat,
    ) -> None:
        self._config, self._ranks, self._engine, self._validation = config, ranks, engine, validation
        self._checkpoints, self._teller, self._heartbeat = checkpoints, teller, heartbeat

    def before_update(self) -> None:
        self._checkpoints.before_update()

    def look(self) -> None:
        """Tell of a save that has ended. Raises TrainingError if it has failed."""
        self._teller.saved(self._checkpoints.check())

    def begin(
        self, step: int, *, samples_consumed: int, validation_loss: float | None, tokens_by_source: Mapping[str, int]
    ) -> None:
        """When the one before has ended, whose wait is told. Raises TrainingError, of which DivergedError is one."""
        waited_s = self.finish(say=self._teller.line)
        if waited_s:
            self._teller.event("metrics", step, **{"checkpoint/wait_time_s": waited_s})
        last_checkpoint = self._checkpoints.last_step
        with self._heartbeat.pause("save"):
            check_state(self._engine.deepspeed, step=step, ranks=self._ranks, last_checkpoint=last_checkpoint)
            probe = measure_probe(self._engine, self._validation, self._config)
            check_probe(probe, step=step, last_checkpoint=last_checkpoint)
            # a resume from here tells no earlier step again, so what was told must be on the disk first
            self._teller.sync()
            self._checkpoints.save(
                self._engine,
                step=step,
                samples_consumed=samples_consumed,
                validation_loss=validation_loss,
                probe=probe,
                tokens_by_source=tokens_by_source,
            )
        if not self._config.checkpoint.asynchronous:
            self.finish()

    def finish(self, *, say: Callable[[str], None] | None = None) -> float:
        """Wait for the save under way and tell its end. Returns the seconds; 0 where there is none."""
        started_s = time.perf_counter()
        with self._heartbeat.pause("save"):
            saved = self._checkpoints.finish(say=say)
        self._teller.saved(saved)
        return 0.0 if saved is None else time.perf_counter() - started_s
