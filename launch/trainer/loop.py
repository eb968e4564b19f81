"""The training loop: what happens at a step, at the end of one, and at the end of the run.

Steps are counted as they are completed: after step N the model has seen N global batches, and the metrics, the
checkpoint and the validation loss of step N all belong to that model. All ranks run this together; rank 0 tells.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch

from checkpoint.events import LEARNING_RATE, TRAIN_LOSS, VALIDATION_LOSS, EventKind, EventWriter
from launch.config import TrainConfig
from launch.data.loader import Loader, PackedSamples
from launch.data.packing import Batch
from launch.trainer import guards
from launch.trainer.compilation import BuildClock
from launch.trainer.console import Console
from launch.trainer.engine import Engine
from launch.trainer.evaluate import measure_probe, validation_loss
from launch.trainer.interruption import StopSignals, agreed_signal, exit_code
from launch.trainer.optimizer import set_learning_rate
from launch.trainer.progress import step_line
from launch.trainer.ranks import RankEnvironment
from launch.trainer.schedules import SCHEDULES
from launch.trainer.state import Checkpoints
from launch.trainer.throughput import Throughput
from model.cost import flops_per_token
from model.loss import LossTerms


@dataclass(frozen=True)
class StepResult:
    """What one step was: `loss`, the cross-entropy, and `z_loss`, which was trained with it (None: there is none), are
    means over the global batch; `stop_flags` is what the ranks were asked to do."""

    loss: float
    z_loss: float | None
    learning_rate: float
    grad_norm: float
    step_time_s: float
    data_wait_s: float
    stop_flags: list[float]


class Trainer:
    """Everything that a run needs between its start and its end."""

    def __init__(
        self,
        config: TrainConfig,
        ranks: RankEnvironment,
        *,
        engine: Engine,
        train: PackedSamples,
        validation: PackedSamples,
        checkpoints: Checkpoints,
        console: Console,
        events: EventWriter | None,
        first_step: int,
        started_s: float | None = None,
    ) -> None:
        """started_s: time.perf_counter() when the attempt began, None: now."""
        self.config, self.ranks, self.engine = config, ranks, engine
        self.train, self.validation, self.checkpoints = train, validation, checkpoints
        self.console, self.events = console, events
        self.step = first_step  # complete ones
        self._started_s: float | None = time.perf_counter() if started_s is None else started_s
        self._build_clock = BuildClock()
        self._throughput = Throughput(
            flops_per_token=flops_per_token(config.model, sequence_length=config.data.sequence_length),
            device_name=engine.device_name,
            world_size=ranks.world_size,
        )
        self._accumulation = config.accumulation_steps(world_size=ranks.world_size)

    def run(self) -> int:
        """Train from `step` complete steps to the end. Returns the exit code; raises DivergedError."""
        config, first_step = self.config, self.step
        with StopSignals() as signals, self._loader(first_step) as loader:
            if first_step == 0:
                self._evaluate(0)
            window_started_s, window_step = time.perf_counter(), first_step
            for step in range(first_step + 1, config.steps + 1):
                result = self._train_step(step, loader, signals)
                self.step = step
                self._tell_step(step, result, self._warm_up(step))
                if step % config.logging.every_steps == 0 or step == config.steps:
                    self._say_step(step, result, (time.perf_counter() - window_started_s) / (step - window_step))
                    window_started_s, window_step = time.perf_counter(), step
                number = agreed_signal(result.stop_flags)
                pause_started_s = time.perf_counter()
                self._evaluate_and_save(step, stopping=number is not None)
                # the window measures training; evaluations and saves stand apart
                window_started_s += time.perf_counter() - pause_started_s
                if number is not None and step < config.steps:
                    self._tell("state", step, state="killed", reason=number.name)
                    self._sync_events()
                    self.console.line(f"stopped by {number.name} after step {step}; run the same command to go on")
                    return exit_code(number)
        self._tell("state", config.steps, state="finished")
        self._sync_events()
        self.console.line(f"finished: {config.steps} steps in {config.run_dir}")
        return 0

    def _loader(self, first_step: int) -> Loader:
        return Loader(
            self.train,
            first_step=first_step,
            samples_per_step=self.config.samples_per_step,
            micro_batch_size=self.config.micro_batch_size,
            rank=self.ranks.rank,
            world_size=self.ranks.world_size,
        )

    def _train_step(self, step: int, loader: Loader, signals: StopSignals) -> StepResult:
        started_s, waited_s = time.perf_counter(), loader.wait_time_s
        factor = self._learning_rate_factor(step)
        set_learning_rate(self.engine.optimizer, self.config.optimizer, factor=factor)
        sums = torch.zeros(2, dtype=torch.float64, device=self.engine.device)
        for micro_step in range(1, self._accumulation + 1):
            terms = self._loss(next(loader))
            sums += torch.stack((terms.total.detach(), terms.cross_entropy))
            self.engine.deepspeed.backward(terms.total)
            if micro_step < self._accumulation:
                self.engine.deepspeed.step()
        total, cross_entropy, stop_flags = self._agree(sums / self._accumulation, signals)
        guards.check_loss(total, step=step, last_checkpoint=self.checkpoints.last_step)
        self.engine.deepspeed.step()
        grad_norm = float(self.engine.deepspeed.get_global_grad_norm())
        guards.check_grad_norm(grad_norm, step=step, last_checkpoint=self.checkpoints.last_step)
        return StepResult(
            loss=cross_entropy,
            z_loss=total - cross_entropy if self.config.z_loss_coefficient else None,
            learning_rate=factor * self.config.optimizer.learning_rate,
            grad_norm=grad_norm,
            step_time_s=time.perf_counter() - started_s,
            data_wait_s=loader.wait_time_s - waited_s,
            stop_flags=stop_flags,
        )

    def _loss(self, batch: Batch) -> LossTerms:
        device = self.engine.device
        document_ids = batch.document_ids.to(device) if self.config.data.document_masking else None
        terms: LossTerms = self.engine.deepspeed(
            batch.input_ids.to(device),
            document_ids=document_ids,
            labels=batch.labels.to(device),
            z_loss_coefficient=self.config.z_loss_coefficient,
        )
        return terms

    def _agree(self, losses: torch.Tensor, signals: StopSignals) -> tuple[float, float, list[float]]:
        """The two losses' means and the sum of the stop flags over all ranks, in one exchange, so that all do the same
        next."""
        flags = torch.tensor(signals.flags(), dtype=torch.float64, device=losses.device)
        sums = torch.cat([losses, flags])
        torch.distributed.all_reduce(sums)
        total, cross_entropy, *stop_flags = sums.tolist()
        return total / self.ranks.world_size, cross_entropy / self.ranks.world_size, stop_flags

    def _learning_rate_factor(self, step: int) -> float:
        """Of the update that makes `step` steps complete; schedules count updates from 0."""
        schedule = self.config.schedule
        return SCHEDULES[schedule.name](
            step=step - 1,
            total_steps=self.config.steps,
            warmup_steps=schedule.warmup_steps,
            decay_steps=schedule.decay_steps,
            min_factor=schedule.min_factor,
        )

    def _evaluate_and_save(self, step: int, *, stopping: bool) -> None:
        config, is_last = self.config, step == self.config.steps
        loss = None
        if is_last or step % config.validation.every_steps == 0:
            loss = self._evaluate(step)
        if stopping or is_last or step % config.checkpoint.every_steps == 0:
            started_s = time.perf_counter()
            probe = measure_probe(self.engine, self.validation, config)
            # a resume from here tells no earlier step again, so what was told must be on the disk first
            self._sync_events()
            folder = self.checkpoints.save(self.engine, step=step, validation_loss=loss, probe=probe)
            self._tell("checkpoint", step, path=str(folder.relative_to(config.run_dir)))
            self._sync_events()
            self.console.line(f"step {step}/{config.steps}  saved {folder} in {time.perf_counter() - started_s:.1f} s")

    def _evaluate(self, step: int) -> float:
        loss = validation_loss(self.engine, self.validation, self.config, self.ranks)
        self._tell("metrics", step, **{VALIDATION_LOSS: loss})
        self.console.line(f"step {step}/{self.config.steps}  validation loss {loss:.4f}")
        return loss

    def _tell_step(self, step: int, result: StepResult, warm_up: dict[str, float]) -> None:
        tokens_per_second = self.config.batch_tokens / result.step_time_s
        metrics = {
            TRAIN_LOSS: result.loss,
            LEARNING_RATE: result.learning_rate,
            "train/grad_norm": result.grad_norm,
            "train/tokens_per_second": tokens_per_second,
            "train/step_time_s": result.step_time_s,
            "train/data_wait_s": result.data_wait_s,
            "train/tokens_consumed": step * self.config.batch_tokens,
            **warm_up,
        }
        mfu = self._throughput.mfu(tokens_per_second)
        if mfu is not None:
            metrics["train/mfu"] = mfu
        if result.z_loss is not None:
            metrics["train/z_loss"] = result.z_loss
        self._tell("metrics", step, **metrics)

    def _warm_up(self, step: int) -> dict[str, float]:
        """How long the first step took to come, and what torch.compile built for this one: nothing, after the first."""
        built_s = 0.0 if self.config.compile == "none" else self._build_clock.new_seconds()
        built = f"torch.compile built for {built_s:.1f} s" if built_s else ""
        metrics = {"train/compile_time_s": built_s} if built else {}
        if self._started_s is not None:
            metrics["train/startup_time_s"] = time.perf_counter() - self._started_s
            self._started_s = None
            startup = f"{metrics['train/startup_time_s']:.1f} s from the start to here"
            built = f"{startup}, of which {built}" if built else startup
        if built:
            self.console.line(f"step {step}/{self.config.steps}  {built}")
        return metrics

    def _say_step(self, step: int, result: StepResult, step_time_s: float) -> None:
        tokens_per_second = self.config.batch_tokens / step_time_s
        self.console.line(
            step_line(
                step=step,
                steps=self.config.steps,
                loss=result.loss,
                learning_rate=result.learning_rate,
                grad_norm=result.grad_norm,
                tokens_per_second=tokens_per_second,
                mfu=self._throughput.mfu(tokens_per_second),
                seconds_left=(self.config.steps - step) * step_time_s,
            )
        )

    def _tell(self, kind: EventKind, step: int, **fields: Any) -> None:
        if self.events is not None:
            self.events.write(kind, step=step, **fields)

    def _sync_events(self) -> None:
        if self.events is not None:
            self.events.sync()
