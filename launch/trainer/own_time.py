"""How long a rank computes without waiting for another.

Under ZeRO-3 all ranks' steps take equally long, since each waits for the slowest at every layer. What differs is the
time between two waits, measured here where no collective can be: in the first decoder layer's forward pass, whose
parameters ZeRO-3 gathers before and releases after. It shows a slow processor, a hot GPU, a neighbour on the same
cores; not a slow link, which slows every rank alike.
"""

from __future__ import annotations

import time
from typing import Any

import torch


class LayerClock:
    """Wraps `run` of a `DecoderLayer`, compiled or recomputing as it may be, inside of an engine's hooks."""

    def __init__(self, layer: Any, *, device_type: str) -> None:
        self._run = layer.run
        self._on_cuda = device_type == "cuda"
        self._spans: list[tuple[Any, Any]] = []
        self._running: list[tuple[Any, Any]] = []  # of the step before, on a device that may not have come to them yet
        layer.run = self._timed

    def take_s(self) -> float:
        """Seconds of the forward passes since it was last asked; on CUDA, of those before that, without a wait."""
        spans, self._spans = self._spans, []
        if not self._on_cuda:
            return sum((end - start for start, end in spans), start=0.0)
        ended, self._running = self._running, spans
        return sum((start.elapsed_time(end) / 1000 for start, end in ended), start=0.0)

    def _timed(self, *arguments: Any) -> torch.Tensor:
        start = self._now()
        output: torch.Tensor = self._run(*arguments)
        self._spans.append((start, self._now()))
        return output

    def _now(self) -> Any:
        if not self._on_cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event
