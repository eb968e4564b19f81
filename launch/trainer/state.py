"""Saving and loading the whole state of a run, through the protocol of `checkpoint/manifest.py`.

A checkpoint exists when its manifest does. A save begins between two steps and goes on behind the next ones
(`rank_writer.py`); the ranks agree on its end at the boundary of a step, by one small exchange, and only while a save
is under way. All methods but `before_update` are called by all ranks together.
"""

from __future__ import annotations

import shutil
import socket
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from checkpoint.manifest import (
    ZERO_TAG,
    CheckpointManifest,
    FileRecord,
    Probe,
    checkpoint_directory,
    hold_checkpoint,
    partial_directory,
    publish_checkpoint,
    read_manifest,
)
from launch.config import LocalError, TrainConfig, TrainingError
from launch.trainer.console import is_lost_peer
from launch.trainer.elastic import load_resharded
from launch.trainer.engine import DTYPES, Engine
from launch.trainer.host_copy import HostCopy, HostMemory
from launch.trainer.identity import config_digest
from launch.trainer.inputs import Inputs
from launch.trainer.rank_writer import DONE_FOLDER, RankWriter, Share
from launch.trainer.ranks import RankEnvironment
from launch.trainer.state_catcher import catch_states, other_files

# fp32 master weight and AdamW's two moments, in either precision; the rest, under 0.1 MB, is found while writing
_BYTES_PER_PARAMETER = 12
# Between two exchanges of ranks that wait for a save: well under any time limit of a collective.
_WAIT_INTERVAL_S = 5.0


@dataclass(frozen=True)
class Saved:
    """A save that has come to its good end: how long the training stood still for it, and how long it took in all."""

    step: int
    folder: Path
    stall_time_s: float
    save_time_s: float


@dataclass
class _Save:
    """One save under way."""

    step: int
    writer: RankWriter
    began_s: float
    device: torch.device
    stall_time_s: float = 0.0


class Checkpoints:
    """The saves of one attempt. `last_step` is the newest that exists, as all ranks know it."""

    def __init__(
        self, config: TrainConfig, ranks: RankEnvironment, inputs: Inputs, *, run_key: str, last_step: int | None
    ) -> None:
        self.last_step = last_step
        self._config, self._ranks, self._inputs, self._run_key = config, ranks, inputs, run_key
        self._memory: HostMemory | None = None
        self._under_way: _Save | None = None

    def save(
        self,
        engine: Engine,
        *,
        step: int,
        samples_consumed: int,
        validation_loss: float | None,
        probe: Probe,
        tokens_by_source: Mapping[str, int],
    ) -> None:
        """Begin a save; none may be under way. `check` and `finish` tell its end.

        `samples_consumed` counts what rewinds have left out, `tokens_by_source` does not.

        Raises TrainingError where the disk has no room.
        """
        assert self._under_way is None, "one save at a time"
        began_s = time.perf_counter()
        partial = partial_directory(self._config.run_dir, step)
        save_key = self._prepare(partial, engine)
        try:
            states = catch_states(engine, partial)
        except (OSError, RuntimeError) as error:
            if is_lost_peer(error):
                raise  # the other rank says why it went
            raise LocalError(self._not_written(step, error)) from error
        copy = None
        if self._config.checkpoint.asynchronous:
            copy, states = self._mirror(states, engine.device, step=step)
        first = self._ranks.is_first
        share = Share(partial, save_key, self._ranks.rank, states, copy, other_files(partial) if first else ())

        def publish(files: tuple[FileRecord, ...]) -> None:
            manifest = self._manifest(step, samples_consumed, validation_loss, probe, tokens_by_source, files)
            publish_checkpoint(self._config.run_dir, manifest)

        writer = RankWriter(share, world_size=self._ranks.world_size, publish=publish if first else None)
        self._under_way = _Save(step, writer, began_s, engine.device)
        if self._config.optimizer.name == "muon":
            # DeepSpeed updates Muon's momentum in the backward pass already
            writer.wait_for_copy()
        self._under_way.stall_time_s = time.perf_counter() - began_s

    def _mirror(
        self, states: list[tuple[Path, Any]], device: torch.device, *, step: int
    ) -> tuple[HostCopy, list[tuple[Path, Any]]]:
        self._memory = self._memory or HostMemory(pinned=device.type == "cuda")
        copy = HostCopy(self._memory, device)
        try:
            return copy, [(path, copy.mirror(state)) for path, state in states]
        except (RuntimeError, MemoryError) as error:
            raise LocalError(
                f"{self._who()}: the host has no memory for a copy of this rank's state at step {step}: "
                f"{_first_line(error)}; set checkpoint.asynchronous=false, which needs none, and run again: "
                f"{self._goes_on()}"
            ) from error

    def before_update(self) -> None:
        """The optimizer is about to change what a save still copies: wait for the copy."""
        if self._under_way is not None:
            began_s = time.perf_counter()
            self._under_way.writer.wait_for_copy()
            self._under_way.stall_time_s += time.perf_counter() - began_s

    def check(self) -> Saved | None:
        """At the boundary of a step: the save that all ranks have ended since the last call, if one has.

        Raises TrainingError, on all ranks, if a rank could not write its part.
        """
        save = self._under_way
        if save is None:
            return None
        writer = save.writer
        told = torch.tensor(
            [float(writer.error is not None), float(writer.published), float(writer.written)],
            dtype=torch.float64,
            device=save.device,
        )
        dist.all_reduce(told)
        failed, published, written = told.tolist()
        if failed:
            self._under_way = None
            writer.abandon()
            self._raise_failure(save)
        if written == self._ranks.world_size:
            writer.note_all_written()
        if not published:
            return None
        self._under_way, self.last_step = None, save.step
        folder = checkpoint_directory(self._config.run_dir, save.step)
        return Saved(save.step, folder, save.stall_time_s, time.perf_counter() - save.began_s)

    def finish(self, *, say: Callable[[str], None] | None = None) -> Saved | None:
        """Wait for the end of the save under way, if there is one; `say` is told that there is something to wait for.

        Raises as `check` does.
        """
        saved = self.check()
        if say is not None and self._under_way is not None:
            say(
                f"the checkpoint of step {self._under_way.step} is still being written, and the next save waits for it;"
                f" raise checkpoint.every_steps, or see what slows {self._config.run_dir}"
            )
        while (save := self._under_way) is not None:
            began_s = time.perf_counter()
            save.writer.wait(_WAIT_INTERVAL_S)
            save.stall_time_s += time.perf_counter() - began_s
            saved = self.check()
        return saved

    def load(self, engine: Engine, *, step: int) -> int:
        """Weights, optimizer and counters of a verified checkpoint into an engine; returns how many ranks saved it."""
        folder = checkpoint_directory(self._config.run_dir, step)
        # retention, at work beside the trainer, spares what is held
        with hold_checkpoint(folder):
            saved_by = read_manifest(folder).world_size
            if saved_by != self._ranks.world_size and self._config.zero.stage != 3:
                raise TrainingError(
                    f"checkpoint {folder.name} was saved by {saved_by} ranks with zero.stage="
                    f"{self._config.zero.stage}, and only stage 3 goes on with another number; start {saved_by} ranks"
                )
            if saved_by == self._ranks.world_size:
                engine.deepspeed.load_checkpoint(str(folder), tag=ZERO_TAG)
            else:
                load_resharded(engine, folder / ZERO_TAG, self._ranks)
        if engine.deepspeed.global_steps != step:
            raise RuntimeError(f"DeepSpeed did not load step {step} of {folder}")
        return saved_by

    def _prepare(self, partial: Path, engine: Engine) -> str:
        """An empty partial folder on a disk with room, and the save's key, or the same error on every rank."""
        told: list[str | None] = [None, uuid.uuid4().hex]
        if self._ranks.is_first:
            try:
                shutil.rmtree(partial, ignore_errors=True)
                (partial / DONE_FOLDER).mkdir(parents=True)
                told[0] = self._lack_of_space(partial, engine)
            except OSError as error:
                told[0] = f"{error.filename}: {error.strerror}"
        dist.broadcast_object_list(told, src=0)
        problem, save_key = told
        if problem is not None:
            raise TrainingError(f"the checkpoint could not be written: {problem}; run again then: {self._goes_on()}")
        assert save_key is not None
        return save_key

    def _raise_failure(self, save: _Save) -> None:
        """On all ranks, with what each of them has met."""
        error = save.writer.error
        mine = None if error is None else self._not_written(save.step, error)
        reasons: list[str | None] = [None] * self._ranks.world_size
        dist.all_gather_object(reasons, mine)
        raise TrainingError("\n".join(reason for reason in reasons if reason is not None)) from error

    def _who(self) -> str:
        """Rank and machine: another one may tell it."""
        return f"rank {self._ranks.rank} on {socket.gethostname()}"

    def _not_written(self, step: int, error: Exception) -> str:
        return (
            f"{self._who()}: the checkpoint of step {step} could not be written: {_first_line(error)}; "
            f"see that {self._config.run_dir} has space left and run again: {self._goes_on()}"
        )

    def _lack_of_space(self, partial: Path, engine: Engine) -> str | None:
        # below stage 3 the weights in the training's precision are in the checkpoint a second time
        bytes_per_weight = 0 if self._config.zero.stage == 3 else DTYPES[self._config.precision].itemsize
        needed_bytes = engine.num_parameters * (_BYTES_PER_PARAMETER + bytes_per_weight)
        free_bytes = shutil.disk_usage(partial).free
        if free_bytes >= needed_bytes:
            return None
        return f"{partial} has {free_bytes:,} bytes free, a checkpoint takes {needed_bytes:,}; free some"

    def _goes_on(self) -> str:
        where = "the beginning" if self.last_step is None else f"the checkpoint of step {self.last_step}"
        return f"it goes on from {where}"

    def _manifest(
        self,
        step: int,
        samples_consumed: int,
        validation_loss: float | None,
        probe: Probe,
        tokens_by_source: Mapping[str, int],
        files: tuple[FileRecord, ...],
    ) -> CheckpointManifest:
        config = self._config
        return CheckpointManifest(
            run_key=self._run_key,
            step=step,
            tokens_consumed=step * config.batch_tokens,
            samples_consumed=samples_consumed,
            tokens_by_source=dict(tokens_by_source),
            world_size=self._ranks.world_size,
            zero_stage=config.zero.stage,
            dtype=config.precision,
            config_digest=config_digest(config),
            dataset_digests=self._inputs.dataset_digests,
            tokenizer_digest=self._inputs.tokenizer.digest,
            model=config.model.model_dump(mode="json"),
            validation_loss=validation_loss,
            probe=probe,
            files=files,
        )


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return text[0][:200] if text else type(error).__name__
