from __future__ import annotations

import pickle

import pytest

from pipeline.document import PipelineError
from pipeline.workers.local import run_in_processes
from pipeline.workers.task import Task, WorkerError, failure


class PositionError(Exception):
    """Pickle hands its message to `__init__`, which wants more."""

    def __init__(self, name: str, position: int) -> None:
        super().__init__(f"{name} is broken at {position}")

    def __repr__(self) -> str:
        return f"PositionError:\n  {self}"


def meet_position_error(item: object, tell: object) -> None:
    raise PositionError("a.bin", 7)


def make_task() -> Task:
    return meet_position_error


def test_an_exception_that_pickle_cannot_make_again_still_says_why() -> None:
    with pytest.raises(WorkerError) as caught:
        list(run_in_processes(make_task, [1], workers=1))
    assert str(caught.value) == "a worker failed: PositionError: a.bin is broken at 7"
    assert "in meet_position_error" in caught.value.__notes__[0]


def test_other_exceptions_arrive_as_they_are() -> None:
    error = PipelineError("one line")
    assert failure(error).error is error
    assert str(pickle.loads(pickle.dumps(error))) == "one line"
