"""`profile.steps=10-12`: what each rank did in those steps, for Perfetto or chrome://tracing, and its CUDA memory.

    RUN/profile/rank-N-steps-10-12.json.gz      torch.profiler's trace, of host and device
    RUN/profile/rank-N-steps-10-12.pickle       on CUDA: every allocation, for pytorch.org/memory_viz

Recording costs time: the steps in the range, and the one that writes, are slower than the others.
"""

from __future__ import annotations

from pathlib import Path

import torch

from launch.supervision_config import ProfileConfig


class StepProfiler:
    """`before` each step, and `write` after the last of the range; nothing outside of it, or without one."""

    def __init__(self, config: ProfileConfig, *, run_dir: Path, rank: int) -> None:
        self._range = config.first_and_last
        self._stem = run_dir / "profile" / f"rank-{rank}-steps-{config.steps}"
        self._profiler: torch.profiler.profile | None = None

    def before(self, step: int) -> None:
        if self._range is None or step != self._range[0]:
            return
        activities = [torch.profiler.ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(torch.profiler.ProfilerActivity.CUDA)
            torch.cuda.memory._record_memory_history()
        self._profiler = torch.profiler.profile(activities=activities, record_shapes=True)
        self._profiler.start()

    def ends_with(self, step: int) -> bool:
        """Whether this step is the last that is recorded."""
        return self._range is not None and self._profiler is not None and step == self._range[1]

    def write(self) -> None:
        """The traces of the steps that were recorded: slow, as they may have hundreds of megabytes."""
        assert self._profiler is not None
        self._profiler.stop()
        self._stem.parent.mkdir(exist_ok=True)
        self._profiler.export_chrome_trace(f"{self._stem}.json.gz")
        if torch.cuda.is_available():
            torch.cuda.memory._dump_snapshot(f"{self._stem}.pickle")  # type: ignore[no-untyped-call]
            torch.cuda.memory._record_memory_history(enabled=None)
        self._profiler = None
