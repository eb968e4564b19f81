from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from typing import Any

import pytest

from pipeline.executors import Finished, run_in_processes
from pipeline.worker_start import warm_up


def look_around(item: int, tell: Callable[[Any], None]) -> tuple[str | None, str | None]:
    return os.environ.get("SET_LATE"), os.environ.get("REMOVED_LATE")


def imported(item: int, tell: Callable[[Any], None]) -> bool:
    return "pipeline.unit" in sys.modules


def constant(task: Any) -> Any:
    return task


def results(task: Any, count: int = 1) -> list[Any]:
    messages = run_in_processes(functools.partial(constant, task), range(count), workers=1)
    return [message.result for message in messages if isinstance(message, Finished)]


def test_workers_have_the_environment_that_their_parent_has_now(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REMOVED_LATE", "1")
    warm_up()
    monkeypatch.setenv("SET_LATE", "1")
    monkeypatch.delenv("REMOVED_LATE")
    assert results(look_around) == [("1", None)]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere workers are spawned")
def test_workers_come_of_a_server_that_has_imported_what_they_need() -> None:
    assert results(imported) == [True]
