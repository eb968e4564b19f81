"""Where units are done: the door to `workers/`, which hold the ways.

Whatever the executor, the same items give the same results; `workers/task.py` has the messages that tell of them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pipeline.config import ExecutorKind, PipelineConfig
from pipeline.workers import local
from pipeline.workers.local import run_in_processes
from pipeline.workers.memory import can_be_measured
from pipeline.workers.quarantine import QuarantineError
from pipeline.workers.serial import run_serially
from pipeline.workers.task import Finished, Lost, Started, Task, WorkerError
from pipeline.workers.template import Template

__all__ = [
    "ExecutorKind",
    "ExecutorSettings",
    "Finished",
    "Lost",
    "QuarantineError",
    "Started",
    "Task",
    "Template",
    "WorkerError",
    "available_cores",
    "begin_ahead",
    "execute",
    "executor_settings",
    "run_in_processes",
    "workers_of_this_machine",
]


@dataclass(frozen=True, slots=True)
class ExecutorSettings:
    """What does items, how many at once (None: one a core, of this machine or of the cluster), in how much memory."""

    kind: ExecutorKind = "local"
    workers: int | None = None
    max_worker_memory_bytes: int | None = None


def executor_settings(config: PipelineConfig) -> ExecutorSettings:
    return ExecutorSettings(config.executor, config.workers, config.max_worker_memory_bytes)


@contextmanager
def begin_ahead(settings: ExecutorSettings, call: Callable[[], object]) -> Iterator[Template | None]:
    """For an `execute` of this block: where workers are this machine's, begin with the process that they come of."""
    if settings.kind == "local":
        with local.begin_ahead(call) as template:
            yield template
    else:
        yield None


def execute(
    settings: ExecutorSettings, make_task: Callable[[], Task], items: Sequence[Any], *, template: Template | None = None
) -> Iterator[Any]:
    """Do every item; yields messages as `run_in_processes` does, and raises what that raises. `template` is of
    `begin_ahead`."""
    if settings.max_worker_memory_bytes is not None and not can_be_measured():
        raise WorkerError("max_worker_memory_bytes can be watched on Linux only; remove it")
    match settings.kind:
        case "serial":
            return run_serially(make_task, items)
        case "local":
            return run_in_processes(
                make_task,
                items,
                workers=settings.workers or available_cores(),
                max_worker_memory_bytes=settings.max_worker_memory_bytes,
                template=template,
            )
        case "ray":
            from pipeline.workers.ray_tasks import run_on_ray

            return run_on_ray(
                make_task,
                items,
                workers=settings.workers,
                max_worker_memory_bytes=settings.max_worker_memory_bytes,
            )


def workers_of_this_machine(config: PipelineConfig) -> int:
    """How many processes may do what is done here whatever the executor, such as sampling for a tokenizer."""
    if config.executor == "serial":
        return 1
    return (config.workers if config.executor == "local" else None) or available_cores()


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
