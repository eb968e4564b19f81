"""SmolLM2 on one GPU: every kernel against eager, then tokens a second over kernels, checkpointing, compile and batch.

    python benchmarks/training_sweep.py --minutes 9.5 --output results

Each model begins with the settings expected to be best and changes one at a time; then transformers' LlamaForCausalLM
with the same weights under the same engine. Each setting is a process of its own, so that one that runs out of memory
ends alone. What there was no time for is listed, not guessed. Writes sweep.json and sweep.md into the output folder, a
row as soon as it is measured, with the best row of each model marked.

Wants torch, deepspeed, numpy, pydantic, PyYAML, safetensors and jaxtyping; transformers and flash-attn take part where
they are installed. `peak` is the memory that torch has held at most.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from local_ranks import free_port, rank_variables

from model.attention_backends.selection import KERNELS, AttentionBackendError, bind, resolve
from model.cost import flops_per_token
from model.documents import Documents

ROOT = Path(__file__).parent.parent
WARM_STEPS, TIMED_STEPS = 3, 10
SECONDS_A_SETTING = 90  # one that hangs or compiles for ever
# bf16 has 8 bits: 4e-3 a rounding, of scores, weights and sums
MAX_KERNEL_DIFFERENCE = 2e-2
HEADS = (
    "model", "who", "attention", "checkpointing", "compile", "batch", "documents", "tokens/s", "MFU", "peak GB",
    "first step s",
)  # fmt: skip


_FASTEST_FIRST = ("flash_attention_4", "flash_attention_3", "flash_attention_2", "sdpa", "flex_attention", "eager")


@dataclass(frozen=True)
class Setting:
    """What is varied, of `who`: ours or transformers."""

    model: str
    attention: str
    activation_checkpointing: str = "none"
    compile: str = "layers"
    micro_batch_size: int = 32
    documents: bool = True
    who: str = "ours"

    @property
    def contender(self) -> str:
        """Of `training_contenders.CONTENDERS`."""
        return f"{self.who}, documents, ZeRO-3, 1 rank" if self.documents else f"{self.who}, ZeRO-3, 1 rank"


@dataclass(frozen=True)
class Row:
    """`failure`: the last line of a setting that did not run; its figures are 0."""

    setting: Setting
    tokens_per_second: float = 0.0
    mfu: float | None = None
    peak_gigabytes: float = 0.0
    first_step_s: float = 0.0
    loss: float = 0.0
    failure: str = ""


def settings_of(model: str, *, attention: list[str], micro_batch_size: int) -> list[Setting]:
    """The expected best first, then one change at a time, most telling first."""
    best = Setting(model, attention[0], micro_batch_size=micro_batch_size)
    change = dataclasses.replace
    return [
        best,
        change(best, who="transformers", compile="none", documents=False),
        change(best, compile="none", documents=False),
        change(best, compile="none"),
        *(change(best, attention=name) for name in attention[1:]),
        change(best, micro_batch_size=micro_batch_size * 2),
        change(best, documents=False),
        change(best, activation_checkpointing="selective", micro_batch_size=micro_batch_size * 2),
        change(best, activation_checkpointing="full", micro_batch_size=micro_batch_size * 2),
        change(best, micro_batch_size=max(1, micro_batch_size // 2)),
    ]


def check_kernel(name: str, device: torch.device, dtype: torch.dtype) -> float:
    """Largest relative norm of the difference from eager in fp32, of the result and of the three gradients."""
    generator = torch.Generator(device="cpu").manual_seed(0)
    shapes = ((2, 512, 9, 64), (2, 512, 3, 64), (2, 512, 3, 64))
    inputs = [torch.randn(shape, generator=generator).to(device, dtype) for shape in shapes]
    document_ids = torch.stack([torch.arange(512) // 100, torch.arange(512) // 511]).to(device)
    documents = Documents(document_ids, document_ids)
    results = []
    for kernel, of_dtype in ((name, dtype), ("eager", torch.float32)):
        leaves = [tensor.to(of_dtype).detach().requires_grad_() for tensor in inputs]
        attended = bind(kernel, documents, dtype=of_dtype, head_dim=64)(*leaves)
        attended.float().square().sum().backward()
        results.append([attended.detach().float(), *(leaf.grad.float() for leaf in leaves if leaf.grad is not None)])
    pairs = zip(*results, strict=True)
    return max(float((ours - wanted).norm() / wanted.norm()) for ours, wanted in pairs)


def usable_kernels(device: torch.device, dtype: torch.dtype) -> list[str]:
    """Those that run here and agree with eager, the expected fastest first; says what is left out and why."""
    names = []
    assert set(_FASTEST_FIRST) == set(KERNELS)
    for name in _FASTEST_FIRST:
        try:
            resolve(name, device_type=device.type, dtype=dtype, head_dim=64)
            difference = check_kernel(name, device, dtype)
        except (AttentionBackendError, RuntimeError) as error:
            print(f"left out: {name} ({str(error).splitlines()[0]})", flush=True)
            continue
        print(f"kernel {name}: differs from eager by {difference:.1e}", flush=True)
        if difference > MAX_KERNEL_DIFFERENCE:
            raise SystemExit(f"{name} differs from eager by {difference:.1e}, wanted at most {MAX_KERNEL_DIFFERENCE}")
        names.append(name)
    return names


def measure(setting: Setting, *, sequence_length: int, precision: str, timeout_s: float) -> Row:
    """In a process of its own."""
    environment = os.environ | {
        **rank_variables(port=free_port()),
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }
    run = {"contender": setting.contender, "sequence_length": sequence_length, "precision": precision}
    wanted = json.dumps({**dataclasses.asdict(setting), **run})
    command = [sys.executable, __file__, "--setting", wanted]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout_s)
    except subprocess.TimeoutExpired:
        return Row(setting, failure=f"not done after {timeout_s:.0f} s")
    if done.returncode:
        return Row(setting, failure=(done.stderr.strip().splitlines() or ["no word"])[-1][:200])
    return Row(setting, **json.loads(done.stdout.strip().splitlines()[-1]))


def run_setting(wanted: dict[str, Any]) -> None:
    """Prints the figures of a Row as the last line."""
    import deepspeed
    from deepspeed.accelerator import get_accelerator
    from training_contenders import CONTENDERS, random_batch

    from configs.load import load
    from launch.config import TrainConfig
    from launch.trainer.throughput import Throughput

    length, batch_size = wanted["sequence_length"], wanted["micro_batch_size"]
    overrides = (
        f"data.sequence_length={length}",
        f"micro_batch_size={batch_size}",
        f"batch_tokens={length * batch_size}",
        *(f"{key}={wanted[key]}" for key in ("precision", "activation_checkpointing", "compile")),
        f"attn_implementation={wanted['attention']}",
    )
    config = load(ROOT / f"configs/train/{wanted['model']}.yaml", TrainConfig, overrides)
    accelerator = get_accelerator()
    deepspeed.init_distributed(dist_backend=accelerator.communication_backend_name(), verbose=False)
    device = torch.device(accelerator.device_name(0))
    _, build = CONTENDERS[wanted["contender"]]
    step = build(config)
    seconds = []
    for number in range(WARM_STEPS + TIMED_STEPS):
        batch = random_batch(config, seed=number).to(device)
        started_s = time.perf_counter()
        loss = float(step(batch))  # waits for the device
        accelerator.synchronize()
        seconds.append(time.perf_counter() - started_s)
    rate = length * batch_size / statistics.median(seconds[WARM_STEPS:])
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    flops = flops_per_token(config.model, sequence_length=length)
    peak_bytes = accelerator.max_memory_allocated() if device.type == "cuda" else 0
    figures = {
        "tokens_per_second": rate,
        "mfu": Throughput(flops_per_token=flops, device_name=name, world_size=1).mfu(rate),
        "peak_gigabytes": peak_bytes / 1e9,
        "first_step_s": seconds[0],
        "loss": loss,
    }
    print(json.dumps(figures), flush=True)
    os._exit(0)


def write(rows: list[Row], folder: Path, *, heading: str) -> None:
    """Both files, whole."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sweep.json").write_text(json.dumps([dataclasses.asdict(row) for row in rows], indent=1) + "\n")
    best = {model: max(row.tokens_per_second for row in rows if row.setting.model == model) for model in _models(rows)}
    lines = [heading, "", "| " + " | ".join(HEADS) + " |", "| --- " * len(HEADS) + "|"]
    for row in rows:
        setting = row.setting
        mark = "**" if row.tokens_per_second and row.tokens_per_second == best[setting.model] else ""
        figures = [
            f"{mark}{row.tokens_per_second:,.0f}{mark}",
            "" if row.mfu is None else f"{row.mfu:.1%}",
            f"{row.peak_gigabytes:.1f}",
            f"{row.first_step_s:.1f}",
        ]
        cells = [
            setting.model,
            setting.who,
            setting.attention if setting.who == "ours" else "sdpa",
            setting.activation_checkpointing,
            setting.compile,
            str(setting.micro_batch_size),
            "packed" if setting.documents else "one a row",
            *([row.failure, "", "", ""] if row.failure else figures),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    (folder / "sweep.md").write_text("\n".join(lines) + "\n")


def _models(rows: list[Row]) -> set[str]:
    return {row.setting.model for row in rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["smollm2-135m", "smollm2-1.7b", "smollm2-360m"])
    parser.add_argument("--micro-batch-sizes", type=int, nargs="+", default=[32, 4, 16], help="one for each model")
    parser.add_argument("--sequence-length", type=int, default=2048)
    parser.add_argument("--precision", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--minutes", type=float, default=9.5, help="no setting begins after them (default: 9.5)")
    parser.add_argument("--output", type=Path, default=Path("results"))
    parser.add_argument("--setting", type=json.loads, help=argparse.SUPPRESS)
    settings = parser.parse_args()
    if settings.setting:
        run_setting(settings.setting)
        return
    if len(settings.micro_batch_sizes) != len(settings.models):
        parser.error(f"--micro-batch-sizes: got {len(settings.micro_batch_sizes)}, wanted one for each of --models")
    ends_s = time.monotonic() + 60 * settings.minutes
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    heading = f"{name}, torch {torch.__version__}, {datetime.now(UTC):%Y-%m-%d}, sequence {settings.sequence_length}"
    kernels = usable_kernels(device, torch.bfloat16 if settings.precision == "bfloat16" else torch.float32)
    lists = [
        settings_of(model, attention=kernels, micro_batch_size=size)
        for model, size in zip(settings.models, settings.micro_batch_sizes, strict=True)
    ]
    # in turns, so that a short time gives every model its most telling rows
    queue = [setting for together in zip(*lists, strict=True) for setting in together]
    rows: list[Row] = []
    for index, setting in enumerate(queue):
        left_s = ends_s - time.monotonic()
        if left_s <= 0:
            print(f"no time for {len(queue) - index} settings: {queue[index:]}")
            break
        row = measure(
            setting,
            sequence_length=settings.sequence_length,
            precision=settings.precision,
            timeout_s=min(SECONDS_A_SETTING, left_s + 10),
        )
        print(row, flush=True)
        rows.append(row)
        write(rows, settings.output, heading=heading)


if __name__ == "__main__":
    main()
