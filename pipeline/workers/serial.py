"""One item after the other in this process, where a debugger sees it. News are passed on when their item is done."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from pipeline.workers.task import Finished, Started, Task


def run_serially(make_task: Callable[[], Task], items: Sequence[Any]) -> Iterator[Any]:
    """Yields as `run_in_processes` does. An exception of a task leaves as it is, with its own traceback."""
    if not items:
        return
    task = make_task()
    for item in items:
        yield Started(item, worker=f"pid {os.getpid()}")
        news: list[Any] = []
        result = task(item, news.append)
        yield from news
        yield Finished(result)
