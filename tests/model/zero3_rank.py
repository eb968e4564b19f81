"""One rank of `test_zero3.py`: for each case builds the model sharded, fills it, and writes its loss and gradients,
and how often the embedding was gathered for them.

RANK=0 WORLD_SIZE=2 … python tests/model/zero3_rank.py JOB_FILE OUTPUT_FILE
"""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

import torch

GATHERED_ELEMENTS: list[int] = []
_gather = torch.distributed.all_gather_into_tensor


def _counted_gather(output_tensor: torch.Tensor, *arguments: Any, **settings: Any) -> Any:
    GATHERED_ELEMENTS.append(output_tensor.numel())
    return _gather(output_tensor, *arguments, **settings)


torch.distributed.all_gather_into_tensor = _counted_gather  # before DeepSpeed takes hold of it

import deepspeed  # noqa: E402
from deepspeed.utils import safe_get_full_grad, set_z3_leaf_modules  # noqa: E402

from model import loss_selection  # noqa: E402
from model.activation_checkpointing import ActivationCheckpointing  # noqa: E402
from model.init import fill_parameter_  # noqa: E402
from model.transformer import DecoderLayer, SmolLM2  # noqa: E402


def main(job_file: str, output_file: str) -> None:
    job = torch.load(job_file, weights_only=False)
    # gloo's own collectives: the test is of the model, and does without twenty seconds of g++
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed("gloo")
    loss_selection.chunked_loss = partial(loss_selection.chunked_loss, chunk_logits=job["chunk_logits"])
    torch.save([_measure(job, case) for case in job["cases"]], output_file)


def _measure(job: dict[str, Any], case: dict[str, Any]) -> dict[str, Any]:
    engine = _build(case)
    rank = torch.distributed.get_rank()
    row = slice(rank, rank + 1)
    batch = {"document_ids": job["document_ids"][row], "labels": job["labels"][row]}
    GATHERED_ELEMENTS.clear()
    loss = engine(job["tokens"][row], **batch)
    engine.backward(loss)
    embedding = case["config"].vocab_size * case["config"].hidden_size
    gathers = sum(elements >= embedding for elements in GATHERED_ELEMENTS)
    gradients = {name: safe_get_full_grad(parameter).clone() for name, parameter in engine.module.named_parameters()}
    with torch.no_grad():
        evaluation_loss = engine(job["tokens"][row], **batch)
    engine.destroy()
    return {"loss": loss.detach(), "evaluation_loss": evaluation_loss, "gradients": gradients, "gathers": gathers}


def _build(case: dict[str, Any]) -> Any:
    settings = {
        "train_micro_batch_size_per_gpu": 1,
        # everything is sharded and gathered, however small
        "zero_optimization": {
            "stage": 3,
            "stage3_param_persistence_threshold": 0,
            # a gather is of one parameter, so that it can be told whose it is
            "stage3_prefetch_bucket_size": 0,
        },
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-3, "torch_adam": True}},
    }
    checkpointing = ActivationCheckpointing.model_validate(case["activation_checkpointing"])
    deepspeed.checkpointing.configure(
        None,
        partition_activations=checkpointing.partition_activations,
        checkpoint_in_cpu=checkpointing.cpu_checkpointing,
    )
    with deepspeed.zero.Init(config_dict_or_path=settings):
        model = SmolLM2(
            case["config"],
            attn_implementation=case["attn_implementation"],
            activation_checkpointing=checkpointing,
            compile_backend=case["compile_backend"],
            deepspeed_checkpoint=deepspeed.checkpointing.checkpoint,
        )
    if case["whole_layers"]:
        set_z3_leaf_modules(model, [DecoderLayer])
    for name, parameter in model.named_parameters():
        with deepspeed.zero.GatheredParameters(parameter, modifier_rank=0):
            if torch.distributed.get_rank() == 0:
                fill_parameter_(name, parameter, config=case["config"], seed=0)
    engine, *_ = deepspeed.initialize(model=model, config=settings, model_parameters=list(model.parameters()))
    return engine


if __name__ == "__main__":
    main(*sys.argv[1:])
