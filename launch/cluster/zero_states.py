"""What ZeRO keeps on a rank and what a rank sends in a step, by stage, as DeepSpeed 0.19 does it. No torch.

Arithmetic on the settings of a run (arXiv:1910.02054, §5 and §7; hpZ: arXiv:2306.10209, §3.2). A test compares it with
the tensors of real engines and with what they hand to torch.distributed, for stages 0 to 3.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from launch.config import TrainConfig
from model.config import SmolLM2Config
from model.cost import count_parameters
from model.parameters import parameter_shapes

DTYPE_BYTES = {"bfloat16": 2, "float32": 4}
_FP32 = 4
# DeepSpeed's default of stage3_max_reuse_distance, in elements: what is wanted again within it stays gathered
REUSE_DISTANCE = 1_000_000_000
# elements that DeepSpeed flattens at once where it has no bucket of its own (`buffered_allreduce_fallback`)
FLATTENED_ELEMENTS = 500_000_000


@dataclass(frozen=True)
class Zero:
    """A stage and what may be added to stage 3.

    secondary_ranks: hpZ's second copy of the parameters, shared by so many ranks of one machine.
    optimizer_on_host: ZeRO-Offload of gradients, master copy and moments. The trainer has no setting for these two.
    """

    stage: int
    secondary_ranks: int | None = None
    optimizer_on_host: bool = False

    @property
    def label(self) -> str:
        if self.secondary_ranks:
            return f"{self.stage} hpZ {self.secondary_ranks}"
        return f"{self.stage} offload" if self.optimizer_on_host else str(self.stage)


@dataclass(frozen=True)
class ZeroStates:
    """Bytes of the rank that has most, at the worst moment of a step; `on_host` is not in the sum of the others."""

    parameters: int
    gradients: int
    master: int
    moments: int
    on_host: int = 0

    @property
    def total(self) -> int:
        return self.parameters + self.gradients + self.master + self.moments


def zero_states(config: TrainConfig, zero: Zero, *, world_size: int) -> ZeroStates:
    """Parameters in the run's precision, gradients summed in fp32, the optimizer's fp32 copy and its moments."""
    count = count_parameters(config.model)
    parameters = DTYPE_BYTES[config.precision] * count.total
    # Muon has a momentum where AdamW has two moments
    moments = 2 * _FP32 * count.total - (
        _FP32 * (count.attention + count.mlp) if config.optimizer.name == "muon" else 0
    )
    half = config.precision == "bfloat16"
    gradients = _FP32 * count.total
    master = 0 if zero.stage == 0 and not half else _FP32 * count.total
    if zero.stage <= 1 and half:
        # autograd's own beside those in fp32
        gradients += parameters
    gradients = _share(gradients, world_size if zero.stage >= 2 else 1)
    if zero.stage == 2 and not half:
        # kept as views into whole gradients; in half precision they are copied, because they are summed in fp32
        gradients = _FP32 * _whole_tensors_of_a_share(config.model, world_size=world_size)
    divided = world_size if zero.stage >= 1 else 1
    states = ZeroStates(
        parameters=_share(parameters, world_size if zero.stage == 3 else 1)
        + (_share(parameters, zero.secondary_ranks) if zero.secondary_ranks else 0),
        gradients=gradients,
        master=_share(master, divided),
        moments=_share(moments, divided),
    )
    if not zero.optimizer_on_host:
        return states
    return ZeroStates(states.parameters, 0, 0, 0, on_host=states.total - states.parameters)


def _whole_tensors_of_a_share(model: SmolLM2Config, *, world_size: int) -> int:
    """Elements of all parameters of which a rank has a part, the largest rank's: the matrices are cut into equal shares
    end to end, the norms likewise after them."""
    shapes = parameter_shapes(model).values()
    largest = 0
    for rank in range(world_size):
        whole = 0
        for group in ([s for s in shapes if len(s) > 1], [s for s in shapes if len(s) == 1]):
            sizes = [math.prod(shape) for shape in group]
            share = math.ceil(sum(sizes) / world_size)
            end = 0
            for size in sizes:
                begin, end = end, end + size
                whole += size if begin < (rank + 1) * share and end > rank * share else 0
        largest = max(largest, whole)
    return largest


def save_copy_bytes(config: TrainConfig, zero: Zero, *, world_size: int) -> int:
    """Of the state that rank 0 saves, copied into the host's memory by an asynchronous save
    (`launch/trainer/host_copy.py`): up to stage 2 it saves the weights too."""
    states = zero_states(config, replace(zero, optimizer_on_host=False), world_size=world_size)
    return states.master + states.moments + (states.parameters if zero.stage < 3 else 0)


def bucket_bytes(config: TrainConfig, zero: Zero) -> int:
    """Where gradients wait for their sum over the ranks."""
    element_bytes = DTYPE_BYTES[config.zero.reduce_dtype]
    if zero.stage == 0 or (zero.stage == 1 and config.precision == "bfloat16"):
        return element_bytes * min(FLATTENED_ELEMENTS, count_parameters(config.model).total)
    buffers = 2 if zero.stage < 3 and config.zero.overlap_comm else 1
    return buffers * element_bytes * config.zero.reduce_bucket_size


def sent_bytes(config: TrainConfig, zero: Zero, *, world_size: int) -> int:
    """By one rank in a step to others, by ring collectives; hpZ's second gathering stays in the machine and out.

    Up to stage 2 gradients are summed by all-reduce, which is DeepSpeed's default also where a rank keeps only its
    share; in stages 0 and 1 once a step, from stage 2 on after each micro-batch.
    """
    count = count_parameters(config.model)
    parameter_bytes, gradient_bytes = DTYPE_BYTES[config.precision], DTYPE_BYTES[config.zero.reduce_dtype]
    accumulation = config.accumulation_steps(world_size=world_size)
    if zero.stage == 3:
        # backward meets the last layers first, and finds them gathered still
        again = 0 if zero.secondary_ranks else max(0, count.total - REUSE_DISTANCE // 2)
        whole = accumulation * (gradient_bytes * count.total + parameter_bytes * (count.total + again))
    else:
        sums = accumulation if zero.stage == 2 else 1
        whole = 2 * sums * gradient_bytes * count.total + (parameter_bytes * count.total if zero.stage else 0)
    if config.optimizer.name == "muon" and zero.stage == 3:
        # whole matrices for Newton–Schulz
        whole += 2 * _FP32 * (count.attention + count.mlp)
    return whole * (world_size - 1) // world_size


def _share(whole: int, ranks: int) -> int:
    return -(-whole // ranks)
