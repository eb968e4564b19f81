"""What passes between a run and its workers, whatever they are: tasks, and messages of what became of an item.

An executor yields `Started` when an item is begun, the task's own news as they are told, then `Finished`, or `Lost` if
its worker died, after which the item is begun anew; and None when nothing has happened for a while.
"""

from __future__ import annotations

import os
import pickle
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from pipeline.document import PipelineError, one_line

Result = TypeVar("Result")

# does one item; whatever it hands to its second argument reaches the parent at once
Task = Callable[[Any, Callable[[Any], None]], Any]


# of a worker's process, one of which each core has already: the threads of tokenizers and of splintr
ONE_THREAD = {"TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1"}


class WorkerError(PipelineError):
    """Workers died in the middle of their work, or there are none to be had."""


@dataclass(frozen=True, slots=True)
class Started:
    """An item is in the hands of a worker: `pid 71`, or `pid 71 on 10.0.0.3`."""

    item: Any
    worker: str


@dataclass(frozen=True, slots=True)
class Finished(Generic[Result]):
    """The result of an item, as against news of one that is being done."""

    result: Result


@dataclass(frozen=True, slots=True)
class Lost:
    """The worker of an item died: `was killed by SIGKILL`. What it told of that item no longer counts."""

    item: Any
    how: str


@dataclass(frozen=True, slots=True)
class Failed:
    """An exception of a task, on its way to the parent."""

    error: BaseException


def failure(error: BaseException) -> Failed:
    """The exception that is being handled, with a note of where it came from: a traceback stays in its process.

    One that would not arrive, as pickle cannot make it again, is told by a WorkerError.
    """
    note = f"in worker {os.getpid()}:\n{traceback.format_exc()}"
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        error = WorkerError(f"a worker failed: {one_line(repr(error))}")
    error.add_note(note)
    return Failed(error)
