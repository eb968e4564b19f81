"""Host copies against torch.save of the live state, byte for byte."""

from __future__ import annotations

import io
from collections import OrderedDict
from typing import Any

import torch

from launch.trainer.host_copy import HostCopy, HostMemory

CPU = torch.device("cpu")


def serialized(state: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def training_state() -> dict[str, Any]:
    """With all that DeepSpeed's states have: views, shared storages, parameters, nothing of a partitioned tensor."""
    flat = torch.randn(1000)
    module = torch.nn.Linear(3, 4)
    return {
        "views": [flat[:300], flat[300:990]],
        "transposed": torch.randn(4, 5).T,
        "module": module.state_dict(),  # an OrderedDict with an attribute
        "parameter": module.weight,
        "leaf": torch.randn(5, requires_grad=True),
        "empty": torch.empty(0, dtype=torch.bfloat16),
        "step": torch.tensor(3.0),
        "shapes": [OrderedDict(weight=torch.Size([2, 3]))],
        "groups": ({"lr": 0.1, "betas": (0.9, 0.95)},),
        "bits": torch.randint(0, 255, (7,), dtype=torch.uint8),
    }


def test_copy_is_saved_as_the_live_state_is() -> None:
    torch.manual_seed(0)
    state = training_state()
    copy = HostCopy(HostMemory(pinned=False), CPU)
    mirrored = copy.mirror(state)
    copy.copy()
    assert serialized(mirrored) == serialized(state)


def test_copy_keeps_what_was_when_the_live_state_moves_on() -> None:
    torch.manual_seed(0)
    state = training_state()
    expected = serialized(state)
    copy = HostCopy(HostMemory(pinned=False), CPU)
    mirrored = copy.mirror(state)
    state["groups"][0]["lr"] = 0.2  # the schedule, before the next step
    copy.copy()
    with torch.no_grad():
        state["views"][0].zero_()
        state["parameter"].zero_()
        state["step"].fill_(4.0)
    assert serialized(mirrored) == expected


def test_shared_storage_is_copied_once() -> None:
    memory, flat = HostMemory(pinned=False), torch.zeros(1000)
    copy = HostCopy(memory, CPU)
    copy.mirror([flat[:10], flat[10:], flat])
    copy.copy()
    copy.release()
    assert memory.size_bytes == 4000


def test_memory_is_given_again_by_size() -> None:
    memory = HostMemory(pinned=False)
    buffer = memory.take(100)
    memory.give_back(buffer)
    assert memory.take(50) is not buffer
    assert memory.take(100) is buffer
