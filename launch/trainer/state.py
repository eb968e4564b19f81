"""Saving and loading the whole state of a run, through the protocol of `checkpoint/manifest.py`.

A checkpoint exists when its manifest does: all ranks write below a partial folder, each makes its own files durable
and digests them, rank 0 writes the manifest and renames. All functions are called by all ranks together.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch.distributed as dist

from checkpoint.manifest import (
    ZERO_TAG,
    CheckpointManifest,
    FileRecord,
    Probe,
    checkpoint_directory,
    describe_files,
    partial_directory,
    publish_checkpoint,
    read_manifest,
)
from checkpoint.reading import hold_checkpoint
from launch.config import LocalError, TrainConfig, TrainingError
from launch.trainer.console import is_lost_peer
from launch.trainer.elastic import load_resharded
from launch.trainer.engine import Engine
from launch.trainer.identity import config_digest
from launch.trainer.inputs import Inputs
from launch.trainer.ranks import RankEnvironment

_RANK_FILE = re.compile(r"zero_pp_rank_(\d+)_")
# fp32 master weight and AdamW's two moments, in either precision; the rest, under 0.1 MB, is found while writing
_BYTES_PER_PARAMETER = 12


class Checkpoints:
    """The saves of one attempt. `last_step` is the newest that exists."""

    def __init__(
        self, config: TrainConfig, ranks: RankEnvironment, inputs: Inputs, *, run_key: str, last_step: int | None
    ) -> None:
        self.last_step = last_step
        self._config, self._ranks, self._inputs, self._run_key = config, ranks, inputs, run_key

    def save(
        self,
        engine: Engine,
        *,
        step: int,
        samples_consumed: int,
        validation_loss: float | None,
        probe: Probe,
        tokens_by_source: Mapping[str, int],
    ) -> Path:
        """`samples_consumed` counts what rewinds have left out, `tokens_by_source` does not. Returns the new folder.

        Raises TrainingError where the disk does not take it.
        """
        partial = partial_directory(self._config.run_dir, step)
        self._prepare(partial, engine)
        try:
            engine.deepspeed.save_checkpoint(str(partial), tag=ZERO_TAG, save_latest=False)
            records = describe_files(partial, _own_files(partial, self._ranks.rank))
        except (OSError, RuntimeError) as error:
            if is_lost_peer(error):
                raise  # the other rank says why it went
            raise LocalError(
                f"rank {self._ranks.rank}: the checkpoint of step {step} could not be written: {_first_line(error)}; "
                f"see that {self._config.run_dir} has space left and run again: {self._goes_on()}"
            ) from error
        gathered: list[list[FileRecord]] = [[] for _ in range(self._ranks.world_size)]
        dist.all_gather_object(gathered, records)
        if self._ranks.is_first:
            files = sorted((record for own in gathered for record in own), key=lambda record: record.path)
            manifest = self._manifest(step, samples_consumed, validation_loss, probe, tokens_by_source, tuple(files))
            publish_checkpoint(self._config.run_dir, manifest)
        dist.barrier()
        self.last_step = step
        return checkpoint_directory(self._config.run_dir, step)

    def load(self, engine: Engine, *, step: int) -> int:
        """Weights, optimizer and counters of a verified checkpoint into an engine; returns how many ranks saved it."""
        folder = checkpoint_directory(self._config.run_dir, step)
        # retention, at work beside the trainer, spares what is held
        with hold_checkpoint(folder):
            saved_by = read_manifest(folder).world_size
            if saved_by == self._ranks.world_size:
                engine.deepspeed.load_checkpoint(str(folder), tag=ZERO_TAG)
            else:
                load_resharded(engine, folder / ZERO_TAG, self._ranks)
        if engine.deepspeed.global_steps != step:
            raise RuntimeError(f"DeepSpeed did not load step {step} of {folder}")
        return saved_by

    def _prepare(self, partial: Path, engine: Engine) -> None:
        """An empty partial folder on a disk with room, or the same error on every rank."""
        problem: list[str | None] = [None]
        if self._ranks.is_first:
            try:
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir(parents=True)
                problem = [self._lack_of_space(partial, engine)]
            except OSError as error:
                problem = [f"{error.filename}: {error.strerror}"]
        dist.broadcast_object_list(problem, src=0)
        if problem[0] is not None:
            raise TrainingError(f"the checkpoint could not be written: {problem[0]}; run again then: {self._goes_on()}")

    def _lack_of_space(self, partial: Path, engine: Engine) -> str | None:
        needed_bytes = engine.num_parameters * _BYTES_PER_PARAMETER
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


def _own_files(partial: Path, rank: int) -> list[Path]:
    """What this rank wrote: DeepSpeed puts a rank's number into the names of its files; the others are rank 0's."""
    owners = {path: _RANK_FILE.search(path.name) for path in partial.rglob("*") if path.is_file()}
    return [path for path, owner in owners.items() if (int(owner[1]) if owner else 0) == rank]


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return text[0][:200] if text else type(error).__name__
