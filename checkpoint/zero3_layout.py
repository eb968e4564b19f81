"""Where in the files of a ZeRO-3 checkpoint each parameter's fp32 master weights lie. Moves no weights.

DeepSpeed splits a parameter of n elements over W ranks in slices of ceil(n / W), the last ones padded, and appends each
rank's slices, in the order of `param_shapes`, to that rank's flat fp32 groups. A group's end may fall inside a slice.

Rank files are pickles from wherever a run folder came from, so nothing in them is executed: `weights_only` with an
allow-list of names that stand for inert placeholders. FakeTensorMode keeps the data on the disk and gives each
storage's place in the file (`_checkpoint_offset`). No deepspeed, no process group.
"""

from __future__ import annotations

import math
import pickle
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from checkpoint.manifest import CheckpointError

FLOAT32_BYTES = 4


class _Placeholder:
    """Stands for a DeepSpeed object whose contents do not matter here; takes any state and does nothing."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments

    def __setstate__(self, state: Any) -> None:
        pass


# The only names that a rank file may refer to beyond tensors and plain containers; none of them is imported.
_INERT_NAMES: list[Any] = [
    (_Placeholder, "deepspeed.runtime.zero.config.ZeroStageEnum"),
    (_Placeholder, "deepspeed.runtime.fp16.loss_scaler.LossScaler"),
    (_Placeholder, "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler"),
]


@dataclass(frozen=True)
class Slice:
    """Consecutive fp32 elements in one file."""

    path: Path
    offset_bytes: int
    numel: int


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


def read_layout(zero_directory: Path) -> Zero3Layout:
    """The layout of the checkpoint whose `*_model_states.pt` and `*_optim_states.pt` lie in a folder.

    Raises CheckpointError for a missing or malformed file, a pickle that refers to anything but tensors, another ZeRO
    stage, frozen parameters, buffers, and flat groups that do not hold exactly the parameters.
    """
    optimizer_files = _rank_files(zero_directory)
    model_file = zero_directory / "zero_pp_rank_0_mp_rank_00_model_states.pt"
    model_states = _read_pickle(model_file)
    shapes = _parameter_shapes(model_states, model_file)
    groups_of_rank = [_flat_groups(path, world_size=len(optimizer_files)) for path in optimizer_files]
    return Zero3Layout(
        world_size=len(optimizer_files),
        parameters=_locate(shapes, groups_of_rank, zero_directory),
    )


def split_shares(numel: int, world_size: int) -> list[int]:
    """Real elements of a parameter in each rank's slice: `split_shares(5, 4) == [2, 2, 1, 0]`."""
    share = math.ceil(numel / world_size)
    return [max(0, min(share, numel - rank * share)) for rank in range(world_size)]


def _rank_files(zero_directory: Path) -> list[Path]:
    """The optimizer file of each rank, by rank; bf16 and fp16 runs prefix the names."""
    found: dict[int, Path] = {}
    for path in zero_directory.glob("*zero_pp_rank_*_mp_rank_00_optim_states.pt"):
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


def _read_pickle(path: Path) -> dict[str, Any]:
    """A rank file's contents with fake tensors."""
    try:
        with torch.serialization.safe_globals(_INERT_NAMES), FakeTensorMode():
            contents = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing; take another step") from None
    except pickle.UnpicklingError as error:
        # of torch's paragraphs only the name it refused; the rest advises to load the file all the same
        named = [line for line in str(error).splitlines() if "GLOBAL" in line]
        reason = named[0].removeprefix("WeightsUnpickler error: ")[:150] if named else "not a plain pickle"
        raise CheckpointError(f"{path} holds more than tensors, nothing in it was run ({reason})") from None
    except (RuntimeError, EOFError, KeyError, AttributeError, TypeError, ValueError, zipfile.BadZipFile) as error:
        reason = " ".join(str(error).split())[:150]
        raise CheckpointError(f"{path} cannot be read as a rank file ({reason}); take another step") from None
    if not isinstance(contents, dict):
        raise CheckpointError(f"{path} holds {type(contents).__name__}, wanted a rank file's dictionary")
    return contents


def _parameter_shapes(model_states: Mapping[str, Any], path: Path) -> dict[str, tuple[int, ...]]:
    """Shapes by name, in the order of the flat groups."""
    if "param_shapes" not in model_states:
        raise CheckpointError(f"{path} has no param_shapes; wanted a model file of ZeRO stage 3")
    for key, what in (("frozen_param_shapes", "frozen parameters"), ("buffer_names", "persistent buffers")):
        if model_states.get(key):
            names = ", ".join(list(model_states[key])[:3])
            raise CheckpointError(f"{path} holds {what} ({names}); SmolLM2 has none and they are not consolidated")
    return {name: tuple(shape) for group in model_states["param_shapes"] for name, shape in group.items()}


def _flat_groups(path: Path, *, world_size: int) -> list[Slice]:
    """The fp32 groups of one rank, in order."""
    contents = _read_pickle(path)
    state = contents.get("optimizer_state_dict")
    if not isinstance(state, dict) or "fp32_flat_groups" not in state:
        raise CheckpointError(f"{path} has no fp32_flat_groups; wanted an optimizer file of ZeRO stage 3")
    if state.get("partition_count") != world_size:
        raise CheckpointError(
            f"{path} is of a run of {state.get('partition_count')} ranks, but {world_size} optimizer files are here; "
            "take another step"
        )
    return [_place(tensor, path) for tensor in state["fp32_flat_groups"]]


def _place(tensor: Any, path: Path) -> Slice:
    if not isinstance(tensor, torch.Tensor) or tensor.dtype != torch.float32 or not tensor.is_contiguous():
        raise CheckpointError(f"{path}: a flat group is not a row of float32; this DeepSpeed is not known here")
    begin = tensor.untyped_storage()._checkpoint_offset
    if begin is None:
        raise CheckpointError(
            f"{path} was not written by torch.save's zip format; wanted a file of torch 2.11 or newer"
        )
    return Slice(path, begin + int(tensor.storage_offset()) * FLOAT32_BYTES, tensor.numel())


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
            slices += _cut(groups, position, share)
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


def _cut(groups: Sequence[Slice], position: int, numel: int) -> list[Slice]:
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
