"""A plan for reading and as JSON. Pure functions of its rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from launch.cluster.plan import USABLE_FRACTION, Assumptions, Row, device_of
from launch.cluster.recommendation import Recommendation, trainable_stages
from launch.config import TrainConfig
from model.cost import count_parameters

_PARTS = ("params", "grads", "master", "moments", "gathered", "buckets", "kept", "working")


def as_json(
    config: TrainConfig, assumptions: Assumptions, rows: Sequence[Row], recommended: Sequence[Recommendation]
) -> dict[str, object]:
    """Sizes in bytes, times in seconds and days."""
    return {
        "name": config.name,
        "parameters": count_parameters(config.model).total,
        "assumptions": asdict(assumptions),
        "rows": [_as_json(row) for row in rows],
        "recommendations": [
            asdict(recommendation) | {"row": _as_json(recommendation.row) if recommendation.row else None}
            for recommendation in recommended
        ],
    }


def format_table(
    config: TrainConfig,
    assumptions: Assumptions,
    rows: Sequence[Row],
    recommended: Sequence[Recommendation],
    *,
    left_out: int,
) -> str:
    """What to take, then the rows: GiB a GPU, GB sent by each GPU in a step. `left_out` rows are not among them."""
    device = device_of(assumptions)
    tokens = assumptions.tokens or config.steps * config.batch_tokens
    lines = [
        f"{config.name}: {count_parameters(config.model).total:,} parameters, micro-batches of "
        f"{config.micro_batch_size} x {config.data.sequence_length} tokens in {config.precision}, "
        f"{config.batch_tokens:,} tokens a step, {tokens:,} in all",
        f"counted: {config.optimizer.name}, {config.loss_implementation} loss, compile={config.compile}"
        + (" (as if not compiled: an upper bound)" if config.compile == "deepcompile" else ""),
        f"{device.name}, {device.memory_bytes / 2**30:.1f} GiB of which {USABLE_FRACTION:.0%} are counted on; assumed: "
        f"MFU {assumptions.mfu:.0%} of the computation, {assumptions.bandwidth_bytes_per_s / 1e9:g} GB/s sent by a GPU",
    ]
    if config.precision == "float32":
        lines.append(
            "no times: the peaks that are known are bfloat16's; of what fits, the least computed again is advised"
        )
    for recommendation in recommended:
        lines += ["", *_advice(recommendation)]
    lines += [
        "",
        f"* is this config, which may be trained with zero.stage {', '.join(map(str, trainable_stages(config)))}; the "
        "other stages, hpZ and offload are DeepSpeed's, and no settings here"
        + (f" ({left_out} rows, which --all prints)" if left_out else ""),
        "host: GiB of a rank in the host's memory, of an offloaded optimizer and of the copy for an asynchronous save",
        "",
        f"{'GPUs':>5} {'ZeRO':<10}{'checkpointing':<16}"
        + "".join(f"{part:>9}" for part in _PARTS)
        + f"{'GiB':>8} fits{'host':>7}{'GB sent':>9}{'s/step':>9}{'tokens/s':>13}{'days':>9}{'GPU-hours':>12}",
    ]
    return "\n".join([*lines, *(_line(row) for row in rows)])


def _line(row: Row) -> str:
    memory = "".join(f"{part / 2**30:>9.2f}" for part in asdict(row.memory).values())
    zero = row.zero + (" *" if row.chosen else "")
    return (
        f"{row.world_size:>5} {zero:<10}{row.activation_checkpointing:<16}{memory}{row.memory.total / 2**30:>8.2f} "
        f"{'yes' if row.fits else 'NO':<4}{row.host_bytes / 2**30:>7.2f}{row.sent_bytes / 1e9:>9.2f}"
        f"{_number(row.step_time_s, '.3f'):>9}{_number(row.tokens_per_second, ',.0f'):>13}"
        f"{_number(row.days, ',.1f'):>9}{_number(row.gpu_hours, ',.0f'):>12}"
    )


def _advice(recommendation: Recommendation) -> list[str]:
    row = recommendation.row
    head = f"{recommendation.world_size} GPU{'s' * (recommendation.world_size != 1)}: "
    if row is None:
        return [head + recommendation.reasons[0]]
    pace = "" if row.step_time_s is None else f", {row.step_time_s:.3f} s a step, {row.days:,.1f} days"
    taken = f"{row.memory.total / 2**30:.2f} GiB{pace}"
    return [
        f"{head}take {' '.join(recommendation.overrides)}: {taken}",
        *(f"    {reason}" for reason in recommendation.reasons),
    ]


def _number(value: float | None, spelling: str) -> str:
    return "-" if value is None else format(value, spelling)


def _as_json(row: Row) -> dict[str, object]:
    return {**asdict(row), "memory": {**asdict(row.memory), "total": row.memory.total}}
