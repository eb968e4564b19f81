"""Proof that what every rank holds a copy of is equal: a checksum over ranks, every some steps.

Replicated are the learning rate, the counts of steps and of data, and of the weights, under ZeRO-3, the small ones that
are never partitioned again (`param_persistence_threshold`), in stages 1 and 2 all. All else is one rank's alone.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields

import torch

from launch.trainer.engine import Engine
from launch.trainer.guards import ReplicaError
from launch.trainer.ranks import RankEnvironment

_INTEGERS = {2: torch.int16, 4: torch.int32}
_PIECE = 2**20  # elements that are taken at once: each costs 24 bytes for a moment, on a GPU that may be nearly full


@dataclass(frozen=True)
class Replicated:
    """What one rank holds a copy of; each a 64-bit whole number."""

    weights: int
    learning_rate: int
    engine_steps: int
    batch_number: int


def check_replicas(engine: Engine, *, step: int, ranks: RankEnvironment, batch_number: int) -> None:
    """On all ranks, after a step. Raises ReplicaError on all of them, naming what differs and where."""
    if engine.deepspeed.zero_optimization_stage() == 3:
        weights = engine.deepspeed.optimizer.persistent_parameters
    else:
        weights = list(engine.deepspeed.module.parameters())
    own = Replicated(
        weights=_checksum(weights),
        learning_rate=struct.unpack("<q", struct.pack("<d", engine.optimizer.param_groups[0]["lr"]))[0],
        engine_steps=int(engine.deepspeed.global_steps),
        batch_number=batch_number,
    )
    row = torch.tensor(astuple(own), dtype=torch.int64, device=engine.device)
    rows = row.new_empty(ranks.world_size, row.numel())
    torch.distributed.all_gather(list(rows.unbind()), row)
    found = difference([Replicated(*values) for values in rows.tolist()])
    if found is not None:
        raise ReplicaError(f"step {step}: {found}; the run was stopped before it could be saved")


def difference(copies: Sequence[Replicated]) -> str | None:
    """`weights of rank 3 differs from that of the other ranks`; None where all are equal."""
    for field in fields(Replicated):
        values = [getattr(copy, field.name) for copy in copies]
        usual, count = Counter(values).most_common(1)[0]
        others = [str(rank) for rank, value in enumerate(values) if value != usual]
        if others and count <= len(values) / 2:
            return f"{field.name} differs between the ranks, and of no value there is a majority"
        if others:
            ranks = f"rank{'s' if len(others) > 1 else ''} {', '.join(others)}"
            return f"{field.name} of {ranks} differs from that of the other ranks"
    return None


def _checksum(parameters: Sequence[torch.Tensor]) -> int:
    """Of the bits, in their order: sums of whole numbers, exact on every device."""
    total = 0
    for parameter in parameters:
        bits = parameter.detach().view(_INTEGERS[parameter.element_size()]).flatten()
        for piece in torch.split(bits, _PIECE):
            places = torch.arange(1, piece.numel() + 1, device=piece.device)
            total = (total * 31 + int((piece.to(torch.int64) * places).sum())) % (1 << 63)
    return total
