"""What a run will take: memory a GPU, tokens a second and days, by world size and activation checkpointing. No torch.

Memory is a sum of what the trainer and DeepSpeed allocate by their settings (`model.cost`, `model.activation_cost`),
not a measurement. Rates follow from an assumed MFU, which is the user's to state; a mode that computes activations
again is slower by those FLOPs. Nothing here looks at the machine it runs on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from launch.config import TrainConfig, TrainingError
from launch.trainer.throughput import peak_flops
from model.activation_checkpointing import ActivationCheckpointing
from model.activation_cost import AttentionKind, activation_bytes, attention_kind
from model.cost import count_parameters, flops_per_token, recomputed_flops_per_token, zero3_state_bytes

# of a device's memory, for all that is counted here: the rest is CUDA's, NCCL's, the kernels' and lost to fragments
USABLE_FRACTION = 0.92
WORLD_SIZES = (1, 8, 16, 32, 64)
_DTYPE_BYTES = {"bfloat16": 2, "float32": 4}
_SECONDS_A_DAY = 86_400


@dataclass(frozen=True)
class Device:
    """`name` as CUDA or ROCm reports it, for the table of `throughput.py`; `memory_bytes` by the maker."""

    name: str
    memory_bytes: int


DEVICES = {
    "a100-40gb": Device("NVIDIA A100-SXM4-40GB", 40 * 2**30),
    "a100": Device("NVIDIA A100-SXM4-80GB", 80 * 2**30),
    "h100": Device("NVIDIA H100 80GB HBM3", 80 * 2**30),
    "h200": Device("NVIDIA H200", 141 * 10**9),
    "b200": Device("NVIDIA B200", 180 * 10**9),
    "l40s": Device("NVIDIA L40S", 48 * 10**9),
    "rtx4090": Device("NVIDIA GeForce RTX 4090", 24 * 2**30),
    "mi300x": Device("AMD Instinct MI300X", 192 * 10**9),
}


@dataclass(frozen=True)
class MemoryBytes:
    """Of one GPU at the worst moment of a step.

    states: its share of parameters, gradients and optimizer
    gathered: parameters that ZeRO-3 holds whole for the layers at work and for those to come
    buckets: where gradients wait for their sum over the ranks
    activations: kept from the forward pass to the backward pass
    working: on top of them, for the loss's chunk or for the layer in its backward
    """

    states: int
    gathered: int
    buckets: int
    activations: int
    working: int

    @property
    def total(self) -> int:
        return self.states + self.gathered + self.buckets + self.activations + self.working


@dataclass(frozen=True)
class Row:
    """`tokens_per_second` is of all ranks together; it and `days` are None in float32, for which no peak is known."""

    world_size: int
    activation_checkpointing: str
    chosen: bool
    memory: MemoryBytes
    fits: bool
    tokens_per_second: float | None
    days: float | None


def plan(config: TrainConfig, *, device: str, mfu: float, world_sizes: Sequence[int]) -> list[Row]:
    """A row for each world size and mode. Raises TrainingError for a device or a batch that is not possible."""
    if device not in DEVICES:
        raise TrainingError(f"--device {device} is not in the table; take one of {', '.join(DEVICES)}")
    for world_size in world_sizes:
        config.accumulation_steps(world_size=world_size)
    return [
        _row(config, checkpointing, DEVICES[device], mfu=mfu, world_size=world_size)
        for world_size in world_sizes
        for checkpointing in _modes(config.activation_checkpointing)
    ]


def divisible(config: TrainConfig, world_sizes: Sequence[int]) -> list[int]:
    """Those world sizes over which the batch divides."""
    unit = config.data.sequence_length * config.micro_batch_size
    return [world_size for world_size in world_sizes if config.batch_tokens % (unit * world_size) == 0]


def as_json(rows: Sequence[Row]) -> list[dict[str, object]]:
    """Rows with their totals; bytes, tokens a second, days."""
    return [{**asdict(row), "memory": {**asdict(row.memory), "total": row.memory.total}} for row in rows]


def format_table(config: TrainConfig, rows: Sequence[Row], *, device: str, mfu: float) -> str:
    """For reading; GiB a GPU."""
    chosen = DEVICES[device]
    lines = [
        f"{config.name}: {count_parameters(config.model).total:,} parameters, micro-batches of "
        f"{config.micro_batch_size} x {config.data.sequence_length} tokens in {config.precision}, "
        f"{config.batch_tokens:,} tokens a step",
        f"{chosen.name}, {chosen.memory_bytes / 2**30:.1f} GiB of which {USABLE_FRACTION:.0%} are counted on; "
        f"MFU {mfu:.0%} assumed; * is this config's mode",
        "",
        f"{'GPUs':>5} {'checkpointing':<19}{'states':>8}{'gathered':>9}{'buckets':>9}{'kept':>8}{'working':>9}"
        f"{'GiB a GPU':>11}  fits{'tokens/s':>13}{'days':>9}",
    ]
    for row in rows:
        parts = asdict(row.memory).values()
        widths = (8, 9, 9, 8, 9)
        memory = "".join(f"{part / 2**30:>{width}.2f}" for part, width in zip(parts, widths, strict=True))
        rate = "-" if row.tokens_per_second is None else f"{row.tokens_per_second:,.0f}"
        days = "-" if row.days is None else f"{row.days:,.1f}"
        mode = row.activation_checkpointing + (" *" if row.chosen else "")
        lines.append(
            f"{row.world_size:>5} {mode:<19}{memory}{row.memory.total / 2**30:>11.2f}  "
            f"{'yes' if row.fits else 'NO':<4}{rate:>13}{days:>9}"
        )
    return "\n".join(lines)


def _modes(chosen: ActivationCheckpointing) -> list[ActivationCheckpointing]:
    """The config's own, and beside it what could be taken in its place."""
    usual = [
        ActivationCheckpointing(mode="none"),
        ActivationCheckpointing(mode="every_n_layers", every_n_layers=chosen.every_n_layers or 2),
        ActivationCheckpointing(mode="selective"),
        ActivationCheckpointing(mode="full"),
    ]
    return usual if chosen in usual else [*usual, chosen]


def _row(
    config: TrainConfig, checkpointing: ActivationCheckpointing, device: Device, *, mfu: float, world_size: int
) -> Row:
    memory = _memory(config, checkpointing, world_size=world_size)
    rate = _tokens_per_second(config, checkpointing, device, mfu=mfu, world_size=world_size)
    mode = f"every {checkpointing.every_n_layers} layers" if checkpointing.every_n_layers else checkpointing.mode
    return Row(
        world_size=world_size,
        activation_checkpointing=mode,
        chosen=checkpointing == config.activation_checkpointing,
        memory=memory,
        fits=memory.total <= USABLE_FRACTION * device.memory_bytes,
        tokens_per_second=rate,
        days=None if rate is None else config.steps * config.batch_tokens / rate / _SECONDS_A_DAY,
    )


def _memory(config: TrainConfig, checkpointing: ActivationCheckpointing, *, world_size: int) -> MemoryBytes:
    dtype_bytes = _dtype_bytes(config)
    parameters = count_parameters(config.model).total
    states = zero3_state_bytes(config.model, dtype="bf16" if dtype_bytes == 2 else "fp32").total
    activations = activation_bytes(
        config.model,
        checkpointing,
        batch_size=config.micro_batch_size,
        sequence_length=config.data.sequence_length,
        dtype_bytes=dtype_bytes,
        attention=_attention(config),
    )
    # what will be needed again within this many elements stays gathered, in a model of fewer: all of it
    gathered = min(parameters, config.zero.max_live_parameters)
    return MemoryBytes(
        states=-(-states // world_size),
        gathered=dtype_bytes * gathered,
        buckets=_DTYPE_BYTES[config.zero.reduce_dtype] * config.zero.reduce_bucket_size,
        activations=activations.kept,
        working=activations.peak - activations.kept,
    )


def _attention(config: TrainConfig) -> AttentionKind:
    return attention_kind(
        config.attn_implementation,
        device_type="cuda",
        document_masking=config.data.document_masking,
        dtype_bytes=_dtype_bytes(config),
    )


def _dtype_bytes(config: TrainConfig) -> Literal[2, 4]:
    return 2 if config.precision == "bfloat16" else 4


def _tokens_per_second(
    config: TrainConfig, checkpointing: ActivationCheckpointing, device: Device, *, mfu: float, world_size: int
) -> float | None:
    if config.precision == "float32":
        return None
    peak = peak_flops(device.name)
    assert peak is not None, f"{device.name} is not in the table of throughput.py"
    length = config.data.sequence_length
    executed = flops_per_token(config.model, sequence_length=length) + recomputed_flops_per_token(
        config.model, checkpointing, sequence_length=length, eager_attention=_attention(config) == "eager"
    )
    return mfu * peak * world_size / executed
