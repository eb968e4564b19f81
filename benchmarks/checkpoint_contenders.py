"""The contenders of `checkpoints.py`, each in a process of its own.

    python benchmarks/checkpoint_contenders.py NAME CHECKPOINT MODEL OUTPUT

Prints one line of JSON: seconds and memory of the work, without those of the imports.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout
from pathlib import Path

import torch

from checkpoint import consolidate, piece_copier
from checkpoint.digests import count_ranges, digest_ranges_of
from checkpoint.zero3_layout import FLOAT32_BYTES, read_layout

PIECE_ELEMENTS = 512 * 1024  # with which `bytes alone` is fastest

Work = Callable[[Path, Path, Path], None]


def ours(checkpoint: Path, model: Path, output: Path) -> None:
    """As `smollm2 checkpoint consolidate`, without the verification, which no peer has."""
    consolidate.write_weights(output, read_layout(checkpoint / "zero").parameters, dtype="bfloat16")


def verification(checkpoint: Path, model: Path, output: Path) -> None:
    """Every byte of the checkpoint, moments and all, read and hashed."""
    files = [(path, path.stat().st_size) for path in (checkpoint / "zero").iterdir()]
    for _ in digest_ranges_of([(path, index) for path, size in files for index in range(count_ranges(size))]):
        pass


def bytes_alone(checkpoint: Path, model: Path, output: Path) -> None:
    """The same reads, and a write of half of each, as bfloat16 takes: what any converter must do."""
    parameters = read_layout(checkpoint / "zero").parameters
    files = {piece.path: piece.path.open("rb", buffering=0) for one in parameters.values() for piece in one.slices}
    places, end = [], 0
    for parameter in parameters.values():
        for piece in parameter.slices:
            for begin in range(0, piece.numel, PIECE_ELEMENTS):
                numel = min(PIECE_ELEMENTS, piece.numel - begin)
                places.append((piece.path, piece.offset_bytes + begin * FLOAT32_BYTES, numel * FLOAT32_BYTES, end))
                end += numel * 2
    with (output / "bytes").open("wb", buffering=0) as file:

        def copy(place: tuple[Path, int, int, int]) -> None:
            path, offset, size, target = place
            content = os.pread(files[path].fileno(), size, offset)
            os.pwrite(file.fileno(), memoryview(content)[: size // 2], target)

        with ThreadPoolExecutor(min(piece_copier.MAX_THREADS, len(os.sched_getaffinity(0)))) as threads:
            for _ in threads.map(copy, places):
                pass
        os.fsync(file.fileno())


def deepspeed_converter(checkpoint: Path, model: Path, output: Path) -> None:
    """`zero_to_fp32`'s own function, to bfloat16 in torch's format: to safetensors it fails on a tied head."""
    from deepspeed.utils.zero_to_fp32 import convert_zero_checkpoint_to_state_dict

    convert_zero_checkpoint_to_state_dict(str(checkpoint), str(output), dtype=torch.bfloat16)


def usual_way(checkpoint: Path, model: Path, output: Path) -> None:
    """The state dict into a Hugging Face model, and `save_pretrained`."""
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint
    from transformers import LlamaConfig, LlamaForCausalLM

    from configs.load import load
    from model.config import SmolLM2Config
    from model.hf_config import huggingface_config
    from model.parameters import to_huggingface_name

    weights = get_fp32_state_dict_from_zero_checkpoint(str(checkpoint))
    settings = huggingface_config(load(model, SmolLM2Config, []), dtype="bfloat16")
    hugging_face = LlamaForCausalLM(LlamaConfig(**settings)).to(torch.bfloat16)
    hugging_face.load_state_dict({to_huggingface_name(name): tensor for name, tensor in weights.items()}, strict=False)
    hugging_face.save_pretrained(output)


CONTENDERS: dict[str, Work] = {
    "ours": ours,
    "bytes alone": bytes_alone,
    "DeepSpeed's converter": deepspeed_converter,
    "zero_to_fp32 and save_pretrained": usual_way,
    "verification": verification,
}


def main() -> None:
    name, checkpoint, model, output = sys.argv[1:]
    if name in ("DeepSpeed's converter", "zero_to_fp32 and save_pretrained"):
        import deepspeed.utils.zero_to_fp32  # noqa: F401

        if name != "DeepSpeed's converter":
            import transformers.models.llama  # noqa: F401
    read_weights(Path(checkpoint))
    imported_bytes = resident_peak_bytes()
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    with redirect_stdout(sys.stderr):
        CONTENDERS[name](Path(checkpoint), Path(model), Path(output))
    for path in Path(output).rglob("*"):  # all are timed until their files are on the disk
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    measured = {"wall_s": time.perf_counter() - wall_s, "cpu_s": time.process_time() - cpu_s}
    peak_bytes = resident_peak_bytes()
    print(json.dumps(measured | {"peak_bytes": peak_bytes, "work_bytes": peak_bytes - imported_bytes}))


def read_weights(checkpoint: Path) -> None:
    """Into the page cache, where all find them, whoever's turn it was before."""
    buffer = bytearray(1 << 20)
    for parameter in read_layout(checkpoint / "zero").parameters.values():
        for piece in parameter.slices:
            with piece.path.open("rb", buffering=0) as file:
                file.seek(piece.offset_bytes)
                for begin in range(0, piece.numel * FLOAT32_BYTES, len(buffer)):
                    file.readinto(memoryview(buffer)[: piece.numel * FLOAT32_BYTES - begin])


def resident_peak_bytes() -> int:
    """Linux's own count of this program: that of getrusage begins with its parent's."""
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main()
