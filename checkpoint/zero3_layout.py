"""Where in the files of a ZeRO-3 checkpoint each parameter's fp32 master weights lie. Moves no weights.

DeepSpeed splits a parameter of n elements over W ranks in slices of ceil(n / W), the last ones padded, and appends each
rank's slices, in the order of `param_shapes`, to that rank's flat fp32 groups. The optimizer's state lies as the
weights do: `zero3_state.py`. A frozen parameter has no fp32 weights; each rank's model file holds its slice, in the
dtype of training. No torch, no deepspeed, no process group.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from checkpoint.rank_file import read_rank_file
from checkpoint.records import CheckpointError, list_folder
from checkpoint.stored_tensor import StoredTensor

FLOAT32_BYTES = 4
Part = Literal["weights", "exp_avg", "exp_avg_sq"]
FLOAT_TYPES = ("FloatStorage", "BFloat16Storage", "HalfStorage")
MOMENTS: tuple[Part, ...] = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Slice:
    """Consecutive elements in one file; all but those of frozen parameters are of fp32."""

    path: Path
    offset_bytes: int
    numel: int
    element_type: str = "FloatStorage"


@dataclass(frozen=True)
class ParameterLayout:
    """A parameter's elements in row-major order, as slices one after the other, without padding."""

    name: str
    shape: tuple[int, ...]
    slices: tuple[Slice, ...]

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Zero3Layout:
    """Every parameter of a checkpoint; a tied head is none, but the embedding under another name."""

    world_size: int
    parameters: Mapping[str, ParameterLayout]


def read_layout(zero_directory: Path, *, part: Part = "weights") -> Zero3Layout:
    """The layout of the checkpoint whose `*_model_states.pt` and `*_optim_states.pt` lie in a folder: where each
    parameter's weights lie, or its moments, which lie as the weights do.

    A frozen parameter has weights and no moments. Raises CheckpointError for a missing or malformed file, a pickle that
    refers to anything but tensors, another ZeRO stage, buffers, flat groups that do not hold exactly the parameters,
    and another optimizer than AdamW where a moment is asked for.
    """
    optimizer_files = rank_files(zero_directory)
    model_file = zero_directory / model_file_name(0)
    model_states = read_rank_file(model_file)
    shapes = {name: shape for group in sub_group_shapes(model_states, model_file) for name, shape in group.items()}
    if names := list(model_states.get("buffer_names") or ()):
        raise CheckpointError(
            f"{model_file} holds persistent buffers ({', '.join(names[:3])}); SmolLM2 has none and they are not "
            "consolidated"
        )
    world_size = len(optimizer_files)
    groups_of_rank = [_flat_groups(path, world_size=world_size, part=part) for path in optimizer_files]
    parameters = _locate(shapes, groups_of_rank, zero_directory)
    frozen = dict(model_states.get("frozen_param_shapes") or {})
    if frozen and part == "weights":
        parameters |= _locate_frozen(frozen, zero_directory, world_size=world_size)
    return Zero3Layout(world_size=world_size, parameters=parameters)


@contextmanager
def refuse_malformed(zero_directory: Path) -> Iterator[None]:
    """Whatever reading trips over in files that hold tensors and are laid out otherwise is a CheckpointError."""
    try:
        yield
    except CheckpointError:
        raise
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:100]}"
        raise CheckpointError(
            f"{zero_directory}: the rank files are not laid out as DeepSpeed's ({reason}); take another step"
        ) from error


def split_shares(numel: int, world_size: int) -> list[int]:
    """Real elements of a parameter in each rank's slice: `split_shares(5, 4) == [2, 2, 1, 0]`."""
    share = math.ceil(numel / world_size)
    return [max(0, min(share, numel - rank * share)) for rank in range(world_size)]


def rank_files(zero_directory: Path) -> list[Path]:
    """The optimizer file of each rank, by rank; bf16 and fp16 runs prefix the names."""
    found: dict[int, Path] = {}
    for path in list_folder(zero_directory, "*zero_pp_rank_*_mp_rank_00_optim_states.pt"):
        rank = path.name.split("zero_pp_rank_")[1].split("_")[0]
        if rank.isdecimal():
            found[int(rank)] = path
    if not found:
        raise CheckpointError(
            f"{zero_directory} holds no ZeRO-3 optimizer files (*_optim_states.pt); wanted one a rank"
        )
    missing = sorted(set(range(max(found) + 1)) - set(found))
    if missing:
        raise CheckpointError(
            f"{zero_directory}: the optimizer file of rank {missing[0]} is missing; take another step"
        )
    return [found[rank] for rank in sorted(found)]


def model_file_name(rank: int) -> str:
    return f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt"


def sub_group_shapes(model_states: Mapping[str, Any], path: Path) -> list[dict[str, tuple[int, ...]]]:
    """Shapes by name, in the order of the flat groups, one mapping a group. Raises CheckpointError."""
    if not isinstance(model_states.get("param_shapes"), list):
        raise CheckpointError(f"{path} has no param_shapes; wanted a model file of ZeRO stage 3")
    return [{name: tuple(shape) for name, shape in group.items()} for group in model_states["param_shapes"]]


def read_optimizer_state(path: Path, *, world_size: int) -> dict[str, Any]:
    """What one rank's optimizer file holds of ZeRO's. Raises CheckpointError for another stage or world size."""
    state = read_rank_file(path).get("optimizer_state_dict")
    if not isinstance(state, dict) or "fp32_flat_groups" not in state:
        raise CheckpointError(f"{path} has no fp32_flat_groups; wanted an optimizer file of ZeRO stage 3")
    if state.get("partition_count") != world_size:
        raise CheckpointError(
            f"{path} is of a run of {state.get('partition_count')} ranks, but {world_size} optimizer files are here; "
            "take another step"
        )
    return state


def moments_of(state: Any, *, groups: int, part: Part, path: Path) -> list[Any]:
    """One of the moments of each flat group from what torch's optimizer saved. Raises CheckpointError."""
    held = state.get("state") if isinstance(state, dict) else None
    moments = [held.get(group, {}).get(part) for group in range(groups)] if isinstance(held, dict) else [None]
    if any(moment is None for moment in moments):
        raise CheckpointError(f"{path} holds no {part} of every group; moments are read of AdamW and of no other")
    return moments


def _flat_groups(path: Path, *, world_size: int, part: Part) -> list[Slice]:
    """The fp32 groups of one rank, or their moments, in order."""
    state = read_optimizer_state(path, world_size=world_size)
    tensors = state["fp32_flat_groups"]
    if part != "weights":
        tensors = moments_of(state.get("optimizer_state_dict"), groups=len(tensors), part=part, path=path)
    return [place(tensor, path) for tensor in tensors]


def place(tensor: Any, path: Path) -> Slice:
    """Where a flat row of fp32 elements lies. Raises CheckpointError for another tensor."""
    if not isinstance(tensor, StoredTensor) or tensor.storage.element_type != "FloatStorage" or tensor.stride != (1,):
        raise CheckpointError(f"{path}: a flat group is not a row of float32; this DeepSpeed is not known here")
    [extent] = tensor.storage.extents
    return Slice(path, extent.offset_bytes + tensor.offset * FLOAT32_BYTES, tensor.numel)


def place_whole(tensor: Any, path: Path, *, name: str) -> Slice:
    """Where a tensor of any shape, or a slice of one, lies in one piece. Raises CheckpointError for any other."""
    if not isinstance(tensor, StoredTensor) or tensor.storage.element_type not in FLOAT_TYPES or not _is_row(tensor):
        raise CheckpointError(f"{path}: {name} is not a tensor in one piece; this DeepSpeed is not known here")
    [extent], size = tensor.storage.extents, tensor.storage.element_bytes
    return Slice(path, extent.offset_bytes + tensor.offset * size, tensor.numel, tensor.storage.element_type)


def _is_row(tensor: StoredTensor) -> bool:
    expected = 1
    for size, stride in zip(reversed(tensor.shape), reversed(tensor.stride), strict=True):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True


def _locate_frozen(
    shapes: Mapping[str, Sequence[int]], zero_directory: Path, *, world_size: int
) -> dict[str, ParameterLayout]:
    """Each rank's model file holds its slice of every one, the last ones padded."""
    files = [zero_directory / model_file_name(rank) for rank in range(world_size)]
    fragments = [read_rank_file(file).get("frozen_param_fragments") or {} for file in files]
    parameters: dict[str, ParameterLayout] = {}
    for name, shape in shapes.items():
        slices = []
        for file, own, share in zip(files, fragments, split_shares(math.prod(shape), world_size), strict=True):
            piece = place_whole(own.get(name), file, name=name)
            if piece.numel < share:
                raise CheckpointError(f"{file}: {name} has {piece.numel:,} of {share:,} elements; take another step")
            slices.append(replace(piece, numel=share))
        parameters[name] = ParameterLayout(name, tuple(shape), tuple(slices))
    return parameters


def _locate(
    shapes: Mapping[str, tuple[int, ...]], groups_of_rank: Sequence[Sequence[Slice]], zero_directory: Path
) -> dict[str, ParameterLayout]:
    world_size = len(groups_of_rank)
    parameters: dict[str, ParameterLayout] = {}
    position = 0  # in every rank's groups laid end to end; the same in all ranks, since slices are padded
    for name, shape in shapes.items():
        numel = math.prod(shape)
        slices: list[Slice] = []
        for groups, share in zip(groups_of_rank, split_shares(numel, world_size), strict=True):
            slices += cut(groups, position, share)
        if sum(piece.numel for piece in slices) != numel:
            raise CheckpointError(f"{zero_directory}: the flat groups end before parameter {name}; take another step")
        parameters[name] = ParameterLayout(name, shape, tuple(slices))
        position += math.ceil(numel / world_size)
    for rank, groups in enumerate(groups_of_rank):
        held = sum(group.numel for group in groups)
        if held != position:
            raise CheckpointError(
                f"{zero_directory}: rank {rank} holds {held:,} elements, the parameters need {position:,}; "
                "take another step"
            )
    return parameters


def cut(groups: Sequence[Slice], position: int, numel: int) -> list[Slice]:
    """`numel` elements from `position` on, counted over the groups laid end to end."""
    pieces = []
    for group in groups:
        taken = min(numel, group.numel - position)
        if position < group.numel and taken > 0:
            pieces.append(Slice(group.path, group.offset_bytes + position * FLOAT32_BYTES, taken))
            numel -= taken
            position += taken
        position -= group.numel
    return pieces
