"""A copy of a rank's state in host memory, taken behind the next step's forward and backward passes.

What the optimizer owns changes only in its own step. So a save needs no copy before training goes on, only one before
the next update: `mirror` fixes the structure at once, and `copy` moves the bytes, in a thread of its own. A copy keeps
what torch.save would keep: storages that tensors share, views, whole storages behind views.

Knows nothing of files, checkpoints or other ranks.
"""

from __future__ import annotations

import copy
from typing import Any

import torch


class HostMemory:
    """Buffers for one copy, kept from save to save: page-locked for a device, so that it copies at full speed, and
    asked for once, so that memory is short at the first save or never."""

    def __init__(self, *, pinned: bool) -> None:
        self._pinned = pinned
        self._free: dict[int, list[torch.Tensor]] = {}

    def take(self, size_bytes: int) -> torch.Tensor:
        """Bytes [size_bytes] of any content."""
        if buffers := self._free.get(size_bytes):
            return buffers.pop()
        return torch.empty(size_bytes, dtype=torch.uint8, pin_memory=self._pinned and size_bytes > 0)

    def give_back(self, buffer: torch.Tensor) -> None:
        self._free.setdefault(buffer.numel(), []).append(buffer)

    @property
    def size_bytes(self) -> int:
        """Of the buffers that nobody holds."""
        return sum(size_bytes * len(buffers) for size_bytes, buffers in self._free.items())


class HostCopy:
    """One copy. Tensors must keep their values from `mirror` until `copy` has returned."""

    def __init__(self, memory: HostMemory, device: torch.device) -> None:
        self._memory, self._device = memory, device
        self._storages: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}  # by address of the storage: source, target
        self._tensors: dict[int, torch.Tensor] = {}  # so that one object stays one object
        self._kept: list[torch.Tensor] = []  # ids are unique among the living
        self._ready: torch.cuda.Event | None = None

    def mirror(self, value: Any) -> Any:
        """The same structure with tensors in host memory, which have no values yet."""
        mirrored = self._mirror(value)
        if self._device.type == "cuda":
            self._ready = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._ready.record(torch.cuda.current_stream(self._device))
        return mirrored

    def copy(self) -> None:
        """Give the mirrored tensors their values; from any thread."""
        if self._ready is None:
            for source, target in self._storages.values():
                target.copy_(source)
        else:
            stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
            stream.wait_event(self._ready)
            with torch.cuda.stream(stream):
                for source, target in self._storages.values():
                    target.copy_(source, non_blocking=True)
            stream.synchronize()

    def release(self) -> None:
        """Give the memory back; what `mirror` returned must not be used any more."""
        for _, target in self._storages.values():
            self._memory.give_back(target)
        self._storages, self._tensors, self._kept = {}, {}, []

    def _mirror(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return self._mirror_tensor(value)
        if isinstance(value, dict):
            clone = copy.copy(value)  # keeps the class, and what a module's state dict carries beside its items
            for key, item in value.items():
                clone[key] = self._mirror(item)
            return clone
        if type(value) in (list, tuple):
            return type(value)(self._mirror(item) for item in value)
        return copy.deepcopy(value)

    def _mirror_tensor(self, tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) in self._tensors:
            return self._tensors[id(tensor)]
        target = self._target(tensor.untyped_storage())
        mirrored = torch.empty(0, dtype=tensor.dtype).set_(
            target.untyped_storage(), tensor.storage_offset(), tensor.size(), tensor.stride()
        )
        if isinstance(tensor, torch.nn.Parameter):
            mirrored = torch.nn.Parameter(mirrored, requires_grad=tensor.requires_grad)
        else:
            mirrored.requires_grad_(tensor.requires_grad)
        self._kept.append(tensor)
        self._tensors[id(tensor)] = mirrored
        return mirrored

    def _target(self, storage: torch.UntypedStorage) -> torch.Tensor:
        address = storage._cdata
        if address not in self._storages:
            source = torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
            self._storages[address] = source, self._memory.take(storage.nbytes())
        return self._storages[address][1]
