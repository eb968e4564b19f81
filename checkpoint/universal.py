"""DeepSpeed's Universal Checkpoint into safetensors: each parameter lies whole in a file of its own.

    FOLDER/*_model_states.pt      as the ranks saved them, which name the parameters and their shapes
    FOLDER/zero/NAME/fp32.pt, exp_avg.pt, exp_avg_sq.pt      a tensor, or of stages 1 and 2 a dictionary with it

As `ds_to_universal` of DeepSpeed 0.19.8 makes it. There are no digests to verify it by; nothing in it is executed.
"""

from __future__ import annotations

import math
from pathlib import Path

from checkpoint.consolidate import (
    MAX_SHARD_BYTES,
    Dtype,
    WrittenWeights,
    hidden_folder,
    publish_folder,
    write_weights,
)
from checkpoint.lock import claim_output
from checkpoint.rank_file import read_pickled, read_rank_file
from checkpoint.records import CheckpointError
from checkpoint.zero3_layout import (
    MOMENTS,
    ParameterLayout,
    Part,
    place_whole,
    refuse_malformed,
    sub_group_shapes,
)


def is_universal(folder: Path) -> bool:
    """Whether a folder is a Universal Checkpoint, and not a run's."""
    return any(folder.glob("*_model_states.pt")) and (folder / "zero").is_dir()


def consolidate_universal(
    folder: Path, output: Path, *, dtype: Dtype, moments: bool = False, max_shard_bytes: int = MAX_SHARD_BYTES
) -> WrittenWeights:
    """What `consolidate_checkpoint` makes of a run's checkpoint.

    Raises CheckpointError for files that are missing, malformed or hold more than tensors, frozen parameters, an output
    that exists, and one that another process is making.
    """
    if output.exists():
        raise CheckpointError(f"{output} exists already; remove it or name another folder")
    weights = read_universal_layout(folder)
    busy = f"another consolidation is at work on {output}; wait for it, or name another folder"
    with claim_output(output, busy=busy), hidden_folder(output) as partial:
        written = write_weights(partial, weights, dtype=dtype, max_shard_bytes=max_shard_bytes)
        for part in MOMENTS if moments else ():
            layout = read_universal_layout(folder, part=part)
            write_weights(partial, layout, dtype="float32", max_shard_bytes=max_shard_bytes, stem=part)
        publish_folder(partial, output)
    files = tuple(output / file.name for file in written.files)
    return WrittenWeights(files, written.total_bytes, written.total_parameters)


def read_universal_layout(folder: Path, *, part: Part = "weights") -> dict[str, ParameterLayout]:
    """Where each parameter's weights lie, or one of its moments. Raises CheckpointError."""
    with refuse_malformed(folder):
        model_file = min(folder.glob("*_model_states.pt"))
        model_states = read_rank_file(model_file)
        if names := list(model_states.get("frozen_param_shapes") or ()):
            raise CheckpointError(
                f"{model_file} holds frozen parameters ({', '.join(names[:3])}); consolidate the run's own checkpoint"
            )
        file_name = "fp32.pt" if part == "weights" else f"{part}.pt"
        groups = sub_group_shapes(model_states, model_file)
        return {name: _place(folder, name, shape, file_name) for group in groups for name, shape in group.items()}


def _place(folder: Path, name: str, shape: tuple[int, ...], file_name: str) -> ParameterLayout:
    if "/" in name or name.startswith("."):
        raise CheckpointError(f"{folder}: the parameter's name {name!r} leads out of the folder; do not trust it")
    path = folder / "zero" / name / file_name
    content = read_pickled(path)
    piece = place_whole(content["param"] if isinstance(content, dict) else content, path, name=name)
    if piece.numel != math.prod(shape):
        raise CheckpointError(f"{path} has {piece.numel:,} elements, not {math.prod(shape):,}; convert it again")
    return ParameterLayout(name, shape, (piece,))
