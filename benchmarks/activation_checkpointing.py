"""Time against memory of the checkpointing modes, as written and compiled, on one CPU thread.

    python benchmarks/activation_checkpointing.py --rounds 5

A step is a forward and a backward pass of packed documents, without an optimizer. Rounds go through all variants, so
that a busy machine slows them alike. Seconds are the process's own, user and system; the bytes are the allocator's peak
during a step, above parameters and gradients, as torch.profiler's memory events give it. Ratios are to `none`.

With --zero: what ZeRO-3 on one rank adds to a whole step with AdamW, in processor seconds: beside the same model and
optimizer without DeepSpeed, gathering whole decoder layers (the trainer's way) and matrix by matrix.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

import torch
from local_ranks import free_port, rank_variables
from torch.profiler import ProfilerActivity, profile

from model.activation_checkpointing import ActivationCheckpointing
from model.activation_cost import activation_bytes, attention_kind
from model.config import SmolLM2Config
from model.init import fill_parameter_, initialize
from model.transformer import DecoderLayer, SmolLM2

MODES: dict[str, Any] = {
    "none": "none",
    "every 2 layers": {"mode": "every_n_layers", "every_n_layers": 2},
    "selective": "selective",
    "full": "full",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--sequence-length", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--zero", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    config = SmolLM2Config(
        vocab_size=2048,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=options.layers,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=options.sequence_length,
    )
    shape = (options.batch_size, options.sequence_length)
    tokens = torch.randint(0, config.vocab_size, shape, generator=torch.Generator().manual_seed(0))
    if options.zero:
        compare_zero(config, tokens, options.rounds)
    else:
        compare_modes(config, tokens, options.rounds)


def batch_of(tokens: torch.Tensor) -> dict[str, torch.Tensor]:
    document_ids = (torch.arange(tokens.shape[1]) > tokens.shape[1] // 3).long().expand_as(tokens).contiguous()
    return {"document_ids": document_ids, "labels": tokens.roll(-1, 1)}


def compare_modes(config: SmolLM2Config, tokens: torch.Tensor, rounds: int) -> None:
    variants: dict[str, tuple[str, Any, str | None]] = {
        f"{attention} {name}": (attention, mode, None)
        for attention in ("sdpa", "eager")
        for name, mode in MODES.items()
    }
    variants |= {f"eager {name}, compiled": ("eager", MODES[name], "inductor") for name in ("none", "selective")}
    steps, peaks, seconds = {}, {}, {name: [] for name in variants}  # type: ignore[var-annotated]
    for name, (attention, mode, backend) in variants.items():
        step = training_step(config, tokens, attention, mode, backend)
        step()  # compiles
        steps[name], peaks[name] = step, peak_bytes(step)
    for _ in range(rounds):
        for name, step in steps.items():
            seconds[name].append(processor_seconds(step))
    print(f"{config.num_hidden_layers} layers of SmolLM2-135M, {tokens.shape[0]} x {tokens.shape[1]} tokens, float32")
    print(f"{'':<32}{'CPU s a step':>13}{'spread':>14}{'ratio':>8}{'peak MiB':>10}{'ratio':>8}{'counted':>9}")
    for name, (attention, mode, backend) in variants.items():
        base = f"{attention} none"
        counted = "" if backend else f"{counted_bytes(config, tokens, attention, mode) / 2**20:.0f}"
        print(
            f"{name:<32}{statistics.median(seconds[name]):>13.2f}"
            f"{min(seconds[name]):>7.2f}-{max(seconds[name]):<6.2f}"
            f"{statistics.median(seconds[name]) / statistics.median(seconds[base]):>8.2f}"
            f"{peaks[name] / 2**20:>10.0f}{peaks[name] / peaks[base]:>8.2f}{counted:>9}"
        )


def training_step(
    config: SmolLM2Config, tokens: torch.Tensor, attention: str, mode: Any, backend: str | None
) -> Callable[[], None]:
    model = SmolLM2(
        config,
        attn_implementation=attention,
        activation_checkpointing=ActivationCheckpointing.model_validate(mode),
        compile_backend=backend,
    )
    initialize(model, seed=0)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    batch = batch_of(tokens)
    return lambda: model(tokens, **batch).backward()


def counted_bytes(config: SmolLM2Config, tokens: torch.Tensor, attention: str, mode: Any) -> int:
    return activation_bytes(
        config,
        ActivationCheckpointing.model_validate(mode),
        batch_size=tokens.shape[0],
        sequence_length=tokens.shape[1],
        dtype_bytes=4,
        attention=attention_kind(
            attention, device_type="cpu", document_masking=True, dtype_bytes=4, head_dim=config.head_dim
        ),
        device_type="cpu",
    ).peak


def compare_zero(config: SmolLM2Config, tokens: torch.Tensor, rounds: int) -> None:
    os.environ |= rank_variables(port=free_port()) | {"DS_ACCELERATOR": "cpu"}
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed("gloo")
    steps = {
        "no ZeRO": plain_step(config, tokens),
        "ZeRO-3, whole layers": zero_step(config, tokens, whole_layers=True),
        "ZeRO-3, matrix by matrix": zero_step(config, tokens, whole_layers=False),
    }
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    losses: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(rounds + 2):
        for name, step in steps.items():
            started_s = time.process_time()
            losses[name].append(step())
            if turn > 1:  # DeepSpeed records the order of modules in the first two
                seconds[name].append(time.process_time() - started_s)
    base = statistics.median(seconds["no ZeRO"])
    for name, values in seconds.items():
        equal = losses[name] == losses["ZeRO-3, whole layers"]
        print(
            f"{name:<28}{statistics.median(values):>8.2f} CPU s a step  {min(values):.2f}-{max(values):.2f}"
            f"{statistics.median(values) / base:>8.3f}  last loss {losses[name][-1]:.7f}"
            f"  losses {'equal' if equal else 'differ from'} the trainer's"
        )


def plain_step(config: SmolLM2Config, tokens: torch.Tensor) -> Callable[[], float]:
    model, batch = SmolLM2(config), batch_of(tokens)
    initialize(model, seed=0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95))

    def step() -> float:
        loss = model(tokens, **batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    return step


def zero_step(config: SmolLM2Config, tokens: torch.Tensor, *, whole_layers: bool) -> Callable[[], float]:
    import deepspeed
    from deepspeed.utils import set_z3_leaf_modules

    from launch.trainer.gradients import hand_over_in_place

    # one rank has nothing to scatter and no gathered weights to let go of, see deepspeed_config.py
    of_one_rank = {"reduce_scatter": False, "memory_efficient_linear": False}
    settings = {
        "train_micro_batch_size_per_gpu": tokens.shape[0],
        "gradient_clipping": 1.0,
        "zero_optimization": {"stage": 3, "reduce_bucket_size": 50_000_000} | of_one_rank,
    }
    batch = batch_of(tokens)
    with deepspeed.zero.Init(config_dict_or_path=settings):
        model = SmolLM2(config)
    if whole_layers:
        set_z3_leaf_modules(model, [DecoderLayer])
    for name, parameter in model.named_parameters():
        with deepspeed.zero.GatheredParameters(parameter, modifier_rank=0):
            fill_parameter_(name, parameter, config=config, seed=0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95))
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings, dist_init_required=False)
    hand_over_in_place(engine)

    def step() -> float:
        loss = engine(tokens, **batch)
        engine.backward(loss)
        engine.step()
        return float(loss.detach())

    return step


def processor_seconds(work: Callable[[], object]) -> float:
    started_s = time.process_time()
    work()
    return time.process_time() - started_s


def peak_bytes(work: Callable[[], object]) -> int:
    """The allocator's highest level while `work` runs, above where it began."""
    with quiet_profiler(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    level = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        level += event.nbytes()
        peak = max(peak, level)
    return peak


@contextmanager
def quiet_profiler() -> Any:
    """The profiler writes a line to stderr at each start and stop."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


if __name__ == "__main__":
    main()
