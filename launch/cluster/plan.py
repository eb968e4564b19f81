"""What a run will take: memory a GPU by part, bytes sent, seconds a step, days. No look at the machine, and no torch
but for the table of attention kernels, if one is named.

Memory is a sum of what the trainer and DeepSpeed allocate by their settings (`zero_states.py` and `activation_cost.py`
of the model), not a measurement. Times follow from an assumed MFU of the computation and an assumed bandwidth, which
are the user's to state; a mode that computes activations again is slower by those FLOPs. `recommendation.py` chooses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from launch.cluster.devices import DEVICES, Device
from launch.cluster.zero_states import DTYPE_BYTES, Zero, bucket_bytes, save_copy_bytes, sent_bytes, zero_states
from launch.config import TrainConfig, TrainingError
from launch.trainer.throughput import peak_flops
from model.activation_checkpointing import ActivationCheckpointing
from model.activation_cost import AttentionKind, activation_bytes, attention_kind
from model.cost import count_parameters, flops_per_token, recomputed_flops_per_token

# of a device's memory, for all that is counted here: the rest is CUDA's, NCCL's, the kernels' and lost to fragments
USABLE_FRACTION = 0.92
WORLD_SIZES = (1, 8, 16, 32, 64)
RANKS_A_MACHINE = 8  # over which hpZ's second copy is divided
STAGES = (0, 1, 2, 3)
_SECONDS_AN_HOUR = 3600


@dataclass(frozen=True)
class Assumptions:
    """What the user states. mfu: of the computation alone; bandwidth: bytes a second that each GPU sends to others;
    tokens: the budget, None: what the config trains on."""

    device: str = "h100"
    mfu: float = 0.4
    bandwidth_bytes_per_s: float = 50e9
    tokens: int | None = None


@dataclass(frozen=True)
class MemoryBytes:
    """Of one GPU at the worst moment of a step.

    parameters, gradients, master, moments: its share of the states
    gathered: parameters that ZeRO-3 holds whole for the layers at work and for those to come
    buckets: where gradients wait for their sum over the ranks
    activations: kept from the forward pass to the backward pass
    working: on top of them, for the loss's chunk or for the layer in its backward
    """

    parameters: int
    gradients: int
    master: int
    moments: int
    gathered: int
    buckets: int
    activations: int
    working: int

    @property
    def total(self) -> int:
        return sum(asdict(self).values())


@dataclass(frozen=True)
class Row:
    """`tokens_per_second` is of all ranks together; all times are None in float32, for which no peak is known.
    `host_bytes` of a rank: the optimizer's states, if they are there, and the copy of an asynchronous save."""

    world_size: int
    zero: str
    activation_checkpointing: str
    micro_batch_size: int
    chosen: bool
    memory: MemoryBytes
    host_bytes: int
    fits: bool
    sent_bytes: int
    step_time_s: float | None
    tokens_per_second: float | None
    days: float | None
    gpu_hours: float | None


def plan(config: TrainConfig, assumptions: Assumptions, *, world_sizes: Sequence[int]) -> list[Row]:
    """For each world size the stages with the config's mode, and the modes with the config's stage.

    Raises TrainingError for a device, a batch or an attention kernel that is not possible.
    """
    _check_attention(config, device_of(assumptions))
    for world_size in world_sizes:
        config.accumulation_steps(world_size=world_size)
    own = config.activation_checkpointing
    return [
        row_of(config, assumptions, zero, checkpointing, world_size=world_size)
        for world_size in world_sizes
        for zero, checkpointing in [
            *((zero, own) for zero in _zeros(world_size)),
            *((Zero(config.zero.stage), mode) for mode in modes(own) if mode != own),
        ]
    ]


def device_of(assumptions: Assumptions) -> Device:
    """Raises TrainingError for a name that is not in the table."""
    if assumptions.device not in DEVICES:
        raise TrainingError(f"--device {assumptions.device} is not in the table; take one of {', '.join(DEVICES)}")
    return DEVICES[assumptions.device]


def _check_attention(config: TrainConfig, device: Device) -> None:
    """Whether its package is installed does not matter to the plan. Raises TrainingError."""
    if config.attn_implementation in ("auto", "eager", "sdpa"):  # they run everywhere; torch takes a second to import
        return
    import torch

    from model.attention_backends.selection import misfit

    problem = misfit(
        config.attn_implementation,
        device_type="cuda",
        dtype=getattr(torch, config.precision),
        head_dim=config.model.head_dim,
        capability=device.capability,
        is_rocm=device.is_rocm,
    )
    if problem:
        raise TrainingError(f"on {device.name} {problem}")


def divisible(config: TrainConfig, world_sizes: Sequence[int]) -> list[int]:
    """Those world sizes over which the batch divides."""
    unit = config.data.sequence_length * config.micro_batch_size
    return [world_size for world_size in world_sizes if config.batch_tokens % (unit * world_size) == 0]


def modes(chosen: ActivationCheckpointing) -> list[ActivationCheckpointing]:
    """The config's own, and beside it what could be taken in its place."""
    usual = [
        ActivationCheckpointing(mode="none"),
        ActivationCheckpointing(mode="every_n_layers", every_n_layers=chosen.every_n_layers or 2),
        ActivationCheckpointing(mode="selective"),
        ActivationCheckpointing(mode="selective", every_n_layers=chosen.every_n_layers or 2),
        ActivationCheckpointing(mode="full"),
    ]
    return usual if chosen in usual else [*usual, chosen]


def row_of(
    config: TrainConfig,
    assumptions: Assumptions,
    zero: Zero,
    checkpointing: ActivationCheckpointing,
    *,
    world_size: int,
) -> Row:
    """One line of the plan, whatever the config's own stage and mode are."""
    device = device_of(assumptions)
    memory, host_bytes = _memory(config, device, zero, checkpointing, world_size=world_size)
    sent = sent_bytes(config, zero, world_size=world_size)
    step_s = _step_time_s(config, assumptions, checkpointing, sent, world_size=world_size)
    tokens = assumptions.tokens or config.steps * config.batch_tokens
    hours = None if step_s is None else step_s * tokens / config.batch_tokens / _SECONDS_AN_HOUR
    return Row(
        world_size=world_size,
        zero=zero.label,
        activation_checkpointing=str(checkpointing),
        micro_batch_size=config.micro_batch_size,
        chosen=zero == Zero(config.zero.stage) and checkpointing == config.activation_checkpointing,
        memory=memory,
        host_bytes=host_bytes,
        fits=memory.total <= USABLE_FRACTION * device.memory_bytes,
        sent_bytes=sent,
        step_time_s=step_s,
        tokens_per_second=None if step_s is None else config.batch_tokens / step_s,
        days=None if hours is None else hours / 24,
        gpu_hours=None if hours is None else hours * world_size,
    )


def _zeros(world_size: int) -> list[Zero]:
    zeros = [Zero(stage) for stage in STAGES]
    if world_size > RANKS_A_MACHINE:
        zeros.append(Zero(3, secondary_ranks=RANKS_A_MACHINE))
    return [*zeros, Zero(3, optimizer_on_host=True)]


def _memory(
    config: TrainConfig, device: Device, zero: Zero, checkpointing: ActivationCheckpointing, *, world_size: int
) -> tuple[MemoryBytes, int]:
    """Of the GPU by part, and the bytes a rank keeps in the host's memory."""
    states = zero_states(config, zero, world_size=world_size)
    activations = activation_bytes(
        config.model,
        checkpointing,
        batch_size=config.micro_batch_size,
        sequence_length=config.data.sequence_length,
        dtype_bytes=_dtype_bytes(config),
        attention=_attention(config, device),
        loss_implementation=config.loss_implementation,
        compiled=config.compile == "layers",
    )
    # what will be needed again within this many elements stays gathered, in a model of fewer: all of it
    gathered = min(count_parameters(config.model).total, config.zero.max_live_parameters) if zero.stage == 3 else 0
    memory = MemoryBytes(
        parameters=states.parameters,
        gradients=states.gradients,
        master=states.master,
        moments=states.moments,
        gathered=DTYPE_BYTES[config.precision] * gathered,
        buckets=bucket_bytes(config, zero),
        activations=activations.kept,
        working=activations.peak - activations.kept,
    )
    copied = save_copy_bytes(config, zero, world_size=world_size) if config.checkpoint.asynchronous else 0
    return memory, states.on_host + copied


def _attention(config: TrainConfig, device: Device) -> AttentionKind:
    return attention_kind(
        config.attn_implementation,
        device_type="cuda",
        document_masking=config.data.document_masking,
        dtype_bytes=_dtype_bytes(config),
        head_dim=config.model.head_dim,
        capability=device.capability,
    )


def _dtype_bytes(config: TrainConfig) -> Literal[2, 4]:
    return 2 if config.precision == "bfloat16" else 4


def _step_time_s(
    config: TrainConfig,
    assumptions: Assumptions,
    checkpointing: ActivationCheckpointing,
    sent: int,
    *,
    world_size: int,
) -> float | None:
    """Computation and communication side by side, one after the other if `zero.overlap_comm` is off."""
    if config.precision == "float32":
        return None
    device = device_of(assumptions)
    peak = peak_flops(device.name)
    assert peak is not None, f"{device.name} is not in the table of throughput.py"
    length = config.data.sequence_length
    executed = flops_per_token(config.model, sequence_length=length) + recomputed_flops_per_token(
        config.model,
        checkpointing,
        sequence_length=length,
        eager_attention=_attention(config, device) == "eager",
        compiled=config.compile == "layers",
    )
    computing_s = config.batch_tokens * executed / (assumptions.mfu * peak * world_size)
    sending_s = sent / assumptions.bandwidth_bytes_per_s
    return max(computing_s, sending_s) if config.zero.overlap_comm else computing_s + sending_s
