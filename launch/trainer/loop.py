"""The training loop: what happens at a step, at the end of one, and at the end of the run.

Steps are counted as they are completed: after step N the model has seen N global batches, and the metrics, the
checkpoint and the validation loss of step N all belong to that model. All ranks run this together; rank 0 tells.
"""

from __future__ import annotations

import signal
import time

import torch

from checkpoint.events import EventWriter
from launch.config import LocalError, TrainConfig, TrainingError
from launch.data.loader import Loader, PackedSamples
from launch.data.packing import Batch
from launch.trainer.compilation import WARM_UP_STEPS
from launch.trainer.console import Console
from launch.trainer.continuations import continuations
from launch.trainer.engine import Engine
from launch.trainer.evaluate import validation_losses
from launch.trainer.exchange import StepReports, exchange
from launch.trainer.gradients import leave_step_out, local_gradient_square
from launch.trainer.guards import NotFinite, find_not_finite
from launch.trainer.heartbeat import Heartbeat
from launch.trainer.interruption import StopSignals, agreed_signal, exit_code
from launch.trainer.ledger import Ledger
from launch.trainer.node_metrics import NodeTeller
from launch.trainer.optimizer import set_learning_rate
from launch.trainer.oversight import Oversight
from launch.trainer.profiler import StepProfiler
from launch.trainer.ranks import RankEnvironment
from launch.trainer.rewinds import Rewind, batch_number, last_step_in_order, next_rewind
from launch.trainer.saving import Saves
from launch.trainer.schedules import learning_rate_factor
from launch.trainer.state import Checkpoints
from launch.trainer.stop_request import StopRequests
from launch.trainer.telling import StepResult, Teller
from model.loss import LossTerms
from pipeline.shards.format import TOKENIZER_FILE


class Trainer:
    """Everything that a run needs between its start and its end."""

    def __init__(
        self,
        config: TrainConfig,
        ranks: RankEnvironment,
        *,
        engine: Engine,
        train: PackedSamples,
        ledger: Ledger,
        validation: PackedSamples,
        checkpoints: Checkpoints,
        console: Console,
        events: EventWriter | None,
        first_step: int,
        rewinds: tuple[Rewind, ...] = (),
        heartbeat: Heartbeat | None = None,
        started_s: float | None = None,
    ) -> None:
        """heartbeat: of the watchdog, if one looks on; started_s: perf_counter() at the attempt's begin (None: now)."""
        self.config, self.ranks, self.engine = config, ranks, engine
        self.train, self.ledger, self.validation, self.checkpoints = train, ledger, validation, checkpoints
        self.step = self._first_step = first_step  # complete ones
        self.rewinds, self._heartbeat = rewinds, heartbeat or Heartbeat()
        self.node: NodeTeller | None = None  # of the rank that tells of its node
        self._oversight = Oversight(config, ranks, engine=engine, samples=train, console=console, events=events)
        self._profiler = StepProfiler(config.profile, run_dir=config.run_dir, rank=ranks.rank)
        self._teller = Teller(
            config,
            device_name=engine.device_name,
            world_size=ranks.world_size,
            console=console,
            events=events,
            started_s=time.perf_counter() if started_s is None else started_s,
        )
        self._saves = Saves(
            config,
            ranks,
            engine=engine,
            validation=validation,
            checkpoints=checkpoints,
            teller=self._teller,
            heartbeat=self._heartbeat,
        )
        self._accumulation = config.accumulation_steps(world_size=ranks.world_size)
        self._save_is_due = False

    def run(self) -> int:
        """Train from `step` complete steps to the end. Returns the exit code; raises TrainingError, of which
        DivergedError is one, and ReplicaError."""
        try:
            return self._run()
        except LocalError:
            raise
        except TrainingError as error:
            # all ranks stop here alike, so that a save under way can still come to its end
            try:
                self._saves.finish()
            except TrainingError as failed:
                raise TrainingError(f"{error}\n{failed}") from error
            raise

    def _run(self) -> int:
        requests = StopRequests(self.config.run_dir) if self.ranks.is_first else None
        with StopSignals(requests) as signals:
            if self.step == 0:
                self._evaluate(0)
            while self.step < self.config.steps:
                # anew after a rewind, and where an earlier one has left data out
                loader = self._loader()
                try:
                    number = self._train(loader, signals)
                    # before the reading ends: a run that has to stop is given no time to wait for a store
                    self._saves.finish()
                finally:
                    # which waits for the part of a copy from a store that is under way, for a while
                    with self._heartbeat.pause("data"):
                        loader.close()
                if number is not None and self.step < self.config.steps:
                    self._teller.event("state", self.step, state="killed", reason=number.name)
                    self._teller.sync()
                    self._teller.line(f"stopped by {number.name} after step {self.step}; run the same command to go on")
                    return exit_code(number)
        self._teller.event("state", self.step, state="finished")
        self._teller.sync()
        self._teller.line(f"finished: {self.step} steps in {self.config.run_dir}")
        return 0

    def _train(self, loader: Loader, signals: StopSignals) -> signal.Signals | None:
        """Steps whose batches follow one another, until a signal, which is returned, or a rewind."""
        config = self.config
        for step in range(self.step + 1, last_step_in_order(self.step, config.steps, self.rewinds) + 1):
            result = self._train_step(step, loader, signals)
            if self._profiler.ends_with(step):
                with self._heartbeat.pause("profile"):
                    self._profiler.write()
            self.step = step
            self._teller.step(step, result, ledger=self._ledger_metrics(step))
            if self.node is not None:
                self.node.look(step)
            number = agreed_signal(result.reports.stop_flags)
            rewind = self._judge(step, result)
            if rewind is not None:
                # who stops now leaves it to the next start, and saves nothing of the spike
                self._go_back(rewind, loading=number is None)
                return number
            self._save_is_due |= step % config.checkpoint.every_steps == 0
            # weights that cannot take a step may be bad already: the save waits until they can
            saving = number is not None or (self._save_is_due and result.left_out is None)
            self._evaluate_and_save(step, saving=saving)
            if number is not None:
                return number
        return None

    def _loader(self) -> Loader:
        return Loader(
            self.train,
            first_step=batch_number(self.step + 1, self.rewinds) - 1,
            samples_per_step=self.config.samples_per_step,
            micro_batch_size=self.config.micro_batch_size,
            rank=self.ranks.rank,
            world_size=self.ranks.world_size,
            local_rank=self.ranks.local_rank,
            local_size=self.ranks.local_size,
            pin_memory=self.engine.device.type == "cuda",
        )

    def _train_step(self, step: int, loader: Loader, signals: StopSignals) -> StepResult:
        engine, heartbeat = self.engine.deepspeed, self._heartbeat
        heartbeat.step(step, is_warm_up=step <= self._first_step + WARM_UP_STEPS[self.config.compile])
        self._profiler.before(step)
        started_s, waited_s = time.perf_counter(), loader.wait_time_s
        factor = learning_rate_factor(self.config.schedule, step=step, steps=self.config.steps)
        set_learning_rate(self.engine.optimizer, self.config.optimizer, factor=factor)
        sums = torch.zeros(2, dtype=torch.float64, device=self.engine.device)
        for micro_step in range(1, self._accumulation + 1):
            heartbeat.phase("data")
            batch = next(loader)
            heartbeat.phase("forward")
            terms = self._loss(batch)
            sums += torch.stack((terms.total.detach(), terms.cross_entropy))
            heartbeat.phase("backward")
            engine.backward(terms.total)
            if micro_step < self._accumulation:
                engine.step()
        data_wait_s = loader.wait_time_s - waited_s
        heartbeat.phase("exchange")
        reports = self._exchange(sums / self._accumulation, signals, data_wait_s)
        heartbeat.phase("optimizer")
        left_out = self._update(reports)
        heartbeat.end_step()
        return StepResult(
            loss=reports.cross_entropy,
            z_loss=reports.loss - reports.cross_entropy if self.config.z_loss_coefficient else None,
            learning_rate=factor * self.config.optimizer.learning_rate,
            grad_norm=float(engine.get_global_grad_norm()) if left_out is None else reports.gradient_norm,
            step_time_s=time.perf_counter() - started_s,
            data_wait_s=data_wait_s,
            left_out=left_out,
            skipped_steps=engine.skipped_steps,
            reports=reports,
        )

    def _loss(self, batch: Batch) -> LossTerms:
        device = self.engine.device
        # from page-locked memory the copies run beside what the device still computes
        document_ids = batch.document_ids.to(device, non_blocking=True) if self.config.data.document_masking else None
        terms: LossTerms = self.engine.deepspeed(
            batch.input_ids.to(device, non_blocking=True),
            document_ids=document_ids,
            labels=batch.labels.to(device, non_blocking=True),
            z_loss_coefficient=self.config.z_loss_coefficient,
        )
        return terms

    def _exchange(self, losses: torch.Tensor, signals: StopSignals, data_wait_s: float) -> StepReports:
        """What every rank makes known at the end of a step; `losses` are this rank's own."""
        clock = self.engine.layer_clock
        computed_s = 0.0 if clock is None else clock.take_s() * self.config.model.num_hidden_layers
        return exchange(
            losses,
            local_gradient_square(self.engine.deepspeed),
            own_time_s=computed_s + data_wait_s,
            stop_flags=signals.flags(),
            world_size=self.ranks.world_size,
        )

    def _update(self, reports: StepReports) -> NotFinite | None:
        """Let the optimizer step, or on every rank leave the step out: then returns why."""
        left_out = find_not_finite(reports.losses, reports.gradient_norm)
        if left_out is not None:
            leave_step_out(self.engine.deepspeed)
            return left_out
        self._saves.before_update()
        self.engine.deepspeed.step()
        # DeepSpeed's own check, of what it makes of the gradient: with Muon an update
        return None if self.engine.deepspeed.was_step_applied() else NotFinite("the update is not finite", ())

    def _judge(self, step: int, result: StepResult) -> Rewind | None:
        """How the run has to go back, if it has to: tells what was wrong with the step. Raises DivergedError,
        ReplicaError."""
        number, last_checkpoint = batch_number(step, self.rewinds), self.checkpoints.last_step
        if result.left_out is not None:
            self._oversight.left_out(result.left_out, step=step, batch_number=number, last_checkpoint=last_checkpoint)
            return None
        settings = self.config.guards.rewind
        if not self._oversight.took_step(step, result.reports, batch_number=number) or settings is None:
            return None
        if len(self.rewinds) < settings.max_rewinds:
            self._saves.finish()  # it is what the run would go back to
        rewind = next_rewind(self.config, step, last_checkpoint=self.checkpoints.last_step, rewinds=self.rewinds)
        if isinstance(rewind, Rewind):
            return rewind
        self._teller.line(f"step {step}/{self.config.steps}  the run goes on through the spike: {rewind}")
        return None

    def _go_back(self, rewind: Rewind, *, loading: bool) -> None:
        """To the last checkpoint, to go on with data that no step has seen. All ranks, together."""
        self.rewinds = (*self.rewinds, rewind)
        self._oversight.rewinding(rewind, self.rewinds)
        if loading:
            with self._heartbeat.pause("rewind"):
                self.checkpoints.load(self.engine, step=rewind.checkpoint_step)
        self.step, self._save_is_due = rewind.checkpoint_step, False

    def _ledger_metrics(self, step: int) -> dict[str, float]:
        """Where the run evaluates or saves: a metric a source is too much for every step."""
        every = (self.config.validation.every_steps, self.config.checkpoint.every_steps)
        is_due = step == self.config.steps or any(step % steps == 0 for steps in every)
        return self.ledger.metrics(step, self.rewinds) if is_due else {}

    def _evaluate_and_save(self, step: int, *, saving: bool) -> None:
        config, is_last = self.config, step == self.config.steps
        self._saves.look()
        loss = None
        if is_last or step % config.validation.every_steps == 0:
            loss = self._evaluate(step)
        if saving or is_last:
            self._save_is_due = False
            self._saves.begin(
                step,
                samples_consumed=batch_number(step, self.rewinds) * config.samples_per_step,
                validation_loss=loss,
                tokens_by_source=self.ledger.tokens(step, self.rewinds),
            )

    def _evaluate(self, step: int) -> float:
        with self._heartbeat.pause("evaluate"):
            losses = validation_losses(self.engine, self.validation, self.config, self.ranks)
            self._teller.event("metrics", step, **losses.metrics())
            self._teller.line(f"step {step}/{self.config.steps}  validation loss {losses.loss:.4f}")
            if (settings := self.config.validation.samples) is not None:
                file = self.validation.sources[0].path / TOKENIZER_FILE
                text = continuations(self.engine, settings, tokenizer_file=file, seed=self.config.seed)
                self._teller.event("text", step, text=text)
        return losses.loss
