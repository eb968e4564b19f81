"""What one training run is, as frozen pydantic models. No torch, no file is read.

Sizes: `batch_tokens` is the global batch, stated once; gradient accumulation follows from it and from the number of
ranks, which is known only when the run starts (`TrainConfig.accumulation_steps`).

Validation collects what a single field can tell by itself; what needs the datasets or the number of ranks is checked
where those are known. Every message says what, got, wanted and fix.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from launch.data_config import DataConfig
from launch.settings import Settings
from launch.supervision_config import GuardsConfig, ProfileConfig, WatchdogConfig
from launch.zero_config import ZeroConfig
from model.activation_checkpointing import ActivationCheckpointing
from model.config import SmolLM2Config

AttentionImplementation = Literal[
    "auto", "eager", "sdpa", "flex_attention", "flash_attention_2", "flash_attention_3", "flash_attention_4"
]
Precision = Literal["bfloat16", "float32"]
Compile = Literal["none", "layers", "deepcompile"]
LossImplementation = Literal["chunked", "liger"]


class TrainingError(ValueError):
    """A run that cannot start or go on, for a reason the user can mend. One line a problem, each with the way out."""


class LocalError(TrainingError):
    """A TrainingError that one rank found alone, so that it has to tell it itself."""


class OptimizerConfig(Settings):
    """AdamW, or Muon for the layers' matrices and AdamW for the rest (`launch/trainer/optimizer.py`).

    Learning rates are the schedule's peaks. `muon_learning_rate` is the matrices' own, a size in another unit.
    """

    name: Literal["adamw", "muon"] = "adamw"
    learning_rate: float = Field(gt=0)
    muon_learning_rate: float | None = Field(default=None, gt=0)
    muon_momentum: float = Field(default=0.95, ge=0, lt=1)
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0.01, ge=0)
    gradient_clipping: float = Field(default=1.0, ge=0)  # of the gradient's norm; 0: none

    @model_validator(mode="after")
    def _betas_are_averages(self) -> Self:
        for beta in self.betas:
            if not 0 <= beta < 1:
                raise ValueError(f"betas: got {beta}, wanted two numbers from 0 to below 1, such as [0.9, 0.95]")
        return self

    @model_validator(mode="after")
    def _muon_is_whole(self) -> Self:
        if self.name == "adamw" and self.muon_learning_rate is not None:
            raise ValueError(
                f"muon_learning_rate={self.muon_learning_rate} means nothing to adamw; remove it, or take muon"
            )
        if self.name == "muon" and self.muon_learning_rate is None:
            raise ValueError("muon needs muon_learning_rate for the layers' matrices; its authors' is 0.02")
        if self.name == "muon" and self.gradient_clipping:
            raise ValueError(
                f"gradient_clipping={self.gradient_clipping} with muon would shrink Muon's updates, whose norm does "
                "not come from the gradient's; set gradient_clipping=0"
            )
        return self


class ScheduleConfig(Settings):
    """The learning rate over the run. `decay_steps` is for wsd; cosine and linear decay from warmup to the end."""

    name: Literal["wsd", "cosine", "linear"] = "wsd"
    warmup_steps: int = Field(default=0, ge=0)
    decay_steps: int = Field(default=0, ge=0)
    min_factor: float = Field(default=0.0, ge=0, le=1)  # of the peak, where the decay ends

    @model_validator(mode="after")
    def _decay_belongs_to_wsd(self) -> Self:
        if self.name != "wsd" and self.decay_steps:
            raise ValueError(f"decay_steps={self.decay_steps} means nothing to {self.name}; remove it, or take wsd")
        return self


class CheckpointConfig(Settings):
    """A checkpoint is saved every `every_steps`, at the last step, and on SIGTERM, SIGINT or SIGUSR1.

    Asynchronous: written behind the next steps, from a copy in host memory of each rank's share of the state.
    """

    every_steps: int = Field(ge=1)
    asynchronous: bool = True


class ContinuationConfig(Settings):
    """Prompts that the model in training continues; temperature 0 takes the likeliest token, above 0 draws."""

    prompts: tuple[str, ...] = Field(min_length=1, max_length=16)
    max_new_tokens: int = Field(default=32, ge=1)
    temperature: float = Field(default=0.0, ge=0)


class ValidationConfig(Settings):
    """The loss over the first `sequences` of the validation split: before the first step, every `every_steps`, at the
    last step. Then also `samples`, if there are any."""

    every_steps: int = Field(ge=1)
    sequences: int = Field(ge=1)
    samples: ContinuationConfig | None = None


class LoggingConfig(Settings):
    """A line on the screen every `every_steps`; the event log has every step whatever this says, and at the end of a
    step, `system_every_s` after the last time, how each node is doing."""

    every_steps: int = Field(default=10, ge=1)
    system_every_s: float = Field(default=30.0, ge=0)


class LauncherConfig(Settings):
    """How `smollm2 launch train` starts DeepSpeed's launcher; `deepspeed` by hand does not read it.

    Without a hostfile: this machine, or the nodes of a Slurm allocation. None leaves the choice to the launcher.
    """

    ranks_per_node: int | None = Field(default=None, ge=1)
    hostfile: Path | None = None
    remote_launcher: Literal["pdsh", "openmpi", "mpich", "impi", "mvapich"] = "pdsh"
    launcher_args: str = ""
    master_addr: str | None = None
    master_port: int | None = Field(default=None, ge=1, le=65535)
    ssh_port: int | None = Field(default=None, ge=1, le=65535)


class TrainConfig(Settings):
    """One training run, resolved. Raises pydantic's ValidationError with one message a problem."""

    run_dir: Path
    name: str = Field(min_length=1)
    allow_change: Literal["none", "data"] = "none"  # what a resume may change of what the run is; never kept
    seed: int = Field(default=0, ge=0, lt=1 << 63)
    init_from: Path | None = None
    model: SmolLM2Config
    attn_implementation: AttentionImplementation = "auto"
    data: DataConfig
    batch_tokens: int = Field(ge=1)
    micro_batch_size: int = Field(ge=1)
    precision: Precision = "bfloat16"
    steps: int = Field(ge=1)
    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    activation_checkpointing: ActivationCheckpointing = ActivationCheckpointing()
    compile: Compile = "none"  # the decoder layers by torch.compile, or everything by DeepSpeed's DeepCompile
    loss_implementation: LossImplementation = "chunked"
    z_loss_coefficient: float = Field(default=0.0, ge=0)  # PaLM (arXiv:2204.02311, §5) trained with 1e-4
    zero: ZeroConfig = ZeroConfig()
    checkpoint: CheckpointConfig
    validation: ValidationConfig
    logging: LoggingConfig = LoggingConfig()
    guards: GuardsConfig = GuardsConfig()
    watchdog: WatchdogConfig = WatchdogConfig()
    profile: ProfileConfig = ProfileConfig()
    launcher: LauncherConfig = LauncherConfig()

    @field_validator("precision", mode="before")
    @classmethod
    def _fp8_is_not_here(cls, precision: Any) -> Any:
        # docs/performance.md says what it would take
        if str(precision).startswith(("fp8", "float8")):
            raise ValueError(
                f"fp8 training is not supported (got {precision}): nothing of it could be tested without a GPU; "
                "use bfloat16"
            )
        return precision

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        length, positions = self.data.sequence_length, self.model.max_position_embeddings
        if length > positions:
            raise ValueError(
                f"data.sequence_length={length} is longer than model.max_position_embeddings={positions}; "
                f"use at most {positions}"
            )
        last_sample = self.steps * self.samples_per_step
        end = self.data.stage_ends()[-1] if self.data.stages else None
        if end is not None and end < last_sample:
            raise ValueError(
                f"data.stages end at {self.data.stages[-1].until_tokens} tokens but steps={self.steps} of batch_tokens="
                f"{self.batch_tokens} are {self.steps * self.batch_tokens}; leave until_tokens out of the last stage, "
                f"or train at most {end // self.samples_per_step} steps"
            )
        ramps = self.schedule.warmup_steps + self.schedule.decay_steps
        if ramps > self.steps:
            raise ValueError(
                f"schedule.warmup_steps + schedule.decay_steps = {ramps} is more than steps={self.steps}; "
                "shorten them or train longer"
            )
        if self.optimizer.name == "muon" and self.zero.reduce_dtype != "float32":
            raise ValueError(
                f"zero.reduce_dtype={self.zero.reduce_dtype} with optimizer.name=muon would keep Muon's momentum in "
                "it; use float32"
            )
        if self.zero.stage != 3 and (self.optimizer.name == "muon" or self.compile == "deepcompile"):
            setting = "optimizer.name=muon" if self.optimizer.name == "muon" else "compile=deepcompile"
            raise ValueError(f"zero.stage={self.zero.stage} with {setting} has not been tried; use zero.stage=3")
        if self.compile == "deepcompile" and self.activation_checkpointing.mode != "none":
            raise ValueError(
                f"compile=deepcompile with activation_checkpointing={self.activation_checkpointing.mode} is not known "
                "to work with ZeRO-3; take compile=layers, or activation_checkpointing=none"
            )
        if self.compile == "deepcompile" and self.zero.reduce_dtype != self.precision:
            # DeepSpeed 0.19.8, csrc/compile/z3.cpp: reduces what it has cast to the parameter's dtype
            raise ValueError(
                f"zero.reduce_dtype={self.zero.reduce_dtype} with compile=deepcompile, which sums gradients over ranks "
                f"in the parameters' {self.precision}; set zero.reduce_dtype={self.precision}, or take compile=layers"
            )
        every = self.activation_checkpointing.every_n_layers
        if every is not None and every > self.model.num_hidden_layers:
            raise ValueError(
                f"activation_checkpointing.every_n_layers={every} is more than model.num_hidden_layers="
                f"{self.model.num_hidden_layers}, so that no layer would be computed again; use a smaller one"
            )
        self.accumulation_steps(world_size=1)
        return self

    @property
    def samples_per_step(self) -> int:
        """Sequences of the global batch."""
        return self.batch_tokens // self.data.sequence_length

    def accumulation_steps(self, *, world_size: int) -> int:
        """Micro-batches that each rank sums before a step.

        Raises TrainingError, naming the nearest numbers of ranks and batches that work, if the batch does not divide.
        """
        unit = self.data.sequence_length * self.micro_batch_size * world_size
        if self.batch_tokens % unit:
            below, above = self.batch_tokens // unit * unit, (self.batch_tokens // unit + 1) * unit
            nearest = f"{below} or {above}" if below else str(above)
            ranks = f" * {world_size} ranks" if world_size > 1 else ""
            raise TrainingError(
                f"batch_tokens={self.batch_tokens} is not a multiple of data.sequence_length * micro_batch_size{ranks} "
                f"= {unit}; {self._nearest_world_sizes(world_size)}use {'batch_tokens=' if ranks else ''}{nearest}"
            )
        return self.batch_tokens // unit

    def _nearest_world_sizes(self, world_size: int) -> str:
        """The way out that leaves the batch as it is, if there is one."""
        micro_batches, rest = divmod(self.batch_tokens, self.data.sequence_length * self.micro_batch_size)
        if rest or world_size == 1:
            return ""
        below = max(ranks for ranks in range(1, world_size) if micro_batches % ranks == 0)
        above = next((ranks for ranks in range(world_size + 1, micro_batches + 1) if micro_batches % ranks == 0), None)
        return (
            f"start {below}{f' or {above}' if above else ''} ranks, over which its {micro_batches} micro-batches of "
            f"micro_batch_size={self.micro_batch_size} divide, or "
        )


def flatten(tree: Mapping[str, Any] | list[Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as `dotted.key: value`; an item of a list has its index for a key."""
    flat: dict[str, Any] = {}
    items = tree.items() if isinstance(tree, Mapping) else ((str(index), item) for index, item in enumerate(tree))
    for key, value in items:
        if isinstance(value, Mapping | list) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
