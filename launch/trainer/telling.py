"""What rank 0 tells of a run: each step to the event log, some to the screen. Other ranks call it and say nothing."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from checkpoint.events import LEARNING_RATE, TRAIN_LOSS, EventKind, EventWriter
from launch.config import TrainConfig
from launch.trainer.compilation import BuildClock
from launch.trainer.console import Console
from launch.trainer.exchange import StepReports
from launch.trainer.guards import NotFinite
from launch.trainer.progress import step_line
from launch.trainer.state import Saved
from launch.trainer.throughput import Throughput
from model.cost import flops_per_token


@dataclass(frozen=True)
class StepResult:
    """What one step was: `loss`, the cross-entropy, and `z_loss`, which was trained with it (None: there is none), are
    means over the global batch; `left_out` is why no rank stepped, and `skipped_steps` how often that was in the run,
    as its checkpoints keep it; `reports` is what each rank had to say."""

    loss: float
    z_loss: float | None
    learning_rate: float
    grad_norm: float
    step_time_s: float
    data_wait_s: float
    left_out: NotFinite | None
    skipped_steps: int
    reports: StepReports


class Teller:
    """The voice of one attempt. The screen's figures are means since its last line, without evaluations and saves."""

    def __init__(
        self,
        config: TrainConfig,
        *,
        device_name: str,
        world_size: int,
        console: Console,
        events: EventWriter | None,
        started_s: float,
    ) -> None:
        self._config, self._console, self._events = config, console, events
        self._started_s: float | None = started_s
        self._build_clock = BuildClock()
        self._throughput = Throughput(
            flops_per_token=flops_per_token(config.model, sequence_length=config.data.sequence_length),
            device_name=device_name,
            world_size=world_size,
        )
        self._window_s, self._window_steps = 0.0, 0

    def event(self, kind: EventKind, step: int, **fields: Any) -> None:
        if self._events is not None:
            self._events.write(kind, step=step, **fields)

    def line(self, text: str) -> None:
        self._console.line(text)

    def sync(self) -> None:
        if self._events is not None:
            self._events.sync()

    def step(self, step: int, result: StepResult, *, ledger: Mapping[str, float]) -> None:
        """A step that is complete."""
        self.event("metrics", step, **self._metrics(step, result), **self._warm_up(step), **ledger)
        self._window_s += result.step_time_s
        self._window_steps += 1
        if step % self._config.logging.every_steps == 0 or step == self._config.steps:
            self._say(step, result, self._window_s / self._window_steps)
            self._window_s, self._window_steps = 0.0, 0

    def saved(self, saved: Saved | None) -> None:
        """The end of a save, if one has ended."""
        if saved is None:
            return
        times = {"checkpoint/stall_time_s": saved.stall_time_s, "checkpoint/save_time_s": saved.save_time_s}
        self.event("metrics", saved.step, **times)
        self.event("checkpoint", saved.step, path=str(saved.folder.relative_to(self._config.run_dir)))
        self.sync()
        self.line(
            f"step {saved.step}/{self._config.steps}  saved {saved.folder} in {saved.save_time_s:.2f} s, "
            f"of which training stood still for {saved.stall_time_s:.2f} s"
        )

    def _metrics(self, step: int, result: StepResult) -> dict[str, float]:
        tokens_per_second = self._config.batch_tokens / result.step_time_s
        metrics = {
            TRAIN_LOSS: result.loss,
            LEARNING_RATE: result.learning_rate,
            "train/grad_norm": result.grad_norm,
            "train/tokens_per_second": tokens_per_second,
            "train/step_time_s": result.step_time_s,
            "train/data_wait_s": result.data_wait_s,
            "train/tokens_consumed": step * self._config.batch_tokens,
        }
        mfu = self._throughput.mfu(tokens_per_second)
        if mfu is not None:
            metrics["train/mfu"] = mfu
        muon = self._muon_learning_rate(result)
        if muon is not None:
            metrics["train/muon_learning_rate"] = muon
        if result.z_loss is not None:
            metrics["train/z_loss"] = result.z_loss
        if result.left_out is not None:
            metrics["train/skipped_steps"] = result.skipped_steps
        return metrics

    def _muon_learning_rate(self, result: StepResult) -> float | None:
        """The matrices' own, which the schedule scales as the other."""
        optimizer = self._config.optimizer
        if optimizer.muon_learning_rate is None:
            return None
        return result.learning_rate / optimizer.learning_rate * optimizer.muon_learning_rate

    def _warm_up(self, step: int) -> dict[str, float]:
        """How long the first step took to come, and what torch.compile built for this one: nothing, after the first."""
        built_s = 0.0 if self._config.compile == "none" else self._build_clock.new_seconds()
        built = f"torch.compile built for {built_s:.1f} s" if built_s else ""
        metrics = {"train/compile_time_s": built_s} if built else {}
        if self._started_s is not None:
            metrics["train/startup_time_s"] = time.perf_counter() - self._started_s
            self._started_s = None
            startup = f"{metrics['train/startup_time_s']:.1f} s from the start to here"
            built = f"{startup}, of which {built}" if built else startup
        if built:
            self.line(f"step {step}/{self._config.steps}  {built}")
        return metrics

    def _say(self, step: int, result: StepResult, step_time_s: float) -> None:
        tokens_per_second = self._config.batch_tokens / step_time_s
        self.line(
            step_line(
                step=step,
                steps=self._config.steps,
                loss=result.loss,
                learning_rate=result.learning_rate,
                muon_learning_rate=self._muon_learning_rate(result),
                grad_norm=result.grad_norm,
                tokens_per_second=tokens_per_second,
                mfu=self._throughput.mfu(tokens_per_second),
                seconds_left=(self._config.steps - step) * step_time_s,
            )
        )
