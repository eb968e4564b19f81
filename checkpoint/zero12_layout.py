"""Where in the files of a ZeRO-1 or ZeRO-2 checkpoint each parameter's fp32 master weights lie. Moves no weights.

DeepSpeed lays the parameters of a group end to end, in the order of `param_shapes`, each followed by
`param_alignment_paddings` where the file has them, pads the end to a multiple of two elements a rank, and cuts the row
in equal parts, one a rank: a parameter may begin in one rank's part and end in another's. The last part may be saved
without its padding. A frozen parameter lies whole in the model file. Stage 1 in bfloat16 is DeepSpeed's
BF16_Optimizer, whose files have no `zero_stage` and the same layout (deepspeed/runtime/zero/stage_1_and_2.py,
bf16_optimizer.py).

Reads as `zero3_layout.py` does: nothing in a rank file is executed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from checkpoint.rank_file import read_rank_file
from checkpoint.records import CheckpointError
from checkpoint.zero3_layout import (
    ParameterLayout,
    Part,
    Slice,
    Zero3Layout,
    cut,
    moments_of,
    place,
    place_whole,
    rank_files,
)

MODEL_FILE = "mp_rank_00_model_states.pt"


def read_zero12_layout(zero_directory: Path, *, part: Part = "weights") -> Zero3Layout:
    """The layout of a checkpoint of stage 1 or 2, of the weights or of a moment.

    Raises CheckpointError as `zero3_layout.read_layout` does.
    """
    optimizer_files = rank_files(zero_directory)
    model_file = zero_directory / MODEL_FILE
    model_states = read_rank_file(model_file)
    if not isinstance(model_states.get("param_shapes"), list):
        raise CheckpointError(f"{model_file} has no param_shapes; wanted a model file of ZeRO stage 1 or 2")
    if names := list(model_states.get("buffer_names") or ()):
        raise CheckpointError(
            f"{model_file} holds persistent buffers ({', '.join(names[:3])}); SmolLM2 has none and they are not "
            "consolidated"
        )
    shapes_of_groups = model_states["param_shapes"]
    states = [_optimizer_state(path, world_size=len(optimizer_files)) for path in optimizer_files]
    parts_of_ranks = [_parts(state, path, part=part) for state, path in zip(states, optimizer_files, strict=True)]
    parts_of_groups = list(zip(*parts_of_ranks, strict=True))
    paddings_of_groups = states[0].get("param_alignment_paddings") or [[0] * len(shapes) for shapes in shapes_of_groups]
    parameters: dict[str, ParameterLayout] = {}
    for shapes, parts, paddings in zip(shapes_of_groups, parts_of_groups, paddings_of_groups, strict=True):
        parameters |= _locate(shapes, parts, paddings, zero_directory)
    frozen = dict(model_states.get("frozen_param_shapes") or {})
    for name, shape in frozen.items() if part == "weights" else ():
        whole = place_whole(model_states["frozen_param_fragments"].get(name), model_file, name=name)
        if whole.numel != math.prod(shape):
            raise CheckpointError(f"{model_file}: {name} has {whole.numel:,} elements, not {math.prod(shape):,}")
        parameters[name] = ParameterLayout(name, tuple(shape), (whole,))
    return Zero3Layout(world_size=len(optimizer_files), parameters=parameters)


def _optimizer_state(path: Path, *, world_size: int) -> dict[str, Any]:
    state = read_rank_file(path).get("optimizer_state_dict")
    if not isinstance(state, dict) or "single_partition_of_fp32_groups" not in state:
        raise CheckpointError(
            f"{path} has no single_partition_of_fp32_groups; wanted an optimizer file of ZeRO stage 1 or 2"
        )
    counts = state.get("partition_count")
    if set(counts if isinstance(counts, list) else [counts]) != {world_size}:
        raise CheckpointError(
            f"{path} is of a run of {counts} ranks, but {world_size} optimizer files are here; take another step"
        )
    return state


def _parts(state: dict[str, Any], path: Path, *, part: Part) -> list[Slice]:
    """One rank's part of each group."""
    tensors = state["single_partition_of_fp32_groups"]
    if part != "weights":
        tensors = moments_of(state.get("base_optimizer_state", {}), groups=len(tensors), part=part, path=path)
    return [place(tensor, path) for tensor in tensors]


def _locate(
    shapes: Mapping[str, tuple[int, ...]], parts: Sequence[Slice], paddings: Sequence[int], zero_directory: Path
) -> dict[str, ParameterLayout]:
    """The parameters of one group, whose ranks' parts lie end to end."""
    parameters: dict[str, ParameterLayout] = {}
    position = 0
    for (name, shape), padding in zip(shapes.items(), paddings, strict=True):
        numel = math.prod(shape)
        slices = tuple(cut(parts, position, numel))
        if sum(piece.numel for piece in slices) != numel:
            raise CheckpointError(f"{zero_directory}: the flat groups end before parameter {name}; take another step")
        parameters[name] = ParameterLayout(name, tuple(shape), slices)
        position += numel + padding
    held, alignment = sum(part.numel for part in parts), 2 * len(parts)
    if held >= position + alignment:
        raise CheckpointError(
            f"{zero_directory}: the ranks hold {held:,} elements, the parameters need {position:,}; take another step"
        )
    return parameters
