"""The model under DeepSpeed ZeRO: built, filled one parameter at a time, wrapped with our optimizer.

Under ZeRO-3 no rank ever holds the whole model: each parameter is gathered, written by rank 0 and partitioned again. In
training ZeRO-3 gathers a decoder layer at once (a leaf module, in its words): one round of hooks a layer instead of a
dozen, and none inside, where torch.compile would stumble over them. In stages 1 and 2 rank 0 writes its own model, and
DeepSpeed hands it to the others as it wraps it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import deepspeed
import torch
from deepspeed.accelerator import get_accelerator
from deepspeed.utils import set_z3_leaf_modules

from launch.config import Precision, TrainConfig, TrainingError
from launch.trainer.deepspeed_config import deepspeed_config
from launch.trainer.gradients import hand_over_in_place
from launch.trainer.inputs import check_same_model
from launch.trainer.optimizer import build_optimizer
from launch.trainer.own_time import LayerClock
from launch.trainer.ranks import RankEnvironment
from model.activation_checkpointing import ActivationCheckpointing
from model.cost import count_parameters
from model.hf import PretrainedWeights, WeightsError
from model.init import fill_parameter_
from model.transformer import DecoderLayer, SmolLM2

DTYPES: dict[Precision, torch.dtype] = {"bfloat16": torch.bfloat16, "float32": torch.float32}
Fill = Callable[[str, torch.Tensor], None]


@dataclass(frozen=True)
class Engine:
    """`deepspeed` is called for the forward pass; `optimizer` is ours, inside of DeepSpeed's."""

    deepspeed: Any
    optimizer: torch.optim.Optimizer
    device: torch.device
    device_name: str
    num_parameters: int
    layer_clock: LayerClock | None = None


def build_engine(
    config: TrainConfig, ranks: RankEnvironment, *, fill_weights: bool, say: Callable[[str], None]
) -> Engine:
    """On all ranks together, after the process group. Raises TrainingError for weights that do not fit the model.

    Without `fill_weights` a checkpoint has to be loaded next; `init_from` is then not read.
    """
    settings = deepspeed_config(config, world_size=ranks.world_size)
    device = torch.device(get_accelerator().device_name(ranks.local_rank))
    _prepare_checkpointing(config.activation_checkpointing, device_type=device.type)
    if config.compile != "none":
        # compares the signatures of torch's constructors as it is imported, and zero.Init replaces them
        importlib.import_module("torch._dynamo")
    fill = _fill_of_first(config, ranks, say) if fill_weights else None
    shards_weights = config.zero.stage == 3
    with deepspeed.zero.Init(config_dict_or_path=settings, enabled=shards_weights):
        model = SmolLM2(
            config.model,
            attn_implementation=config.attn_implementation,
            activation_checkpointing=config.activation_checkpointing,
            compile_backend="inductor" if config.compile == "layers" else None,
            deepspeed_checkpoint=deepspeed.checkpointing.checkpoint,
            loss_implementation=config.loss_implementation,
        )
    if not shards_weights:
        model.to(DTYPES[config.precision])  # as zero.Init makes them, so that all stages begin with the same weights
    elif config.compile != "deepcompile":  # which has no hooks to save, and gathers by its own schedule
        set_z3_leaf_modules(model, [DecoderLayer])
    device_name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    if fill_weights:
        for name, parameter in model.named_parameters():
            with deepspeed.zero.GatheredParameters(parameter, modifier_rank=0):
                if fill is not None:
                    fill(name, parameter)
    optimizer = build_optimizer(model, config.optimizer)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings, dist_init_required=False)
    if shards_weights:
        hand_over_in_place(engine)
    if config.compile == "deepcompile":
        engine.compile()
    # DeepCompile sees through the layers, and would see a clock
    clock = None if config.compile == "deepcompile" else LayerClock(model.layers[0], device_type=device.type)
    return Engine(engine, optimizer, device, device_name, count_parameters(config.model).total, clock)


def _prepare_checkpointing(settings: ActivationCheckpointing, *, device_type: str) -> None:
    """DeepSpeed's settings of mode `deepspeed`, which it keeps for the process. Raises TrainingError."""
    if settings.cpu_checkpointing and device_type == "cpu" and not settings.partition_activations:
        # its copy to the host is no copy there, so what it empties afterwards is the only one (0.19.8)
        raise TrainingError(
            "activation_checkpointing.cpu_checkpointing=true moves activations off a device and this one is the CPU; "
            "remove it"
        )
    deepspeed.checkpointing.configure(
        None,
        partition_activations=settings.partition_activations,
        checkpoint_in_cpu=settings.cpu_checkpointing,
    )


def _fill_of_first(config: TrainConfig, ranks: RankEnvironment, say: Callable[[str], None]) -> Fill | None:
    """Rank 0's, who alone writes weights and so alone opens them. Raises TrainingError on every rank alike."""
    fill, problem = None, [""]
    if ranks.is_first:
        try:
            fill = _choose_fill(config, say)
        except (TrainingError, WeightsError) as error:
            problem = [str(error)]
    if config.init_from is not None:
        torch.distributed.broadcast_object_list(problem, src=0)
    if problem[0]:
        raise TrainingError(problem[0])
    return fill


def _choose_fill(config: TrainConfig, say: Callable[[str], None]) -> Fill:
    """Fresh weights of the seed, or those of a Hugging Face directory."""
    if config.init_from is None:
        return lambda name, parameter: fill_parameter_(name, parameter, config=config.model, seed=config.seed)
    weights = PretrainedWeights(config.init_from)
    check_same_model(config, weights.config)
    if config.model.rope_theta != weights.config.rope_theta:
        say(
            f"model.rope_theta={config.model.rope_theta:g}, but the weights of {config.init_from} were trained with "
            f"{weights.config.rope_theta:g}: another function, unless a longer context is to be trained"
        )
    if config.precision == "bfloat16" and weights.dtype != torch.bfloat16:
        say(f"the {str(weights.dtype).removeprefix('torch.')} weights of {config.init_from} are rounded to bfloat16")

    def fill(name: str, parameter: torch.Tensor) -> None:
        try:
            values = weights.tensor(name)
        except WeightsError as error:
            raise TrainingError(str(error)) from error
        with torch.no_grad():
            parameter.copy_(values)

    return fill
