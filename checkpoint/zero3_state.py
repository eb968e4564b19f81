"""The whole state of a ZeRO-3 checkpoint, and what each rank of any other number of ranks would hold of it.

DeepSpeed (0.19.8, `runtime/zero/stage3.py`) cuts each param group of the optimizer into sub-groups, whose number
depends on the number of ranks; a rank holds for each sub-group a flat row of master weights and, as long, a row of each
of the optimizer's states (AdamW's `exp_avg` and `exp_avg_sq`, Muon's `momentum_buffer`). In a row a parameter of n
elements takes ceil(n / ranks) places, of which the last ranks' are padding: nothing here reads it, and it is written
as zeros. All else, such as AdamW's `step`, is the same in all ranks and sub-groups of a group, or the checkpoint is
refused. Nothing is loaded: rows are extents of files.

`reshard.py` writes such ranks to files, and the trainer takes its own rank's into its memory, through the door
`zero_layout.py`. No torch.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from checkpoint.extents import Extent
from checkpoint.rank_file import read_rank_file, tensor_bytes
from checkpoint.records import CheckpointError
from checkpoint.stored_tensor import StoredTensor, flat_tensor
from checkpoint.zero3_layout import (
    model_file_name,
    rank_files,
    read_optimizer_state,
    refuse_malformed,
    sub_group_shapes,
)

_MASTER = "fp32_flat_groups"
_DEFAULT_SUB_GROUP_SIZE = 1_000_000_000  # DeepSpeed's


@dataclass(frozen=True)
class _Rows:
    """A partitioned state of a param group: by rank, the rows of its sub-groups in order."""

    of_rank: tuple[tuple[StoredTensor, ...], ...]


@dataclass(frozen=True)
class ParameterGroup:
    """A param group of the optimizer: the shapes of its parameters in order, its master weights, and its state, where
    what is not partitioned is as rank 0 has it."""

    shapes: Mapping[str, tuple[int, ...]]
    master: _Rows
    state: Mapping[str, Any]


@dataclass(frozen=True)
class Zero3State:
    """A checkpoint of `world_size` ranks. `model_states` and `optimizer_file` are rank 0's, as templates."""

    world_size: int
    groups: tuple[ParameterGroup, ...]
    sub_group_size: int
    optimizer_prefix: str
    model_states: Mapping[str, Any]
    optimizer_file: Mapping[str, Any]


def read_state(zero_directory: Path) -> Zero3State:
    """The state of the checkpoint whose rank files lie in a folder.

    Raises CheckpointError for what `zero3_layout.read_layout` refuses but buffers, which every rank has whole, for
    frozen parameters, and for ranks that do not fit together.
    """
    with refuse_malformed(zero_directory):
        return _read_state(zero_directory)


def _read_state(zero_directory: Path) -> Zero3State:
    files = rank_files(zero_directory)
    model_file = zero_directory / model_file_name(0)
    model_states = read_rank_file(model_file)
    sub_groups = sub_group_shapes(model_states, model_file)
    if names := list(model_states.get("frozen_param_shapes") or ()):
        raise CheckpointError(f"{model_file} holds frozen parameters ({', '.join(names[:3])}); they are not resharded")
    ranks = [_RankState(path, sub_groups, world_size=len(files)) for path in files]
    optimizer_file = read_rank_file(files[0])
    settings = optimizer_file.get("ds_config", {}).get("zero_optimization", {})
    return Zero3State(
        world_size=len(files),
        groups=tuple(_group(ranks, param_group["params"], sub_groups) for param_group in ranks[0].param_groups),
        sub_group_size=int(settings.get("sub_group_size", _DEFAULT_SUB_GROUP_SIZE)),
        optimizer_prefix=files[0].name.partition("zero_pp_rank_")[0],
        model_states=model_states,
        optimizer_file=optimizer_file,
    )


def rank_model_states(state: Zero3State, *, rank: int, world_size: int) -> dict[str, Any]:
    """The model file of one of `world_size` ranks; only rank 0's names the shared parameters."""
    saved = {name: shape for group in state.model_states["param_shapes"] for name, shape in group.items()}
    param_shapes = [
        OrderedDict((name, saved[name]) for name in members) for _, members in _sub_groups(state, world_size)
    ]
    changed = {"dp_world_size": world_size, "param_shapes": param_shapes}
    return {**state.model_states, **changed, **({"shared_params": {}} if rank else {})}


def rank_optimizer_file(state: Zero3State, *, rank: int, world_size: int) -> dict[str, Any]:
    """The optimizer file of one of `world_size` ranks."""
    own = rank_optimizer_state(state, rank=rank, world_size=world_size)
    return {**state.optimizer_file, "optimizer_state_dict": own}


def rank_optimizer_state(state: Zero3State, *, rank: int, world_size: int) -> dict[str, Any]:
    """What `optimizer_state_dict` of one of `world_size` ranks holds, as `StoredTensor`s."""
    saved = state.optimizer_file["optimizer_state_dict"]
    master: list[StoredTensor] = []
    states: dict[int, dict[str, Any]] = {}
    indices: list[list[int]] = [[] for _ in state.groups]
    for number, members in _sub_groups(state, world_size):
        group, index = state.groups[number], len(master)
        indices[number].append(index)
        row = partial(_row, shapes=group.shapes, members=set(members), rank=rank, world_size=world_size)
        master.append(row(group.master))
        if group.state:
            states[index] = {
                key: row(value) if isinstance(value, _Rows) else value for key, value in group.state.items()
            }
    groups = saved["optimizer_state_dict"]["param_groups"]
    param_groups = [{**group, "params": numbers} for group, numbers in zip(groups, indices, strict=True)]
    optimizer = {**saved["optimizer_state_dict"], "state": states, "param_groups": param_groups}
    return {**saved, "partition_count": world_size, "optimizer_state_dict": optimizer, _MASTER: master}


def split_sub_groups(
    shapes: Mapping[str, tuple[int, ...]], *, world_size: int, sub_group_size: int
) -> list[dict[str, tuple[int, ...]]]:
    """A param group's parameters as DeepSpeed's `_create_fp16_sub_groups` cuts them: a sub-group ends with the
    parameter that fills it."""
    if sub_group_size >= sum(share(shape, world_size) for shape in shapes.values()):
        return [dict(shapes)] if shapes else []
    sub_groups: list[dict[str, tuple[int, ...]]] = [{}]
    filled = 0
    for name, shape in shapes.items():
        if filled >= sub_group_size:
            sub_groups.append({})
            filled = 0
        sub_groups[-1][name] = shape
        filled += share(shape, world_size)
    return sub_groups


def share(shape: tuple[int, ...], world_size: int) -> int:
    """Places that a parameter takes in each rank's row."""
    return math.ceil(math.prod(shape) / world_size)


class _RankState:
    """One rank's optimizer file, checked against the parameters."""

    def __init__(self, path: Path, sub_groups: list[dict[str, tuple[int, ...]]], *, world_size: int) -> None:
        self.path = path
        state = read_optimizer_state(path, world_size=world_size)
        self.master: list[StoredTensor] = state[_MASTER]
        self.param_groups: list[dict[str, Any]] = state["optimizer_state_dict"]["param_groups"]
        self.states: Mapping[int, Mapping[str, Any]] = state["optimizer_state_dict"]["state"]
        if not all(isinstance(row, StoredTensor) and row.stride == (1,) for row in self.master):
            raise CheckpointError(f"{path}: a flat group is not a row; this DeepSpeed is not known here")
        needed = [sum(share(shape, world_size) for shape in members.values()) for members in sub_groups]
        held = [row.numel for row in self.master]
        if held != needed:
            raise CheckpointError(
                f"{path}: the flat groups hold {held} elements, the parameters need {needed}; take another step"
            )
        if sorted(number for group in self.param_groups for number in group["params"]) != list(range(len(held))):
            raise CheckpointError(f"{path}: the param groups do not name each flat group once; take another step")

    def value(self, key: str, index: int) -> Any:
        """A state of a sub-group that all ranks have to have."""
        if key not in self.states.get(index, {}):
            raise CheckpointError(f"{self.path}: sub-group {index} has no {key}, as others have; take another step")
        return self.states[index][key]


def _group(ranks: list[_RankState], indices: list[int], sub_groups: list[dict[str, tuple[int, ...]]]) -> ParameterGroup:
    shapes = {name: shape for index in indices for name, shape in sub_groups[index].items()}
    master = _Rows(tuple(tuple(rank.master[index] for index in indices) for rank in ranks))
    state: dict[str, Any] = {}
    keys = ranks[0].states.get(indices[0], {}) if indices else {}
    for key, first in keys.items():
        values = tuple(tuple(rank.value(key, index) for index in indices) for rank in ranks)
        if isinstance(first, StoredTensor) and first.shape == ranks[0].master[indices[0]].shape:
            state[key] = _checked_rows(ranks, indices, key, values)
            continue
        for rank, own in zip(ranks, values, strict=True):
            if any(_plain(value) != _plain(first) for value in own):
                raise CheckpointError(
                    f"{rank.path}: {key} of the optimizer differs between ranks or sub-groups, which no other number "
                    "of ranks could hold; take another step"
                )
        state[key] = first
    return ParameterGroup(shapes, master, state)


def _checked_rows(ranks: list[_RankState], indices: list[int], key: str, values: tuple[tuple[Any, ...], ...]) -> _Rows:
    for rank, own in zip(ranks, values, strict=True):
        for index, value in zip(indices, own, strict=True):
            if not isinstance(value, StoredTensor) or value.shape != rank.master[index].shape or value.stride != (1,):
                raise CheckpointError(
                    f"{rank.path}: {key} of sub-group {index} is not as long as its weights; take another step"
                )
    return _Rows(values)


def _plain(value: Any) -> Any:
    return (value.shape, tensor_bytes(value)) if isinstance(value, StoredTensor) else value


def _sub_groups(state: Zero3State, world_size: int) -> Iterator[tuple[int, dict[str, tuple[int, ...]]]]:
    """The sub-groups of all ranks in order, each with the number of its param group."""
    for number, group in enumerate(state.groups):
        cut = split_sub_groups(group.shapes, world_size=world_size, sub_group_size=state.sub_group_size)
        yield from ((number, members) for members in cut)


def _row(
    rows: _Rows, *, shapes: Mapping[str, tuple[int, ...]], members: set[str], rank: int, world_size: int
) -> StoredTensor:
    """The row of one of `world_size` ranks that holds a group's `members`, cut from the rows of those that saved."""
    saved_by, like = len(rows.of_rank), rows.of_rank[0][0]
    extents: list[Extent] = []
    position = 0  # of the parameter in the rows of those that saved
    for name, shape in shapes.items():
        numel, old, new = math.prod(shape), share(shape, saved_by), share(shape, world_size)
        if name in members:
            begin, end = min(rank * new, numel), min((rank + 1) * new, numel)
            padding = new - (end - begin)
            while begin < end:
                source, inside = divmod(begin, old)
                taken = min(end - begin, old - inside)
                extents += _cut(rows.of_rank[source], position + inside, taken)
                begin += taken
            if padding:
                extents.append(Extent(None, 0, padding * like.storage.element_bytes))
        position += old
    return flat_tensor(like.storage.element_type, _joined(extents), requires_grad=like.requires_grad)


def _cut(row: tuple[StoredTensor, ...], position: int, numel: int) -> Iterator[Extent]:
    """`numel` elements from `position` on, counted over the sub-groups laid end to end."""
    for tensor in row:
        taken = min(numel, tensor.numel - position)
        if position < tensor.numel and taken > 0:
            [extent], size = tensor.storage.extents, tensor.storage.element_bytes
            yield Extent(extent.path, extent.offset_bytes + (tensor.offset + position) * size, taken * size)
            numel -= taken
            position += taken
        position -= tensor.numel


def _joined(extents: Iterable[Extent]) -> Iterator[Extent]:
    """The same bytes, in as few extents as they allow."""
    last: Extent | None = None
    for extent in extents:
        follows = last is not None and extent.path == last.path
        if follows and last is not None and extent.path is not None:
            follows = extent.offset_bytes == last.offset_bytes + last.size_bytes
        if follows and last is not None:
            last = Extent(last.path, last.offset_bytes, last.size_bytes + extent.size_bytes)
            continue
        if last is not None:
            yield last
        last = extent
    if last is not None:
        yield last
