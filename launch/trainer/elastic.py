"""A checkpoint that another number of ranks saved, into a fresh engine: each rank reads its own slices.

Nothing is written: there is no conversion to find room for, to clean up, or to be killed in the middle of, and all the
ranks together read the checkpoint once. Weights, moments and counters are those that were saved, bit for bit.

DeepSpeed's way (Universal Checkpoint, 0.19.8) writes 2.2 times the checkpoint first, gives every param group the
settings of the first, and leaves Muon's momentum out.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from checkpoint.manifest import CheckpointError
from checkpoint.zero_layout import ExtentReader, StoredTensor, Zero3State, rank_optimizer_state, read_state
from launch.config import TrainingError
from launch.trainer.engine import Engine
from launch.trainer.ranks import RankEnvironment

_DTYPES = {"FloatStorage": torch.float32, "BFloat16Storage": torch.bfloat16, "HalfStorage": torch.float16}


def load_resharded(engine: Engine, zero_directory: Path, ranks: RankEnvironment) -> None:
    """What `load_checkpoint` of DeepSpeed does where the number of ranks is the same. On all ranks together.

    Raises TrainingError, on every rank alike, for rank files that cannot be read.
    """
    deepspeed, optimizer = engine.deepspeed, engine.deepspeed.optimizer
    state = replace(_read_on_first(zero_directory, ranks), sub_group_size=optimizer.sub_group_size)
    own = rank_optimizer_state(state, rank=ranks.rank, world_size=ranks.world_size)
    held = [row.numel() for row in optimizer.fp32_partitioned_groups_flat]
    assert [row.numel for row in own["fp32_flat_groups"]] == held, "DeepSpeed cut its sub-groups otherwise"
    assert not state.model_states["buffer_names"], "SmolLM2 has no persistent buffers"
    with closing(ExtentReader()) as reader:
        loaded = _load(own, reader)
    loaded["loss_scaler"] = optimizer.loss_scaler  # static, in the precisions that there are
    optimizer.checkpoint_event_prologue()
    optimizer.load_state_dict({ranks.rank: loaded})
    optimizer.checkpoint_event_epilogue()
    for counter in ("global_steps", "global_samples", "skipped_steps"):
        setattr(deepspeed, counter, state.model_states[counter])


def _read_on_first(zero_directory: Path, ranks: RankEnvironment) -> Zero3State:
    """Rank 0 opens the files of all that saved, since every rank opening each would stall a shared file system."""
    box: list[Zero3State | str] = [""]
    if ranks.is_first:
        try:
            box = [read_state(zero_directory)]
        except (CheckpointError, OSError) as error:
            box = [str(error)]
    torch.distributed.broadcast_object_list(box, src=0)
    if isinstance(box[0], str):
        raise TrainingError(box[0])
    return box[0]


def _load(value: Any, reader: ExtentReader) -> Any:
    """The same containers, with tensors for stored ones."""
    if isinstance(value, StoredTensor):
        storage = value.storage
        elements = torch.empty(storage.numel, dtype=_DTYPES[storage.element_type])
        target, begin = elements.view(torch.uint8).numpy().data, 0
        for extent in storage.extents:
            reader.read_into(target[begin : begin + extent.size_bytes], extent)
            begin += extent.size_bytes
        return elements.as_strided(value.shape, value.stride, value.offset)
    if isinstance(value, dict):
        return {key: _load(item, reader) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_load(item, reader) for item in value)
    return value
