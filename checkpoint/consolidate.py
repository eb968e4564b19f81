"""ZeRO rank files into safetensors, a piece at a time (`piece_copier.py`). The core of `consolidate` and `export`.

Memory is bounded by two buffers a thread, whatever the size of the model, of a tensor or of a shard. The output folder
appears by one rename, after everything in it is on the disk. No process group, no deepspeed.

The file format: eight bytes with the length of a JSON header, the header, the tensors without gaps
(https://github.com/huggingface/safetensors#format).
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch

from checkpoint.lock import claim_output
from checkpoint.manifest import (
    ZERO_TAG,
    CheckpointError,
    checkpoint_directory,
    raise_unless_read,
    read_manifest,
    sync_directory,
    verify_checkpoint,
)
from checkpoint.piece_copier import copy_slices
from checkpoint.zero3_layout import MOMENTS, ParameterLayout, Zero3Layout
from checkpoint.zero_layout import read_any_layout

Dtype = Literal["bfloat16", "float32"]
DTYPES: tuple[Dtype, ...] = get_args(Dtype)

MAX_SHARD_BYTES = 5_000_000_000

_WRITTEN_BYTES: dict[Dtype, int] = {"bfloat16": 2, "float32": 4}
_FORMAT_NAMES: dict[Dtype, str] = {"bfloat16": "BF16", "float32": "F32"}
_HEADER_ALIGNMENT = 8


class DamagedCheckpointError(CheckpointError):
    """A checkpoint whose files are not those of its manifest."""


@dataclass(frozen=True)
class WrittenWeights:
    """What `write_weights` made: its files, and the sums over all tensors."""

    files: tuple[Path, ...]
    total_bytes: int
    total_parameters: int


def as_dtype(name: str) -> Dtype:
    """Raises CheckpointError for a dtype that weights are not written in."""
    for dtype in DTYPES:
        if name == dtype:
            return dtype
    raise CheckpointError(f"dtype {name!r}, wanted one of {', '.join(DTYPES)}; give it with --dtype")


def consolidate_checkpoint(
    run: Path, step: int, output: Path, *, dtype: Dtype, moments: bool = False, max_shard_bytes: int = MAX_SHARD_BYTES
) -> WrittenWeights:
    """Write a checkpoint's weights, under the names they have in training, to the new folder `output`; with `moments`,
    AdamW's two as well, in float32, under the same names as `exp_avg.safetensors` and `exp_avg_sq.safetensors`.

    A tied head is left out, as in every safetensors file: it is `embed_tokens.weight`. Raises CheckpointError for a
    damaged checkpoint, an output that exists, and one that another process is making.
    """
    if output.exists():
        raise CheckpointError(f"{output} exists already; remove it or name another folder")
    layout = verified_layout(run, step)
    busy = f"another consolidation is at work on {output}; wait for it, or name another folder"
    with claim_output(output, busy=busy), hidden_folder(output) as partial:
        written = write_weights(partial, layout.parameters, dtype=dtype, max_shard_bytes=max_shard_bytes)
        for part in MOMENTS if moments else ():
            moment = read_any_layout(checkpoint_directory(run, step) / ZERO_TAG, part=part)
            write_weights(partial, moment.parameters, dtype="float32", max_shard_bytes=max_shard_bytes, stem=part)
        publish_folder(partial, output)
    files = tuple(output / file.name for file in written.files)
    return WrittenWeights(files, written.total_bytes, written.total_parameters)


def verified_layout(run: Path, step: int) -> Zero3Layout:
    """The layout of a checkpoint whose files are those of its manifest.

    Raises DamagedCheckpointError, a line a bad file, if they are not; OSError if they cannot be read; CheckpointError
    for what `read_any_layout` refuses.
    """
    checkpoint = checkpoint_directory(run, step)
    manifest = read_manifest(checkpoint)
    if problems := verify_checkpoint(checkpoint):
        raise_unless_read(problems)
        lines = (f"{checkpoint}/{problem}; take another step" for problem in problems)
        raise DamagedCheckpointError("\n".join(lines))
    layout = read_any_layout(checkpoint / ZERO_TAG)
    if layout.world_size != manifest.world_size:
        raise CheckpointError(
            f"{checkpoint} holds the files of {layout.world_size} ranks, its manifest says {manifest.world_size}; "
            "take another step"
        )
    return layout


def write_weights(
    folder: Path,
    parameters: Mapping[str, ParameterLayout],
    *,
    dtype: Dtype,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    stem: str = "model",
) -> WrittenWeights:
    """Write tensors under the mapping's names as `model.safetensors`, or as numbered shards and an index.

    A shard exceeds `max_shard_bytes` only where a single tensor does. Rounding to bfloat16 is to nearest even, as the
    engine rounds its own copy of the weights. Files are on the disk when this returns. Raises CheckpointError if a rank
    file ends early.
    """
    shards = _fill_shards(parameters, dtype=dtype, max_shard_bytes=max_shard_bytes)
    names = [f"{stem}.safetensors"]
    if len(shards) > 1:
        names = [f"{stem}-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    for file_name, shard in zip(names, shards, strict=True):
        _write_shard(folder / file_name, shard, dtype=dtype)
    total_parameters = sum(parameter.numel for parameter in parameters.values())
    total_bytes = total_parameters * _WRITTEN_BYTES[dtype]
    files = [folder / name for name in names]
    if len(shards) > 1:
        index = {
            "metadata": {"total_size": total_bytes, "total_parameters": total_parameters},
            "weight_map": {name: file for file, shard in zip(names, shards, strict=True) for name in shard},
        }
        files.append(folder / f"{stem}.safetensors.index.json")
        write_file(files[-1], (json.dumps(index, indent=2) + "\n").encode())
    sync_directory(folder)
    return WrittenWeights(tuple(files), total_bytes, total_parameters)


def write_file(path: Path, content: bytes) -> None:
    """A file that is on the disk when this returns, in a folder that is not visible yet."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def hidden_folder(final: Path) -> Iterator[Path]:
    """An empty `.partial-NAME` beside `final`, removed if the block fails; a crash leaves it to the next attempt.

    For who holds a lock on `final`: two at once would write into one folder.
    """
    partial = final.with_name(f".partial-{final.name}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def publish_folder(partial: Path, final: Path) -> None:
    """Rename a finished folder into place. Raises CheckpointError if there is one already."""
    sync_directory(partial)
    try:
        partial.rename(final)
    except OSError:
        if final.exists():
            raise CheckpointError(f"{final} exists already; remove it or name another folder") from None
        raise
    sync_directory(final.parent)


def _fill_shards(
    parameters: Mapping[str, ParameterLayout], *, dtype: Dtype, max_shard_bytes: int
) -> list[dict[str, ParameterLayout]]:
    shards: list[dict[str, ParameterLayout]] = [{}]
    filled_bytes = 0
    for name, parameter in parameters.items():
        size_bytes = parameter.numel * _WRITTEN_BYTES[dtype]
        if shards[-1] and filled_bytes + size_bytes > max_shard_bytes:
            shards.append({})
            filled_bytes = 0
        shards[-1][name] = parameter
        filled_bytes += size_bytes
    return shards


def _write_shard(path: Path, shard: Mapping[str, ParameterLayout], *, dtype: Dtype) -> None:
    header = _header(shard, dtype=dtype)
    with path.open("wb", buffering=0) as file, ExitStack() as sources:
        descriptors: dict[Path, int] = {}
        for source in {piece.path for parameter in shard.values() for piece in parameter.slices}:
            descriptors[source] = sources.enter_context(source.open("rb", buffering=0)).fileno()
        os.pwrite(file.fileno(), header, 0)
        slices = (piece for parameter in shard.values() for piece in parameter.slices)
        copy_slices(slices, descriptors, file.fileno(), first_byte=len(header), dtype=getattr(torch, dtype))
        os.fsync(file.fileno())


def _header(shard: Mapping[str, ParameterLayout], *, dtype: Dtype) -> bytes:
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, parameter in shard.items():
        end = offset + parameter.numel * _WRITTEN_BYTES[dtype]
        entries[name] = {
            "dtype": _FORMAT_NAMES[dtype],
            "shape": list(parameter.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    padded = math.ceil(len(text) / _HEADER_ALIGNMENT) * _HEADER_ALIGNMENT  # so that the tensors are aligned
    return padded.to_bytes(8, "little") + text.ljust(padded)
