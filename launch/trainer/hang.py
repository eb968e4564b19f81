"""Who hangs, from the signs of all ranks. Pure functions; no torch.

Three kinds of evidence, the strongest first: a rank whose file stands still (stopped, dead, or its node is gone); a
rank in an earlier phase than the others; a rank that waits for nobody while the others wait in a collective.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from launch.trainer.heartbeat import Sign
from launch.trainer.ranks import RANKS_TOLD, name_ranks


@dataclass(frozen=True)
class Hang:
    """`culprits` did not come where the others wait; empty where all ranks look the same. `text` is for a person."""

    culprits: tuple[int, ...]
    step: int
    text: str


def diagnose(before: Mapping[int, Sign | None], after: Mapping[int, Sign | None]) -> Hang:
    """Signs of each rank, read twice with so much time between that every living rank has written anew."""
    silent = [rank for rank, sign in after.items() if sign is None or sign == before[rank]]
    living = {rank: sign for rank, sign in after.items() if sign is not None and rank not in silent}
    waiting = {rank: sign for rank, sign in living.items() if sign.collective is not None}
    step = max((sign.step for sign in living.values()), default=0)
    if silent:
        return Hang(tuple(silent), step, f"{_silent(silent, after)}{_others(living)}")
    last = max(sign.beats for sign in living.values())
    behind = {rank: sign for rank, sign in living.items() if sign.beats < last}
    if behind:
        rest = {rank: sign for rank, sign in living.items() if rank not in behind}
        return Hang(tuple(behind), step, f"{_places(behind)} did not come on{_others(rest)}")
    working = {rank: sign for rank, sign in living.items() if rank not in waiting}
    if working and waiting:
        return Hang(tuple(working), step, f"{_places(working)} did not come to it{_others(waiting)}")
    return Hang((), step, f"no rank is behind another{_others(living)}")


def _silent(ranks: Sequence[int], signs: Mapping[int, Sign | None]) -> str:
    named = []
    for rank in ranks[:RANKS_TOLD]:
        sign = signs[rank]
        named.append(f"{rank} ({'never seen' if sign is None else f'process {sign.pid} on {sign.host}, {_at(sign)}'})")
    more = f" and {len(ranks) - RANKS_TOLD} more" if len(ranks) > RANKS_TOLD else ""
    be = "ranks give" if len(ranks) > 1 else "rank gives"
    return f"{be} no sign of life: {', '.join(named)}{more}"


def _others(signs: Mapping[int, Sign]) -> str:
    return f"; {_places(signs)}" if signs else ""


def _places(signs: Mapping[int, Sign]) -> str:
    """`ranks 0, 2 in all_reduce (step 7, forward)`, the ranks of one place together."""
    places: dict[str, list[int]] = {}
    for rank, sign in signs.items():
        waits = f"waiting in {sign.collective}" if sign.collective else f"at {sign.where or 'an unknown line'}"
        places.setdefault(f"{waits} ({_at(sign)})", []).append(rank)
    return "; ".join(f"{name_ranks(ranks)} {place}" for place, ranks in places.items())


def _at(sign: Sign) -> str:
    return f"step {sign.step}, {sign.phase}"
