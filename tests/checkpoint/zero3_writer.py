"""Writes real ZeRO checkpoints: `RANK=0 WORLD_SIZE=2 … python zero3_writer.py OUTPUT` makes one a variant below OUTPUT.

Beside each checkpoint lies what DeepSpeed's own `zero_to_fp32` makes of it, as `expected.pt`, and the moments that
DeepSpeed gathers from the ranks, as `moments.pt`.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from pathlib import Path
from typing import Any

os.environ["DS_ACCELERATOR"] = "cpu"
os.environ["TORCHDYNAMO_DISABLE"] = "1"  # DeepSpeed's Newton–Schulz without the minute that it takes to compile
warnings.filterwarnings("ignore")

import deepspeed  # noqa: E402
import torch  # noqa: E402
from deepspeed.runtime.zero.muon.muon_optimizer import MuonWithAuxAdam  # noqa: E402
from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state  # noqa: E402
from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint  # noqa: E402
from torch import nn  # noqa: E402

from checkpoint import manifest  # noqa: E402
from model.config import SmolLM2Config  # noqa: E402
from model.transformer import SmolLM2  # noqa: E402

VARIANTS = {
    # name: (ZeRO stage, tied, dtype, elements in one of ZeRO-3's flat groups)
    "tied-float32": (3, True, "float32", 1_000_000_000),
    "untied-float32": (3, False, "float32", 1_000_000_000),
    "tied-bfloat16": (3, True, "bfloat16", 40),
    "untied-bfloat16": (3, False, "bfloat16", 1_000_000_000),
    "stage1-float32": (1, True, "float32", 1_000_000_000),
    "stage1-bfloat16": (1, True, "bfloat16", 1_000_000_000),  # by DeepSpeed's BF16_Optimizer
    "stage2-bfloat16": (2, False, "bfloat16", 1_000_000_000),
}

MODEL: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}


class Uneven(nn.Module):
    """Parameters whose sizes no world size from 2 to 4 divides; `scale` and `shift` leave whole ranks with padding."""

    def __init__(self, *, tied: bool) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(13, 7)
        self.up = nn.Linear(7, 11)
        self.down = nn.Linear(11, 7, bias=False)
        self.scale = nn.Parameter(torch.ones(1))
        self.shift = nn.Parameter(torch.zeros(5, 1))
        self.lm_head = nn.Linear(7, 13, bias=False)
        if tied:
            self.lm_head.weight = self.embed_tokens.weight

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        hidden = self.embed_tokens(input_ids)
        hidden = hidden + self.down(torch.tanh(self.up(hidden))) * self.scale + self.shift.sum()
        return self.lm_head(hidden)


def deepspeed_config(dtype: str, *, sub_group_size: int, stage: int) -> dict[str, Any]:
    zero: dict[str, Any] = {"stage": stage}
    if stage == 3:
        zero |= {"sub_group_size": sub_group_size, "stage3_param_persistence_threshold": 0}
    return {
        "train_micro_batch_size_per_gpu": 2,
        "zero_optimization": zero,
        "bf16": {"enabled": dtype == "bfloat16"},
        "data_types": {"grad_accum_dtype": "fp32"},
        "optimizer": {"type": "AdamW", "params": {"lr": 0.01, "torch_adam": True}},
        "zero_allow_untested_optimizer": True,
    }


def start_engine(model: nn.Module, dtype: str, *, sub_group_size: int = 1_000_000_000, stage: int = 3) -> Any:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [parameter for parameter in trained if parameter.ndim >= 2], "weight_decay": 0.1},
        {"params": [parameter for parameter in trained if parameter.ndim < 2], "weight_decay": 0.0},
    ]
    config = deepspeed_config(dtype, sub_group_size=sub_group_size, stage=stage)
    return deepspeed.initialize(model=model, model_parameters=groups, config=config)[0]


def train(engine: Any, batches: torch.Tensor) -> None:
    """One step on each batch [steps, rows, sequence]."""
    for input_ids in batches:
        logits = engine(input_ids)
        loss = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), input_ids[:, 1:].flatten())
        engine.backward(loss)
        engine.step()


def write_consolidation_variants(output: Path) -> None:
    for name, (stage, tied, dtype, sub_group_size) in VARIANTS.items():
        torch.manual_seed(0)
        model = Uneven(tied=tied).to(getattr(torch, dtype))
        engine = start_engine(model, dtype, sub_group_size=sub_group_size, stage=stage)
        train(engine, torch.randint(0, 13, (2, 2, 8)))
        engine.save_checkpoint(str(output / name), tag="zero")
        if name in ("tied-bfloat16", "stage1-bfloat16", "stage2-bfloat16"):
            moments = {part: gather_moment(engine, part, stage=stage) for part in ("exp_avg", "exp_avg_sq")}
            if torch.distributed.get_rank() == 0:
                torch.save(moments, output / name / "moments.pt")
        # zero_to_fp32 does not know BF16_Optimizer's files, but DeepSpeed gathers its weights from the ranks
        weights = (
            {key: safe_get_full_fp32_param(value).clone() for key, value in engine.module.named_parameters()}
            if name == "stage1-bfloat16"
            else None
        )
        if torch.distributed.get_rank() == 0:
            expected = weights or get_fp32_state_dict_from_zero_checkpoint(str(output / name), tag="zero")
            torch.save(expected, output / name / "expected.pt")
        torch.distributed.barrier()


def write_frozen(output: Path, *, stage: int) -> None:
    """Two parameters that the optimizer does not own, one of them with less elements than there are ranks."""
    torch.manual_seed(0)
    model = Uneven(tied=True).bfloat16()
    model.up.weight.requires_grad = model.scale.requires_grad = False
    engine = start_engine(model, "bfloat16", stage=stage)
    train(engine, torch.randint(0, 13, (2, 2, 8)))
    engine.save_checkpoint(str(output), tag="zero")
    if torch.distributed.get_rank() == 0:
        torch.save(get_fp32_state_dict_from_zero_checkpoint(str(output), tag="zero"), output / "expected.pt")
    torch.distributed.barrier()


def muon_engine(*, sub_group_size: int = 40) -> Any:
    """Muon for the two matrices of the middle, AdamW for the rest; sub-groups of one or two parameters."""
    torch.manual_seed(0)
    model = Uneven(tied=True)
    matrices = [model.up.weight, model.down.weight]
    others = [parameter for parameter in model.parameters() if all(parameter is not matrix for matrix in matrices)]
    for parameter in model.parameters():
        parameter.use_muon = any(parameter is matrix for matrix in matrices)
    groups = [
        {"params": matrices, "lr": 0.02, "momentum": 0.9, "weight_decay": 0.1, "use_muon": True},
        {"params": others, "lr": 0.01, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.0, "use_muon": False},
    ]
    config = {
        "train_micro_batch_size_per_gpu": 2,
        "zero_optimization": {"stage": 3, "sub_group_size": sub_group_size, "reduce_scatter": False},
        "communication_data_type": "fp32",
        "data_types": {"grad_accum_dtype": "fp32"},
    }
    optimizer = MuonWithAuxAdam(groups, adam_optimizer=torch.optim.AdamW)
    return deepspeed.initialize(model=model, optimizer=optimizer, config=config)[0]


def write_muon(folder: Path) -> None:
    engine = muon_engine()
    train(engine, torch.randint(0, 13, (2, 2, 8)))
    engine.save_checkpoint(str(folder), tag="zero")


def gather_moment(engine: Any, part: str, *, stage: int) -> dict[str, torch.Tensor]:
    """Of every parameter, whole, as DeepSpeed gathers it; of stage 2, where 0.19.8 fails to, by its own offsets."""
    names = {parameter: name for name, parameter in engine.module.named_parameters()}
    if stage != 2:
        return {name: safe_get_full_optimizer_state(parameter, part).clone() for parameter, name in names.items()}
    zero, moments = engine.optimizer, {}
    for group, flat in enumerate(zero.single_partition_of_fp32_groups):
        parts = [torch.empty_like(flat) for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather(parts, zero.optimizer.state[flat][part])
        whole = torch.cat(parts)
        for parameter, offset in zip(
            zero.round_robin_bit16_groups[group], zero.round_robin_bit16_offsets[group], strict=True
        ):
            moments[names[parameter]] = whole[offset : offset + parameter.numel()].view(parameter.shape).clone()
    return moments


def write_run(run: Path, *, tied: bool, dtype: str) -> None:
    """A run folder with checkpoints of steps 2 and 4 of a small SmolLM2, as the trainer writes it."""
    torch.manual_seed(1)
    config = SmolLM2Config(**MODEL, tie_word_embeddings=tied)
    model = SmolLM2(config, attn_implementation="sdpa")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # large queries and keys make attention sharp, so that a wrong rotation shows without hours of training
            scale = 0.5 if "q_proj" in name or "k_proj" in name else 0.2 if "embed" in name or "head" in name else 0.15
            parameter.fill_(1.0) if "norm" in name else parameter.normal_(0.0, scale)
    engine = start_engine(model.to(getattr(torch, dtype)), dtype)
    token_ids = torch.randint(0, config.vocab_size, (4, 257))
    batches = torch.randint(0, config.vocab_size, (1, 2, 64))
    for step in (2, 4):  # each of them one real step, to have something to save
        train(engine, batches)
        save(engine, run, step=step, config=config, dtype=dtype, token_ids=token_ids)


def save(engine: Any, run: Path, *, step: int, config: SmolLM2Config, dtype: str, token_ids: torch.Tensor) -> None:
    rank, partial = torch.distributed.get_rank(), manifest.partial_directory(run, step)
    with torch.no_grad():
        logits = engine(token_ids)[:, :-1].float()
    loss = nn.functional.cross_entropy(logits.flatten(0, 1), token_ids[:, 1:].flatten())
    engine.save_checkpoint(str(partial), tag=manifest.ZERO_TAG)
    own = manifest.describe_files(partial, (partial / manifest.ZERO_TAG).glob(f"*zero_pp_rank_{rank}_*.pt"))
    records: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(records, own)
    if rank == 0:
        manifest.publish_checkpoint(
            run,
            manifest.CheckpointManifest(
                run_key="0" * 32,
                step=step,
                tokens_consumed=step * 128,
                samples_consumed=step * 2,
                world_size=len(records),
                zero_stage=3,
                dtype=dtype,
                config_digest="sha256:config",
                dataset_digests={"train": "sha256:data"},
                tokenizer_digest="sha256:tokenizer",
                model=config.model_dump(),
                validation_loss=float(loss),
                probe=manifest.Probe(token_ids=token_ids.tolist(), mean_negative_log_likelihood=float(loss)),
                files=[record for part in records for record in part],
            ),
        )
    torch.distributed.barrier()


def main() -> None:
    output = Path(sys.argv[-1])
    logging.disable(logging.WARNING)
    # gloo's own collectives: they need neither g++ nor shared memory, which DeepSpeed would leave behind
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend="gloo")
    write_consolidation_variants(output)
    if torch.distributed.get_world_size() == 3:
        for stage in (2, 3):
            write_frozen(output / f"frozen-stage{stage}", stage=stage)
    if torch.distributed.get_world_size() == 2:
        write_muon(output / "muon-float32")
        write_run(output / "run-float32", tied=False, dtype="float32")
        write_run(output / "run-bfloat16", tied=True, dtype="bfloat16")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
