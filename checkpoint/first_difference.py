"""Which tensor of an export is the first that is not the checkpoint's: where to look after a failed proof.

Read in the order in which the network computes, so that the first one explains those after it. A buffer's elements of
the checkpoint are in memory at a time, beside one tensor of the export.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from checkpoint.piece_copier import BUFFER_ELEMENTS
from checkpoint.zero3_layout import FLOAT32_BYTES, ParameterLayout


def first_difference(export: Path, parameters: Mapping[str, ParameterLayout]) -> str | None:
    """One line about the first tensor that is absent, of another shape, or has an element that is not the checkpoint's
    rounded to the tensor's dtype; None if all are the checkpoint's.

    `parameters` by the names they have in the export, in the network's order.
    """
    files: dict[str, Path] = {}
    for path in sorted(export.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt") as file:
                files |= dict.fromkeys(file.keys(), path)
        except SafetensorError as error:
            return f"{path.name} cannot be read as safetensors ({' '.join(str(error).split())[:100]})"
    for name, parameter in parameters.items():
        if name not in files:
            return f"{name} is the first tensor that is missing"
        with safe_open(files[name], framework="pt") as file:
            told = _compare(file.get_tensor(name), parameter)
        if told:
            return f"{name} is the first tensor that differs from the checkpoint: {told}"
    return None


def _compare(tensor: torch.Tensor, parameter: ParameterLayout) -> str:
    """What is different, or nothing."""
    if tuple(tensor.shape) != parameter.shape:
        return f"its shape is {list(tensor.shape)}, the checkpoint's {list(parameter.shape)}"
    got, position, differing, largest = tensor.flatten(), 0, 0, 0.0
    for piece in parameter.slices:
        for begin in range(0, piece.numel, BUFFER_ELEMENTS):
            count = min(BUFFER_ELEMENTS, piece.numel - begin)
            offset_bytes = piece.offset_bytes + begin * FLOAT32_BYTES
            wanted = torch.from_numpy(np.fromfile(piece.path, dtype=np.float32, count=count, offset=offset_bytes))
            part, rounded = got[position : position + count], wanted.to(got.dtype)
            # a NaN of the checkpoint is the same NaN in the export
            unequal = ~((part == rounded) | (part.isnan() & rounded.isnan()))
            differing += int(unequal.sum())
            largest = max(largest, float((part.float() - rounded.float()).abs().nan_to_num(nan=float("inf")).max()))
            position += count
    return f"{differing:,} of {parameter.numel:,} elements, by up to {largest:.3g}" if differing else ""
