"""One attempt at a run, from the process group to the last step: builds the parts, resumes, trains, tells how it ended.

Called on every rank; only rank 0 has a `StartPoint`, which it shares.
"""

from __future__ import annotations

import os
import time
from contextlib import nullcontext, suppress
from datetime import timedelta

import deepspeed
import torch
from deepspeed.accelerator import get_accelerator

from checkpoint.events import EventWriter, events_file
from checkpoint.manifest import step_name
from launch.config import LocalError, TrainConfig, flatten
from launch.data.loader import PackedSamples
from launch.data.run_samples import run_samples
from launch.data.validation_set import validation_shards
from launch.trainer.console import Console, summary
from launch.trainer.cpu_operator import load_cpu_operator, unlink_buffer
from launch.trainer.engine import Engine, build_engine
from launch.trainer.heartbeat import Heartbeat
from launch.trainer.inputs import Inputs, probe_rows
from launch.trainer.kernels import try_kernels
from launch.trainer.ledger import Ledger
from launch.trainer.loop import Trainer
from launch.trainer.node_metrics import NodeTeller
from launch.trainer.ranks import RankEnvironment
from launch.trainer.run_folder import StartPoint, finished_line
from launch.trainer.state import Checkpoints
from pipeline.shards.format import DatasetError, Split

_AFTER_WATCHDOG_S = 120.0


def run_attempt(
    config: TrainConfig,
    ranks: RankEnvironment,
    console: Console,
    inputs: Inputs,
    start: StartPoint | None,
    heartbeat: Heartbeat,
) -> int:
    """Returns the exit code. Raises TrainingError for what the user can mend, on every rank alike, and ReplicaError."""
    started_s = time.perf_counter()
    _join_process_group(config, ranks, console)
    start = _share(start)
    for remark in start.remarks:
        console.line(remark)
    if start.step >= config.steps:
        console.line(finished_line(config, start.step))
        torch.distributed.destroy_process_group()
        return 0
    # one rank a node tells how the node is doing
    with EventWriter(events_file(config.run_dir, ranks.rank)) if ranks.local_rank == 0 else nullcontext() as own_events:
        events = own_events if ranks.is_first else None
        trainer = None
        try:
            trainer = _build(config, ranks, console, inputs, start, events, heartbeat, started_s)
            if own_events is not None:
                trainer.node = NodeTeller(config, ranks, own_events)
            code = trainer.run()
        except Exception as error:
            if events is not None:
                step = start.step if trainer is None else trainer.step
                # a full disk is often the very error, which must not be replaced by this one
                with suppress(OSError):
                    events.write("state", step=step, state="failed", reason=summary(error))
                    events.sync()
            raise
    torch.distributed.destroy_process_group()
    return code


def _join_process_group(config: TrainConfig, ranks: RankEnvironment, console: Console) -> None:
    get_accelerator().set_device(ranks.local_rank)
    on_cpu = get_accelerator().device_name() == "cpu"
    if on_cpu:
        load_cpu_operator(console.line)
    # the others wait here while rank 0 verifies a checkpoint; the watchdog comes first, and names who is late
    timeout_s = config.watchdog.pause_s + _AFTER_WATCHDOG_S
    deepspeed.init_distributed(verbose=False, timeout=timedelta(seconds=timeout_s))
    if on_cpu:
        torch.distributed.barrier()
        unlink_buffer(rank=ranks.rank, address=os.environ["MASTER_ADDR"], port=os.environ["MASTER_PORT"])


def _build(
    config: TrainConfig,
    ranks: RankEnvironment,
    console: Console,
    inputs: Inputs,
    start: StartPoint,
    events: EventWriter | None,
    heartbeat: Heartbeat,
    started_s: float,
) -> Trainer:
    _check_same_datasets(inputs, ranks)
    train = _samples(config, ranks, "train")
    validation = _samples(config, ranks, "validation")
    attention = try_kernels(config, device_type=get_accelerator().device_name(), first_step=start.step)
    engine = build_engine(config, ranks, fill_weights=start.step == 0, say=console.line)
    last_step = start.step or None
    checkpoints = Checkpoints(config, ranks, inputs, run_key=start.run_key, last_step=last_step)
    resharded: dict[str, int] = {}
    if last_step is not None:
        saved_by = checkpoints.load(engine, step=last_step)
        if saved_by != ranks.world_size:
            resharded = {"resharded_from": saved_by, "resharded_to": ranks.world_size}
        console.line(f"resuming from {step_name(last_step)}{_told_reshard(config, **resharded)}")
    console.line(_headline(config, ranks, engine, attention))
    if events is not None:
        events.write("state", step=start.step, state="running", **resharded)
        events.write("params", step=start.step, **_parameters(config, ranks, engine, attention))
    return Trainer(
        config,
        ranks,
        engine=engine,
        train=train,
        ledger=Ledger(config, train, start.earlier),
        validation=validation,
        checkpoints=checkpoints,
        console=console,
        events=events,
        first_step=start.step,
        rewinds=start.rewinds,
        heartbeat=heartbeat,
        started_s=started_s,
    )


def _share(start: StartPoint | None) -> StartPoint:
    """Rank 0's on every rank."""
    box: list[StartPoint | None] = [start]
    torch.distributed.broadcast_object_list(box, src=0)
    shared = box[0]
    assert shared is not None
    return shared


def _check_same_datasets(inputs: Inputs, ranks: RankEnvironment) -> None:
    """A dataset that was replaced between the starts of two ranks, or that a node has another copy of."""
    box: list[dict[str, str]] = [inputs.dataset_digests]
    torch.distributed.broadcast_object_list(box, src=0)
    problems = inputs.differences(box[0])
    if problems:
        raise LocalError("\n".join(f"rank {ranks.rank}: {line}" for line in problems))


def _samples(config: TrainConfig, ranks: RankEnvironment, split: Split) -> PackedSamples:
    """One rank of a node looks whether its shards are there: thousands of them, asked by every rank, would take a
    shared file system minutes."""
    samples = run_samples(config, split)
    if ranks.local_rank == 0:
        try:
            samples.check_shards()
        except DatasetError as error:
            raise LocalError(f"rank {ranks.rank}: {error}") from None
    if split == "validation" and samples.cache is not None:
        sequences = max(config.validation.sequences, probe_rows(config.data.sequence_length))
        samples.cache.kept = validation_shards(samples, sequences=sequences)
    return samples


def _told_reshard(config: TrainConfig, *, resharded_from: int = 0, resharded_to: int = 0) -> str:
    if not resharded_to:
        return ""
    return (
        f", which {resharded_from} rank{'s' if resharded_from > 1 else ''} saved, resharded to {resharded_to}: "
        f"{config.samples_per_step} samples a step and their order as before"
    )


def _headline(config: TrainConfig, ranks: RankEnvironment, engine: Engine, attention: str) -> str:
    ranks_here = f"{ranks.world_size} {engine.device.type} rank{'s' if ranks.world_size > 1 else ''}"
    return (
        f"run {config.name}: {engine.num_parameters:,} parameters in {config.precision} on {ranks_here}, "
        f"{torch.get_num_threads()} CPU threads each, {attention} attention, "
        f"{'Muon and ' if config.optimizer.name == 'muon' else ''}fused AdamW, {config.batch_tokens:,} tokens a step, "
        f"{config.accumulation_steps(world_size=ranks.world_size)} micro-batches a rank; everything else is in "
        f"{config.run_dir / 'logs'}"
    )


def _parameters(config: TrainConfig, ranks: RankEnvironment, engine: Engine, attention: str) -> dict[str, str | float]:
    """The resolved config and what was chosen at the start, as flat text and numbers."""
    chosen = {
        "world_size": ranks.world_size,
        "device_type": engine.device.type,
        "attention": attention,
        "num_parameters": engine.num_parameters,
        "cpu_threads": torch.get_num_threads(),
    }
    flat = flatten(config.model_dump(mode="json")) | chosen
    return {
        key: value if isinstance(value, int | float) and not isinstance(value, bool) else str(value)
        for key, value in flat.items()
    }
