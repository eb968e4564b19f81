"""Which ZeRO stage, micro-batch and checkpointing mode a plan would take, and why not the others. No torch.

Of all that fit, the fastest by the plan's own figures; among equals the one that computes least again (`selective` does
so without counted FLOPs), then the one that sends least, then the largest micro-batch, whose kernels are better filled.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pydantic import ValidationError

from launch.cluster.plan import STAGES, USABLE_FRACTION, Assumptions, Row, device_of, row_of
from launch.cluster.zero_states import Zero
from launch.config import TrainConfig
from model.activation_checkpointing import ActivationCheckpointing, Mode

MAX_MICRO_BATCH = 256
_MODES: tuple[Mode, ...] = ("none", "selective", "full")
_EQUAL_FRACTION = 1e-3


@dataclass(frozen=True)
class Recommendation:
    """`row` is None where nothing fits; `overrides` are what to give `launch train`, `reasons` one line each."""

    world_size: int
    row: Row | None
    overrides: tuple[str, ...]
    reasons: tuple[str, ...]


def trainable_stages(config: TrainConfig) -> tuple[int, ...]:
    """Those that this config may be trained with: the config's own rules say."""
    return tuple(stage for stage in STAGES if _takes(config, stage))


def _takes(config: TrainConfig, stage: int) -> bool:
    settings = config.model_dump()
    try:
        TrainConfig.model_validate(settings | {"zero": settings["zero"] | {"stage": stage}})
    except ValidationError:
        return False
    return True


def recommend(
    config: TrainConfig, assumptions: Assumptions, *, world_size: int, stages: Sequence[int]
) -> Recommendation:
    """Over the stages, all micro-batches that divide a rank's share, and the usual modes."""
    rows = list(_candidates(config, assumptions, world_size=world_size, stages=stages))
    fitting = [row for row in rows if row.fits]
    usable = USABLE_FRACTION * device_of(assumptions).memory_bytes
    if not fitting:
        least = min(rows, key=lambda row: row.memory.total)
        reason = (
            f"nothing fits: the least is {_gib(least.memory.total)} GiB of {_gib(usable)} (ZeRO {least.zero}, "
            f"micro-batch {least.micro_batch_size}, {least.activation_checkpointing}); take more GPUs or larger ones"
        )
        return Recommendation(world_size, None, (), (reason,))
    fastest_s = min(row.step_time_s or 0.0 for row in fitting)
    fast = [row for row in fitting if (row.step_time_s or 0.0) <= fastest_s * (1 + _EQUAL_FRACTION)]
    names: list[str] = list(_MODES)
    best = min(
        fast,
        key=lambda row: (names.index(row.activation_checkpointing), row.sent_bytes, -row.micro_batch_size, row.zero),
    )
    overrides = (
        f"zero.stage={best.zero}",
        f"micro_batch_size={best.micro_batch_size}",
        f"activation_checkpointing={best.activation_checkpointing}",
    )
    return Recommendation(world_size, best, overrides, tuple(_reasons(rows, best, usable)))


def _candidates(
    config: TrainConfig, assumptions: Assumptions, *, world_size: int, stages: Sequence[int]
) -> Iterator[Row]:
    share = config.samples_per_step // world_size
    sizes = [size for size in range(1, min(share, MAX_MICRO_BATCH) + 1) if share % size == 0]
    for size in sizes:
        sized = config.model_copy(update={"micro_batch_size": size})
        for stage in stages:
            for mode in _MODES:
                yield row_of(sized, assumptions, Zero(stage), ActivationCheckpointing(mode=mode), world_size=world_size)


def _reasons(rows: list[Row], best: Row, usable: float) -> Iterator[str]:
    def beside(**different: object) -> Row | None:
        """The candidate that differs from the best in nothing else."""
        wanted = {
            "zero": best.zero,
            "micro_batch_size": best.micro_batch_size,
            "activation_checkpointing": best.activation_checkpointing,
        } | different
        return next((row for row in rows if all(getattr(row, key) == value for key, value in wanted.items())), None)

    for stage in map(str, STAGES):
        row = beside(zero=stage)
        if stage != best.zero and row is not None:
            yield f"stage {stage} {_against(row, best, usable)}"
    larger = sorted({row.micro_batch_size for row in rows if row.micro_batch_size > best.micro_batch_size})
    row = beside(micro_batch_size=larger[0]) if larger else None
    if row is None:
        yield f"micro-batch {best.micro_batch_size} is all that a rank has of a step, or the most that is tried"
    else:
        yield f"micro-batch {row.micro_batch_size} {_against(row, best, usable)}"
    for mode in _MODES:
        row = beside(activation_checkpointing=mode)
        if mode != best.activation_checkpointing and row is not None:
            yield f"{mode} activation checkpointing {_against(row, best, usable)}"


def _against(row: Row, best: Row, usable: float) -> str:
    if not row.fits:
        return f"takes {_gib(row.memory.total)} GiB of {_gib(usable)}"
    if row.step_time_s and best.step_time_s and row.step_time_s > best.step_time_s * (1 + _EQUAL_FRACTION):
        return f"takes {row.step_time_s / best.step_time_s - 1:.1%} longer"
    # in float32 no times are known
    no_faster = "" if best.step_time_s is None else "is no faster"
    if row.sent_bytes > best.sent_bytes:
        sends = f"sends {row.sent_bytes / 1e9:.2f} GB a step, not {best.sent_bytes / 1e9:.2f}"
        return f"{sends}, and {no_faster}" if no_faster else sends
    takes = f"takes {_gib(row.memory.total)} GiB, not {_gib(best.memory.total)}"
    if no_faster:
        return f"{no_faster} (and {takes})"
    return takes if row.activation_checkpointing == best.activation_checkpointing else f"computes more ({takes})"


def _gib(size_bytes: float) -> str:
    return f"{size_bytes / 2**30:.2f}"
